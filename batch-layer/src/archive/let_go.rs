//! Events of days that the dataset no longer keeps, taken out of the archive.
//!
//! What goes are files: each holds one event day. One entry of the log takes them out and says from which day on events are kept;
//! from that version on nobody reads what is older, also what arrives later. The ends of partitions stay, so the archiver does not go
//! back, and a day that is gone is no gap: nothing is lacking that anybody asks for.
//!
//! The files themselves are deleted as replaced ones are, after `archive.keep_removed`: a batch run reads the version that it
//! pinned for as long as it takes.

use deltalake::kernel::{Action, MetadataExt};
use deltalake::protocol::DeltaOperation;
use shared_schemas::handoff::EventDay;

use super::error::ArchiveError;
use super::optimize::{Files, TOLD_FOR, Upkeep, removed, told_for};
use super::pinned::{File, files_of};
use super::quarantine::TRIES;
use super::standing::PROPERTY;
use super::table::Archive;

impl Archive {
    /// Takes out events of days before the horizon, or tells what would go.
    ///
    /// # Errors
    /// [`ArchiveError::Log`] where the store fails: nothing was done, or it is found done the next time.
    pub(super) async fn let_go(&mut self, upkeep: &Upkeep) -> Result<(Option<EventDay>, Files), ArchiveError> {
        for _ in 0..TRIES {
            let horizon = self.standing.horizon.max(upkeep.horizon);
            let goes = |file: &File| horizon.is_some_and(|horizon| file.range.day < horizon);
            let mut files = files_of(&self.state, &self.place)?;
            files.retain(goes);
            let mut gone = Files::default();
            files.iter().for_each(|file| gone.add(file.size));
            // A day that nothing is archived of needs no entry.
            if files.is_empty() || upkeep.dry_run {
                return Ok((horizon, gone));
            }
            let before = self.version();
            let Err(error) = Box::pin(self.take_out_days(horizon, &files, upkeep)).await else {
                return Ok((horizon, gone));
            };
            // An archiver came first; or the entry is there all the same.
            self.overtaken(before, error).await?;
            let left = files_of(&self.state, &self.place)?;
            if !files.iter().any(|file| left.iter().any(|one| one.path == file.path)) {
                return Ok((horizon, gone));
            }
        }
        Err(self.crowded())
    }

    async fn take_out_days(
        &mut self,
        horizon: Option<EventDay>,
        files: &[File],
        upkeep: &Upkeep,
    ) -> Result<(), ArchiveError> {
        let after = self.standing.clone();
        let after = after.kept_from(horizon, files.iter().map(|file| file.range));
        let metadata = self.state.metadata().clone();
        let metadata = metadata
            .add_config_key(PROPERTY.to_owned(), after.text())
            .and_then(|metadata| metadata.add_config_key(TOLD_FOR.to_owned(), told_for(upkeep)));
        let metadata = metadata.map_err(|error| self.failed_schema(error))?;
        let mut actions = vec![Action::Metadata(metadata)];
        actions.extend(files.iter().map(|file| Action::Remove(removed(file, true))));
        self.append(actions, DeltaOperation::Delete { predicate: None }, Vec::new(), None)
            .await?;
        self.standing = after;
        Ok(())
    }
}
