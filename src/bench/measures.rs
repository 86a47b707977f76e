//! What the states of distinct, quantiles, first and last cost: time to make and to merge them, and bytes.
//!
//! Without a plan around them first, so that what is told is theirs alone: batches of events in a thousand groups, and states
//! of them as often as a flush takes them. Then in the views that the speed layer is measured with, beside their counts. What counts is the processor time of the thread that works.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use shared_schemas::sketch::{Act, ByGroup, Kind, Side, identities};
use shared_schemas::view::ValueType;

use super::events::{APART, TOGETHER, definitions_with};
use super::figure::{Figure, number};
use super::stages::{PARTITIONS, aggregated, rate};

/// Groups of a minute, as the larger of the views that the speed layer is measured with has them.
const GROUPS: usize = 1_000;
/// Rows of a batch.
const ROWS: usize = 8_192;
/// Batches that are measured with, again and again.
const BATCHES: usize = 16;
/// Values before the states are taken: as many as the speed layer aggregates at once.
const AT_ONCE: usize = ROWS * BATCHES;
/// Beyond any that is measured with.
const LIMIT: u64 = 10_000_000;
/// Values of the states whose bytes are told.
const SIZES: [(usize, &str); 3] = [(10, "10"), (1_000, "1,000"), (1_000_000, "1 M")];
/// What making should reach.
const AIM: f64 = 20_000_000.0;

/// What is measured.
struct Subject {
    name: &'static str,
    kind: Kind,
    /// The arguments, of rows from that one on. What a plan computes from an event is made of them while it is timed.
    columns: fn(usize, usize) -> Vec<ArrayRef>,
    prepare: fn(&[ArrayRef]) -> anyhow::Result<Vec<ArrayRef>>,
    aim: bool,
}

const SUBJECTS: [Subject; 6] = [
    Subject {
        name: "uniq of int64",
        kind: Kind::Uniq,
        columns: integers,
        prepare: identified,
        aim: true,
    },
    Subject {
        name: "uniq of string",
        kind: Kind::Uniq,
        columns: strings,
        prepare: identified,
        aim: true,
    },
    Subject {
        name: "uniqExact of int64",
        kind: Kind::UniqExact {
            limit: LIMIT,
            wide: false,
        },
        columns: integers,
        prepare: identified,
        aim: false,
    },
    Subject {
        name: "uniqExact of string",
        kind: Kind::UniqExact {
            limit: LIMIT,
            wide: true,
        },
        columns: strings,
        prepare: identified,
        aim: false,
    },
    Subject {
        name: "quantilesDD of float64",
        kind: Kind::QuantilesDd,
        columns: doubles,
        prepare: as_they_are,
        aim: true,
    },
    Subject {
        name: "argMax of int64",
        kind: Kind::Extreme {
            side: Side::Last,
            value_type: Some(ValueType::Int64),
        },
        columns: moments,
        prepare: as_they_are,
        aim: false,
    },
];

/// How often that is measured with and without them, in turns; the best of each counts.
const TURNS: usize = 3;

