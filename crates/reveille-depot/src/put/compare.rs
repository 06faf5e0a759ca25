//! The first pass over a new version: which of its pages are zero, which are in the parent, which must be stored.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::{Order, PutError};
use crate::depot::{Depot, Stage};
use crate::format::chunk::{CHUNK_PAGES_MAX, decode_head, head_bytes};
use crate::format::manifest::Manifest;
use crate::format::map::{ChunkRef, Run};
use crate::names::VersionId;
use crate::objects::ObjectError;
use crate::pages::{ContentSum, PAGE, PAGE_BYTES, PageHash, is_zero, pages_of};
use crate::source::{NewPart, Span};
use reveille_failpoint::failpoint;

/// Most pages, of the parent and of the new version each, that are found wherever they lie and not only at the same
/// place: 4 GiB.
const INDEX_PAGES_MAX: usize = 1 << 20;
/// Pages that are read at once.
const BATCH_PAGES: u64 = CHUNK_PAGES_MAX as u64;
/// A chunk is left when the new version uses less than one in so many of its pages.
const LIVE_SHARE_MIN: usize = 4;
/// Fewer pages than this of one chunk are few, however small the chunk is.
const FEW_PAGES: usize = CHUNK_PAGES_MAX / LIVE_SHARE_MIN;
/// So many chunks of which only few pages are used may be, before these are brought together in new ones.
const FEW_CHUNKS_MAX: usize = 8;

/// The version that a new one is compared with.
#[derive(Default)]
pub(super) struct Parent {
    pub id: Option<VersionId>,
    pub manifest: Option<Manifest>,
    /// For each of its chunks the hashes of its pages; none if that could not be read.
    pub heads: Vec<Option<Arc<[PageHash]>>>,
    /// For each of its chunks whether new versions may use it. Not if it is sealed otherwise than new ones are.
    shareable: Vec<bool>,
    index: HashMap<PageHash, (u32, u16)>,
}

impl Parent {
    pub(super) fn chunk(&self, index: u32) -> Option<&ChunkRef> {
        self.manifest.as_ref()?.chunks.get(usize::try_from(index).ok()?)
    }

    fn hash(&self, chunk: u32, place: u16) -> Option<PageHash> {
        let head = self.heads.get(usize::try_from(chunk).ok()?)?.as_ref()?;
        head.get(usize::from(place)).copied()
    }

    fn may_share(&self, chunk: u32) -> bool {
        usize::try_from(chunk).ok().and_then(|index| self.shareable.get(index)).is_some_and(|may| *may)
    }

    /// Where a page with this hash is, at best where it was.
    fn find(&self, part: &str, page: u64, hash: PageHash) -> Option<(u32, u16)> {
        let same = || self.manifest.as_ref()?.part(part)?.map.find(page);
        let at_same_place = same().filter(|&(chunk, place)| self.hash(chunk, place) == Some(hash));
        at_same_place.or_else(|| self.index.get(&hash).copied()).filter(|(chunk, _)| self.may_share(*chunk))
    }
}

/// Where the content of some pages that follow each other is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    /// In a chunk of the parent, from this place on; whether the part's source has it too.
    Parent { chunk: u32, place: u16, readable: bool },
    /// Among the pages that are to be stored, from this number on.
    Fresh(u64),
}

/// Pages that follow each other, in a part and where they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    pub page: u64,
    pub count: u64,
    pub from: From,
}

/// A part after the first pass: its pages that are not zero.
pub(super) struct ComparedPart {
    pub name: String,
    pub bytes: u64,
    pub content: ContentSum,
    pub pieces: Vec<Piece>,
}

impl ComparedPart {
    pub(super) fn push(&mut self, page: u64, from: From) {
        if let Some(last) = self.pieces.last_mut()
            && last.page + last.count == page
        {
            let goes_on = match (last.from, from) {
                (From::Fresh(first), From::Fresh(next)) => first + last.count == next,
                (
                    From::Parent { chunk, place, readable },
                    From::Parent { chunk: chunk2, place: place2, readable: readable2 },
                ) => {
                    let same = chunk == chunk2 && readable == readable2;
                    same && u64::from(place) + last.count == u64::from(place2)
                }
                (From::Fresh(_), From::Parent { .. }) | (From::Parent { .. }, From::Fresh(_)) => false,
            };
            if goes_on {
                last.count += 1;
                return;
            }
        }
        self.pieces.push(Piece { page, count: 1, from });
    }
}

