//! States made in Rust and merged by the engine's SQL, one of each kind: the forms that ClickHouse itself writes.
//!
//! Those of `distinct` and `quantiles` are written here once more by hand, from what is known of the forms and from none of the
//! product's code; `sketches.rs` has the product's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::engine::Engine;
use highwater_tests::flights::{Flight, batch, dataset, view};
use shared_schemas::handoff::{Offset, Partition, Start, TopicId};
use shared_schemas::plan::{CellKey, CellPlan};
use shared_schemas::store::tables::speed_table_name;
use shared_schemas::store::{speed_rows, view_tables};

/// LEB128, as the engine writes counts.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7F).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
}

/// Zigzag, then LEB128, as the engine writes indexes.
fn signed(value: i64, out: &mut Vec<u8>) {
    varint(((value << 1) ^ (value >> 63)).cast_unsigned(), out);
}

/// ClickHouse's `intHash64`.
fn int_hash(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// `uniq` over UInt64, of few values: no degree of skipping, a count, then the low half of each hash.
fn uniq(values: &[u64]) -> Vec<u8> {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is meant")]
    let hashes: BTreeSet<u32> = values.iter().map(|&value| int_hash(value) as u32).collect();
    let mut out = vec![0];
    varint(hashes.len() as u64, &mut out);
    hashes.iter().for_each(|hash| out.extend(hash.to_le_bytes()));
    out
}

/// `uniqExact` over UInt64: a count, then the values.
fn uniq_exact(values: &[u64]) -> Vec<u8> {
    let values: BTreeSet<_> = values.iter().collect();
    let mut out = Vec::new();
    varint(values.len() as u64, &mut out);
    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    out
}

/// `uniqExact` over UInt128.
fn uniq_exact_wide(values: &[u64]) -> Vec<u8> {
    let values: BTreeSet<_> = values.iter().collect();
    let mut out = Vec::new();
    varint(values.len() as u64, &mut out);
    values
        .iter()
        .for_each(|&&value| out.extend(u128::from(value).to_le_bytes()));
    out
}

/// `quantilesDD(0.01, …)`: mapping, positive store, negative store, count of zeros.
fn quantiles_dd(values: &[f64]) -> Vec<u8> {
    let gamma: f64 = 1.01 / 0.99;
    let mut out = vec![2];
    // The engine's own gamma, whose last bit differs from ours.
    out.extend(f64::from_le_bytes([0xFD, 0x4A, 0x81, 0x5A, 0xBF, 0x52, 0xF0, 0x3F]).to_le_bytes());
    out.extend(0_f64.to_le_bytes());
    for (flag, sign) in [(1, 1.0), (3, -1.0)] {
        let mut bins: BTreeMap<i64, f64> = BTreeMap::new();
        for value in values.iter().map(|value| value * sign).filter(|value| *value > 0.0) {
            #[expect(clippy::cast_possible_truncation, reason = "a logarithm is small")]
            let index = (value.ln() / gamma.ln()).trunc() as i64;
            *bins.entry(index).or_default() += 1.0;
        }
        out.push(flag);
        store(&bins, &mut out);
    }
    out.push(4);
    #[expect(clippy::cast_precision_loss, reason = "few values")]
    let zeros = values.iter().filter(|value| **value == 0.0).count() as f64;
    out.extend(zeros.to_le_bytes());
    out
}

/// The bins of one sign: all in a row where there is none between that is empty, else each with its distance.
fn store(bins: &BTreeMap<i64, f64>, out: &mut Vec<u8>) {
    let (first, last) = match (bins.first_key_value(), bins.last_key_value()) {
        (Some((first, _)), Some((last, _))) => (*first, *last),
        // What the engine writes for no bins: its greatest index.
        _ => {
            out.extend([0x0C, 0x00, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x02]);
            return;
        }
    };
    if usize::try_from(last - first + 1).unwrap() == bins.len() {
        out.push(0x0C);
        varint(bins.len() as u64, out);
        signed(first, out);
        signed(1, out);
        bins.values().for_each(|count| out.extend(count.to_le_bytes()));
    } else {
        out.push(0x04);
        varint(bins.len() as u64, out);
        let mut before = 0;
        for (index, count) in bins {
            signed(index - before, out);
            out.extend(count.to_le_bytes());
            before = *index;
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Values whose logarithms are far from a bin's border, of both signs.
fn samples() -> Vec<Vec<f64>> {
    vec![
        vec![1.0],
        vec![0.0],
        vec![-1.0, 2.0],
        vec![1.0, 1.05],
        vec![1.0, 1.02, 1.045, 1.065],
        vec![3.0, 3.5, 1000.0, -0.001, 0.0, 0.0],
        vec![0.5, 0.001, 1000.0, -7.0, -7.1],
    ]
}

#[test]
fn states_of_few_values_are_the_engines_bytes() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let engine = Engine::create(server.url(), "forms", &[]).await?;
        for value in [0, 1, 7, 1 << 40, u64::MAX] {
            for (state, mine) in [
                ("uniqState(toUInt64(x))", uniq(&[value])),
                ("uniqExactState(toUInt64(x))", uniq_exact(&[value])),
                ("uniqExactState(toUInt128(x))", uniq_exact_wide(&[value])),
            ] {
                let theirs = engine
                    .execute(&format!("SELECT hex({state}) FROM (SELECT {value} AS x)"))
                    .await?;
                assert_eq!(hex(&mine), theirs.trim(), "{state} of {value}");
            }
        }
        for values in samples() {
            let sql = format!("SELECT hex(quantilesDDState(0.01, 0.5, 0.99)(toFloat64(arrayJoin({values:?}))))");
            assert_eq!(
                hex(&quantiles_dd(&values)),
                engine.execute(&sql).await?.trim(),
                "{values:?}"
            );
        }
        anyhow::Ok(())
    })
}

#[test]
fn states_from_rust_merge_with_the_engines_own() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let engine = Engine::create(server.url(), "states", &[]).await?;
        engine
            .execute(
                "CREATE TABLE states.s (part UInt32, uniq AggregateFunction(uniq, UInt64), \
                 exact AggregateFunction(uniqExact, UInt64), wide AggregateFunction(uniqExact, UInt128), \
                 quantiles AggregateFunction(quantilesDD(0.01, 0.5, 0.99), Float64)) ENGINE = MergeTree ORDER BY part",
            )
            .await?;
        let ours: [Vec<u64>; 3] = [(0..50).collect(), (40..60).collect(), vec![u64::MAX]];
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let floats = |values: &Vec<u64>| -> Vec<f64> { values.iter().map(|&value| (value % 1000) as f64 - 20.0).collect() };
        let binary = |states: Vec<Vec<u8>>| -> ArrayRef { Arc::new(states.iter().map(Some).collect::<BinaryArray>()) };
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("part", Arc::new(UInt32Array::from(vec![0, 1, 2]))),
            ("uniq", binary(ours.iter().map(|values| uniq(values)).collect())),
            ("exact", binary(ours.iter().map(|values| uniq_exact(values)).collect())),
            ("wide", binary(ours.iter().map(|values| uniq_exact_wide(values)).collect())),
            ("quantiles", binary(ours.iter().map(|values| quantiles_dd(&floats(values))).collect())),
        ];
        let fields: Vec<_> =
            columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), false)).collect();
        assert_eq!(fields[1].data_type(), &DataType::Binary);
        let rows = RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            columns.into_iter().map(|(_, array)| array).collect(),
        )?;
        engine.insert("s", &[rows], &[]).await?;
        // The engine's own part: 55 to 99.
        engine
            .execute(
                "INSERT INTO states.s SELECT 3, uniqState(n), uniqExactState(n), uniqExactState(toUInt128(n)), \
                 quantilesDDState(0.01, 0.5, 0.99)(toFloat64(n % 1000) - 20) FROM (SELECT number + 55 AS n FROM numbers(45))",
            )
            .await?;
        let merged = engine
            .execute("SELECT uniqMerge(uniq), uniqExactMerge(exact), uniqExactMerge(wide) FROM states.s")
            .await?;
        assert_eq!(merged.trim(), "101\t101\t101");
        // The same values aggregated by the engine alone give the same quantiles, bit for bit.
        let alone = "SELECT quantilesDD(0.01, 0.5, 0.99)(toFloat64(n % 1000) - 20) FROM (SELECT arrayJoin(arrayConcat(\
             range(50), range(40, 60), [18446744073709551615], range(55, 100))) AS n)";
        let merged = engine.execute("SELECT quantilesDDMerge(0.01, 0.5, 0.99)(quantiles) FROM states.s").await?;
        assert_eq!(merged, engine.execute(alone).await?);
        anyhow::Ok(())
    })
}

