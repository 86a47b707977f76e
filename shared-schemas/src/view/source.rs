//! A view as its author wrote it, and what can be wrong with it.
//!
//! [`crate::definitions`] reads these from TOML without looking into the expressions; the view's compiler checks the
//! expressions against the dataset without knowing of files. A [`ViewPlace`] is how the two speak of the same spot.

use std::time::Duration;

/// A view's definition: names and expressions, none of them checked against the dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewSource {
    /// The name that queries use; not part of the fingerprint.
    pub name: String,
    /// The dataset's name.
    pub dataset: String,
    /// The base window's length.
    pub grain: Duration,
    /// A boolean SQL expression: only events for which it is true are counted.
    pub filter: Option<String>,
    /// What to group by besides time, in the order of the definition.
    pub dimensions: Vec<DimensionSource>,
    /// The measures by name, in the order of the definition.
    pub measures: Vec<(String, MeasureSource)>,
    /// How many values the set of a `distinct` may hold in one cell; [`DISTINCT_LIMIT`] where it is not said.
    pub distinct_limit: Option<u64>,
}

/// How many values the set of a `distinct` may hold in one cell where the definition does not say. Answers merge the sets of
/// all their cells in memory, so a set is to be 1 MiB at most; and up to so many values the sketch, too, keeps every hash.
pub const DISTINCT_LIMIT: u64 = 65_536;

/// One thing to group by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DimensionSource {
    /// Its name, and its column's.
    pub name: String,
    /// A SQL expression; just the name for a plain field.
    pub expr: String,
}

/// One measure.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MeasureSource {
    /// An aggregate over the view's events, or over those for which a condition is true.
    Aggregate {
        /// The call as written: `avg(departure_delay)`.
        call: String,
        /// A boolean SQL expression.
        condition: Option<String>,
    },
    /// One measure of the same view divided by another.
    Ratio {
        /// Name of the measure above the line.
        numerator: String,
        /// Name of the measure below the line.
        denominator: String,
    },
}

/// Something wrong with a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewMistake {
    /// Which part of the definition.
    pub place: ViewPlace,
    /// Byte offset within that part's expression, where one is known.
    pub at: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub instead: Option<String>,
}

/// A part of a view's definition.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ViewPlace {
    /// The grain.
    Grain,
    /// The filter.
    Filter,
    /// The dimension with that index.
    Dimension(usize),
    /// The call of the measure of that name.
    Measure(String),
    /// The `where` of the measure of that name.
    Condition(String),
    /// The `ratio` of the measure of that name.
    Ratio(String),
    /// The limit of sets.
    DistinctLimit,
}
