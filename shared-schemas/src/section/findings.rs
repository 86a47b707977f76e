//! A file being read, and what is wrong in it.

use toml::de::DeTable;

use super::Span;
use crate::mistake::{Mistake, Mistakes, Place, without_value};

/// A TOML file's name and text.
#[derive(Debug, Clone)]
pub(crate) struct TomlFile {
    /// The name shown with mistakes.
    pub(crate) name: String,
    /// Its text.
    pub(crate) text: String,
    /// Whether values in it may be secrets, which no mistake may show.
    pub(crate) secretive: bool,
}

/// What is wrong in one file, as far as it was read.
#[derive(Debug)]
pub(crate) struct Findings<'f> {
    file: &'f TomlFile,
    /// Lines with a mistake of syntax; nothing else is said of them.
    broken_lines: Vec<usize>,
    /// Values about which nothing more is to be said.
    settled: Vec<Span>,
    /// Lines with a value that must not be shown, whatever else is said of them.
    secret_lines: Vec<usize>,
    mistakes: Mistakes,
}

impl TomlFile {
    /// Parses the file as far as it can be; what can't is noted in the findings.
    pub(crate) fn parse(&self) -> (DeTable<'_>, Findings<'_>) {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut findings = Findings {
            file: self,
            broken_lines: Vec::new(),
            settled: Vec::new(),
            secret_lines: Vec::new(),
            mistakes: Mistakes::default(),
        };
        let mut broken_lines = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let line = findings.place(&span).line;
            // One slip of the pen makes the parser stumble several times.
            if !broken_lines.contains(&line) {
                let what = format!("this is not TOML: {}", error.message());
                findings.add(&span, what, syntax_hint(error.message()));
                broken_lines.push(line);
            }
        }
        findings.broken_lines = broken_lines;
        (table.into_inner(), findings)
    }
}

/// What to write instead of the commonest mistakes of syntax; the parser's own words are for those who know it.
fn syntax_hint(message: &str) -> &'static str {
    let unquoted = [
        "invalid boolean",
        "invalid integer",
        "invalid float",
        "invalid datetime",
        "string values must",
    ];
    if message.contains("duplicate key") {
        "each key once"
    } else if unquoted.iter().any(|begin| message.starts_with(begin)) {
        // What was written may be a secret: it is not repeated.
        "a string stands in quotes"
    } else {
        ""
    }
}

impl Findings<'_> {
    /// Notes a mistake; `instead` may be empty where nothing better is known.
    pub(crate) fn add(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        let place = self.place(span);
        if self.broken_lines.contains(&place.line) || self.settled.contains(span) {
            return;
        }
        let instead = Some(instead.into()).filter(|text| !text.is_empty());
        let line = place.line;
        self.mistakes.add(Mistake {
            file: self.file.name.clone(),
            place: Some(place),
            what: what.into(),
            instead,
        });
        if self.secret_lines.contains(&line) {
            self.mistakes.hide_values(line);
        }
    }

    /// As [`Findings::add`], about a line whose value must not be shown: with this mistake or any other.
    pub(crate) fn add_secret(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        self.secret_lines.push(self.place(span).line);
        self.add(span, what, instead);
    }

    /// Notes that something is missing, or refers to nothing, unless it may stand in a part that could not be read.
    pub(crate) fn add_missing(&mut self, span: &Span, what: impl Into<String>, instead: impl Into<String>) {
        if self.is_whole() {
            self.add(span, what, instead);
        }
    }

    /// Says no more about that value.
    pub(crate) fn settle(&mut self, span: Span) {
        self.settled.push(span);
    }

    /// Whether the file's syntax is sound.
    pub(crate) fn is_whole(&self) -> bool {
        self.broken_lines.is_empty()
    }

    /// Where a range stands in the file.
    pub(crate) fn place(&self, span: &Span) -> Place {
        let mut place = Place::of(&self.file.text, span);
        if self.file.secretive {
            place.source = without_secret(place.source);
        }
        place
    }

    /// The file's name.
    pub(crate) fn file_name(&self) -> &str {
        &self.file.name
    }

    /// The file's text.
    pub(crate) fn text(&self) -> &str {
        &self.file.text
    }

    /// How many mistakes there are so far.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.iter().count()
    }

    /// The mistakes.
    pub(crate) fn into_mistakes(self) -> Mistakes {
        self.mistakes
    }
}

/// A line to show, cut where the value may be a secret: a mistake must not carry one into a log.
fn without_secret(line: String) -> String {
    let lower = line.to_lowercase();
    let user_in_url = lower.find("://").is_some_and(|at| lower[at..].contains('@'));
    if user_in_url || SECRETIVE.iter().any(|word| lower.contains(word)) {
        without_value(&line)
    } else {
        line
    }
}

/// Words that a key of a secret contains.
const SECRETIVE: [&str; 7] = ["pass", "pasw", "pwd", "secret", "token", "credential", ".pem"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_may_hold_a_secret_is_cut() {
        assert_eq!(without_secret("user = 1".into()), "user = 1");
        assert_eq!(
            without_secret("\"sasl.password\" = \"x\"".into()),
            "\"sasl.password\" = …"
        );
    }
}
