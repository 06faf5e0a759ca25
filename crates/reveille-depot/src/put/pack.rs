//! The second pass over a new version: what must be stored goes into chunks, these to the store, and all of it into the
//! manifest.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::compare::{Compared, ComparedPart, Fresh, From, Origin, Parent};
use super::{Order, PutError};
use crate::depot::{Depot, Stage, salt};
use crate::format::Fault;
use crate::format::chunk::{self, CHUNK_BYTES_MAX, CHUNK_PAGES_MAX, Decoded, Encoded};
use crate::format::manifest::{Manifest, Part};
use crate::format::map::{ChunkRef, PageMap};
use crate::names::ChunkName;
use crate::objects::{ObjectError, Put};
use crate::pages::{PAGE, PAGE_BYTES};
use crate::seal::KeyId;
use crate::source::NewPart;
use reveille_failpoint::failpoint;

/// A chunk that was stored.
struct Stored {
    name: ChunkName,
    pages: usize,
    bytes: usize,
    key: Option<KeyId>,
}

impl Depot {
    /// Stores the new pages and says what the manifest is.
    pub(super) async fn store(
        &self,
        order: &Order<'_>,
        parts: &Arc<[NewPart]>,
        parent: &Parent,
        compared: Compared,
    ) -> Result<Manifest, PutError> {
        let total = compared.fresh.len() as u64 * PAGE;
        let groups = compared.fresh.chunks(CHUNK_PAGES_MAX).map(<[Fresh]>::to_vec).collect::<Vec<_>>();
        let mut storing = stream::iter(groups)
            .map(|group| self.store_chunk(order, parts, parent, group))
            .buffered(self.parallel);
        let mut stored = Vec::new();
        let mut done = 0;
        while let Some(chunk) = storing.try_next().await? {
            done += chunk.pages as u64 * PAGE;
            stored.push(chunk);
            order.watch.tell(Stage::Store, done, total);
        }
        drop(storing);
        describe(order, parent, &compared.parts, &stored)
    }

    async fn store_chunk(
        &self,
        order: &Order<'_>,
        parts: &Arc<[NewPart]>,
        parent: &Parent,
        group: Vec<Fresh>,
    ) -> Result<Stored, PutError> {
        order.check_cancel()?;
        order.too_slow((self.stopwatch)().saturating_sub(order.started_ms))?;
        let mut buffer = vec![0; group.len() * PAGE_BYTES];
        self.copy_from_parent(parent, &group, &mut buffer).await?;
        let (parts, keys, level) = (Arc::clone(parts), Arc::clone(&self.keys), self.zstd_level);
        let salt = salt("chunks")?;
        let encode = move || -> Result<Result<Encoded, Fault>, PutError> {
            read_sources(&parts, &group, &mut buffer)?;
            let encoded = match chunk::encode(&buffer, salt, keys.newest(), level) {
                Ok(encoded) => encoded,
                Err(fault) => return Ok(Err(fault)),
            };
            let changed = group.iter().zip(&encoded.hashes).find(|(fresh, hash)| fresh.hash != **hash);
            match changed.map(|(fresh, _)| fresh.origin) {
                None => Ok(Ok(encoded)),
                Some(Origin::Source { part, page }) => {
                    let part = parts.get(usize::from(part)).map(|part| part.name.clone()).unwrap_or_default();
                    Err(PutError::SourceChanged { part, page })
                }
                // Decoding a chunk has checked each page.
                Some(Origin::Parent { .. }) => Ok(Err(Fault::new(0, "a page of the parent was mixed up"))),
            }
        };
        let encoded = self.work("a chunk", encode).await??.map_err(order.invalid())?;
        let Encoded { name, bytes, hashes, key } = encoded;
        let (pages, length) = (hashes.len(), bytes.len());
        failpoint!("depot.put.chunk");
        self.objects.put(&name.path(), Bytes::from(bytes), Put::Always).await?;
        self.keep_head(name, hashes.into());
        Ok(Stored { name, pages, bytes: length, key })
    }

    /// Pages that only the parent's chunks have.
    async fn copy_from_parent(
        &self,
        parent: &Parent,
        group: &[Fresh],
        buffer: &mut [u8],
    ) -> Result<(), PutError> {
        let mut wanted: Vec<(u32, u16, usize)> = (0..)
            .zip(group)
            .filter_map(|(slot, fresh)| match fresh.origin {
                Origin::Parent { chunk, place } => Some((chunk, place, slot)),
                Origin::Source { .. } => None,
            })
            .collect();
        wanted.sort_unstable();
        let (slots, _) = buffer.as_chunks_mut::<PAGE_BYTES>();
        let mut open: Option<(u32, Decoded)> = None;
        for (chunk, place, slot) in wanted {
            if open.as_ref().is_none_or(|(opened, _)| *opened != chunk) {
                let Some(chunk_ref) = parent.chunk(chunk) else { continue };
                open = Some((chunk, self.chunk(chunk_ref.name).await?));
            }
            if let (Some((_, decoded)), Some(to)) = (&open, slots.get_mut(slot))
                && let Some(from) = decoded.page(usize::from(place))
            {
                to.copy_from_slice(from);
            }
        }
        Ok(())
    }

