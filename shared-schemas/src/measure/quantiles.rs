//! `quantiles(e, [levels…])`: the values below which given shares of all values lie, within 1 %.

use datafusion::logical_expr::cast;

use super::algebra::{Estimate, Exactness, Kind, ResultType, Takes};
use super::state::{Function, Reading, State};
use crate::sketch::{self, DdSketch, QUANTILE_ERROR};
use crate::view::ValueType;

pub(super) const QUANTILES: Kind = Kind {
    name: "quantiles",
    also: &["median", "percentile", "percentiles", "approx_percentile_cont"],
    takes: Takes::OneAndLevels,
    accepts: ValueType::is_number,
    accepts_what: "a number",
    states: |call| {
        let levels = call.levels.clone();
        let parameters: Vec<_> = levels.iter().map(|level| format!("{level:?}")).collect();
        let sketched = State::function(
            "sketch",
            Function {
                name: "quantilesDD",
                parameters: format!("({QUANTILE_ERROR}, {})", parameters.join(", ")),
                of: "Float64".to_owned(),
                empty: sketch::empty_quantiles_dd(),
            },
            |value| sketch::quantiles_dd(cast(value, ValueType::Float64.arrow())),
            sketch::merge_quantiles_dd,
            move |bytes| {
                let mut state = DdSketch::default();
                state.merge(bytes)?;
                let results: Vec<_> = levels.iter().map(|level| state.quantile(*level)).collect();
                let result = match results.iter().copied().collect::<Option<Vec<f64>>>() {
                    Some(results) => format!("{results:?}"),
                    None => "none".to_owned(),
                };
                Ok(Reading {
                    result,
                    canonical: state.write(),
                })
            },
        )
        .containing(|held, less| {
            let (mut all, mut some) = (DdSketch::default(), DdSketch::default());
            all.merge(held)?;
            some.merge(less)?;
            Ok(all.contains(&mut some))
        });
        vec![sketched]
    },
    result_type: |_| ResultType::Levels,
    // Of no values the function gives no number, for each level.
    result: |_, merged| match merged.states {
        [levels] => format!("arrayMap(level -> if(isFinite(level), level, NULL), {levels})"),
        _ => String::new(),
    },
    exactness: |_| Exactness::Estimated,
    estimate: |_, merged| match merged.states {
        [levels] => Some(Estimate {
            error: format!("if(isFinite({levels}[1]), {QUANTILE_ERROR}, NULL)"),
            confidence: 1.0,
        }),
        _ => None,
    },
    ..Kind::PLAIN
};
