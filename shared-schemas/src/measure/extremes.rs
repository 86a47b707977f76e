//! `min(e)` and `max(e)`.

use super::algebra::Kind;
use super::state::State;

pub(super) const MIN: Kind = Kind {
    name: "min",
    states: |call| vec![State::least("min", call.value())],
    ..Kind::PLAIN
};

pub(super) const MAX: Kind = Kind {
    name: "max",
    states: |call| vec![State::greatest("max", call.value())],
    ..Kind::PLAIN
};