    /// A chunk, each page checked.
    pub(crate) async fn chunk(&self, name: ChunkName) -> Result<Decoded, ObjectError> {
        let path = name.path();
        let (bytes, _) = self.objects.get(&path, CHUNK_BYTES_MAX as u64).await?;
        let keys = Arc::clone(&self.keys);
        let decoded = self.work(&path, move || chunk::decode(&bytes, name, &keys)).await?;
        decoded.map_err(ObjectError::damaged(&path))
    }
}

/// Reads what the sources have of a group, pages that follow each other at once.
fn read_sources(parts: &[NewPart], group: &[Fresh], buffer: &mut [u8]) -> Result<(), PutError> {
    let mut slot = 0;
    while let Some(fresh) = group.get(slot) {
        let Origin::Source { part, page } = fresh.origin else {
            slot += 1;
            continue;
        };
        let follows = |(origin, offset): (Origin, u64)| match origin {
            Origin::Source { part: part2, page: page2 } => part2 == part && page2 == page + offset,
            Origin::Parent { .. } => false,
        };
        let rest = group.iter().skip(slot).map(|fresh| fresh.origin).zip(0..);
        let count = rest.take_while(|next| follows(*next)).count();
        let into = buffer.get_mut(slot * PAGE_BYTES..(slot + count) * PAGE_BYTES);
        if let (Some(part), Some(into)) = (parts.get(usize::from(part)), into) {
            part.source.read(page, into).map_err(|source| PutError::Source {
                part: part.name.clone(),
                page,
                source,
            })?;
        }
        slot += count.max(1);
    }
    Ok(())
}

/// Puts the tables of the manifest together: the chunks of the parent that are still used, then the new ones.
fn describe(
    order: &Order<'_>,
    parent: &Parent,
    parts: &[ComparedPart],
    stored: &[Stored],
) -> Result<Manifest, PutError> {
    let invalid = |why: &str| PutError::Invalid { id: order.id().clone(), why: why.to_owned() };
    let mut manifest = Manifest {
        about: order.about.clone(),
        own_bytes: 0,
        shared_bytes: 0,
        keys: Vec::new(),
        chunks: Vec::new(),
        parts: Vec::new(),
    };
    let mut renumbered: Vec<Option<u32>> = vec![None; parent.heads.len()];
    for piece in parts.iter().flat_map(|part| &part.pieces) {
        let From::Parent { chunk, .. } = piece.from else { continue };
        let (Some(old), Some(number)) =
            (parent.chunk(chunk), usize::try_from(chunk).ok().and_then(|index| renumbered.get_mut(index)))
        else {
            return Err(invalid("a page is in a chunk that its parent does not have"));
        };
        if number.is_none() {
            *number = u32::try_from(manifest.chunks.len()).ok();
            let key = parent
                .manifest
                .as_ref()
                .and_then(|parent| parent.keys.get(usize::from(old.key).wrapping_sub(1)).copied());
            manifest.shared_bytes += u64::from(old.stored_bytes);
            let key = key_number(&mut manifest.keys, key);
            manifest.chunks.push(ChunkRef { key, ..*old });
        }
    }
    let first_new = manifest.chunks.len();
    for chunk in stored {
        manifest.own_bytes += chunk.bytes as u64;
        let too_many = |_| invalid("a chunk is too large");
        let pages = u16::try_from(chunk.pages).map_err(too_many)?;
        let stored_bytes = u32::try_from(chunk.bytes).map_err(too_many)?;
        let key = key_number(&mut manifest.keys, chunk.key);
        manifest.chunks.push(ChunkRef { name: chunk.name, pages, stored_bytes, key });
    }
    for part in parts {
        let mut map = PageMap::default();
        for piece in &part.pieces {
            for offset in 0..piece.count {
                let (chunk, place) = match piece.from {
                    From::Parent { chunk, place, .. } => {
                        let number = usize::try_from(chunk).ok().and_then(|index| *renumbered.get(index)?);
                        (number, u16::try_from(u64::from(place) + offset).ok())
                    }
                    From::Fresh(number) => {
                        let number = number + offset;
                        let chunk = first_new as u64 + number / CHUNK_PAGES_MAX as u64;
                        let place = number % CHUNK_PAGES_MAX as u64;
                        (u32::try_from(chunk).ok(), u16::try_from(place).ok())
                    }
                };
                let (Some(chunk), Some(place)) = (chunk, place) else {
                    return Err(invalid("it has more chunks than a manifest can name"));
                };
                map.push(piece.page + offset, chunk, place);
            }
        }
        manifest.parts.push(Part {
            name: part.name.clone(),
            bytes: part.bytes,
            content: part.content.to_hex(),
            map,
        });
    }
    Ok(manifest)
}

/// The number of a key in the manifest, 0 for none.
fn key_number(keys: &mut Vec<KeyId>, key: Option<KeyId>) -> u16 {
    let Some(key) = key else { return 0 };
    let index = keys.iter().position(|known| *known == key).unwrap_or_else(|| {
        keys.push(key);
        keys.len() - 1
    });
    u16::try_from(index + 1).unwrap_or(u16::MAX)
}
