//! `[view.NAME]`: a grouped aggregate over a dataset.
//!
//! Expressions are the view compiler's to judge; here is kept where in the file each of them stands.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::dataset::{Dataset, Field, FieldType};
use crate::mistake::nearest;
use crate::section::{Entry, Findings, Section, Span, quoted};
use crate::view::{DISTINCT_LIMIT, DimensionSource, MeasureSource, View, ViewMistake, ViewPlace, ViewSource};

use super::datasets::DatasetReading;
use super::{keep, names};

const KEYS: [&str; 7] = [
    "dataset",
    "grain",
    "filter",
    "dimensions",
    "measures",
    "distinct_limit",
    "keep",
];
/// The highest limit of a set: one of so many values takes 160 MB, in one cell.
const MOST_DISTINCT: u64 = 10_000_000;
const DAY: Duration = Duration::from_secs(86_400);

/// Where the parts of a view stand.
#[derive(Default)]
struct Spots<'t> {
    whole: Span,
    grain: Option<Entry<'t>>,
    filter: Option<Entry<'t>>,
    dimensions: Vec<Entry<'t>>,
    /// The dimensions that are fields whose name no dimension can have.
    misnamed: Vec<Span>,
    /// Each measure's call or ratio.
    measures: BTreeMap<String, Entry<'t>>,
    conditions: BTreeMap<String, Entry<'t>>,
    distinct_limit: Option<Entry<'t>>,
}

/// Reads a view and compiles it, if its dataset is known well enough.
pub(super) fn read(
    section: &Section<'_>,
    name: &Entry<'_>,
    datasets: &[DatasetReading],
    all_whole: bool,
    findings: &mut Findings<'_>,
) -> Option<View> {
    section.only(&KEYS, findings);
    let mut spots = Spots {
        whole: section.span.clone(),
        ..Spots::default()
    };
    let dataset = read_dataset(section, datasets, all_whole, findings);
    let before = findings.count();
    let grain = read_grain(section, &mut spots, findings);
    let grain_is_sound = findings.count() == before;
    let filter = read_expression(section, "filter", &mut spots.filter, findings);
    let dimensions = read_dimensions(section, &mut spots, findings);
    let measures = read_measures(section, &dimensions, &mut spots, findings);
    let distinct_limit = read_distinct_limit(section, &mut spots, findings);
    let of_dataset = dataset.map(|reading| (reading.dataset.name.as_str(), reading.dataset.keep));
    let keep = keep::of_view(section, of_dataset, findings);
    let DatasetReading {
        dataset,
        fields_sound: true,
        ..
    } = dataset?
    else {
        return None;
    };
    let source = ViewSource {
        name: name.key.to_owned(),
        dataset: dataset.name.clone(),
        grain: grain.unwrap_or(DAY),
        filter,
        dimensions,
        measures,
        distinct_limit,
    };
    match View::compile(&source, dataset) {
        Ok(view) => Some(View { keep, ..view }),
        Err(mistakes) => {
            for mistake in mistakes {
                if grain_is_sound || mistake.place != ViewPlace::Grain {
                    note(mistake, &spots, dataset, findings);
                }
            }
            None
        }
    }
}

/// Puts a compiler's mistake where the author sees it.
fn note(mistake: ViewMistake, spots: &Spots<'_>, dataset: &Dataset, findings: &mut Findings<'_>) {
    let entry = match &mistake.place {
        ViewPlace::Grain => spots.grain.as_ref(),
        ViewPlace::Filter => spots.filter.as_ref(),
        ViewPlace::Dimension(index) => spots.dimensions.get(*index),
        ViewPlace::Measure(name) | ViewPlace::Ratio(name) => spots.measures.get(name),
        ViewPlace::Condition(name) => spots.conditions.get(name),
        ViewPlace::DistinctLimit => spots.distinct_limit.as_ref(),
    };
    let span = match (entry, mistake.at) {
        (None, _) => spots.whole.clone(),
        // A dimension whose name is no name was complained of already.
        (Some(entry), _) if spots.misnamed.contains(&entry.span) => return,
        (Some(entry), Some(at)) if entry.as_str().is_some() => entry.span_within(at, findings),
        (Some(entry), _) => part_named_in(entry, &mistake.what).unwrap_or_else(|| entry.span.clone()),
    };
    let instead = mistake
        .instead
        .unwrap_or_else(|| example(&mistake.place, spots, dataset));
    findings.add(&span, mistake.what, instead);
}

