//! `count()` and `count(e)`: how many events, or how many values that are not null.

use datafusion::functions_aggregate::expr_fn::count;

use super::algebra::{Kind, ResultType, Takes};
use super::state::State;

pub(super) const COUNT: Kind = Kind {
    name: "count",
    takes: Takes::AtMostOne,
    states: |_| vec![number()],
    result_type: |_| ResultType::Count,
    ..Kind::PLAIN
};

/// How many values there were; sums and averages keep it too.
pub(super) fn number() -> State {
    State::count("count", count)
}
