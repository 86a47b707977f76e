//! The states of `distinct`, `quantiles`, `first` and `last` against the engine's own: the same values give the same state,
//! whoever makes it, and states of both merge with each other on both sides.

mod accuracy;
mod extremes;
mod top;

use std::sync::Arc;

use anyhow::{Context, ensure};
use arrow::array::{ArrayRef, BinaryArray, RecordBatch, UInt64Array};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::engine::Engine;
use shared_schemas::sketch::{DdSketch, ExactSet, Malformed, Uniq, empty_quantiles_dd, empty_uniq, empty_uniq_exact};

/// Around where `uniq` begins to sample, and far beyond.
const SIZES: [u64; 8] = [0, 1, 2, 1_000, 65_536, 65_537, 200_000, 1_000_000];

/// A state, or why it cannot be read.
type State = Result<Vec<u8>, Malformed>;

/// A kind of state: how the engine makes it of `number`, and how we do.
struct Kind {
    name: &'static str,
    column: &'static str,
    /// SQL for a value.
    value: &'static str,
    /// The functions, with their parameters between name and arguments.
    function: &'static str,
    parameters: &'static str,
    ours: fn(&mut dyn Iterator<Item = u64>) -> Vec<u8>,
    merged: fn(&[&[u8]]) -> State,
    /// The result, as the engine's text has it.
    result: fn(&[u8]) -> Result<String, Malformed>,
    empty: fn() -> Vec<u8>,
}

/// Any bits.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// Negative, zero and positive, of 1 and more.
#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn double(number: u64) -> f64 {
    (number * 7_919 % 100_003) as f64 - 50_000.0
}

const LEVELS: [f64; 3] = [0.01, 0.5, 0.99];

const KINDS: [Kind; 4] = [
    Kind {
        name: "uniq",
        column: "AggregateFunction(uniq, UInt64)",
        value: "number * 11400714819323198485",
        function: "uniq",
        parameters: "",
        ours: |numbers| {
            let mut state = Uniq::default();
            numbers.for_each(|number| state.insert(scattered(number)));
            state.write()
        },
        merged: |states| {
            let mut state = Uniq::default();
            states.iter().try_for_each(|bytes| state.merge(bytes))?;
            Ok(state.write())
        },
        result: |bytes| {
            let mut state = Uniq::default();
            state.merge(bytes)?;
            Ok(state.count().to_string())
        },
        empty: empty_uniq,
    },
    Kind {
        name: "exact",
        column: "AggregateFunction(uniqExact, UInt64)",
        value: "number * 11400714819323198485",
        function: "uniqExact",
        parameters: "",
        ours: |numbers| {
            let mut state = ExactSet::<u64>::default();
            numbers.for_each(|number| state.insert(scattered(number)));
            state.write()
        },
        merged: |states| {
            let mut state = ExactSet::<u64>::default();
            states.iter().try_for_each(|bytes| state.merge(bytes))?;
            Ok(state.write())
        },
        result: |bytes| {
            let mut state = ExactSet::<u64>::default();
            state.merge(bytes)?;
            Ok(state.count().unwrap_or_default().to_string())
        },
        empty: empty_uniq_exact,
    },
    Kind {
        name: "wide",
        column: "AggregateFunction(uniqExact, UInt128)",
        value: "toUInt128(number * 11400714819323198485) * toUInt128('18446744073709551629')",
        function: "uniqExact",
        parameters: "",
        ours: |numbers| {
            let mut state = ExactSet::<u128>::default();
            let wide = |number| u128::from(scattered(number)).wrapping_mul(18_446_744_073_709_551_629);
            numbers.for_each(|number| state.insert(wide(number)));
            state.write()
        },
        merged: |states| {
            let mut state = ExactSet::<u128>::default();
            states.iter().try_for_each(|bytes| state.merge(bytes))?;
            Ok(state.write())
        },
        result: |bytes| {
            let mut state = ExactSet::<u128>::default();
            state.merge(bytes)?;
            Ok(state.count().unwrap_or_default().to_string())
        },
        empty: empty_uniq_exact,
    },
    Kind {
        name: "quantiles",
        column: "AggregateFunction(quantilesDD(0.01, 0.01, 0.5, 0.99), Float64)",
        value: "toFloat64(number * 7919 % 100003) - 50000",
        function: "quantilesDD",
        parameters: "(0.01, 0.01, 0.5, 0.99)",
        ours: |numbers| {
            let mut state = DdSketch::default();
            numbers.for_each(|number| state.insert(double(number)));
            state.write()
        },
        merged: |states| {
            let mut state = DdSketch::default();
            states.iter().try_for_each(|bytes| state.merge(bytes))?;
            Ok(state.write())
        },
        result: |bytes| {
            let mut state = DdSketch::default();
            state.merge(bytes)?;
            Ok(quantiles(&mut state))
        },
        empty: empty_quantiles_dd,
    },
];

/// Quantiles, to as many digits as two libraries' `exp` agree on.
fn quantiles(state: &mut DdSketch) -> String {
    let found = LEVELS.map(|level| state.quantile(level).map_or("nan".to_owned(), digits));
    format!("[{}]", found.join(","))
}

fn digits(value: f64) -> String {
    format!("{value:.8e}")
}

