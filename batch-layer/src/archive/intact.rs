//! Whether a file is what its log entry says: read to its end, every column, with its checksums.
//!
//! Runs read the columns that they need. What is decided for good about a file rests on all of it.

use std::sync::Arc;

use futures::TryStreamExt;
use object_store::ObjectStore;

use super::error::ArchiveError;
use super::files::{Summary, offsets};
use super::pinned::{File, damaged};
use super::scan::open_whole;

/// Rows that are looked at at a time.
const BATCH_ROWS: usize = 1024;

/// What a file holds, where it is whole.
///
/// # Errors
/// [`ArchiveError::File`] where it is damaged, [`ArchiveError::Away`] where the store does not give it.
pub(super) async fn intact(store: &Arc<dyn ObjectStore>, place: &str, file: &File) -> Result<Summary, ArchiveError> {
    let (_, mut batches) = open_whole(store, place, file, BATCH_ROWS).await?;
    let mut all = Summary::default();
    let mut span = None;
    while let Some(batch) = batches.try_next().await? {
        let Some((low, high)) = offsets(&batch) else {
            return Err(damaged(place, &file.path, "it lacks offsets"));
        };
        span = Some(span.map_or((low, high), |(first, last)| (low.min(first), high.max(last))));
        all.add(&batch);
    }
    if span != Some((file.range.first, file.range.last)) {
        let what = "its offsets are not those that its log entry says";
        return Err(damaged(place, &file.path, what));
    }
    Ok(all)
}
