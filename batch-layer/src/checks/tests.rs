//! What each check of a run lets pass and what it does not.

use shared_connections::store::{Ledger, RulesKnown};
use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{ChunkSize, Offset, OffsetSet, SpeedProgress, Start, TopicId};

use super::speed::{Common, Sums, beyond_repeats, doubts, in_parts, says, together, unequal};
use super::*;

fn days(all: &[(i32, u64, f64)]) -> Days {
    let day = |(day, cells, total): &(i32, u64, f64)| DayTotals {
        day: EventDay(*day),
        run: 7,
        cells: *cells,
        columns: vec![("0".to_owned(), 0.0), (total.to_string(), total.abs())],
    };
    all.iter().map(|one| (EventDay(one.0), day(one))).collect()
}

#[test]
fn events_that_were_not_read_are_told() {
    let partition = Partition {
        topic: TopicId(1),
        number: 3,
    };
    let range = OffsetRange {
        from: Offset(8),
        to: Offset(16),
    };
    let told = BTreeMap::from([(partition, (range, 7))]);
    assert!(events(&BTreeMap::from([(partition, 7)]), &told).is_ok());
    for read in [BTreeMap::from([(partition, 6)]), BTreeMap::new()] {
        let differs = events(&read, &told).unwrap_err();
        assert!(
            differs.contains("partition 3 has 7 events from offset 8 to 16"),
            "{differs}"
        );
    }
}

#[test]
fn a_count_is_what_was_read() {
    let text = "[dataset.d]\nevent_time = \"at\"\nfields = { at = \"timestamp\", x = \"int64?\" }\n\
                [view.v]\ndataset = \"d\"\ngrain = \"1h\"\n[view.v.measures]\nxs = \"count(x)\"\nall = \"count()\"\n";
    let definitions = Definitions::parse([("d.toml", text)]).unwrap();
    let view = &definitions.views[0];
    assert_eq!(exact_sums(view).len(), 3, "failures and two counts");
    let totals = |sums: [u128; 3]| Totals {
        rows: 1,
        sums: sums.to_vec(),
    };
    let at = exact_sums(view)
        .iter()
        .position(|column| column.starts_with("all"))
        .unwrap();
    let mut sums = [0, 4, 4];
    sums[at] = 9;
    assert!(counted(view, &totals(sums), 9).is_ok());
    let differs = counted(view, &totals(sums), 10).unwrap_err();
    assert_eq!(differs, "all adds up to 9, and 10 events count");
}

#[test]
fn days_cells_and_events_do_not_vanish() {
    let text = "[dataset.d]\nevent_time = \"at\"\nfields = { at = \"timestamp\" }\n\
                [view.v]\ndataset = \"d\"\ngrain = \"1h\"\n[view.v.measures]\nall = \"count()\"\n";
    let definitions = Definitions::parse([("d.toml", text)]).unwrap();
    let view = &definitions.views[0];
    assert_eq!(additive(view).len(), 2, "failures and the count");
    let at = additive(view)
        .iter()
        .position(|column| column.starts_with("all"))
        .unwrap();
    let of = |all: &[(i32, u64, f64)]| {
        let mut days = days(all);
        // The total of these days is the second column.
        days.values_mut().for_each(|day| day.columns.swap(1, at));
        days
    };
    let had = of(&[(0, 1000, 5000.0), (1, 10, 5.0)]);
    let check = |now: &[(i32, u64, f64)]| cells(view, &[had.clone(), of(now)], 0.5);
    assert!(check(&[(0, 1000, 5000.0), (1, 11, 5.0)]).is_ok());
    assert!(check(&[(0, 500, 2500.0), (1, 5, 3.0)]).is_ok());
    for (now, named) in [
        (&[(0, 3000, 5000.0)][..], "no cell of 1970-01-02"),
        (&[(0, 1000, 5000.0), (1, 0, 0.0)], "no cell of 1970-01-02"),
        // A day among days that hide it.
        (&[(0, 1000, 5000.0), (1, 4, 5.0)], "4 cells of 1970-01-02"),
        (&[(0, 1000, 5000.0), (1, 10, 2.0)], "2 events of 1970-01-02"),
    ] {
        let differs = check(now).unwrap_err();
        assert!(differs.contains(named) && differs.contains("--accept"), "{differs}");
    }
}