/// What can stand at a place, for mistakes whose mend the compiler can't guess.
fn example(place: &ViewPlace, spots: &Spots<'_>, dataset: &Dataset) -> String {
    let is_number = |field: &&Field| {
        matches!(
            field.field_type,
            FieldType::Int64 | FieldType::Float64 | FieldType::Decimal { .. }
        )
    };
    let number = dataset
        .fields
        .iter()
        .find(is_number)
        .map_or("NUMBER", |field| field.name.as_str());
    match place {
        ViewPlace::Grain => "\"1h\"".to_owned(),
        ViewPlace::Filter | ViewPlace::Condition(_) => format!("a condition on one event, such as \"{number} > 1\""),
        ViewPlace::Dimension(_) => format!("a field, or an expression on one event, such as \"{number} > 1\""),
        ViewPlace::Measure(_) => format!("a call on one event's values, such as \"sum({number})\""),
        ViewPlace::Ratio(own) => {
            let others: Vec<&String> = spots.measures.keys().filter(|name| *name != own).collect();
            format!("one of {}", quoted(others))
        }
        ViewPlace::DistinctLimit => DISTINCT_LIMIT.to_string(),
    }
}

/// Where in a ratio the measure stands that a message names.
fn part_named_in(ratio: &Entry<'_>, what: &str) -> Option<Span> {
    let parts = ratio.value().as_array()?;
    let named = |part: &&toml::Spanned<toml::de::DeValue<'_>>| {
        part.get_ref()
            .as_str()
            .is_some_and(|name| what.contains(&format!("`{name}`")))
    };
    parts.iter().find(named).map(|part| part.span())
}

fn read_dataset<'d>(
    section: &Section<'_>,
    datasets: &'d [DatasetReading],
    all_whole: bool,
    findings: &mut Findings<'_>,
) -> Option<&'d DatasetReading> {
    let known = || datasets.iter().map(|reading| reading.dataset.name.as_str());
    let example = format!("dataset = \"{}\"", known().next().unwrap_or("NAME"));
    let entry = section.required("dataset", &example, findings)?;
    let name = entry.string(&example, findings)?;
    let found = datasets.iter().find(|reading| reading.dataset.name == name);
    if found.is_none() && all_whole {
        let names: Vec<&str> = known().collect();
        let instead = match nearest(name, known()) {
            Some(near) => format!("\"{near}\""),
            None if names.is_empty() => format!("define it: [dataset.{name}]"),
            None => format!("one of {names:?}").replace(['[', ']'], ""),
        };
        findings.add(
            &entry.span,
            format!("there is no dataset `{}`", name.escape_debug()),
            instead,
        );
    }
    found
}

fn read_grain<'t>(section: &Section<'t>, spots: &mut Spots<'t>, findings: &mut Findings<'_>) -> Option<Duration> {
    let entry = section.required("grain", "grain = \"1h\"", findings)?;
    spots.grain = Some(entry.clone());
    let grain = entry.duration("\"1h\"", findings)?;
    let given = entry.as_str().unwrap_or_default();
    let micros = grain.as_micros();
    if grain < Duration::from_secs(1) || !micros.is_multiple_of(1_000_000) {
        findings.add(
            &entry.span,
            format!("a grain is at least a second, and whole: `{given}` is not"),
            "\"1s\"",
        );
    } else if !DAY.as_micros().is_multiple_of(micros) {
        let below = (1..=grain.as_secs().min(DAY.as_secs()))
            .rev()
            .find(|seconds| DAY.as_secs().is_multiple_of(*seconds));
        let instead = crate::units::show_duration(Duration::from_secs(below.unwrap_or(1)));
        findings.add(
            &entry.span,
            format!("the grain `{given}` does not divide a day"),
            format!("\"{instead}\""),
        );
    }
    Some(grain)
}

