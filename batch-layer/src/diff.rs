//! What changed from one publication of a view to another.
//!
//! Days that both have from the same run are the same. Of the others the totals are compared day by day, and the first cells that
//! differ are shown with their states. Sets and sketches are compared by what they hold: ClickHouse writes a set in the order of its hash
//! table, so the bytes of equal ones may differ.
//!
//! That can't be told by the server, so cells are read from it: day by day, both runs' side by side in the order of their keys, and no
//! further than to the last that is shown. Neither side holds more than what it is at. Cells that are equal byte by byte, which is what most days
//! that are computed again come to, the server leaves out: it hashes both runs' cells in buckets of keys, and sends those of buckets
//! that are not equal.
//!
//! Of days before the view's horizon one publication may have rows that are gone from the other: they are counted, not compared.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shared_connections::store::{AtLength, Pace, Store};
use shared_schemas::handoff::{EventDay, PublicationNumber, RunId};
use shared_schemas::measure::State;
use shared_schemas::plan::WINDOW_COLUMN;
use shared_schemas::store::Statement;
use shared_schemas::store::compared::{DaysOfRuns, additive, cells_of_day, day_totals, unequal_buckets};
use shared_schemas::view::View;

use crate::checks::DayTotals;
use crate::list::of_number;
use crate::publish::{Line, line};
use crate::reconcile::sent;
use crate::report::day_text;
use crate::retry::patiently;
use crate::show::LookError;

/// So many cells are shown.
const CELLS: usize = 20;
/// So many days are shown.
const DAYS: usize = 400;

/// What changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Differences {
    /// The view.
    pub view: String,
    /// The number of the first publication.
    pub from: u64,
    /// The number of the second.
    pub to: u64,
    /// The first event day that the view still holds, as in 2013-01-31; none where it holds all.
    pub held_from: Option<String>,
    /// How many event days before that either has: their rows are let go, and not compared.
    pub let_go_days: usize,
    /// How many event days are the same rows in both.
    pub same_days: usize,
    /// How many were computed again and came out with the same totals.
    pub equal_days: usize,
    /// Event days whose totals differ; the first 400.
    pub days: Vec<DayDiffers>,
    /// The first cells that differ, 20 at most.
    pub cells: Vec<CellDiffers>,
}

/// A day whose totals differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DayDiffers {
    /// The day, as in 2013-01-31.
    pub day: String,
    /// What differs: the column `cells`, or one that adds up.
    pub columns: Vec<Changed>,
}

/// A cell that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CellDiffers {
    /// The window and the dimensions.
    pub cell: BTreeMap<String, String>,
    /// The columns that differ; of sets and sketches what they come to and how many bytes they are of, and where that is the same the
    /// first of these in hexadecimal digits. Null where one side has no such cell.
    pub columns: Vec<Changed>,
}

/// A value before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// The column.
    pub column: String,
    /// In the first publication; null where it has no such day or cell.
    pub from: Option<String>,
    /// In the second.
    pub to: Option<String>,
}

/// What changed from one publication to another.
///
/// # Errors
/// A number that no publication has, or one whose rows may be gone; the store's.
pub async fn diff(store: &Store, view: &View, from: u64, to: u64) -> Result<Differences, LookError> {
    let Line { all, floor, .. } = line(store, view).await?;
    let horizon = patiently(|| store.horizon(view)).await?;
    let days_of = |number: u64| {
        let left = || all.iter().map(|one| one.number.0);
        let found =
            of_number(PublicationNumber(number), &all).ok_or_else(|| LookError::missing(view, number, left()))?;
        if !floor.admits(found) {
            let view = view.name.clone();
            return Err(LookError::LetGo { view, number });
        }
        Ok::<_, LookError>(found.days.clone())
    };
    let (mut before, mut after) = (days_of(from)?, days_of(to)?);
    let gone: BTreeSet<EventDay> = before
        .keys()
        .chain(after.keys())
        .copied()
        .filter(|day| horizon.is_some_and(|horizon| *day < horizon))
        .collect();
    before.retain(|day, _| !gone.contains(day));
    after.retain(|day, _| !gone.contains(day));
    let same: BTreeSet<EventDay> = before
        .iter()
        .filter(|(day, run)| after.get(day) == Some(run))
        .map(|(day, _)| *day)
        .collect();
    before.retain(|day, _| !same.contains(day));
    after.retain(|day, _| !same.contains(day));
    let (had, has) = (totals(store, view, &before).await?, totals(store, view, &after).await?);
    let columns = additive(view);
    let all_days: BTreeSet<EventDay> = before.keys().chain(after.keys()).copied().collect();
    let differ: Vec<_> = all_days
        .iter()
        .filter_map(|day| day_differs(*day, &columns, had.get(day), has.get(day)))
        .collect();
    let mut cells = Vec::new();
    for day in &all_days {
        let runs = [before.get(day), after.get(day)].map(Option::<&RunId>::copied);
        let of_day = patiently(|| async {
            match cells_that_differ(store, view, *day, runs, CELLS - cells.len()).await {
                Err(LookError::Store(error)) => Err(error),
                other => Ok(other),
            }
        });
        cells.extend(of_day.await??);
        if cells.len() == CELLS {
            break;
        }
    }
    Ok(Differences {
        view: view.name.clone(),
        from,
        to,
        held_from: horizon.map(day_text),
        let_go_days: gone.len(),
        same_days: same.len(),
        equal_days: all_days.len() - differ.len(),
        days: differ.into_iter().take(DAYS).collect(),
        cells,
    })
}

