//! What a statement is, where its data begins, and how it is put to the engine.
//!
//! The engine is a client and a server in one, so three clauses that a server never sees would act on its files:
//! `INTO OUTFILE`, `FROM INFILE` and several statements in one text. All three are refused here, and then used by this
//! server itself: rows leave through `INTO OUTFILE` a pipe, the data of an `INSERT` comes in through `FROM INFILE` a
//! file without a name (the engine takes binary data no other way).

use std::ops::Range;

use crate::exception::{Exception, code};
use crate::guard;
use crate::lexer::{Kind, Lexer, Token};

/// How a statement is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Its result may be large: it leaves through a pipe.
    Rows,
    /// It reads, and its result is small: `SHOW`, `DESCRIBE`, `EXPLAIN`, `EXISTS`, `SET`, `USE`.
    Reads,
    /// `KILL QUERY`, which must find a place when all are taken.
    Kills,
    /// It changes something.
    Writes,
    /// An `INSERT` whose data follows the statement.
    Inserts(Insert),
}

/// An `INSERT` with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Insert {
    /// The text up to where `FROM INFILE` belongs.
    head: Range<usize>,
    /// The `SETTINGS` clause, or nothing.
    settings: Range<usize>,
    /// The data's format, if the statement names one.
    pub(crate) format: Option<String>,
    /// Where the data begins.
    pub(crate) data: usize,
}

/// A statement that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) class: Class,
    /// The format of its rows, if it names one.
    pub(crate) format: Option<String>,
    /// Where the text ends, without a last semicolon.
    end: usize,
    /// Where `INTO OUTFILE` belongs.
    outlet: usize,
    /// The tokens to write otherwise: where, and what instead.
    rewrites: Vec<(Range<usize>, &'static str)>,
}

/// What became of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// It may go on: more of it is needed to tell.
    Unfinished,
    /// It is whole, up to the data of an `INSERT`.
    Whole(Statement),
}

/// The name under which the engine keeps the id that a client gave its query. The engine's interface takes no id, and
/// allows no settings of one's own; this one is a string that only engines for message queues look at.
pub(crate) const ID_SETTING: &str = "stream_like_engine_insert_queue";
const CLIENT_ID: &str = "Settings['stream_like_engine_insert_queue']";
const PROCESSES: &str =
    "(SELECT * REPLACE(Settings['stream_like_engine_insert_queue'] AS query_id) FROM system.processes)";

/// Reads a statement. `last` says that nothing follows `text`; `url` is how much of it came in the address, where an
/// `INSERT` may end without saying where its data begins.
pub(crate) fn read(text: &[u8], url: usize, last: bool) -> Result<Reading, Exception> {
    let mut tokens = Vec::new();
    for token in Lexer::new(text) {
        match token.kind {
            // In the data of an insert anything may stand.
            Kind::Unfinished | Kind::Unknown => {
                return match insert(text, &tokens, url, last)? {
                    Some(statement) => Ok(Reading::Whole(statement)),
                    None if token.kind == Kind::Unknown => Err(syntax(
                        "a character that is no part of SQL, such as a typographic quote: use ' or \"",
                    )),
                    None if last => Err(syntax("a string, a quoted name or a comment does not end")),
                    None => Ok(Reading::Unfinished),
                };
            }
            _ => tokens.push(token),
        }
    }
    if let Some(statement) = insert(text, &tokens, url, last)? {
        return Ok(Reading::Whole(statement));
    }
    if !last {
        return Ok(Reading::Unfinished);
    }
    whole(text, tokens).map(Reading::Whole)
}

fn syntax(message: &str) -> Exception {
    Exception::new(code::SYNTAX_ERROR, format!("Syntax error: {message}"))
}

/// Is the token this keyword?
pub(crate) fn is(text: &[u8], token: Option<&Token>, keyword: &str) -> bool {
    token.is_some_and(|t| t.kind == Kind::Word && text[t.start..t.end].eq_ignore_ascii_case(keyword.as_bytes()))
}

fn is_sign(text: &[u8], token: Option<&Token>, sign: u8) -> bool {
    token.is_some_and(|t| t.kind == Kind::Sign && text[t.start] == sign)
}

fn name(text: &[u8], token: &Token) -> String {
    String::from_utf8_lossy(&text[token.start..token.end])
        .trim_matches(['`', '"'])
        .to_owned()
}

