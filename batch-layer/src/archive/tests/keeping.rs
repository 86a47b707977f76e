//! Days that the dataset no longer keeps: out of the archive, for good, and nothing else.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use shared_schemas::handoff::EventDay;
use tokio_util::sync::CancellationToken;

use super::super::optimize::Upkeep;
use super::{Archive, Commit, Site, decoded, flights, offsets, partition, range, rows};

/// 2013-10-31, so that the first of November is day 1.
const BEFORE: i32 = 16_009;

fn upkeep(horizon: Option<i32>, dry_run: bool) -> Upkeep {
    Upkeep {
        target_file: 1 << 20,
        keep_removed: Duration::from_secs(3600),
        horizon: horizon.map(|day| EventDay(BEFORE + day)),
        deletes: true,
        dry_run,
    }
}

/// What should be there.
#[derive(Debug, Default)]
struct Expected {
    /// The day of each event that was archived.
    archived: Vec<i32>,
    /// Offsets that were taken out.
    gone: Vec<u64>,
    horizon: i32,
}

impl Expected {
    fn lets_go(&mut self, horizon: i32) {
        let horizon = horizon.max(self.horizon);
        let goes = |(at, day): (usize, &i32)| {
            let offset = u64::try_from(at).unwrap();
            (*day < horizon && !self.gone.contains(&offset)).then_some(offset)
        };
        let more: Vec<_> = self.archived.iter().enumerate().filter_map(goes).collect();
        if !more.is_empty() {
            self.gone.extend(more);
            self.horizon = horizon;
        }
    }

    fn is_read(&self, offset: u64) -> bool {
        let day = self.archived[usize::try_from(offset).unwrap()];
        day >= self.horizon && !self.gone.contains(&offset)
    }
}

/// What each step did is read back by a handle that knows nothing of it.
async fn check(site: &Site, expected: &Expected) {
    let archive = Archive::open(&site.config(), &flights()).await.unwrap().unwrap();
    let end = expected.archived.len() as u64;
    assert_eq!(archive.ends()[&partition(0)].0, end, "the archiver would go back");
    assert!(archive.gaps().is_empty());
    let pinned = archive.pin().await.unwrap();
    let there: Vec<_> = offsets(&pinned).await.into_iter().map(|(_, offset)| offset).collect();
    let wanted: Vec<_> = (0..end).filter(|offset| expected.is_read(*offset)).collect();
    assert_eq!(there, wanted, "{expected:?}");
    let last_gone = (0..end).filter(|offset| !expected.is_read(*offset)).max();
    for offset in 0..end {
        let told = pinned.may_lack(partition(0), range(offset, end));
        assert_eq!(
            told,
            last_gone.is_some_and(|last| offset <= last),
            "{offset} {expected:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// Whatever is archived and let go in turn, by handles that know nothing of each other: all events of the days that are kept
    /// are read, no others; the ends stay, and it is known below which offsets something may be lacking.
    #[test]
    fn what_is_kept_is_all_there(
        steps in prop::collection::vec((prop::collection::vec(1_i32..=4, 0..5), prop::option::of(1_i32..=4)), 1..5),
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let (site, dataset) = (Site::new(), flights());
            let mut archiver = site.archive(&dataset).await;
            let mut keeper = site.archive(&dataset).await;
            let mut expected = Expected::default();
            archiver.commit(&Commit { ranges: [(partition(0), range(0, 0))].into(), ..Commit::default() }).await.unwrap();
            for (days, horizon) in steps {
                let from = expected.archived.len() as u64;
                let to = from + days.len() as u64;
                let value = |offset: u64| {
                    let day = days[usize::try_from(offset - from).unwrap()];
                    format!(r#"{{"at":"2013-11-0{day}T12:00:00Z","origin":"JFK"}}"#)
                };
                let batches = decoded(&dataset, partition(0), range(from, to), value);
                let commit = Commit { ranges: [(partition(0), range(from, to))].into(), batches, ..Commit::default() };
                archiver.commit(&commit).await.unwrap();
                expected.archived.extend(&days);
                if let Some(horizon) = horizon {
                    let would = keeper.optimize(&upkeep(Some(horizon), true), &CancellationToken::new()).await.unwrap();
                    let did = keeper.optimize(&upkeep(Some(horizon), false), &CancellationToken::new()).await.unwrap();
                    assert_eq!(would.let_go, did.let_go);
                    let before = expected.gone.len();
                    expected.lets_go(horizon);
                    assert_eq!(did.let_go.files > 0, expected.gone.len() > before);
                }
                check(&site, &expected).await;
            }
        });
    }
}

/// A version that was pinned before reads on, until the time of its files is over.
#[tokio::test]
async fn what_was_pinned_is_read_on() {
    let (site, dataset) = (Site::new(), flights());
    let mut archive = site.archive(&dataset).await;
    archive
        .commit(&super::commit(&dataset, partition(0), range(0, 30)))
        .await
        .unwrap();
    let before = archive.pin().await.unwrap();
    let done = archive
        .optimize(&upkeep(Some(3), false), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!((done.before.files, done.let_go.files, done.deleted.files), (3, 2, 0));
    assert_eq!(done.horizon.as_deref(), Some("2013-11-03"));
    let after = archive.pin().await.unwrap();
    assert_eq!(after.version, before.version + 1, "one entry");
    assert_eq!((offsets(&before).await.len(), offsets(&after).await.len()), (30, 10));
    assert_eq!(after.ends, before.ends);

    // Nothing more goes: no entry is written.
    let again = archive
        .optimize(&upkeep(Some(3), false), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!((again.let_go.files, archive.version()), (0, after.version));
    // A longer `keep` brings nothing back.
    let longer = archive
        .optimize(&upkeep(None, false), &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(
        (longer.horizon.as_deref(), longer.let_go.files),
        (Some("2013-11-03"), 0)
    );
    // sleeps: a file is old once its time has passed
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let upkeep = Upkeep {
        keep_removed: Duration::ZERO,
        ..upkeep(Some(3), false)
    };
    // A reader that takes long says so: nothing is deleted.
    before.reading.say().await;
    let sign = || std::fs::read_dir(site.table().join("_readers")).unwrap().next();
    let held = archive.optimize(&upkeep, &CancellationToken::new()).await.unwrap();
    let who = held.in_need.unwrap();
    let expected = format!("no file is deleted for now: process {} on ", std::process::id());
    assert!(
        who.starts_with(&expected) && who.contains("reads version 1 since"),
        "{who}"
    );
    assert_eq!((held.deleted.files, offsets(&before).await.len()), (0, 30));

    // One that was killed says nothing more.
    let silent = SystemTime::now() - Duration::from_secs(2 * 3600);
    let file = std::fs::File::options()
        .write(true)
        .open(sign().unwrap().unwrap().path());
    file.unwrap().set_modified(silent).unwrap();
    let last = archive.optimize(&upkeep, &CancellationToken::new()).await.unwrap();
    assert_eq!((last.in_need, last.deleted.files, site.files().len()), (None, 2, 1));
    assert!(sign().is_none(), "what it left behind is removed");
    assert_eq!(offsets(&archive.pin().await.unwrap()).await.len(), 10);
    // It reads no other rows, and is not told of damage.
    let error = rows(&before).await.unwrap_err().to_string();
    assert!(error.contains("taken out while it was still to be read"), "{error}");

    // One that ends removes what it said.
    before.reading.say().await;
    assert!(sign().is_some());
    drop(before);
    while sign().is_some() {
        tokio::task::yield_now().await;
    }
}
