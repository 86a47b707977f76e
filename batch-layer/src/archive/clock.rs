//! What time the archive's object store says it is: the second clock where ClickHouse can't be asked.
//!
//! A store tells of each object when it was written, by its own clock. So a small object is written, looked at, and removed.
//! A folder's files tell what this machine's clock says, which is no second one: nobody is asked then.

use chrono::{DateTime, Utc};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use shared_connections::sentence;
use shared_schemas::config::ArchiveUrl;
use uuid::Uuid;

use super::table::Archive;
use crate::clock::{Today, Whose};

/// Where such objects are. One is left behind only where its writer ended before it had removed it.
pub(super) const FOLDER: &str = "_clock";

impl Archive {
    /// Which day it is, where ClickHouse did not say it: as this machine's clock and the store's agree.
    pub(super) async fn today_without_clickhouse(&self, url: &ArchiveUrl, why: &str) -> Today {
        if matches!(url, ArchiveUrl::Folder(_)) {
            return Today::Unknown(why.to_owned());
        }
        match time_of(&*self.log.object_store(None)).await {
            Ok(theirs) => Today::told(Whose::Store, theirs),
            Err(error) => {
                let store = sentence(&error);
                Today::Unknown(format!("{why}; nor can the archive's object store: {store}"))
            }
        }
    }
}

/// When the store says that an object was written that was written just now.
async fn time_of(store: &dyn ObjectStore) -> object_store::Result<DateTime<Utc>> {
    // A name of its own: another one's object may be gone, or older.
    let path = Path::from_iter([FOLDER, &Uuid::new_v4().simple().to_string()]);
    store.put(&path, PutPayload::from_static(b"now")).await?;
    let written = store.head(&path).await;
    if let Err(error) = store.delete(&path).await {
        tracing::debug!(%path, %error, "an object of no use is left behind");
    }
    Ok(written?.last_modified)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn a_store_says_what_time_it_is() {
        let store = InMemory::new();
        let (before, said, after) = (Utc::now(), time_of(&store).await.unwrap(), Utc::now());
        assert!(before <= said && said <= after, "{before} {said} {after}");
        let left: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert_eq!(left, []);
    }
}