/// Any bits, the same for the same row.
fn scattered(row: usize) -> u64 {
    let mixed = (row as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

fn integers(from: usize, rows: usize) -> Vec<ArrayRef> {
    let values = (from..from + rows).map(|row| scattered(row).cast_signed());
    vec![Arc::new(Int64Array::from_iter_values(values))]
}

fn strings(from: usize, rows: usize) -> Vec<ArrayRef> {
    let values = (from..from + rows).map(|row| format!("user-{:010}", scattered(row) >> 32));
    vec![Arc::new(StringArray::from_iter_values(values))]
}

/// As latencies are: most around one, few a hundred times as long.
fn doubles(from: usize, rows: usize) -> Vec<ArrayRef> {
    let part = |row| number((scattered(row) >> 11) + 1) / number(1 << 53);
    let values = (from..from + rows).map(|row| -100.0 * f64::ln(part(row)));
    vec![Arc::new(Float64Array::from_iter_values(values))]
}

/// Values and their moments, as they come: each later than the one before.
fn moments(from: usize, rows: usize) -> Vec<ArrayRef> {
    let numbers = || (0_i64..).skip(from).take(rows);
    let mut columns = integers(from, rows);
    columns.push(Arc::new(
        TimestampMicrosecondArray::from_iter_values(numbers().map(|at| at * 20)).with_timezone("UTC"),
    ));
    columns.push(Arc::new(Int64Array::from_iter_values(numbers())));
    columns.push(Arc::new(Int32Array::from_value(3, rows)));
    columns
}

fn identified(columns: &[ArrayRef]) -> anyhow::Result<Vec<ArrayRef>> {
    columns.iter().map(|column| Ok(identities(column)?)).collect()
}

fn as_they_are(columns: &[ArrayRef]) -> anyhow::Result<Vec<ArrayRef>> {
    Ok(columns.to_vec())
}

/// All figures; each kind works about that long, twice. Blocks, and takes a core.
pub(crate) fn figures(each: Duration) -> anyhow::Result<Vec<Figure>> {
    let group_of: Vec<Vec<usize>> = (0..BATCHES)
        .map(|batch| {
            let rows = batch * ROWS..(batch + 1) * ROWS;
            rows.map(|row| usize::try_from(scattered(row + AT_ONCE) % GROUPS as u64).unwrap_or_default())
                .collect()
        })
        .collect();
    let mut figures = Vec::new();
    for subject in &SUBJECTS {
        let name = subject.name;
        let batches: Vec<_> = (0..BATCHES)
            .map(|batch| (subject.columns)(batch * ROWS, ROWS))
            .collect();
        let mut states = None;
        let made = rate(each, || {
            let mut groups = ByGroup::new(subject.kind, Act::Make)?;
            for (columns, group_of) in batches.iter().zip(&group_of) {
                groups.take(&(subject.prepare)(columns)?, group_of, GROUPS)?;
            }
            states = Some(groups.states()?);
            Ok(AT_ONCE as u64)
        })?;
        let figure = format!("{name}: values made into states, {GROUPS} groups, per core");
        figures.push(if subject.aim {
            Figure::at_least(figure, made, "values/s", AIM)
        } else {
            Figure::plain(figure, made, "values/s")
        });
        let Some(states) = states else {
            continue;
        };
        // An open cell and what came to it.
        let all: Vec<usize> = (0..GROUPS).collect();
        let merged = rate(each, || {
            let mut groups = ByGroup::new(subject.kind, Act::Merge)?;
            for _ in 0..2 {
                groups.take(&[Arc::clone(&states)], &all, GROUPS)?;
            }
            std::hint::black_box(groups.states()?);
            Ok(2 * GROUPS as u64)
        })?;
        let values = AT_ONCE / GROUPS;
        figures.push(Figure::plain(
            format!("{name}: states of {values} values merged, per core"),
            merged,
            "states/s",
        ));
        for (size, shown) in SIZES {
            figures.push(Figure::plain(
                format!("{name}: bytes of a state of {shown} values"),
                number(bytes(subject, size)?),
                "bytes",
            ));
        }
    }
    figures.extend(in_views(each)?);
    Ok(figures)
}

/// The rate of the stage that aggregates, with further measures, of its rate without them.
fn in_views(each: Duration) -> anyhow::Result<[Figure; 3]> {
    let variants = [
        definitions_with("flights", PARTITIONS, &[]),
        definitions_with("flights", PARTITIONS, &APART),
        definitions_with("flights", PARTITIONS, &TOGETHER),
    ];
    let mut rates = [0.0_f64; 3];
    for _ in 0..TURNS {
        for (rate, definitions) in rates.iter_mut().zip(&variants) {
            *rate = rate.max(aggregated(definitions, each)?);
        }
    }
    let [without, apart, together] = rates;
    Ok([
        Figure::plain("group and aggregate alone, two views, per core", without, "events/s"),
        Figure::plain(
            "its ratio with a distinct in one view and quantiles in the other",
            100.0 * apart / without,
            "%",
        ),
        Figure::plain(
            "its ratio with both in the view of 1,000 groups",
            100.0 * together / without,
            "%",
        ),
    ])
}

/// What a state of so many values takes, as it is written.
fn bytes(subject: &Subject, size: usize) -> anyhow::Result<u64> {
    let mut groups = ByGroup::new(subject.kind, Act::Make)?;
    for from in (0..size).step_by(ROWS) {
        let rows = ROWS.min(size - from);
        groups.take(&(subject.prepare)(&(subject.columns)(from, rows))?, &vec![0; rows], 1)?;
    }
    let states = groups.states()?;
    anyhow::ensure!(states.len() == 1, "one group has one state");
    Ok(states.as_binary::<i32>().value(0).len() as u64)
}