/// Where a page that is to be stored is read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Origin {
    /// From the source of a part.
    Source { part: u16, page: u64 },
    /// From a chunk of the parent.
    Parent { chunk: u32, place: u16 },
}

/// A page that is to be stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fresh {
    pub origin: Origin,
    pub hash: PageHash,
}

/// What the first pass found.
pub(super) struct Compared {
    pub parts: Vec<ComparedPart>,
    pub fresh: Vec<Fresh>,
}

impl Compared {
    /// Names, lengths and contents of the parts.
    pub(super) fn contents(&self) -> Vec<(String, u64, String)> {
        self.parts.iter().map(|part| (part.name.clone(), part.bytes, part.content.to_hex())).collect()
    }
}

impl Depot {
    /// Reads what the new version is compared with.
    pub(super) async fn parent(
        &self,
        order: &Order<'_>,
        parts: &[NewPart],
        id: Option<&VersionId>,
    ) -> Result<Parent, PutError> {
        let based = parts.iter().find_map(|part| Some((&part.name, part.source.base()?)));
        if let Some((part, base)) = based
            && Some(base) != id
        {
            let why = "the new version is to be compared with another one".to_owned();
            return Err(PutError::Base { part: part.clone(), base: base.clone(), why });
        }
        let Some(id) = id else { return Ok(Parent::default()) };
        let manifest = match (self.manifest(id).await, based) {
            (Ok(manifest), _) => manifest,
            (Err(ObjectError::Missing { .. } | ObjectError::Damaged { .. }), None) => {
                return Ok(Parent::default());
            }
            (
                Err(error @ (ObjectError::Missing { .. } | ObjectError::Damaged { .. })),
                Some((part, base)),
            ) => {
                return Err(PutError::Base {
                    part: part.clone(),
                    base: base.clone(),
                    why: error.to_string(),
                });
            }
            (Err(error), _) => return Err(error.into()),
        };
        let newest = self.keys.newest().map(crate::seal::SealKey::id);
        let key = |chunk: &ChunkRef| manifest.keys.get(usize::from(chunk.key).wrapping_sub(1)).copied();
        let shareable: Vec<bool> = manifest.chunks.iter().map(|chunk| key(chunk) == newest).collect();
        let heads: Vec<_> = stream::iter(manifest.chunks.clone())
            .map(|chunk| async move {
                order.check_cancel()?;
                match self.head_of(&chunk).await {
                    Ok(head) => Ok(Some(head)),
                    // What is not there or not whole is not shared but stored anew.
                    Err(ObjectError::Missing { .. } | ObjectError::Damaged { .. }) => Ok(None),
                    Err(error) => Err(PutError::from(error)),
                }
            })
            .buffered(self.parallel)
            .try_collect()
            .await?;
        failpoint!("depot.put.parent");
        let mut parent = Parent {
            id: Some(id.clone()),
            manifest: Some(manifest),
            heads,
            shareable,
            index: HashMap::new(),
        };
        parent.index = index(&parent);
        Ok(parent)
    }

    /// The hashes of a chunk's pages.
    async fn head_of(&self, chunk: &ChunkRef) -> Result<Arc<[PageHash]>, ObjectError> {
        if let Some(kept) = self.kept_head(chunk.name) {
            return Ok(kept);
        }
        let path = chunk.name.path();
        let bytes = head_bytes(usize::from(chunk.pages), chunk.key != 0) as u64;
        let head = self.objects.get_range(&path, 0..bytes).await?;
        let hashes: Arc<[PageHash]> =
            decode_head(&head, chunk.name, &self.keys).map_err(ObjectError::damaged(&path))?.into();
        self.keep_head(chunk.name, Arc::clone(&hashes));
        Ok(hashes)
    }

