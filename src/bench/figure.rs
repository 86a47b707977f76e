//! One figure of a bench: what was measured, and what is aimed at.

use serde::{Serialize, Serializer};

/// A figure, as `--output json` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    figure: String,
    /// In `unit`.
    value: f64,
    unit: &'static str,
    /// None where the figure is told for its own sake.
    aim: Option<Aim>,
    met: Option<bool>,
}

/// What is aimed at; in JSON its number alone.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Figure {
    /// A figure without an aim.
    pub(crate) fn plain(figure: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            figure: figure.into(),
            value,
            unit,
            aim: None,
            met: None,
        }
    }

    /// A figure that should be so much or more.
    pub(crate) fn at_least(figure: impl Into<String>, value: f64, unit: &'static str, aim: f64) -> Self {
        Self {
            aim: Some(Aim::AtLeast(aim)),
            met: Some(value >= aim),
            ..Self::plain(figure, value, unit)
        }
    }

    /// A figure that should be so much or less.
    pub(crate) fn at_most(figure: impl Into<String>, value: f64, unit: &'static str, aim: f64) -> Self {
        Self {
            aim: Some(Aim::AtMost(aim)),
            met: Some(value <= aim),
            ..Self::plain(figure, value, unit)
        }
    }

    /// For the table: figure, value, unit, aim, whether it is met.
    pub(crate) fn row(&self) -> Vec<String> {
        let aim = match self.aim {
            None => String::new(),
            Some(Aim::AtLeast(aim)) => format!("≥ {}", digits(aim)),
            Some(Aim::AtMost(aim)) => format!("≤ {}", digits(aim)),
        };
        let met = match self.met {
            None => "",
            Some(true) => "met",
            Some(false) => "missed",
        };
        vec![
            self.figure.clone(),
            digits(self.value),
            self.unit.to_owned(),
            aim,
            met.to_owned(),
        ]
    }
}

impl Serialize for Aim {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (Self::AtLeast(aim) | Self::AtMost(aim)) = self;
        serializer.serialize_f64(*aim)
    }
}

/// A number for people: three digits below 100, whole ones with separators above.
fn digits(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 {
        let whole = format!("{value:.0}");
        let (sign, figures) = whole.strip_prefix('-').map_or(("", whole.as_str()), |rest| ("-", rest));
        let groups: Vec<&str> = figures
            .as_bytes()
            .rchunks(3)
            .rev()
            .filter_map(|group| std::str::from_utf8(group).ok())
            .collect();
        format!("{sign}{}", groups.join(","))
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// Counts as figures have them: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "a figure for people, far below 2^53")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        let shown = [0.0, 0.104, 9.99, 12.34, 99.96, 100.4, 1234.5, 20_000_000.0, -1234.0].map(digits);
        assert_eq!(
            shown,
            [
                "0.00",
                "0.10",
                "9.99",
                "12.3",
                "100.0",
                "100",
                "1,234",
                "20,000,000",
                "-1,234"
            ]
        );
    }

    #[test]
    fn an_aim_is_met_or_missed() {
        let row = |figure: &Figure| figure.row().join("|");
        assert_eq!(row(&Figure::plain("a", 1.0, "s")), "a|1.00|s||");
        assert_eq!(
            row(&Figure::at_least("a", 2e6, "events/s", 2e6)),
            "a|2,000,000|events/s|≥ 2,000,000|met"
        );
        assert_eq!(row(&Figure::at_most("a", 501.0, "MB", 500.0)), "a|501|MB|≤ 500|missed");
        let json = serde_json::to_string(&Figure::at_most("a", 501.0, "MB", 500.0)).unwrap();
        assert_eq!(
            json,
            r#"{"figure":"a","value":501.0,"unit":"MB","aim":500.0,"met":false}"#
        );
    }
}