fn read_distinct_limit<'t>(section: &Section<'t>, spots: &mut Spots<'t>, findings: &mut Findings<'_>) -> Option<u64> {
    let entry = section.get("distinct_limit")?;
    spots.distinct_limit = Some(entry.clone());
    entry.integer(1..=MOST_DISTINCT, &DISTINCT_LIMIT.to_string(), findings)
}

fn read_expression<'t>(
    section: &Section<'t>,
    key: &str,
    spot: &mut Option<Entry<'t>>,
    findings: &mut Findings<'_>,
) -> Option<String> {
    let entry = section.get(key)?;
    *spot = Some(entry.clone());
    let text = entry.string("a SQL expression in quotes", findings)?;
    if text.trim().is_empty() {
        findings.add(
            &entry.span,
            format!("`{key}` is empty"),
            "leave it out, or a SQL expression",
        );
        return None;
    }
    Some(text.to_owned())
}

fn read_dimensions<'t>(
    section: &Section<'t>,
    spots: &mut Spots<'t>,
    findings: &mut Findings<'_>,
) -> Vec<DimensionSource> {
    let mut dimensions: Vec<DimensionSource> = Vec::new();
    let example = "[\"FIELD\", { name = \"NAME\", expr = \"EXPRESSION\" }]";
    let elements = section
        .get("dimensions")
        .and_then(|entry| entry.list(example, findings))
        .unwrap_or_default();
    for element in elements {
        let Some((name, name_span, expr, expr_entry)) = read_dimension(&element, section, findings) else {
            continue;
        };
        let named = names::check_column("dimension", &name, &name_span, findings);
        if !named && element.as_str().is_some() {
            spots.misnamed.push(element.span.clone());
        }
        if dimensions.iter().any(|other| other.name == name) {
            findings.add(&name_span, format!("there are two dimensions `{name}`"), "another name");
            continue;
        }
        dimensions.push(DimensionSource { name, expr });
        spots.dimensions.push(expr_entry);
    }
    dimensions
}

/// A dimension's name and where it stands, its expression and where that stands.
fn read_dimension<'t>(
    element: &Entry<'t>,
    section: &Section<'t>,
    findings: &mut Findings<'_>,
) -> Option<(String, Span, String, Entry<'t>)> {
    let example = "\"FIELD\" or { name = \"NAME\", expr = \"EXPRESSION\" }";
    if let Some(field) = element.as_str() {
        if field.contains(|c: char| !c.is_alphanumeric() && c != '_') {
            let what = format!("the dimension `{}` is no field's name", field.escape_debug());
            findings.add(
                &element.span,
                what,
                format!("{{ name = \"NAME\", expr = {} }}", quoted_toml(field)),
            );
            return None;
        }
        return Some((
            field.to_owned(),
            element.span.clone(),
            field.to_owned(),
            element.clone(),
        ));
    }
    if element.value().as_table().is_none() {
        element.wrong_type("a list of names and tables", example, findings);
        return None;
    }
    let mut table = element.section(&format!("{}.dimensions", section.name), findings)?;
    table.span = element.span.clone();
    table.only(&["name", "expr"], findings);
    let name = table.required("name", "name = \"NAME\"", findings);
    let expr = table.required("expr", "expr = \"EXPRESSION\"", findings);
    let (name, expr) = (name?, expr?);
    let (text, expression) = (name.string(example, findings), expr.string(example, findings));
    Some((text?.to_owned(), name.span.clone(), expression?.to_owned(), expr))
}