    /// The first pass.
    pub(super) async fn compare(
        &self,
        order: &Order<'_>,
        parts: &Arc<[NewPart]>,
        parent: &Parent,
    ) -> Result<Compared, PutError> {
        let mut compared = Compared { parts: Vec::new(), fresh: Vec::new() };
        let mut known: HashMap<PageHash, u64> = HashMap::new();
        for (index, new) in parts.iter().enumerate() {
            let bytes = new.source.bytes();
            let mut part = ComparedPart {
                name: new.name.clone(),
                bytes,
                content: ContentSum::default(),
                pieces: Vec::new(),
            };
            let spans = spans(new, pages_of(bytes))?;
            let total = spans.iter().map(|(_, first, end)| (end - first) * PAGE).sum();
            let mut done = 0;
            let mut read = stream::iter(spans)
                .map(|(span, first, end)| self.read_batch(order, parts, index, span, first..end))
                .buffered(self.workers + 1);
            while let Some((first, end, hashes)) = read.try_next().await? {
                match hashes {
                    None => as_parent(&mut part, parent, first..end, new)?,
                    Some(hashes) => {
                        for (page, hash) in (first..end).zip(hashes) {
                            let Some(hash) = hash else { continue };
                            part.content.add(page, hash);
                            let from = match (parent.find(&new.name, page, hash), known.get(&hash)) {
                                (Some((chunk, place)), _) => From::Parent { chunk, place, readable: true },
                                (None, Some(number)) => From::Fresh(*number),
                                (None, None) => {
                                    let number = compared.fresh.len() as u64;
                                    let part = u16::try_from(index).unwrap_or(u16::MAX);
                                    compared
                                        .fresh
                                        .push(Fresh { origin: Origin::Source { part, page }, hash });
                                    if known.len() < INDEX_PAGES_MAX {
                                        known.insert(hash, number);
                                    }
                                    From::Fresh(number)
                                }
                            };
                            part.push(page, from);
                        }
                    }
                }
                done += (end - first) * PAGE;
                order.watch.tell(Stage::Compare, done, total);
            }
            compared.parts.push(part);
        }
        compact(&mut compared, parent);
        Ok(compared)
    }

    async fn read_batch(
        &self,
        order: &Order<'_>,
        parts: &Arc<[NewPart]>,
        part: usize,
        span: Span,
        pages: std::ops::Range<u64>,
    ) -> Result<(u64, u64, Option<Vec<Option<PageHash>>>), PutError> {
        order.check_cancel()?;
        let (first, end) = (pages.start, pages.end);
        match span {
            Span::Zeros | Span::AsParent => return Ok((first, end, None)),
            Span::Content => {}
        }
        let parts = Arc::clone(parts);
        let read = self.work("a part", move || {
            let Some(part) = parts.get(part) else { return Ok::<_, PutError>(Vec::new()) };
            let mut buffer = vec![0; usize::try_from(end - first).unwrap_or_default() * PAGE_BYTES];
            part.source.read(first, &mut buffer).map_err(|source| PutError::Source {
                part: part.name.clone(),
                page: first,
                source,
            })?;
            let (pages, _) = buffer.as_chunks::<PAGE_BYTES>();
            Ok(pages.iter().map(|page| (!is_zero(page)).then(|| PageHash::of(page))).collect())
        });
        Ok((first, end, Some(read.await??)))
    }
}

/// The runs of a part that are not zeros, none longer than a batch where it is read.
fn spans(part: &NewPart, pages: u64) -> Result<Vec<(Span, u64, u64)>, PutError> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < pages {
        let failed = |source| PutError::Source { part: part.name.clone(), page: at, source };
        let (span, end) = part.source.span(at).map_err(failed)?;
        // A source that does not get on would be asked for ever.
        let end = end.clamp(at + 1, pages);
        match span {
            Span::Zeros => {}
            Span::AsParent => all.push((span, at, end)),
            Span::Content => {
                let step = usize::try_from(BATCH_PAGES).unwrap_or(1);
                all.extend((at..end).step_by(step).map(|from| (span, from, (from + BATCH_PAGES).min(end))));
            }
        }
        at = end;
    }
    Ok(all)
}