/// Reads an `INSERT` with data as far as its data, or not at all. Stops at the data: what follows may be binary.
fn insert(text: &[u8], tokens: &[Token], url: usize, last: bool) -> Result<Option<Statement>, Exception> {
    if !is(text, tokens.first(), "insert") {
        return Ok(None);
    }
    let mut at = 1;
    for optional in ["into", "table"] {
        if is(text, tokens.get(at), optional) {
            at += 1;
        }
    }
    let function = is(text, tokens.get(at), "function");
    if function {
        at += 1;
    }
    // The table's name, which may be a keyword: db.values
    let Some(_) = tokens.get(at) else { return Ok(None) };
    at += 1;
    while is_sign(text, tokens.get(at), b'.') {
        at += 2;
    }
    let mut settings = None;
    let mut depth = 0_usize;
    loop {
        // The address ends here: what follows is data in the format that headers name.
        let next = tokens.get(at);
        if depth == 0 && url > 0 && text.len() > url && tokens[at - 1].end < url && next.is_none_or(|t| t.start >= url)
        {
            let goes_on = ["values", "format", "select", "with", "settings", "from", "watch"];
            let bracket = next.is_some_and(|t| t.kind == Kind::Open);
            if !bracket && !goes_on.iter().any(|keyword| is(text, next, keyword)) {
                return with_data(text, tokens, tokens[at - 1].end, settings, None, url).map(Some);
            }
        }
        let Some(token) = next else { return Ok(None) };
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Semicolon if depth == 0 => return Ok(None),
            Kind::Word if depth <= 1 && (is(text, Some(token), "select") || is(text, Some(token), "with")) => {
                return Ok(None);
            }
            Kind::Word if depth == 0 && (is(text, Some(token), "watch") || is(text, Some(token), "infile")) => {
                return Ok(None);
            }
            Kind::Word if depth == 0 && is(text, Some(token), "settings") => settings = Some(token.start),
            Kind::Word if depth == 0 && is(text, Some(token), "values") => {
                // Whether the word is whole is only known once something follows.
                if token.end == text.len() && !last {
                    return Ok(None);
                }
                return with_data(text, tokens, token.start, settings, Some("Values".into()), token.end).map(Some);
            }
            Kind::Word if depth == 0 && is(text, Some(token), "format") => {
                let Some(format) = tokens.get(at + 1) else {
                    return Ok(None);
                };
                if format.end == text.len() && !last {
                    return Ok(None);
                }
                let data = skip_to_data(text, format.end);
                let Some(data) = data.or(last.then_some(text.len())) else {
                    return Ok(None);
                };
                return with_data(text, tokens, token.start, settings, Some(name(text, format)), data).map(Some);
            }
            _ => {}
        }
        at += 1;
    }
}

/// The data begins after the first line break, if only white space comes before it, else after the white space.
/// `None` where the white space may go on.
fn skip_to_data(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    if text.get(at) == Some(&b';') {
        at += 1;
    }
    loop {
        match text.get(at)? {
            b'\n' => return Some(at + 1),
            b' ' | b'\t' | b'\r' | 0x0b | 0x0c => at += 1,
            _ => return Some(at),
        }
    }
}

fn with_data(
    text: &[u8],
    tokens: &[Token],
    clause: usize,
    settings: Option<usize>,
    format: Option<String>,
    data: usize,
) -> Result<Statement, Exception> {
    let before: Vec<Token> = tokens.iter().filter(|t| t.end <= clause).copied().collect();
    guard::check(text, &before)?;
    let head = settings.unwrap_or(clause);
    Ok(Statement {
        class: Class::Inserts(Insert {
            head: 0..head,
            settings: head..clause,
            format,
            data,
        }),
        format: None,
        end: clause,
        outlet: clause,
        rewrites: Vec::new(),
    })
}

/// Reads a statement that is all there.
fn whole(text: &[u8], mut tokens: Vec<Token>) -> Result<Statement, Exception> {
    while tokens.last().is_some_and(|t| t.kind == Kind::Semicolon) {
        tokens.pop();
    }
    let Some(last) = tokens.last() else {
        return Err(Exception::new(code::SYNTAX_ERROR, "Syntax error: the query is empty"));
    };
    if tokens.iter().any(|t| t.kind == Kind::Semicolon) {
        return Err(Exception::new(
            code::SYNTAX_ERROR,
            "Syntax error (Multi-statements are not allowed)",
        ));
    }
    // To the engine's client these words mean that its user leaves.
    if tokens.len() == 1
        && ["exit", "quit", "logout", "q"]
            .iter()
            .any(|word| is(text, tokens.first(), word))
    {
        return Err(syntax("this is no statement"));
    }
    guard::check(text, &tokens)?;
    let end = last.end;
    let class = classify(text, &tokens);
    let (format, tail) = format_clause(text, &tokens);
    let rewrites = rewrites(text, &tokens, &class);
    let outlet = tail.or_else(|| settings_of_brackets(text, &tokens)).unwrap_or(end);
    Ok(Statement {
        class,
        format,
        end,
        outlet,
        rewrites,
    })
}

