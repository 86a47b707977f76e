//! Names and texts inside ClickHouse SQL, quoted so that they end where they end.

/// A name in backquotes.
pub fn identifier(name: &str) -> String {
    enclosed(name, '`')
}

/// A text in single quotes.
pub fn text(text: &str) -> String {
    enclosed(text, '\'')
}

/// A database and a table.
pub fn table(database: &str, table: &str) -> String {
    format!("{}.{}", identifier(database), identifier(table))
}

fn enclosed(inner: &str, quote: char) -> String {
    let mut quoted = String::with_capacity(inner.len() + 2);
    quoted.push(quote);
    for letter in inner.chars() {
        match letter {
            '\\' => quoted.push_str("\\\\"),
            '\0' => quoted.push_str("\\0"),
            letter if letter == quote => {
                quoted.push('\\');
                quoted.push(letter);
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push(quote);
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a quoted token as ClickHouse's lexer does: the inside, and what follows the token.
    fn read(sql: &str, quote: char) -> Option<(String, &str)> {
        let mut letters = sql.strip_prefix(quote)?.char_indices();
        let body = &sql[quote.len_utf8()..];
        let mut inside = String::new();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => match letters.next()?.1 {
                    '0' => inside.push('\0'),
                    escaped => inside.push(escaped),
                },
                letter if letter == quote => return Some((inside, &body[at + quote.len_utf8()..])),
                letter => inside.push(letter),
            }
        }
        None
    }

    proptest! {
        #[test]
        fn nothing_escapes_its_quotes(name in any::<String>(), tricky in "[`'\\\\a\\x00]{0,12}", after in "[`' a]{0,4}") {
            for inner in [name, tricky] {
                let quoted = identifier(&inner) + &after;
                prop_assert_eq!(read(&quoted, '`'), Some((inner.clone(), after.as_str())));
                let quoted = text(&inner) + &after;
                prop_assert_eq!(read(&quoted, '\''), Some((inner, after.as_str())));
            }
        }
    }
}
