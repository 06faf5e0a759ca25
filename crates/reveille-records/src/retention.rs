//! Old files go: those of ours, by the date of their rows, and nothing else that somebody may have put beside them.

use reveille_core::model::Timestamp;

use crate::place::{Kind, day_of_directory, first_kept, is_own};
use crate::shelf::{Shelf, ShelfError};

/// Deletes the files of this kind whose date is more than `keep_days` before that of `now`. Gives how many there were.
///
/// # Errors
/// The object store does not list or delete; what was deleted before is gone.
pub async fn prune(shelf: &dyn Shelf, kind: Kind, keep_days: u64, now: Timestamp) -> Result<u64, ShelfError> {
    let (root, first_kept) = (kind.shelf(), first_kept(now, keep_days));
    let mut pruned = 0;
    for directory in shelf.directories(&root).await? {
        if day_of_directory(&directory).is_none_or(|day| *day >= *first_kept) {
            continue;
        }
        let directory = format!("{root}/{directory}");
        for path in shelf.list(&directory).await? {
            let name = path.strip_prefix(&directory).and_then(|rest| rest.strip_prefix('/'));
            if name.is_some_and(is_own) {
                shelf.delete(&path).await?;
                pruned += 1;
            }
        }
    }
    shelf.tidy().await?;
    Ok(pruned)
}