/// The same digits of what the engine shows.
fn rounded(shown: &str) -> anyhow::Result<String> {
    let Some(list) = shown.strip_prefix('[').and_then(|shown| shown.strip_suffix(']')) else {
        return Ok(shown.to_owned());
    };
    let values = list.split(',').map(|value| match value {
        "nan" => Ok(value.to_owned()),
        _ => Ok(digits(value.parse()?)),
    });
    Ok(format!("[{}]", values.collect::<anyhow::Result<Vec<_>>>()?.join(",")))
}

pub(crate) fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digit = |at: u8| char::from(at).to_digit(16).context("no hexadecimal digit");
    let pairs = text.trim().as_bytes().chunks(2);
    pairs
        .map(|pair| match pair {
            [high, low] => Ok(u8::try_from(digit(*high)? * 16 + digit(*low)?)?),
            _ => anyhow::bail!("half a byte"),
        })
        .collect()
}

/// A row each: a number and a state.
pub(crate) fn rows(states: &[(u64, Vec<u8>)]) -> anyhow::Result<RecordBatch> {
    let sizes: ArrayRef = Arc::new(UInt64Array::from_iter_values(states.iter().map(|(size, _)| *size)));
    let states: ArrayRef = Arc::new(BinaryArray::from_iter_values(states.iter().map(|(_, state)| state)));
    Ok(RecordBatch::try_from_iter([("n", sizes), ("state", states)])?)
}

impl Kind {
    /// SQL for the engine's state.
    fn theirs(&self) -> String {
        let Self {
            function,
            parameters,
            value,
            ..
        } = self;
        format!("{function}State{parameters}({value})")
    }

    async fn result_of(&self, engine: &Engine, sql: &str) -> anyhow::Result<String> {
        rounded(engine.execute(sql).await?.trim())
    }

    async fn check(&self, engine: &Engine, size: u64) -> anyhow::Result<()> {
        let Self {
            name,
            column,
            function,
            parameters,
            value,
            ..
        } = self;
        let place = format!("{name} of {size}");
        let ours = (self.ours)(&mut (0..size));
        // The engine's own state, read in Rust, holds the same.
        let theirs = format!("SELECT hex({}) FROM numbers({size})", self.theirs());
        let theirs = unhex(&engine.execute(&theirs).await?)?;
        ensure!(
            (self.merged)(&[&theirs])? == ours,
            "{place}: the engine's state holds something else"
        );
        let in_order = *name == "quantiles" || size < 2;
        ensure!(!in_order || theirs == ours, "{place}: other bytes");
        ensure!(size > 0 || ours == (self.empty)(), "{place}: not the empty state");
        // Ours, read by the engine, gives the same result: alone, and the even numbers with the engine's odd ones.
        let truth = self
            .result_of(
                engine,
                &format!("SELECT {function}{parameters}({value}) FROM numbers({size})"),
            )
            .await?;
        ensure!(
            (self.result)(&ours)? == truth,
            "{place}: {} instead of {truth}",
            (self.result)(&ours)?
        );
        let even = (self.ours)(&mut (0..size).filter(|number| number % 2 == 0));
        engine
            .execute(&format!(
                "CREATE OR REPLACE TABLE sketches.s (n UInt64, state {column}) ENGINE = MergeTree ORDER BY n"
            ))
            .await?;
        engine
            .insert("s", &[rows(&[(0, ours), (1, even.clone())])?], &[])
            .await?;
        engine
            .execute(&format!(
                "INSERT INTO sketches.s SELECT 2, {} FROM numbers({size}) WHERE number % 2",
                self.theirs()
            ))
            .await?;
        let merge = format!("SELECT {function}Merge{parameters}(state) FROM sketches.s WHERE n");
        for rows in ["= 0", "IN (1, 2)", "IN (0, 1, 2)"] {
            // Values counted twice are the same set, but other quantiles: not asked for.
            if *name == "quantiles" && rows.len() > 9 {
                continue;
            }
            let merged = self.result_of(engine, &format!("{merge} {rows}")).await?;
            ensure!(
                merged == truth,
                "{place}: merged, n {rows}, {merged} instead of {truth}"
            );
        }
        // The engine's merge of both, read in Rust, is our merge of both.
        let state = format!("SELECT hex({function}MergeState{parameters}(state)) FROM sketches.s WHERE n");
        let odd = unhex(&engine.execute(&format!("{state} = 2")).await?)?;
        let both = unhex(&engine.execute(&format!("{state} IN (1, 2)")).await?)?;
        ensure!(
            (self.merged)(&[&both])? == (self.merged)(&[&even, &odd])?,
            "{place}: the engine's merge of both is another"
        );
        Ok(())
    }
}

async fn check(kind: &str) -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    let engine = Engine::create(server.url(), "sketches", &[]).await?;
    let kind = KINDS.iter().find(|known| known.name == kind).context("no such kind")?;
    for size in SIZES {
        kind.check(&engine, size).await?;
    }
    Ok(())
}

#[test]
fn uniq_is_the_engines() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(check("uniq"))
}

#[test]
fn exact_sets_are_the_engines() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(check("exact"))
}

#[test]
fn exact_sets_of_hashes_are_the_engines() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(check("wide"))
}

#[test]
fn quantiles_are_the_engines() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(check("quantiles"))
}
