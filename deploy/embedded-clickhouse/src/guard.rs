//! What a client over the network may not ask of an engine that runs with its host's rights.
//!
//! The engine believes that whoever calls it owns the machine: it reads any file, runs commands for dictionaries and calls
//! any address. Most of that is taken away by grants (see `config.rs`: no sources but tables, no dictionaries, engines
//! that keep their data in the data folder). What grants don't cover is refused here, by its tokens.

use crate::config::TABLE_ENGINES;
use crate::exception::{Exception, code};
use crate::lexer::{Kind, Token};
use crate::statement::is;

/// Functions that read files of the host and need no grant.
const FILE_FUNCTIONS: [&str; 2] = ["file", "catboostevaluate"];
/// Database engines that keep their data in the data folder.
const DATABASE_ENGINES: [&str; 2] = ["Atomic", "Memory"];

/// Refuses a statement that would reach beyond the tables.
pub(crate) fn check(text: &[u8], tokens: &[Token]) -> Result<(), Exception> {
    for at in 0..tokens.len() {
        let token = tokens.get(at);
        let next = tokens.get(at + 1);
        if is(text, token, "into") && is(text, next, "outfile") {
            return Err(Exception::new(
                code::INTO_OUTFILE_NOT_ALLOWED,
                "INTO OUTFILE is not allowed",
            ));
        }
        if is(text, token, "from") && is(text, next, "infile") {
            return denied("FROM INFILE is not allowed: send the data in the body");
        }
        let opens = next.is_some_and(|t| t.kind == Kind::Open && text[t.start] == b'(');
        if opens && names(text, token, "disk") {
            return denied("disks of one's own are not allowed");
        }
        if FILE_FUNCTIONS.iter().any(|f| names(text, token, f)) && (opens || applied(text, tokens, at)) {
            return denied("functions that read files of the server are not allowed");
        }
    }
    let first = tokens.first();
    if is(text, first, "attach") && from_path(text, tokens) {
        return denied("ATTACH … FROM a path is not allowed");
    }
    if ["create", "attach", "replace"]
        .iter()
        .any(|keyword| is(text, first, keyword))
    {
        let database = is(text, tokens.get(1), "database");
        return check_engine(text, tokens, if database { &DATABASE_ENGINES } else { &TABLE_ENGINES });
    }
    Ok(())
}

fn denied(message: &str) -> Result<(), Exception> {
    Err(Exception::new(
        code::ACCESS_DENIED,
        format!("embedded-clickhouse: {message}"),
    ))
}

/// Does the token name this, quoted or not? A quoted name with an escape before a bracket is taken to.
fn names(text: &[u8], token: Option<&Token>, name: &str) -> bool {
    let Some(token) = token else { return false };
    let word = &text[token.start..token.end];
    match token.kind {
        Kind::Word => word.eq_ignore_ascii_case(name.as_bytes()),
        Kind::Quoted => word.contains(&b'\\') || word[1..word.len() - 1].eq_ignore_ascii_case(name.as_bytes()),
        _ => false,
    }
}

/// `APPLY(f)` and `APPLY f` call a function without brackets.
fn applied(text: &[u8], tokens: &[Token], at: usize) -> bool {
    let before = |n: usize| at.checked_sub(n).and_then(|i| tokens.get(i));
    is(text, before(1), "apply") || (before(1).is_some_and(|t| t.kind == Kind::Open) && is(text, before(2), "apply"))
}

fn from_path(text: &[u8], tokens: &[Token]) -> bool {
    tokens
        .windows(2)
        .any(|pair| is(text, pair.first(), "from") && pair[1].kind == Kind::Text)
}

/// The engine that a definition names must be one that keeps its data in the data folder. (Grants say so as well, but
/// not for engines that run programs.)
fn check_engine(text: &[u8], tokens: &[Token], allowed: &[&str]) -> Result<(), Exception> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Open => depth += 1,
            Kind::Close => depth = depth.saturating_sub(1),
            _ => {}
        }
        // The query of a view names no engine, but may compare a column of that name.
        let query = |t: Option<&Token>| {
            ["select", "with"].iter().any(|k| is(text, t, k)) || t.is_some_and(|t| t.kind == Kind::Open)
        };
        if depth == 0 && is(text, Some(token), "as") && query(tokens.get(at + 1)) {
            break;
        }
        if depth == 0 && is(text, Some(token), "engine") {
            let engine = tokens[at + 1..]
                .iter()
                .find(|t| matches!(t.kind, Kind::Word | Kind::Quoted));
            if !allowed.iter().any(|name| is(text, engine, name)) {
                return denied(&format!(
                    "this engine is not allowed, use one of {}",
                    allowed.join(", ")
                ));
            }
        }
    }
    Ok(())
}
