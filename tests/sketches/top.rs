//! Why there is no measure of the most frequent values: its states would not merge free of order.
//!
//! `docs/decisions/no-top-k.md` says what follows. Should an engine come whose states do, this test fails and tells.

use std::collections::BTreeSet;

use anyhow::ensure;
use highwater_tests::clickhouse::ClickHouse;
use highwater_tests::engine::Engine;

/// Values of which few are frequent, as words are; and values that are all about as frequent.
const STEEP: &str = "toUInt64(exp(cityHash64(number) % 1000000 / 1000000 * log(50000)))";
const FLAT: &str = "cityHash64(number) % 211 + (number % 17)";

const ORDERS: [&str; 3] = ["number", "number DESC", "cityHash64(number, 1)"];
const SPLITS: [&str; 3] = ["number % 2", "number % 50", "intDiv(number, 1000)"];

/// The answers to the same question about the same values, read in several orders and merged from several splits.
async fn answers(
    engine: &Engine,
    function: &str,
    parameters: &str,
    argument: &str,
    values: &str,
) -> anyhow::Result<BTreeSet<String>> {
    let mut answers = BTreeSet::new();
    for order in ORDERS {
        let ordered = format!("SELECT {values} AS v, number FROM numbers(100000) ORDER BY {order}");
        let sql = format!("SELECT {function}({parameters})({argument}) FROM ({ordered})");
        answers.insert(engine.execute(&sql).await?);
    }
    for split in SPLITS {
        let states = format!(
            "SELECT {function}State({parameters})({argument}) AS s FROM (SELECT {values} AS v, number FROM numbers(100000)) \
             GROUP BY {split}"
        );
        let sql = format!("SELECT {function}Merge({parameters})(s) FROM ({states})");
        answers.insert(engine.execute(&sql).await?);
    }
    Ok(answers)
}

#[test]
fn states_of_the_most_frequent_values_depend_on_order() -> anyhow::Result<()> {
    let server = ClickHouse::start()?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let engine = Engine::create(server.url(), "sketches", &[]).await?;
        for (function, parameters, argument) in [
            ("topK", "10", "v"),
            ("topK", "10, 3, 'counts'", "v"),
            ("approx_top_k", "10", "v"),
            ("approx_top_sum", "10", "v, 1"),
        ] {
            for (shape, values) in [("steep", STEEP), ("flat", FLAT)] {
                let answers = answers(&engine, function, parameters, argument, values).await?;
                println!("{function}({parameters}), {shape}: {} answers of 6 ways", answers.len());
                for answer in &answers {
                    println!("  {}", answer.trim());
                }
                ensure!(
                    answers.len() > 1,
                    "{function}({parameters}), {shape}: the same in any order"
                );
            }
        }
        anyhow::Ok(())
    })
}