async fn lines(store: &Store, statement: &Statement, format: &str) -> Result<Vec<String>, LookError> {
    let answer = patiently(|| store.answer_at_length(statement, format, Pace::AT_LENGTH)).await?;
    let text = String::from_utf8_lossy(&answer.body);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Of a day the first so many cells that differ; read no further than to the last of them.
async fn cells_that_differ(
    store: &Store,
    view: &View,
    day: EventDay,
    runs: [Option<RunId>; 2],
    limit: usize,
) -> Result<Vec<CellDiffers>, LookError> {
    let database = store.database();
    if let [Some(from), Some(to)] = runs {
        let found = lines(store, &unequal_buckets(database, view, day, [from, to]), "TabSeparated").await?;
        if found == ["0"] {
            return Ok(Vec::new());
        }
    }
    let [from, to] = runs;
    let statements =
        [(from, to), (to, from)].map(|(run, beside)| run.map(|run| cells_of_day(database, view, day, run, beside)));
    let [mut had, mut has] = [Lines::of(store, &statements[0])?, Lines::of(store, &statements[1])?];
    let mut found = Vec::new();
    let (mut from, mut to) = (had.next().await?, has.next().await?);
    while found.len() < limit {
        let read = |line: &Option<String>| line.as_deref().map(Cell::read).transpose();
        let order = match (&from, &to) {
            (None, None) => break,
            (from, to) if from == to => Ordering::Equal,
            _ => {
                let (one, other) = (read(&from)?, read(&to)?);
                let order = match (&one, &other) {
                    (Some(one), Some(other)) => one.order.cmp(&other.order),
                    // What is over comes last.
                    _ => one.is_none().cmp(&other.is_none()),
                };
                let [one, other] = [one.filter(|_| order.is_le()), other.filter(|_| order.is_ge())];
                found.extend(cell_differs(view, one.as_ref(), other.as_ref())?);
                order
            }
        };
        if order.is_le() {
            from = had.next().await?;
        }
        if order.is_ge() {
            to = has.next().await?;
        }
    }
    Ok(found)
}

/// The lines of an answer, as it comes; none without a statement.
struct Lines<'a> {
    answer: Option<AtLength<'a>>,
    bytes: Vec<u8>,
    /// So many of them are given out.
    given: usize,
}

impl<'a> Lines<'a> {
    fn of(store: &'a Store, statement: &Option<Statement>) -> Result<Self, LookError> {
        let begin = |statement| store.begin_at_length(statement, "JSONCompactEachRow", Pace::AT_LENGTH);
        Ok(Self {
            answer: statement.as_ref().map(begin).transpose()?,
            bytes: Vec::new(),
            given: 0,
        })
    }

    async fn next(&mut self) -> Result<Option<String>, LookError> {
        let mut looked_at = self.given;
        loop {
            let end = self.bytes[looked_at..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end.map(|end| looked_at + end + 1) {
                let line = String::from_utf8_lossy(&self.bytes[self.given..end]).into_owned();
                self.given = end;
                return Ok(Some(line));
            }
            self.bytes.drain(..self.given);
            self.given = 0;
            looked_at = self.bytes.len();
            let more = match &mut self.answer {
                Some(answer) => answer.next().await?,
                None => None,
            };
            match more {
                Some(more) => self.bytes.extend_from_slice(&more),
                None if self.bytes.is_empty() => return Ok(None),
                // An answer that ends within a line was cut off.
                None => return Err(LookError::Answer(shortened(&String::from_utf8_lossy(&self.bytes)))),
            }
        }
    }
}

/// A line of `cells_of_day`.
#[derive(Debug)]
struct Cell {
    /// The key for people.
    key: Vec<String>,
    order: Vec<Part>,
    states: Vec<String>,
}

/// A value of a key, in ClickHouse's order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(i64),
    Text(String),
    Null,
}

