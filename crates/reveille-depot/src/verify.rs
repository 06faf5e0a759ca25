//! Checking a version where it lies.

use futures_util::stream::{self, StreamExt};

use crate::depot::{Depot, Stage, Watch};
use crate::fetch::uses;
use crate::format::Fault;
use crate::format::manifest::Manifest;
use crate::format::map::{ChunkRef, Run};
use crate::names::VersionId;
use crate::objects::ObjectError;
use crate::pages::{ContentSum, PAGE};

/// Faults that are told one by one; of the others only the number.
pub const FAULTS_MAX: usize = 100;

/// How thorough a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The manifest, and whether each chunk is there with its length.
    Lengths,
    /// Every page.
    Pages,
}

/// What a check found.
#[derive(Debug)]
pub struct Verified {
    /// The version's manifest, which is right.
    pub manifest: Manifest,
    /// Chunks that were looked at.
    pub chunks: u64,
    /// What is wrong, at most [`FAULTS_MAX`] of it.
    pub faults: Vec<ObjectError>,
    /// How much is wrong.
    pub faults_total: u64,
}

impl Depot {
    /// Checks a version. What is wrong with its chunks is in the answer.
    ///
    /// # Errors
    /// If the manifest is not there or damaged.
    pub async fn verify(&self, id: &VersionId, depth: Depth, watch: &Watch) -> Result<Verified, ObjectError> {
        let manifest = self.manifest(id).await?;
        let total = manifest.chunks.iter().map(|chunk| u64::from(chunk.pages) * PAGE).sum();
        let mut sums = vec![ContentSum::default(); manifest.parts.len()];
        let (mut done, mut chunks, mut faults, mut faults_total) = (0, 0, Vec::new(), 0);
        let all: Vec<_> = manifest.chunks.iter().copied().zip(uses(&manifest)).collect();
        let mut checking = stream::iter(all)
            .map(async |(chunk, uses)| (chunk, self.verify_chunk(chunk, uses, depth).await))
            .buffered(self.parallel);
        while let Some((chunk, checked)) = checking.next().await {
            chunks += 1;
            match checked {
                Ok(of_chunk) => of_chunk.iter().for_each(|(part, sum)| {
                    if let Some(all) = sums.get_mut(*part) {
                        all.merge(*sum);
                    }
                }),
                Err(error) => {
                    faults_total += 1;
                    if faults.len() < FAULTS_MAX {
                        faults.push(error);
                    }
                }
            }
            done += u64::from(chunk.pages) * PAGE;
            watch.tell(Stage::Verify, done, total);
            if watch.cancel.is_cancelled() {
                break;
            }
        }
        drop(checking);
        // Sums say something only if all of it was read.
        if depth == Depth::Pages && faults_total == 0 && chunks == manifest.chunks.len() as u64 {
            for (part, sum) in manifest.parts.iter().zip(&sums) {
                if sum.to_hex() != part.content {
                    let why = format!("part {} sums up to {}, not {}", part.name, sum.to_hex(), part.content);
                    faults_total += 1;
                    faults.push(ObjectError::damaged(&id.to_string())(Fault::new(0, why)));
                }
            }
        }
        Ok(Verified { manifest, chunks, faults, faults_total })
    }

    async fn verify_chunk(
        &self,
        chunk: ChunkRef,
        uses: Vec<(usize, Run)>,
        depth: Depth,
    ) -> Result<Vec<(usize, ContentSum)>, ObjectError> {
        let path = chunk.name.path();
        let wrong = |why: String| ObjectError::damaged(&path)(Fault::new(0, why));
        match depth {
            Depth::Lengths => {
                let found = self.objects.head(&path).await?.bytes;
                if found != u64::from(chunk.stored_bytes) {
                    return Err(wrong(format!(
                        "it has {found} bytes, the manifest says {}",
                        chunk.stored_bytes
                    )));
                }
                Ok(Vec::new())
            }
            Depth::Pages => {
                let decoded = self.chunk(chunk.name).await?;
                if decoded.hashes.len() != usize::from(chunk.pages) {
                    return Err(wrong(format!(
                        "it has {} pages, the manifest says {}",
                        decoded.hashes.len(),
                        chunk.pages
                    )));
                }
                let sum = |(part, run): (usize, Run)| {
                    let mut sum = ContentSum::default();
                    let hashes = decoded.hashes.iter().skip(usize::from(run.place));
                    (run.page..run.end()).zip(hashes).for_each(|(page, hash)| sum.add(page, *hash));
                    (part, sum)
                };
                Ok(uses.into_iter().map(sum).collect())
            }
        }
    }
}