fn read_measures<'t>(
    section: &Section<'t>,
    dimensions: &[DimensionSource],
    spots: &mut Spots<'t>,
    findings: &mut Findings<'_>,
) -> Vec<(String, MeasureSource)> {
    let mut measures = Vec::new();
    let header = format!("[{}.measures]", section.name);
    if section.required("measures", &header, findings).is_none() {
        return measures;
    }
    let Some(table) = section.section("measures", findings) else {
        return measures;
    };
    let entries = table.entries();
    if entries.is_empty() {
        findings.add_missing(
            &table.span,
            format!("{header} has no measure"),
            "`events = \"count()\"`",
        );
    }
    for entry in entries {
        names::check_column("measure", entry.key, &entry.key_span, findings);
        if dimensions.iter().any(|dimension| dimension.name == entry.key) {
            let what = format!("`{}` is the name of a dimension already", entry.key);
            findings.add(&entry.key_span, what, "another name");
        }
        // One that can't be read is still a measure that ratios may name.
        let stand_in = || MeasureSource::Aggregate {
            call: "count()".to_owned(),
            condition: None,
        };
        let measure = read_measure(&table, &entry, spots, findings).unwrap_or_else(stand_in);
        measures.push((entry.key.to_owned(), measure));
    }
    measures
}

fn read_measure<'t>(
    measures: &Section<'t>,
    entry: &Entry<'t>,
    spots: &mut Spots<'t>,
    findings: &mut Findings<'_>,
) -> Option<MeasureSource> {
    let example = "\"count()\", { measure = \"count()\", where = \"…\" } or { ratio = [\"…\", \"…\"] }";
    let name = entry.key.to_owned();
    if let Some(call) = entry.as_str() {
        spots.measures.insert(name, entry.clone());
        return Some(MeasureSource::Aggregate {
            call: call.to_owned(),
            condition: None,
        });
    }
    if entry.value().as_table().is_none() {
        entry.wrong_type("a measure", example, findings);
        return None;
    }
    let table = entry.section(&format!("{}.{name}", measures.name), findings)?;
    let before = findings.count();
    table.only(&["measure", "where", "ratio"], findings);
    let keys_known = findings.count() == before;
    let (call, condition, ratio) = (table.get("measure"), table.get("where"), table.get("ratio"));
    if let Some(ratio) = ratio {
        for other in [&call, &condition].into_iter().flatten() {
            let what = format!("`{name}` is a ratio, which takes no `{}`", other.key);
            findings.add(
                &other.key_span,
                what,
                "leave it out, or give it to the measures of the ratio",
            );
        }
        let parts: Vec<&str> = ratio
            .list("[\"ABOVE\", \"BELOW\"]", findings)?
            .iter()
            .filter_map(|part| part.string("the name of a measure", findings))
            .collect();
        let [numerator, denominator] = parts[..] else {
            if ratio.value().as_array().is_some_and(|array| array.len() != 2) {
                findings.add(&ratio.span, "a ratio is of two measures", "[\"ABOVE\", \"BELOW\"]");
            }
            return None;
        };
        let source = MeasureSource::Ratio {
            numerator: numerator.to_owned(),
            denominator: denominator.to_owned(),
        };
        spots.measures.insert(name, ratio);
        return Some(source);
    }
    let text = match &call {
        Some(call) => call.string("\"count()\"", findings),
        None => {
            // An unknown key was meant to say it.
            if keys_known {
                findings.add(&entry.span, format!("`{name}` says nothing to measure"), example);
            }
            None
        }
    };
    let condition = condition.and_then(|condition| {
        let text = condition.string("a SQL condition in quotes", findings)?;
        spots.conditions.insert(name.clone(), condition);
        Some(text.to_owned())
    });
    let source = MeasureSource::Aggregate {
        call: text?.to_owned(),
        condition,
    };
    spots.measures.insert(name, call?);
    Some(source)
}

/// A text as a TOML string.
fn quoted_toml(text: &str) -> String {
    if text.contains('"') {
        format!("'{text}'")
    } else {
        format!("\"{text}\"")
    }
}