/// The measures that exist: their states come from the product's plan.
#[test]
fn states_of_the_measures_merge_to_what_the_engine_computes() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let view = view()?;
        let engine = Engine::create(server.url(), "measures", &view_tables(&view)).await?;
        let plan = CellPlan::new(&view, &dataset(), CellKey::Start)?;
        let events: Vec<_> = (0..200_u64)
            .map(|offset| {
                let signed = i64::try_from(offset).unwrap();
                let flight = Flight {
                    partition: u32::try_from(offset % 2).unwrap(),
                    offset,
                    at: signed * 97,
                    carrier: (offset % 4 > 0).then(|| format!("C{}", offset % 4)),
                    delay: (offset % 5 > 0).then_some(signed * 1_000_000_007 - 90),
                    distance: (offset % 7 > 0).then(|| i32::try_from(offset).unwrap() - 50),
                };
                (flight, offset / 8 * 8)
            })
            .collect();
        let cells = plan.run(vec![batch(&events)?]).await?;
        let versions = |_: Partition, start: Start| Some(Offset(start.0.0 + 8));
        let rows = speed_rows(&cells, TopicId(7), &versions)?;
        engine.insert(&speed_table_name(&view), &[rows], &[]).await?;
        let merged = engine
            .execute(&format!(
                "SELECT carrier, sum(flights__count), sum(delay__sum), sum(distance__sum), sum(distance__magnitude), \
                 sum(distance__count), min(first__min), max(worst__max), sum(mean__sum), sum(mean__count), \
                 uniqExact(_topic), min(_partition), max(_start), max(_next) \
                 FROM measures.{} FINAL GROUP BY carrier ORDER BY carrier",
                speed_table_name(&view)
            ))
            .await?;
        let alone = engine
            .execute(
                "WITH number AS o, if(o % 4 > 0, concat('C', toString(o % 4)), NULL) AS carrier, \
                 if(o % 5 > 0, toInt64(o) * 1000000007 - 90, NULL) AS delay, \
                 if(o % 7 > 0, toFloat64(o) - 50, NULL) AS distance, \
                 fromUnixTimestamp64Micro((1706738400 + toInt64(o) * 97) * 1000000, 'UTC') AS at \
                 SELECT carrier, count(), sum(delay), sum(distance), sum(abs(distance)), count(distance), min(at), \
                 max(delay), sum(delay), count(delay), 1, min(o % 2), max(intDiv(o, 8) * 8), max(intDiv(o, 8) * 8 + 8) \
                 FROM numbers(200) GROUP BY carrier ORDER BY carrier",
            )
            .await?;
        assert_eq!(merged, alone);
        anyhow::Ok(())
    })
}
