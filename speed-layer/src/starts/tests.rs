//! Starts, against logs with holes and readers that begin and end anywhere.

use proptest::prelude::*;

use super::*;

const CHUNK: u64 = 8;

fn chunk() -> ChunkSize {
    ChunkSize::new(CHUNK).unwrap()
}

/// A log with holes: the offsets that hold a record, ascending. The last one is what makes all before it final.
fn logs() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![8 => Just(1_u64), 2 => 2_u64..5, 1 => 8_u64..30], 1..60).prop_map(|steps| {
        let offsets = steps.iter().scan(0, |at, step| {
            *at += step;
            Some(*at - 1)
        });
        offsets.collect()
    })
}

/// What becomes of the record at an offset: a function of the log.
fn fate(offset: u64) -> Fate {
    match offset % 11 {
        0 | 5 => Fate::Accepted(Judgement::Repeat),
        1 => Fate::Accepted(Judgement::Unsure),
        2 => Fate::Refused(Reason::NotJson),
        3 => Fate::Refused(Reason::Empty),
        _ => Fate::Accepted(Judgement::First),
    }
}

/// What a view's plan makes of the events of a start: its filter lets every third offset not pass.
fn fold(starts: &mut Starts, records: &Records, taken: &[(Start, OffsetRange)]) {
    for (start, range) in taken {
        let within = |offset: Offset| offset >= range.from && offset < range.to;
        let counts = |fate: Fate| matches!(fate, Fate::Accepted(Judgement::First | Judgement::Unsure));
        let fates = records.fates.iter();
        let events: Vec<_> = fates.filter(|(at, fate)| within(*at) && counts(*fate)).collect();
        let passed = events.iter().filter(|(at, _)| at.0 % 3 != 0).count() as u64;
        starts.folded(&Counted {
            partition: 0,
            start: *start,
            events: events.len() as u64,
            filtered: Filtered { passed, failed: 0 },
        });
    }
}

/// What a reader that begins at `from` hands over, in slices that end after the records at these places.
fn slices(log: &[u64], from: u64, ends: &[usize]) -> Vec<Records> {
    let mine: Vec<u64> = log.iter().copied().filter(|offset| *offset >= from).collect();
    let mut places: Vec<usize> = ends
        .iter()
        .map(|end| end % (mine.len() + 1))
        .chain([mine.len()])
        .collect();
    places.sort_unstable();
    let (mut cursor, mut begun) = (from, 0);
    let mut slices = Vec::new();
    for place in places {
        if place > begun {
            let fates = mine[begun..place]
                .iter()
                .map(|offset| (Offset(*offset), fate(*offset)))
                .collect();
            let next = mine[place - 1] + 1;
            slices.push(Records {
                from: Offset(cursor),
                next: Offset(next),
                fates,
            });
            (cursor, begun) = (next, place);
        }
    }
    slices
}

fn starts_of(places: &[u64]) -> BTreeSet<Start> {
    places.iter().map(|at| Start(Offset(*at))).collect()
}