impl Cell {
    fn read(line: &str) -> Result<Self, LookError> {
        let part = |value: &serde_json::Value| match value {
            serde_json::Value::Null => Some(Part::Null),
            serde_json::Value::String(text) => Some(Part::Text(text.clone())),
            value => value.as_i64().map(Part::Number),
        };
        let text = |value: &serde_json::Value| Some(value.as_str()?.to_owned());
        let fields = || {
            let fields: Vec<serde_json::Value> = serde_json::from_str(line).ok()?;
            let [key, order, states @ ..] = &fields[..] else {
                return None;
            };
            Some(Self {
                key: key.as_array()?.iter().map(text).collect::<Option<_>>()?,
                order: order.as_array()?.iter().map(part).collect::<Option<_>>()?,
                states: states.iter().map(text).collect::<Option<_>>()?,
            })
        };
        fields().ok_or_else(|| LookError::Answer(shortened(line)))
    }
}

async fn totals(store: &Store, view: &View, days: &DaysOfRuns) -> Result<BTreeMap<EventDay, DayTotals>, LookError> {
    let lines = lines(store, &day_totals(store.database(), view, &[days]), "TabSeparated").await?;
    let totals = lines
        .iter()
        .map(|line| DayTotals::of(line).ok_or_else(|| LookError::Answer(line.clone())));
    totals.map(|one| one.map(|one| (one.day, one))).collect()
}

fn day_differs(
    day: EventDay,
    columns: &[String],
    from: Option<&DayTotals>,
    to: Option<&DayTotals>,
) -> Option<DayDiffers> {
    let cells = |of: Option<&DayTotals>| of.map(|of| of.cells.to_string());
    let total = |of: Option<&DayTotals>, at: usize| Some(of?.columns.get(at)?.0.clone());
    let changed = |column: &str, from: Option<String>, to: Option<String>| Changed {
        column: column.to_owned(),
        from,
        to,
    };
    let all = std::iter::once(changed("cells", cells(from), cells(to))).chain(
        columns
            .iter()
            .enumerate()
            .map(|(at, column)| changed(column, total(from, at), total(to, at))),
    );
    let columns: Vec<_> = all.filter(|one| one.from != one.to).collect();
    (!columns.is_empty()).then(|| DayDiffers {
        day: day_text(day),
        columns,
    })
}

/// A cell as either side has it, at least one of them; none where the two mean the same.
fn cell_differs(view: &View, from: Option<&Cell>, to: Option<&Cell>) -> Result<Option<CellDiffers>, LookError> {
    let names = std::iter::once(WINDOW_COLUMN).chain(view.dimensions.iter().map(|dimension| dimension.name.as_str()));
    let values = from.or(to).into_iter().flat_map(|cell| cell.key.iter().cloned());
    let mut columns = Vec::new();
    for (at, column) in view.states().enumerate() {
        let side = |cell: Option<&Cell>| {
            let text = cell.map(|cell| cell.states.get(at).map_or("", String::as_str));
            let held = text.map(|text| meaning(&column.state, text)).transpose();
            held.map_err(|error| LookError::Answer(error.to_string()))
        };
        let (from, to) = (side(from)?, side(to)?);
        if from == to {
            continue;
        }
        let shown = |of: &Option<Meaning>, other: &Option<Meaning>| {
            let alike = of
                .as_ref()
                .zip(other.as_ref())
                .is_some_and(|(one, other)| one.says == other.says);
            let of = of.as_ref()?;
            Some(if alike {
                format!("{}: {}", of.says, shortened(&of.canonical))
            } else {
                of.says.clone()
            })
        };
        columns.push(Changed {
            column: column.name.clone(),
            from: shown(&from, &to),
            to: shown(&to, &from),
        });
    }
    Ok((!columns.is_empty()).then(|| CellDiffers {
        cell: names.map(str::to_owned).zip(values).collect(),
        columns,
    }))
}

