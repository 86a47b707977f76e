//! What each check of a run lets pass and what it does not.

use shared_schemas::definitions::Definitions;
use shared_schemas::handoff::{Offset, TopicId};

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

#[test]
fn the_speed_layer_may_count_repeats_and_nothing_else() {
    let text = "[dataset.d]\nevent_time = \"at\"\nfields = { at = \"timestamp\", x = \"float64?\" }\n\
                [view.v]\ndataset = \"d\"\ngrain = \"1h\"\n[view.v.measures]\nall = \"count()\"\nxs = \"sum(x)\"\n";
    let definitions = Definitions::parse([("d.toml", text)]).unwrap();
    let view = &definitions.views[0];
    let columns = additive(view);
    let day = |count: f64, sum: f64| -> Days {
        let value = |column: &String| match column.as_str() {
            "_failed" => 0.0,
            count_of if exact_sums(view).contains(column) && count_of.starts_with("all") => count,
            other if other.ends_with("sum") => sum,
            _ => 1.0,
        };
        let columns = columns
            .iter()
            .map(|column| (value(column).to_string(), value(column).abs()));
        let day = DayTotals {
            day: EventDay(0),
            run: 0,
            cells: 1,
            columns: columns.collect(),
        };
        BTreeMap::from([(EventDay(0), day)])
    };
    let compare = |speed: (f64, f64), now: (f64, f64), repeats| {
        // Those of another day excuse nothing.
        let repeats = BTreeMap::from([(EventDay(0), repeats), (EventDay(1), 100)]);
        let now = day(now.0, now.1);
        let twice = |days: Days| -> Days {
            // What is 1 in each part is 2 in all of it.
            let double = |mut day: DayTotals| {
                for (text, size) in &mut day.columns {
                    if *text == "1" {
                        (*text, *size) = ("2".to_owned(), 2.0);
                    }
                }
                day
            };
            days.into_iter().map(|(at, day)| (at, double(day))).collect()
        };
        counted_by_speed(view, &[day(10.0, 5.0), day(speed.0, speed.1), twice(now)], &repeats)
    };
    assert!(compare((4.0, 2.5), (14.0, 7.5), 0).is_ok());
    assert!(compare((6.0, 9.0), (14.0, 7.5), 2).is_ok(), "two repeats");
    for (speed, repeats) in [((6.0, 2.5), 1), ((3.0, 2.5), 9), ((4.0, 2.6), 0)] {
        let differs = compare(speed, (14.0, 7.5), repeats).unwrap_err();
        assert!(
            differs.contains("1970-01-01") && differs.contains("--accept"),
            "{differs}"
        );
    }
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