/// Takes over the parent's pages.
fn as_parent(
    part: &mut ComparedPart,
    parent: &Parent,
    pages: std::ops::Range<u64>,
    new: &NewPart,
) -> Result<(), PutError> {
    let gone = |why: String| match new.source.base() {
        Some(base) => PutError::Base { part: new.name.clone(), base: base.clone(), why },
        None => PutError::Source {
            part: new.name.clone(),
            page: pages.start,
            source: std::io::Error::other("it speaks of a version and does not say of which"),
        },
    };
    let Some(old) = parent.manifest.as_ref().and_then(|manifest| manifest.part(&new.name)) else {
        return Err(gone("that has no such part".to_owned()));
    };
    if new.source.base() != parent.id.as_ref() {
        return Err(gone("the new version is compared with another one".to_owned()));
    }
    let from = old.map.runs().partition_point(|run| run.end() <= pages.start);
    for run in old.map.runs().iter().skip(from).take_while(|run| run.page < pages.end) {
        let Run { page, place, chunk, .. } = *run;
        for at in run.page.max(pages.start)..run.end().min(pages.end) {
            let place = place.saturating_add(u16::try_from(at - page).unwrap_or(u16::MAX));
            let Some(hash) = parent.hash(chunk, place) else {
                let name = parent.chunk(chunk).map(|chunk| chunk.name.path()).unwrap_or_default();
                return Err(gone(format!("its chunk `{name}` is gone or damaged")));
            };
            part.content.add(at, hash);
            part.push(at, From::Parent { chunk, place, readable: false });
        }
    }
    Ok(())
}

fn index(parent: &Parent) -> HashMap<PageHash, (u32, u16)> {
    let mut index = HashMap::new();
    for (chunk, (head, shareable)) in parent.heads.iter().zip(&parent.shareable).enumerate() {
        let (Some(head), true, Ok(chunk)) = (head, shareable, u32::try_from(chunk)) else { continue };
        if index.len() + head.len() > INDEX_PAGES_MAX {
            break;
        }
        index.extend(head.iter().zip(0u16..).map(|(hash, place)| (*hash, (chunk, place))));
    }
    index
}

/// Stores anew what is in chunks of which the version would use little, or which new versions are not to use. So no
/// version holds much that is dead, and a long row of versions does not end up with pages from a thousand chunks.
fn compact(compared: &mut Compared, parent: &Parent) {
    let mut used: Vec<usize> = vec![0; parent.heads.len()];
    for piece in compared.parts.iter().flat_map(|part| &part.pieces) {
        if let From::Parent { chunk, .. } = piece.from
            && let Some(used) = used.get_mut(usize::try_from(chunk).unwrap_or(usize::MAX))
        {
            *used += usize::try_from(piece.count).unwrap_or(CHUNK_PAGES_MAX);
        }
    }
    let few = used.iter().filter(|used| (1..FEW_PAGES).contains(*used)).count();
    let left: Vec<bool> = (0u32..)
        .zip(&used)
        .map(|(chunk, &used)| {
            let pages = parent.chunk(chunk).map_or(0, |chunk| usize::from(chunk.pages));
            let mostly_dead = used * LIVE_SHARE_MIN < pages;
            used > 0 && (mostly_dead || few > FEW_CHUNKS_MAX && used < FEW_PAGES || !parent.may_share(chunk))
        })
        .collect();
    let is_left =
        |chunk: u32| left.get(usize::try_from(chunk).unwrap_or(usize::MAX)).is_some_and(|left| *left);
    for (index, part) in (0u16..).zip(&mut compared.parts) {
        for piece in std::mem::take(&mut part.pieces) {
            match piece.from {
                From::Parent { chunk, place, readable } if is_left(chunk) => {
                    for (page, place) in (piece.page..piece.page + piece.count).zip(place..) {
                        let Some(hash) = parent.hash(chunk, place) else { continue };
                        let origin = if readable {
                            Origin::Source { part: index, page }
                        } else {
                            Origin::Parent { chunk, place }
                        };
                        part.push(page, From::Fresh(compared.fresh.len() as u64));
                        compared.fresh.push(Fresh { origin, hash });
                    }
                }
                From::Parent { .. } | From::Fresh(_) => part.pieces.push(piece),
            }
        }
    }
}