proptest! {
    /// Whatever readers hand over, in whatever order they take turns: a start takes each record of its chunk from its
    /// first offset on exactly once, in order, and its ledger adds up.
    #[test]
    fn a_start_takes_each_record_once(
        log in logs(),
        mark in 0_u64..40,
        cuts in prop::collection::vec(0_u64..60, 0..3),
        readers in prop::collection::vec((0_u64..60, prop::collection::vec(0_usize..60, 0..8)), 1..4),
        turns in prop::collection::vec(0_usize..4, 0..60),
    ) {
        let wanted = Wanted { mark: Mark(Offset(mark)), cuts: starts_of(&cuts), progress: SpeedProgress::default() };
        let mut queues: Vec<_> = readers.iter().map(|(from, ends)| slices(&log, *from, ends).into_iter()).collect();
        let mut starts = Starts::new(chunk());
        let mut taken: BTreeMap<Start, Vec<u64>> = BTreeMap::new();
        let rest = 0..queues.len();
        let order = turns.into_iter().map(|turn| turn % readers.len()).chain(rest.flat_map(|queue| vec![queue; 64]));
        for queue in order {
            let Some(records) = queues[queue].next() else { continue };
            for (start, range) in starts.take(&records, &wanted, "rules") {
                let events = records.fates.iter().map(|(offset, _)| *offset);
                let events = events.filter(|offset| *offset >= range.from && *offset < range.to);
                taken.entry(start).or_default().extend(events.map(|offset| offset.0));
            }
        }
        for (start, kept) in starts.kept() {
            prop_assert!(wanted.lacks(*start, chunk()));
            let to = kept.ledger.next.0;
            let expected: Vec<u64> = log.iter().copied().filter(|offset| *offset >= start.0.0 && *offset < to).collect();
            prop_assert_eq!(taken.get(start).cloned().unwrap_or_default(), expected);
            prop_assert_eq!(kept.ledger.read + kept.ledger.holes, to - start.0.0);
            prop_assert_eq!(kept.is_complete(), to == chunk().end(start.0).0);
        }
        // Nobody is left out: each reader begins the lacking starts that it comes by.
        for (from, _) in &readers {
            let end = log.last().map_or(0, |last| last + 1);
            for start in wanted.lacking(Offset(*from), Offset(end), chunk()) {
                prop_assert!(starts.kept().contains_key(&start), "{start:?}");
            }
        }
    }

    /// Whatever readers bring, also where the log has lost its head meanwhile: every ledger that may be shown adds up, and a
    /// start that lost nothing has the ledger that the log alone gives.
    #[test]
    fn every_ledger_adds_up(
        log in logs(),
        mark in 0_u64..40,
        cuts in prop::collection::vec(0_u64..60, 0..3),
        readers in prop::collection::vec((0_u64..60, 0_u64..40, prop::collection::vec(0_usize..60, 0..8)), 1..4),
        turns in prop::collection::vec(0_usize..4, 0..60),
    ) {
        let wanted = Wanted { mark: Mark(Offset(mark)), cuts: starts_of(&cuts), progress: SpeedProgress::default() };
        let steps = |(from, begin, ends): &(u64, u64, Vec<usize>)| {
            let lost = OffsetRange { from: Offset(*from), to: Offset(*begin) };
            let lost = (!lost.is_empty()).then_some(Err(lost));
            let read = slices(&log, *from.max(begin), ends).into_iter().map(Ok);
            lost.into_iter().chain(read).collect::<Vec<_>>().into_iter()
        };
        let mut queues: Vec<_> = readers.iter().map(steps).collect();
        let mut starts = Starts::new(chunk());
        let mut lossy = BTreeSet::new();
        let rest = (0..queues.len()).flat_map(|queue| vec![queue; 64]);
        for queue in turns.into_iter().map(|turn| turn % readers.len()).chain(rest) {
            match queues[queue].next() {
                None => continue,
                Some(Err(lost)) => lossy.extend(starts.lose(lost, &wanted, "rules").into_iter().map(|(start, _)| start)),
                Some(Ok(records)) => {
                    let taken = starts.take(&records, &wanted, "rules");
                    fold(&mut starts, &records, &taken);
                }
            }
            for (start, kept) in starts.to_show(&wanted).into_iter().flatten() {
                prop_assert_eq!(kept.ledger.balances(start), Ok(()), "{:?}", kept.ledger);
            }
        }
        for (start, kept) in starts.kept() {
            prop_assert_eq!(kept.ledger.balances(*start), Ok(()), "{:?}", kept.ledger);
            prop_assert!(kept.ledger.gap == 0 || lossy.contains(start));
            if lossy.contains(start) {
                continue;
            }
            let mut alone = Starts::new(chunk());
            let only = Wanted { mark: Mark(start.0), ..Wanted::default() };
            for records in slices(&log, start.0.0, &[]) {
                let upto = Records { next: records.next.min(kept.ledger.next), ..records };
                let taken = alone.take(&upto, &only, "rules");
                fold(&mut alone, &upto, &taken);
            }
            if kept.ledger.next > start.0 {
                prop_assert_eq!(&alone.kept()[start].ledger, &kept.ledger);
            }
        }
    }

    /// Progress is shown only as the hand-off allows, and in the end all of it.
    #[test]
    fn progress_is_shown_cuts_first(log in logs(), cuts in prop::collection::vec(0_u64..60, 0..4), ends in prop::collection::vec(0_usize..60, 0..8)) {
        let mut wanted = Wanted { cuts: starts_of(&cuts), ..Wanted::default() };
        let mut starts = Starts::new(chunk());
        for records in slices(&log, 0, &ends) {
            starts.take(&records, &wanted, "rules");
            for group in 0..2 {
                let shown: BTreeMap<Start, Option<Offset>> =
                    wanted.cuts.iter().map(|cut| (*cut, wanted.progress.next(*cut))).collect();
                let group = starts.to_show(&wanted)[group].iter().map(|(start, kept)| (*start, kept.ledger.clone())).collect::<Vec<_>>();
                for (start, ledger) in group {
                    // Shown together, cuts do not pass each other: they have read the same records.
                    let behind = shown.iter().filter(|(cut, _)| **cut > start && cut.0 < ledger.next.min(chunk().end(start.0)));
                    if chunk().is_first(start.0) {
                        prop_assert!(may_show(start, ledger.next, &behind.map(|(cut, next)| (*cut, *next)).collect(), chunk()));
                    }
                    starts.mark_shown(start, Redo::default(), ledger.next);
                    wanted.progress.record(start, ledger.next);
                }
            }
            prop_assert!(starts.to_show(&wanted).iter().all(Vec::is_empty));
            starts.drop_shown();
        }
        let end = log.last().map_or(0, |last| last + 1);
        prop_assert!(wanted.progress.coverage(Mark::default(), chunk()).covered >= Offset(end));
    }
}

