//! `distinct(e)`: how many different values there were; null is none.
//!
//! Both layers keep a sketch. The batch layer also keeps the exact set of each cell, up to a limit; beyond it the cell's
//! set is let go, and counted as such, so that a bucket with such a cell is known to be an estimate. The speed layer
//! writes whole cells again and again, and a set in each of them would be most of what it writes.

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::Case;
use datafusion::logical_expr::{Expr, cast, lit};

use super::algebra::{Estimate, Exactness, Kind, ResultType};
use super::state::{Function, Reading, State};
use crate::sketch::{self, ExactSet, Identity, Malformed, Uniq};

pub(super) const DISTINCT: Kind = Kind {
    name: "distinct",
    also: &["uniq", "unique", "cardinality", "count_distinct", "approx_distinct"],
    keeps_sets: true,
    states: |call| {
        let value_type = call.value();
        let limit = call.limit.unwrap_or(u64::MAX);
        let wide = sketch::identity_is_wide(value_type);
        let sketched = State::function(
            "sketch",
            Function {
                name: "uniq",
                of: "UInt64".to_owned(),
                empty: sketch::empty_uniq(),
                ..Function::default()
            },
            move |value| sketch::uniq(sketch::identity(value, value_type)),
            sketch::merge_uniq,
            |bytes| {
                let mut state = Uniq::default();
                state.merge(bytes)?;
                Ok(Reading {
                    result: state.count().to_string(),
                    canonical: state.write(),
                })
            },
        )
        .containing(|held, less| {
            let mut all = Uniq::default();
            all.merge(held)?;
            let before = all.clone().write();
            all.merge(less)?;
            Ok(all.write() == before)
        });
        let exact = State::function(
            "exact",
            Function {
                name: "uniqExact",
                of: if wide { "UInt128" } else { "UInt64" }.to_owned(),
                empty: sketch::empty_uniq_exact(),
                ..Function::default()
            },
            move |value| sketch::uniq_exact(sketch::identity(value, value_type), limit),
            |states| states,
            move |bytes| {
                if wide {
                    read_set::<u128>(bytes)
                } else {
                    read_set::<u64>(bytes)
                }
            },
        )
        // A set that was let go is empty, which says nothing: it must make what it merges into null again.
        .merged_by(move |columns| {
            let gone = columns.state("beyond").gt(lit(0_u64));
            let known = Expr::Case(Case {
                expr: None,
                when_then_expr: vec![(Box::new(gone), Box::new(lit(ScalarValue::Binary(None))))],
                else_expr: Some(Box::new(columns.state("exact"))),
            });
            sketch::merge_uniq_exact(known, limit, wide)
        })
        .of_batch();
        let beyond = State::read_off("beyond", |columns| {
            cast(columns.state("exact").is_null(), DataType::UInt64)
        })
        .of_batch();
        vec![sketched, exact, beyond]
    },
    result_type: |_| ResultType::Count,
    result: |_, merged| match merged.states {
        [sketch, exact, beyond] => format!("if({} AND {beyond} = 0, {exact}, {sketch})", merged.all_batch),
        _ => String::new(),
    },
    exactness: |_| Exactness::ExactInBatch,
    estimate: |_, merged| match merged.states {
        // That there are no values at all, a sketch knows.
        [sketch, _, beyond] => Some(Estimate {
            error: format!(
                "if(({} AND {beyond} = 0) OR {sketch} = 0, NULL, {})",
                merged.all_batch,
                sketch::uniq_bound_sql(sketch)
            ),
            confidence: 0.95,
        }),
        _ => None,
    },
    ..Kind::PLAIN
};

fn read_set<T: Identity>(bytes: &[u8]) -> Result<Reading, Malformed> {
    let mut set = ExactSet::<T>::default();
    set.merge(bytes)?;
    Ok(Reading {
        result: set.count().unwrap_or_default().to_string(),
        canonical: set.write(),
    })
}