fn ranges(of: &[(u64, u64)]) -> OffsetSet {
    let range = |(from, to): &(u64, u64)| OffsetRange {
        from: Offset(*from),
        to: Offset(*to),
    };
    of.iter().map(range).collect()
}

#[test]
fn starts_that_both_layers_have_are_compared_and_the_others_said() {
    let partition = |number| Partition {
        topic: TopicId(1),
        number,
    };
    let ledger = |number, start, next, rules: &str, unsure| {
        let ledger = Ledger {
            next: Offset(next),
            rules: rules.to_owned(),
            unsure,
            ..Ledger::default()
        };
        (partition(number), Start(Offset(start)), ledger)
    };
    let ledgers = [
        ledger(0, 5, 8, "now", 0),
        ledger(0, 8, 16, "now", 0),
        ledger(0, 16, 24, "now", 0),
        ledger(1, 0, 8, "now", 0),
        ledger(1, 8, 16, "now", 3),
        ledger(1, 16, 24, "now", 0),
        ledger(1, 24, 30, "now", 0),
    ];
    let range = |from, to| OffsetRange {
        from: Offset(from),
        to: Offset(to),
    };
    let archived = [
        (partition(0), range(0, 21), "now"),
        (partition(1), range(0, 8), "old"),
        (partition(1), range(8, 40), "now"),
    ];
    let doubts = doubts(&ledgers, &archived, &RulesKnown::default());
    let progress = |number| {
        let mut progress = SpeedProgress::default();
        for (_, start, ledger) in ledgers.iter().filter(|(of, ..)| of.number == number) {
            progress.record(*start, ledger.next);
        }
        progress
    };
    let chunk = ChunkSize::new(8).unwrap();
    let mut common = Common::default();
    let mut add = |number, marks: (u64, u64), lacking: &[(u64, u64)]| {
        let marks = (Mark(Offset(marks.0)), Mark(Offset(marks.1)));
        common.add(
            partition(number),
            marks,
            chunk,
            &progress(number),
            &ranges(lacking),
            &doubts,
        );
    };
    // From one cut to another; from the beginning, to a chunk that the speed layer has not counted; and where it knows nothing.
    add(0, (5, 21), &[]);
    add(1, (0, 32), &[(17, 18)]);
    add(2, (3, 11), &[]);
    add(3, (8, 8), &[]);
    assert_eq!(common.counted, BTreeMap::from([(partition(0), ranges(&[(5, 16)]))]));
    let left_out = [
        (partition(0), ranges(&[(16, 21)])),
        (partition(1), ranges(&[(0, 32)])),
        (partition(2), ranges(&[(3, 11)])),
    ];
    assert_eq!(common.left_out, BTreeMap::from(left_out));
    assert_eq!(
        common.not_looked_at().as_deref(),
        Some(
            "not looked at: 21 offsets in chunks that it has not counted whole, or that a mark divides, 8 offsets of starts of \
             which a layer lacks some, 8 offsets that the layers read under other rules, 8 offsets for which its filter for repeats \
             was cut short"
        )
    );
    assert_eq!(Common::default().not_looked_at(), None);
}