#[test]
fn what_the_log_lost_is_told_for_each_chunk_and_the_next_record_goes_on() {
    let wanted = Wanted::default();
    let mut starts = Starts::new(chunk());
    let lost = OffsetRange {
        from: Offset(0),
        to: Offset(10),
    };
    let range = |from, to| OffsetRange {
        from: Offset(from),
        to: Offset(to),
    };
    let at = |at| Start(Offset(at));
    assert_eq!(
        starts.lose(lost, &wanted, "rules"),
        [(at(0), range(0, 8)), (at(8), range(8, 10))]
    );
    let records = Records {
        from: Offset(10),
        next: Offset(12),
        fates: vec![(Offset(11), Fate::Accepted(Judgement::First))],
    };
    assert_eq!(starts.take(&records, &wanted, "rules"), [(at(8), range(10, 12))]);
    let all_lost = &starts.kept()[&at(0)];
    assert!(all_lost.is_complete(), "a record past its end has come");
    assert_eq!(
        (all_lost.ledger.next, all_lost.ledger.read, all_lost.ledger.holes),
        (Offset(8), 0, 8)
    );
    let ledger = &starts.kept()[&at(8)].ledger;
    assert_eq!((ledger.next, ledger.read, ledger.holes), (Offset(12), 1, 3));
    assert_eq!(ledger.gap, 2);
}

#[test]
fn what_is_to_be_read_again_is_let_go_and_begun_anew() {
    let mut starts = Starts::new(chunk());
    let mut wanted = Wanted::default();
    let records = |from, next| Records {
        from: Offset(from),
        next: Offset(next),
        fates: (from..next)
            .map(|at| (Offset(at), Fate::Accepted(Judgement::First)))
            .collect(),
    };
    let at = |at| Start(Offset(at));
    let redo = |starts: &Starts, start| starts.kept()[&start].redo;
    starts.take(&records(0, 6), &wanted, "rules");
    assert_eq!(redo(&starts, at(0)), Redo(0));
    wanted.progress.record_after(at(0), Redo(1), Offset(0));
    assert_eq!(starts.retain_wanted(&wanted), [at(0)], "its progress is void");
    assert_eq!(starts.retain_wanted(&wanted), []);
    // The head goes on, a reader that begins at its first offset begins it.
    assert_eq!(
        starts.take(&records(6, 9), &wanted, "rules").len(),
        1,
        "the next chunk's"
    );
    starts.take(&records(0, 6), &wanted, "rules");
    assert_eq!((redo(&starts, at(0)), redo(&starts, at(8))), (Redo(1), Redo(0)));
    // A flush that was under way before says nothing of the new reading.
    starts.mark_shown(at(0), Redo(0), Offset(6));
    let shown = |starts: &Starts| {
        starts.to_show(&wanted)[1]
            .iter()
            .map(|(start, _)| *start)
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(&starts), [at(8), at(0)]);
    starts.mark_shown(at(0), Redo(1), Offset(6));
    assert_eq!(shown(&starts), [at(8)]);
    assert_eq!(
        starts.retain_wanted(&wanted),
        [],
        "it is read under the redo that is wanted"
    );
}

#[test]
fn what_nobody_wants_is_let_go() {
    let mut starts = Starts::new(chunk());
    let mut wanted = Wanted {
        cuts: starts_of(&[3]),
        ..Wanted::default()
    };
    let records = Records {
        from: Offset(0),
        next: Offset(9),
        fates: (0..9)
            .map(|at| (Offset(at), Fate::Accepted(Judgement::First)))
            .collect(),
    };
    starts.take(&records, &wanted, "rules");
    assert_eq!(starts.names(), starts_of(&[0, 3, 8]));
    wanted.cuts.clear();
    assert_eq!(
        starts.retain_wanted(&wanted),
        [Start(Offset(3))],
        "a cut that was withdrawn"
    );
    wanted.mark = Mark(Offset(8));
    assert_eq!(starts.retain_wanted(&wanted), [Start(Offset(0))], "what is published");
    assert_eq!(starts.names(), starts_of(&[8]));
}
