//! What changed from one publication of a view to another.
//!
//! Days that both have from the same run are the same. Of the others the totals are compared day by day, and the first cells that
//! differ are shown with their states.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use shared_connections::store::{Pace, Store};
use shared_schemas::handoff::{EventDay, PublicationNumber};
use shared_schemas::plan::WINDOW_COLUMN;
use shared_schemas::store::Statement;
use shared_schemas::store::compared::{DaysOfRuns, additive, day_totals, different_cells};
use shared_schemas::view::View;

use crate::checks::DayTotals;
use crate::list::of_number;
use crate::publish::{Line, line};
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
    /// The columns that differ; of sets and sketches their bytes in hexadecimal digits, shortened. Null where one side has no such
    /// cell.
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
        lines(store, &statement, "JSONCompactEachRow")
            .await?
            .iter()
            .map(|line| cell_differs(view, line).ok_or_else(|| LookError::Answer(line.clone())))
            .collect::<Result<_, _>>()?
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

/// Of a line of `different_cells`.
fn cell_differs(view: &View, line: &str) -> Option<CellDiffers> {
    let fields: Vec<serde_json::Value> = serde_json::from_str(line).ok()?;
    let [key, from, to, states @ ..] = &fields[..] else {
        return None;
    };
    let names = std::iter::once(WINDOW_COLUMN).chain(view.dimensions.iter().map(|dimension| dimension.name.as_str()));
    let values = key
        .as_array()?
        .iter()
        .map(|value| value.as_str().unwrap_or_default().to_owned());
    let (had, has) = (from.as_u64()? > 0, to.as_u64()? > 0);
    let text = |value: &serde_json::Value, there: bool| there.then(|| shortened(value.as_str().unwrap_or_default()));
    let states = view.states().zip(states.chunks_exact(2));
    let columns = states
        .filter(|(_, sides)| had != has || sides[0] != sides[1])
        .map(|(state, sides)| Changed {
            column: state.name,
            from: text(&sides[0], had),
            to: text(&sides[1], has),
        });
    Some(CellDiffers {
        cell: names.map(str::to_owned).zip(values).collect(),
        columns: columns.collect(),
    })
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
