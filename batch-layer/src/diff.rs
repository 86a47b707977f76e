//! What changed from one publication of a view to another.
//!
//! Days that both have from the same run are the same. Of the others the totals are compared day by day, and the first cells that
//! differ are shown with their states. Sets and sketches are compared by what they hold: ClickHouse writes a set in the order of its hash
//! table, so the bytes of equal ones may differ.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shared_connections::store::{Pace, Store};
use shared_schemas::handoff::{EventDay, PublicationNumber};
use shared_schemas::measure::State;
use shared_schemas::plan::WINDOW_COLUMN;
use shared_schemas::store::Statement;
use shared_schemas::store::compared::{DaysOfRuns, additive, day_totals, different_cells};
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
        Ok(found.clone().kept_from(horizon).days)
    };
    let (mut before, mut after) = (days_of(from)?, days_of(to)?);
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
    let cells = if all_days.is_empty() {
        Vec::new()
    } else {
        let statement = different_cells(store.database(), view, [&before, &after], CELLS);
        patiently(|| async {
            match first_cells(store, view, &statement).await {
                Err(LookError::Store(error)) => Err(error),
                other => Ok(other),
            }
        })
        .await??
    };
    Ok(Differences {
        view: view.name.clone(),
        from,
        to,
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

/// The first cells that differ; read no further than to the last of them.
async fn first_cells(store: &Store, view: &View, statement: &Statement) -> Result<Vec<CellDiffers>, LookError> {
    let mut answer = store.begin_at_length(statement, "JSONCompactEachRow", Pace::AT_LENGTH)?;
    let (mut cells, mut begun) = (Vec::new(), Vec::new());
    while let Some(bytes) = answer.next().await? {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            begun.extend_from_slice(piece);
            if begun.last() != Some(&b'\n') {
                continue;
            }
            let line = String::from_utf8_lossy(&begun).into_owned();
            begun.clear();
            cells.extend(cell_differs(view, &line)?);
            if cells.len() == CELLS {
                return Ok(cells);
            }
        }
    }
    if begun.is_empty() {
        Ok(cells)
    } else {
        Err(LookError::Answer(shortened(&String::from_utf8_lossy(&begun))))
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

/// Of a line of `different_cells`; none where the two sides mean the same.
fn cell_differs(view: &View, line: &str) -> Result<Option<CellDiffers>, LookError> {
    let strange = || LookError::Answer(shortened(line));
    let fields: Vec<serde_json::Value> = serde_json::from_str(line).map_err(|_| strange())?;
    let [key, from, to, states @ ..] = &fields[..] else {
        return Err(strange());
    };
    let names = std::iter::once(WINDOW_COLUMN).chain(view.dimensions.iter().map(|dimension| dimension.name.as_str()));
    let values = key.as_array().ok_or_else(strange)?;
    let values = values.iter().map(|value| value.as_str().unwrap_or_default().to_owned());
    let (Some(had), Some(has)) = (from.as_u64(), to.as_u64()) else {
        return Err(strange());
    };
    let mut columns = Vec::new();
    for (column, sides) in view.states().zip(states.chunks_exact(2)) {
        let side = |at: usize, rows: u64| {
            let text = sides[at].as_str().unwrap_or_default();
            let held = (rows > 0).then(|| meaning(&column.state, text)).transpose();
            held.map_err(|error| LookError::Answer(error.to_string()))
        };
        let (from, to) = (side(0, had)?, side(1, has)?);
        if had == has && from == to {
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
            let states = view
                .states()
                .flat_map(|column| sides.map(|side| side(column.state.suffix)));
            let states: Vec<_> = states.collect();
            let line = serde_json::json!([["2013-01-01 00:00:00"], 1, 1]);
            let line = line.as_array().unwrap().iter().cloned();
            let line: Vec<_> = line.chain(states.into_iter().map(serde_json::Value::String)).collect();
            cell_differs(view, &serde_json::to_string(&line).unwrap()).unwrap()
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
        assert!(cell_differs(view, "[1]").is_err());
    }
}
