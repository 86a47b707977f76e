//! Partitions that are added and removed while others are read.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::ensure;
use shared_connections::log::Reader;
use shared_schemas::handoff::Offset;

use super::{Log, slice};

/// Reads until each partition has come so far, each without a hole.
async fn follow(reader: &mut Reader, next: &mut BTreeMap<u32, u64>, ends: [u64; 5]) -> anyhow::Result<()> {
    while next.iter().any(|(number, next)| *next < ends[*number as usize]) {
        go_on(reader, next).await?;
    }
    Ok(())
}

/// Reads one slice, and says of which partition.
async fn go_on(reader: &mut Reader, next: &mut BTreeMap<u32, u64>) -> anyhow::Result<u32> {
    let slice = slice(reader).await?;
    let before = next.insert(slice.partition, slice.next.0);
    ensure!(before == Some(slice.from.0), "{slice:?} does not follow on {before:?}");
    let offsets: Vec<u64> = slice.records.iter().map(|record| record.offset.0).collect();
    let all: Vec<u64> = (slice.from.0..slice.next.0).collect();
    assert_eq!(offsets, all);
    Ok(slice.partition)
}

/// Each is read from where it is said, and no record twice.
#[tokio::test]
async fn partitions_come_and_go_while_others_are_read() -> anyhow::Result<()> {
    let log = Log::new(5).await?;
    for number in 0..5 {
        log.events(number, 0..3_000).await?;
    }
    let mut reader = log.read(&[(0, 0), (1, 1), (2, 2)])?;
    for number in 3..5 {
        reader.add(&log.options(), &BTreeMap::from([(number, Offset(number.into()))]))?;
    }
    let mut next: BTreeMap<u32, u64> = (0..5).map(|number| (number, number.into())).collect();
    // Others were gathered together with the first slice. What came of them and was not taken comes again, once.
    let first = go_on(&mut reader, &mut next).await?;
    let others: BTreeSet<u32> = (0..5).filter(|number| *number != first).collect();
    reader.remove(&others);
    let again = others.iter().map(|number| (*number, Offset(next[number])));
    reader.add(&log.options(), &again.collect())?;
    follow(&mut reader, &mut next, [3_000; 5]).await?;

    reader.remove(&BTreeSet::from([0, 3, 4]));
    reader.add(
        &log.options(),
        &BTreeMap::from([(4, Offset(2_990)), (0, Offset(1_000)), (1, Offset(2_999))]),
    )?;
    next.extend([(4, 2_990), (0, 1_000), (1, 2_999)]);
    next.remove(&3);
    for number in 0..5 {
        log.events(number, 0..10).await?;
    }
    follow(&mut reader, &mut next, [3_010; 5]).await?;
    assert_eq!(next, [0, 1, 2, 4].map(|number| (number, 3_010)).into());
    reader.stop().await;
    Ok(())
}
