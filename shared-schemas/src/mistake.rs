//! What is wrong with a file that people write, and where.
//!
//! Definitions and configuration are read to the end whatever is found, so that an author sees every mistake at once.
//! A mistake says what is wrong and what to write instead; it is shown with its line, as compilers do.

use std::fmt;

use serde::Serialize;

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// The file, as its reader was given it.
    pub file: String,
    /// Where in the file; `None`: the file itself is the matter.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

/// A stretch of one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// How many characters are meant, at least 1.
    pub width: usize,
    /// The line's text; what may be a secret is left out.
    pub source: String,
}

impl Place {
    /// The place of a range of bytes in a text; a range of several lines is cut to its first.
    pub(crate) fn of(text: &str, span: &std::ops::Range<usize>) -> Self {
        let mut start = text.floor_char_boundary(span.start);
        // The end of a file that ends its last line is shown at that line.
        if start == text.len() {
            start = text.trim_end_matches(['\n', '\r']).len();
        }
        let line_start = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &text[line_start..];
        let source = rest.split(['\n', '\r']).next().unwrap_or_default();
        let end = text
            .floor_char_boundary(span.end)
            .clamp(start, (line_start + source.len()).max(start));
        Self {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            width: text[start..end].chars().count().max(1),
            source: source.to_owned(),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else {
            writeln!(f, "{}: {}", self.file, self.what)?;
            if let Some(instead) = &self.instead {
                writeln!(f, "  = instead: {instead}")?;
            }
            return Ok(());
        };
        let margin = " ".repeat(place.line.to_string().len());
        writeln!(f, "{}:{}:{}: {}", self.file, place.line, place.column, self.what)?;
        writeln!(f, " {margin} |")?;
        writeln!(f, " {} | {}", place.line, place.source)?;
        let shown = place.source.chars().count();
        if place.column <= shown + 1 {
            // Tabs stay tabs, so that the mark stands below what it means.
            let before = place.source.chars().take(place.column - 1);
            let indent: String = before.map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let width = place.width.min((shown + 1).saturating_sub(place.column).max(1));
            writeln!(f, " {margin} | {indent}{}", "^".repeat(width))?;
        }
        if let Some(instead) = &self.instead {
            writeln!(f, " {margin} = instead: {instead}")?;
        }
        Ok(())
    }
}

/// All mistakes of one reading, by file and place.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Mistakes(Vec<Mistake>);

impl FromIterator<Mistake> for Mistakes {
    fn from_iter<I: IntoIterator<Item = Mistake>>(mistakes: I) -> Self {
        Self(mistakes.into_iter().collect())
    }
}

impl Mistakes {
    pub(crate) fn add(&mut self, mistake: Mistake) {
        self.0.push(mistake);
    }

    /// Leaves the value out of what is shown of that line. All are of one file.
    pub(crate) fn hide_values(&mut self, line: usize) {
        let places = self.0.iter_mut().filter_map(|mistake| mistake.place.as_mut());
        for place in places.filter(|place| place.line == line) {
            place.source = without_value(&place.source);
        }
    }

    /// Takes in others' mistakes.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each in turn.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }

    /// Sorts them by file, then place.
    pub(crate) fn sort(&mut self) {
        let key = |mistake: &Mistake| {
            (
                mistake.file.clone(),
                mistake
                    .place
                    .as_ref()
                    .map_or((0, 0), |place| (place.line, place.column)),
            )
        };
        self.0.sort_by_cached_key(key);
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        let count = self.0.len();
        write!(f, "{count} mistake{}", if count == 1 { "" } else { "s" })
    }
}

impl std::error::Error for Mistakes {}

/// A line without what stands behind its `=`.
pub(crate) fn without_value(line: &str) -> String {
    line.find('=')
        .map_or_else(|| "…".to_owned(), |equals| format!("{} …", &line[..=equals]))
}

/// The one of `known` that was probably meant by `name`.
pub fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= (name.len().max(candidate.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// As [`nearest`], but only one so like `name` that a slip is likelier than another name: it differs by at most two letters.
pub(crate) fn slip<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let lower = name.to_lowercase();
    nearest(name, known).filter(|meant| strsim::damerau_levenshtein(&lower, &meant.to_lowercase()) <= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_in_characters() {
        let place = Place::of("a = 1\nλ = \"µ\" # x\n", &(11..15));
        assert_eq!((place.line, place.column, place.width), (2, 5, 3));
        assert_eq!(place.source, "λ = \"µ\" # x");
    }

    #[test]
    fn the_end_of_the_file_is_on_its_last_line() {
        let place = Place::of("a = 1\nb\n", &(8..8));
        assert_eq!((place.line, place.column, place.width), (2, 2, 1));
    }

    #[test]
    fn a_range_of_several_lines_is_cut_to_the_first() {
        let place = Place::of("a = [\n1\n]\n", &(4..9));
        assert_eq!((place.line, place.column, place.width), (1, 5, 1));
    }

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["topic", "partitions", "event_time"];
        assert_eq!(nearest("topc", known), Some("topic"));
        assert_eq!(nearest("eventtime", known), Some("event_time"));
        assert_eq!(nearest("colour", known), None);
    }
}
