//! `first` and `last` against `argMin` and `argMax`, for values of every type.

use anyhow::ensure;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::engine::Engine;
use shared_schemas::sketch::{Extreme, Moment, Side, empty_first};
use shared_schemas::view::ValueType;

use super::{rows, unhex};

const DECIMAL: fn(u8) -> ValueType = |precision| ValueType::Decimal { precision, scale: 2 };

/// A type, SQL for the value of `number`, and its bytes.
type Typed = (ValueType, &'static str, fn(u64) -> Vec<u8>);

fn kinds() -> Vec<Typed> {
    vec![
        (ValueType::String, "concat('v\\0', toString(number))", |number| {
            format!("v\0{number}").into_bytes()
        }),
        (ValueType::Bool, "toBool(number % 3 = 0)", |number| {
            vec![u8::from(number.is_multiple_of(3))]
        }),
        (ValueType::Int64, "5 - toInt64(number)", |number| {
            (5 - number.cast_signed()).to_le_bytes().to_vec()
        }),
        (ValueType::Float64, "toFloat64(number) / 4", |number| {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let value = number as f64 / 4.0;
            value.to_le_bytes().to_vec()
        }),
        (DECIMAL(9), "toDecimal32(number, 2)", |number| {
            (u32::try_from(number).unwrap() * 100).to_le_bytes().to_vec()
        }),
        (DECIMAL(18), "toDecimal64(number, 2)", |number| {
            (number * 100).to_le_bytes().to_vec()
        }),
        (DECIMAL(28), "CAST(number AS Decimal(28, 2))", |number| {
            (u128::from(number) * 100).to_le_bytes().to_vec()
        }),
        (
            ValueType::Timestamp,
            "fromUnixTimestamp64Micro(toInt64(number) - 7, 'UTC')",
            |number| (number.cast_signed() - 7).to_le_bytes().to_vec(),
        ),
        (ValueType::Date, "toDate32(toInt32(number))", |number| {
            u32::try_from(number).unwrap().to_le_bytes().to_vec()
        }),
    ]
}

const SIZES: [u64; 5] = [0, 1, 2, 1_000, 20_000];
/// Times that repeat, before and after 1970; offsets that repeat in the partitions.
const MOMENT: &str = "(toInt64(number * 7919 % 97) - 40, toUInt64(intDiv(number, 4)), toUInt32(number % 4))::Tuple(Int64, UInt64, UInt32)";

fn moment(number: u64) -> Moment {
    Moment {
        time: (number * 7_919 % 97).cast_signed() - 40,
        offset: number / 4,
        partition: u32::try_from(number % 4).unwrap(),
    }
}

#[test]
fn first_and_last_are_the_engines() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let engine = Engine::create(server.url(), "sketches", &[]).await?;
        for (value_type, value, bytes) in kinds() {
            for (side, function) in [(Side::First, "argMin"), (Side::Last, "argMax")] {
                let column = format!(
                    "AggregateFunction({function}, {}, Tuple(Int64, UInt64, UInt32))",
                    value_type.clickhouse()
                );
                let ours = |numbers: &mut dyn Iterator<Item = u64>| {
                    let mut state = Extreme::default();
                    numbers.for_each(|number| state.insert(side, moment(number), &bytes(number)));
                    state.write(value_type)
                };
                for size in SIZES {
                    let place = format!("{function} of {size} values of {value_type}");
                    let all = ours(&mut (0..size));
                    let theirs = format!("SELECT hex({function}State({value}, {MOMENT})) FROM numbers({size})");
                    ensure!(unhex(&engine.execute(&theirs).await?)? == all, "{place}: other bytes");
                    ensure!(size > 0 || all == empty_first(value_type), "{place}: not the empty state");
                    let even = ours(&mut (0..size).filter(|number| number % 2 == 0));
                    engine
                        .execute(&format!(
                            "CREATE OR REPLACE TABLE sketches.s (n UInt64, state {column}) ENGINE = MergeTree ORDER BY n"
                        ))
                        .await?;
                    engine.insert("s", &[rows(&[(0, even.clone())])?], &[]).await?;
                    engine
                        .execute(&format!(
                            "INSERT INTO sketches.s SELECT 1, {function}State({value}, {MOMENT}) \
                             FROM numbers({size}) WHERE number % 2"
                        ))
                        .await?;
                    let merged = engine.execute(&format!("SELECT hex({function}MergeState(state)) FROM sketches.s")).await?;
                    ensure!(unhex(&merged)? == all, "{place}: the engine's merge is another");
                    let odd = engine.execute("SELECT hex(state) FROM sketches.s WHERE n = 1").await?;
                    let mut both = Extreme::default();
                    for state in [&even, &unhex(&odd)?] {
                        both.merge(side, value_type, state)?;
                    }
                    ensure!(both.write(value_type) == all, "{place}: our merge is another");
                }
            }
        }
        anyhow::Ok(())
    })
}
