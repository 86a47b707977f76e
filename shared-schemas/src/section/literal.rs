//! Positions within TOML string literals: an expression's mistake is found at a byte of its value, and shown in the file.

/// Where in a TOML string literal, quotes included, the byte `at` of its value stands.
pub(super) fn byte_in_literal(raw: &str, at: usize) -> usize {
    let quote = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| raw.starts_with(quote))
        .unwrap_or_default();
    let mut here = quote.len();
    if quote.len() == 3 {
        here += if raw[here..].starts_with("\r\n") {
            2
        } else {
            usize::from(raw[here..].starts_with('\n'))
        };
    }
    let escapes = quote.starts_with('"');
    let end = raw.len().saturating_sub(quote.len()).max(here.min(raw.len()));
    let mut value_bytes = 0;
    while here < end {
        let rest = &raw[here..end];
        let (written, meant) = match rest.strip_prefix('\\').filter(|_| escapes) {
            Some(escaped) => escape(escaped),
            None => rest.chars().next().map_or((1, 1), |c| (c.len_utf8(), c.len_utf8())),
        };
        if value_bytes >= at && meant > 0 {
            break;
        }
        here += written;
        value_bytes += meant;
    }
    raw.floor_char_boundary(here.min(end))
}

/// How many bytes an escape takes, its backslash included, and how many its meaning has.
fn escape(after_backslash: &str) -> (usize, usize) {
    let digits = match after_backslash.chars().next() {
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some(c) if c.is_whitespace() => {
            return (1 + after_backslash.len() - after_backslash.trim_start().len(), 0);
        }
        _ => return (2, 1),
    };
    let code = after_backslash
        .get(1..1 + digits)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    (2 + digits, code.and_then(char::from_u32).map_or(1, char::len_utf8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_of_a_value_is_found_in_its_literal() {
        assert_eq!(byte_in_literal(r#""a + b""#, 4), 5);
        assert_eq!(byte_in_literal(r#""a \"b\" c""#, 6), 9);
        assert_eq!(byte_in_literal(r#""\u00e9 x""#, 3), 8);
        assert_eq!(byte_in_literal("'''\na\nb'''", 2), 6);
        assert_eq!(byte_in_literal("\"\"\"a \\\n   b\"\"\"", 2), 10);
        assert_eq!(byte_in_literal("''", 5), 1);
    }
}