fn classify(text: &[u8], tokens: &[Token]) -> Class {
    let Some(first) = tokens.iter().find(|t| t.kind != Kind::Open) else {
        return Class::Writes;
    };
    let word = String::from_utf8_lossy(&text[first.start..first.end]).to_ascii_lowercase();
    match word.as_str() {
        "select" | "from" => Class::Rows,
        "with" if tokens.iter().any(|t| is(text, Some(t), "insert")) => Class::Writes,
        "with" => Class::Rows,
        "show" | "describe" | "desc" | "explain" | "exists" | "set" | "use" => Class::Reads,
        "kill" => Class::Kills,
        _ => Class::Writes,
    }
}

/// The format that a statement names, and where the clause begins: `… FORMAT x [SETTINGS …]` outside of brackets.
fn format_clause(text: &[u8], tokens: &[Token]) -> (Option<String>, Option<usize>) {
    let mut depth = 0_usize;
    let mut found = (None, None);
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            Kind::Word if depth == 0 && at > 0 && is(text, Some(token), "format") => {
                let Some(format) = tokens
                    .get(at + 1)
                    .filter(|t| matches!(t.kind, Kind::Word | Kind::Quoted))
                else {
                    continue;
                };
                let ends = tokens.get(at + 2).is_none_or(|t| is(text, Some(t), "settings"));
                // `FROM format t` names a table
                let names = ["from", "join", "as", "select"]
                    .iter()
                    .any(|k| is(text, tokens.get(at - 1), k))
                    || is_sign(text, tokens.get(at - 1), b'.')
                    || is_sign(text, tokens.get(at - 1), b',');
                if ends && !names {
                    found = (Some(name(text, format)), Some(token.start));
                }
            }
            _ => {}
        }
    }
    found
}

/// `(SELECT …) SETTINGS …`: these settings are the whole statement's, and come after `INTO OUTFILE`.
fn settings_of_brackets(text: &[u8], tokens: &[Token]) -> Option<usize> {
    if tokens.first()?.kind != Kind::Open {
        return None;
    }
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => {
                depth = depth.saturating_sub(1);
                if depth == 0 && is(text, tokens.get(at + 1), "settings") {
                    return tokens.get(at + 1).map(|t| t.start);
                }
            }
            _ => {}
        }
    }
    None
}

/// Ids: `KILL QUERY WHERE query_id = …` and `FROM system.processes` mean the ids that clients gave, not the engine's.
fn rewrites(text: &[u8], tokens: &[Token], class: &Class) -> Vec<(Range<usize>, &'static str)> {
    let mut rewrites = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if *class == Class::Kills && at > 0 && is(text, Some(token), "query_id") {
            rewrites.push((token.start..token.end, CLIENT_ID));
        }
        let reads = ["from", "join"]
            .iter()
            .any(|k| at > 0 && is(text, tokens.get(at - 1), k));
        if matches!(class, Class::Rows | Class::Writes)
            && reads
            && is(text, Some(token), "system")
            && is_sign(text, tokens.get(at + 1), b'.')
            && is(text, tokens.get(at + 2), "processes")
        {
            rewrites.push((token.start..tokens[at + 2].end, PROCESSES));
        }
    }
    rewrites
}

impl Statement {
    /// May it run where nothing may be changed?
    pub(crate) fn only_reads(&self) -> bool {
        matches!(self.class, Class::Rows | Class::Reads)
    }

    /// The statement for the engine; rows go to `outlet`, data of an insert comes from `inlet`.
    pub(crate) fn for_engine(&self, text: &[u8], outlet: Option<&str>, inlet: Option<(&str, &str)>) -> Vec<u8> {
        if let (Class::Inserts(insert), Some((file, format))) = (&self.class, inlet) {
            let mut sql = text[insert.head.clone()].to_vec();
            sql.extend_from_slice(format!("\nFROM INFILE '{file}' COMPRESSION 'none'\n").as_bytes());
            sql.extend_from_slice(&text[insert.settings.clone()]);
            sql.extend_from_slice(format!("\nFORMAT {format}").as_bytes());
            return sql;
        }
        let mut sql = Vec::with_capacity(self.end + 64);
        let mut at = 0;
        for (range, instead) in &self.rewrites {
            sql.extend_from_slice(&text[at..range.start]);
            sql.extend_from_slice(instead.as_bytes());
            at = range.end;
        }
        match outlet {
            Some(file) => {
                sql.extend_from_slice(&text[at..self.outlet]);
                sql.extend_from_slice(format!("\nINTO OUTFILE '{file}' APPEND\n").as_bytes());
                sql.extend_from_slice(&text[self.outlet..self.end]);
            }
            None => sql.extend_from_slice(&text[at..self.end]),
        }
        sql
    }
}

#[cfg(test)]
mod tests;
