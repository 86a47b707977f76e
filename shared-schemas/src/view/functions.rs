//! The functions that expressions may call.
//!
//! A list of what is allowed, not of what is refused: a decision depends on the record alone, so nothing that reads a
//! clock, a random number or a session setting may get in, and nothing whose result can outgrow memory (`repeat`,
//! `lpad`). A new DataFusion brings new functions; none becomes part of a view by itself.

/// One allowed function.
pub(super) struct Function {
    /// Its name, in lower case; DataFusion's.
    pub(super) name: &'static str,
    /// Whether it can fail on some arguments. Such a call is wrapped so that it gives null instead.
    pub(super) fallible: bool,
}

const fn sure(name: &'static str) -> Function {
    Function { name, fallible: false }
}

const fn fallible(name: &'static str) -> Function {
    Function { name, fallible: true }
}

/// All of them, by name.
pub(super) const FUNCTIONS: &[Function] = &[
    fallible("abs"),
    sure("ascii"),
    sure("bit_length"),
    sure("btrim"),
    fallible("ceil"),
    sure("char_length"),
    sure("character_length"),
    sure("coalesce"),
    sure("concat"),
    sure("contains"),
    fallible("date_bin"),
    fallible("date_part"),
    fallible("date_trunc"),
    sure("ends_with"),
    fallible("exp"),
    fallible("floor"),
    fallible("from_unixtime"),
    sure("greatest"),
    sure("initcap"),
    sure("least"),
    fallible("left"),
    sure("length"),
    sure("levenshtein"),
    fallible("ln"),
    fallible("log10"),
    fallible("log2"),
    sure("lower"),
    sure("ltrim"),
    fallible("make_date"),
    sure("nullif"),
    sure("nvl"),
    sure("octet_length"),
    fallible("pow"),
    fallible("power"),
    fallible("regexp_like"),
    sure("reverse"),
    fallible("right"),
    fallible("round"),
    sure("rtrim"),
    sure("signum"),
    fallible("split_part"),
    fallible("sqrt"),
    sure("starts_with"),
    sure("strpos"),
    fallible("substr"),
    fallible("substring"),
    fallible("trunc"),
    sure("upper"),
];

/// Functions that read a clock, a random number or a setting.
const UNSTEADY: &[&str] = &[
    "current_date",
    "current_time",
    "current_timestamp",
    "gen_random_uuid",
    "localtime",
    "localtimestamp",
    "now",
    "rand",
    "random",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "today",
    "uuid",
    "version",
];

/// The allowed function of that name.
pub(super) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.iter().find(|function| function.name == name)
}

/// Whether that name stands for something that no view may depend on.
pub(super) fn is_unsteady(name: &str) -> bool {
    UNSTEADY.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_steady() {
        assert!(FUNCTIONS.is_sorted_by(|a, b| a.name < b.name));
        assert!(FUNCTIONS.iter().all(|function| !is_unsteady(function.name)));
    }
}