/// What a column's text means: in the one form that all equal states have, and for people.
#[derive(Debug, PartialEq, Eq)]
struct Meaning {
    canonical: String,
    says: String,
}

fn meaning(state: &State, text: &str) -> Result<Meaning, arrow::error::ArrowError> {
    if !state.is_serialized() {
        return Ok(Meaning {
            canonical: text.to_owned(),
            says: shortened(text),
        });
    }
    let reading = sent(state, text)?;
    let digits = reading.canonical.iter().map(|byte| format!("{byte:02x}"));
    Ok(Meaning {
        says: format!("{} ({} bytes)", reading.result, reading.canonical.len()),
        canonical: digits.collect(),
    })
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use shared_schemas::definitions::Definitions;
    use shared_schemas::sketch::Uniq;

    use super::*;

    const DEFINITIONS: &str = r#"
[dataset.flights]
topic = "flights"
event_time = "at"
fields = { at = "timestamp", tail = "int64" }

[view.planes]
dataset = "flights"
grain = "1h"
[view.planes.measures]
planes = "distinct(tail)"
"#;

    fn digits(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// A set of these values, and the same with its hashes in another order.
    fn uniq(values: std::ops::Range<u64>) -> [String; 2] {
        let mut sketch = Uniq::default();
        values.for_each(|value| sketch.insert(value));
        let bytes = sketch.write();
        let (head, hashes) = bytes.split_at(2);
        let turned: Vec<u8> = hashes.rchunks(4).flatten().copied().collect();
        [digits(&bytes), digits(&[head, &turned[..]].concat())]
    }

    fn exact(values: std::ops::Range<u64>) -> [String; 2] {
        let count = u8::try_from(values.end - values.start).unwrap();
        let of = |values: Vec<u64>| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            digits(&std::iter::once(count).chain(bytes).collect::<Vec<_>>())
        };
        [of(values.clone().collect()), of(values.rev().collect())]
    }

    #[test]
    fn sets_are_compared_by_what_they_hold() {
        let definitions = Definitions::parse([("flights.toml", DEFINITIONS)]).unwrap();
        let view = definitions.view("planes").unwrap();
        let differs = |sides: [&dyn Fn(&str) -> String; 2]| {
            let [from, to] = sides.map(|side| Cell {
                key: vec!["2013-01-01 00:00:00".to_owned()],
                order: vec![Part::Number(0)],
                states: view.states().map(|column| side(column.state.suffix)).collect(),
            });
            cell_differs(view, Some(&from), Some(&to)).unwrap()
        };
        let of = |values: std::ops::Range<u64>, order: usize| {
            move |suffix: &str| match suffix {
                "sketch" => uniq(values.clone())[order].clone(),
                "exact" => exact(values.clone())[order].clone(),
                _ => "0".to_owned(),
            }
        };
        let (one, turned) = (of(0..9, 0), of(0..9, 1));
        assert_ne!(one("sketch"), turned("sketch"));
        assert_ne!(one("exact"), turned("exact"));
        assert_eq!(differs([&one, &turned]), None);

        // As many, and one of them another.
        let other = of(1..10, 0);
        let found = differs([&turned, &other]).unwrap();
        assert_eq!(found.columns.len(), 2, "{found:?}");
        for column in &found.columns {
            let (from, to) = (column.from.as_deref().unwrap(), column.to.as_deref().unwrap());
            assert!(
                from.starts_with("9 (") && to.starts_with("9 (") && from != to,
                "{column:?}"
            );
        }
    }

    #[test]
    fn cells_sort_as_the_store_sorts_them() {
        let cell = |key: serde_json::Value| Cell::read(&serde_json::json!([["x"], key, "1"]).to_string()).unwrap();
        let sorted = [
            serde_json::json!([-5, "b", 0]),
            serde_json::json!([7, "", 1]),
            serde_json::json!([7, "Z", 1]),
            serde_json::json!([7, "a", -9_223_372_036_854_775_808_i64]),
            serde_json::json!([7, "a", 9_223_372_036_854_775_807_i64]),
            serde_json::json!([7, "a", null]),
            serde_json::json!([7, null, 0]),
        ];
        for pair in sorted.windows(2) {
            assert!(cell(pair[0].clone()).order < cell(pair[1].clone()).order, "{pair:?}");
        }
        for line in ["[1]", "[[1], [1]]", "[[\"x\"], [1.5]]", "[[\"x\"], [1], 1]", ""] {
            assert!(Cell::read(line).is_err(), "{line}");
        }
    }
}