#[test]
fn counts_are_equal_and_sums_up_to_rounding() {
    let columns = ["all".to_owned(), "x__sum".to_owned()];
    let counts = BTreeSet::from(["all".to_owned()]);
    let of =
        |day: i32, count: f64, sum: f64| Sums::from([(EventDay(day), vec![(count, count), (sum, 2.0 * sum.abs())])]);
    let (before, speed) = (of(0, 10.0, 5.0), together(&[&of(0, 4.0, 2.5), &of(1, 1.0, 0.0)]));
    let both = together(&[&before, &speed]);
    let found = |now: &Sums| {
        let found = unequal(&columns, &counts, &both, now);
        found.iter().map(|one| one.day.0).collect::<Vec<_>>()
    };
    let now = |count, sum| together(&[&of(0, count, sum), &of(1, 1.0, 0.0)]);
    assert!(found(&now(14.0, 7.5)).is_empty());
    assert!(found(&now(14.0, 7.500_000_000_1)).is_empty());
    assert_eq!(found(&now(13.0, 7.5)), [0]);
    assert_eq!(found(&now(14.0, 7.6)), [0]);
    assert_eq!(found(&of(0, 14.0, 7.5)), [1], "a day that is not there");

    let beyond = |ours: &Sums, repeats: u64| {
        let repeats = BTreeMap::from([(EventDay(0), repeats)]);
        beyond_repeats(unequal(&columns, &counts, &both, ours), &counts, &repeats).is_some()
    };
    assert!(!beyond(&now(14.0, 7.5), 0));
    assert!(!beyond(&now(12.0, 1.0), 2), "what the repeats had is not in the sum");
    assert!(beyond(&now(12.0, 7.5), 1), "more than the repeats are missing");
    assert!(beyond(&now(15.0, 7.5), 9), "more than both have");
    assert!(beyond(&now(14.0, 7.6), 9), "as many, and another sum");

    assert_eq!(says(3, 0), "the speed layer counted the same on all 3 days");
    assert_eq!(
        says(3, 1),
        "the speed layer counted the same but for repeats on 1 of 3 days"
    );
}

#[test]
fn offsets_are_asked_about_in_parts() {
    let range = |from: u64| OffsetRange {
        from: Offset(from),
        to: Offset(from + 1),
    };
    let partition = |number| Partition {
        topic: TopicId(1),
        number,
    };
    let of = |from: std::ops::Range<u64>| from.map(|at| range(2 * at)).collect::<OffsetSet>();
    let all = BTreeMap::from([(partition(0), of(0..5)), (partition(1), of(0..2))]);
    let parts = in_parts(&all, 3);
    assert_eq!(parts.len(), 3);
    assert_eq!(parts[0], BTreeMap::from([(partition(0), of(0..3))]));
    assert_eq!(
        parts[1],
        BTreeMap::from([(partition(0), of(3..5)), (partition(1), of(0..1))])
    );
    assert!(in_parts(&BTreeMap::new(), 3).is_empty());
}

#[test]
fn totals_change_as_events_do() {
    let columns = ["_failed".to_owned(), "paid__sum".to_owned()];
    let find = |was: f64, is: f64, events: [u64; 2]| {
        totals(&columns, &[days(&[(0, 1, was)]), days(&[(0, 1, is)])], events, 0.5)
    };
    assert!(find(1000.0, 1000.0, [2000, 2000]).is_ok());
    assert!(find(1000.0, 10_000.0, [2000, 20_000]).is_ok(), "ten times the events");
    assert!(find(-1000.0, -1400.0, [2000, 2000]).is_ok());
    for (was, is, events) in [
        (1000.0, 1501.0, [2000, 2000]),
        (1000.0, 499.0, [2000, 2000]),
        (1000.0, 2000.0, [2000, 20_000]),
        (1000.0, -1000.0, [2000, 2000]),
    ] {
        let differs = find(was, is, events).unwrap_err();
        assert!(
            differs.contains("paid__sum") && differs.contains("--accept"),
            "{differs}"
        );
    }
    assert!(find(1.0, 1000.0, [999, 999]).is_ok(), "too few to say");
    assert!(find(0.0, 1000.0, [2000, 2000]).is_ok(), "nothing to compare with");
}
