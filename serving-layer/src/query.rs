//! The protocol of a query: facts, then one statement, then gaps.
//!
//! Everything that decides what counts is read *before* the rows, from the same store; a publication that arrives in between
//! changes nothing. The statement checks the floor once more by itself, and where the floor has risen past the
//! publication, the facts are read again. Gaps are read after the rows, so that no row lacks what was not told.
//!
//! A view without a publication may have been changed: then what answers is the definition that was published last under its
//! name, and the query has to be checked against that one first ([`Reply::Changed`]).
//!
//! Exact sets may take more memory to merge than a statement may have. An estimate that says so is better than no answer: then
//! the sketches alone are asked.

use std::time::Instant;

use metrics::histogram;
use shared_connections::store::{Answer as Rows, Facts, FreshnessOfPartition, Store, StoreError};
use shared_schemas::handoff::{Answering, BadChunk, ChunkSize};
use shared_schemas::store::{Merging, Selection, Statement, StatementError};
use shared_schemas::view::View;

use crate::answer::{Answer, Unreadable};
use crate::changed::{Building, Changed, Definition};
use crate::coverage::Coverage;
use crate::problem::{Problem, is_out_of_memory};
use crate::request::Query;

/// How often the facts are read again because the floor rose past them. Collection waits minutes between two.
const TRIES: usize = 3;

/// In what format rows are asked for.
const FORMAT: &str = "JSONCompact";
/// How a statement's rows are to be written: moments as RFC 3339, and numbers in quotes, since readers of JSON round them.
const FORM: [(&str, &str); 5] = [
    ("date_time_output_format", "iso"),
    ("output_format_json_quote_64bit_integers", "1"),
    ("output_format_json_quote_64bit_floats", "1"),
    ("output_format_json_quote_decimals", "1"),
    ("output_format_json_quote_denormals", "1"),
];

/// As much memory as the store may spend on one query, in bytes: enough for [`crate::request::HIGHEST_LIMIT`] rows out of
/// millions of groups.
const MEMORY: (&str, &str) = ("max_memory_usage", "4294967296");

/// A caller that goes away ends its connection to the store, and so its query; ClickHouse does that for statements that
/// only read.
const ENDS_WITH_CALLER: [(&str, &str); 2] = [("readonly", "2"), ("cancel_http_readonly_queries_on_client_close", "1")];

const SECONDS_PER_DAY: i64 = 86_400;

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What was checked before does not make a statement.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// The view's chunk is none.
    #[error(transparent)]
    Chunk(#[from] BadChunk),
    /// The rows are not as the statement asks for.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// What was to answer instead of the view has no publication any more.
    #[error("the publication that was to answer is gone")]
    Gone,
    /// The view was published between two looks at it.
    #[error("the view was published meanwhile")]
    Published,
}

/// What comes of a query.
#[derive(Debug)]
pub enum Reply {
    /// Its answer.
    Answer(Box<Answer>),
    /// Another definition is to be asked.
    Changed(Box<Changed>),
}

/// The view that is asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// It.
    pub view: &'a View,
    /// Whether its dataset says which events are repeats.
    pub has_event_id: bool,
    /// Where it answers instead of another.
    pub instead: Option<&'a Changed>,
}

impl<'a> Asked<'a> {
    /// What to say of it where it answers instead of another.
    pub(crate) fn definition(&self) -> Option<&'a Definition> {
        self.instead.map(|changed| &changed.definition)
    }
}

impl Changed {
    /// To ask the one that answers.
    pub fn asked(&self) -> Asked<'_> {
        Asked {
            view: &self.instead.view,
            has_event_id: self.instead.has_event_id,
            instead: Some(self),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Store(error) => Self::of_store(&error),
            QueryError::Gone => Self::publication_gone(),
            other => Self::internal(other.to_string()),
        }
    }
}

/// Answers a query that was checked against the view that is asked.
///
/// # Errors
/// The store's, and what should not happen.
pub async fn answer(store: &Store, asked: Asked<'_>, query: &Query) -> Result<Reply, QueryError> {
    let begun = Instant::now();
    let reply = tried(store, asked, query).await;
    if !matches!(reply, Ok(Reply::Changed(_))) {
        histogram!("highwater_query_seconds", "view" => asked.view.name.clone()).record(begun.elapsed().as_secs_f64());
    }
    reply
}

async fn tried(store: &Store, asked: Asked<'_>, query: &Query) -> Result<Reply, QueryError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match once(store, asked, query, tries < TRIES).await {
            Err(QueryError::Store(error)) if error.is_below_floor() && tries < TRIES => {
                tracing::debug!("the floor has passed the publication, reading the facts again");
            }
            Err(QueryError::Published) => tracing::debug!("the view is published now, reading the facts again"),
            done => return done,
        }
    }
}

async fn once(store: &Store, asked: Asked<'_>, query: &Query, may_try_again: bool) -> Result<Reply, QueryError> {
    let view = asked.view;
    let chunk = ChunkSize::new(view.chunk)?;
    // What freshness says is counted, the rows that are read later hold; so it matters only that both come before them.
    let (mut facts, freshness) = tokio::try_join!(store.facts_before_rows(view), store.freshness(view))?;
    if facts.newest().is_none() {
        if asked.instead.is_some() {
            return Err(QueryError::Gone);
        }
        match store.answering(view).await? {
            // All that it has published may lie below its floor, whoever looks.
            Answering::Itself if may_try_again => return Err(QueryError::Published),
            who @ Answering::Another(_) => {
                store.read_gaps(view, &mut facts).await?;
                let building = Building::of(who, view, &facts, &freshness);
                if let Some(changed) = building.and_then(Building::changed) {
                    return Ok(Reply::Changed(Box::new(changed)));
                }
            }
            Answering::Itself | Answering::ItselfUnpublished => {}
        }
    }
    if let Some(changed) = asked.instead {
        changed.raise_horizon(&mut facts, query.range.now);
    }
    let rows = rows(store, view, &facts, query).await?;
    store.read_gaps(view, &mut facts).await?;
    let coverage = Coverage::of(&facts, &freshness, chunk, query.layers, query.range.now);
    let answer = Answer::of(asked, query, &rows.body, &coverage, &facts, &freshness)?;
    Ok(Reply::Answer(Box::new(answer)))
}

/// Who answers instead of a view, where another does.
///
/// # Errors
/// The store's.
pub async fn changed(store: &Store, view: &View) -> Result<Option<Changed>, StoreError> {
    let who = store.answering(view).await?;
    if !matches!(who, Answering::Another(_)) {
        return Ok(None);
    }
    let (facts, freshness) = facts(store, view).await?;
    Ok(Building::of(who, view, &facts, &freshness).and_then(Building::changed))
}

/// What there is to say about a view without asking for rows.
///
/// # Errors
/// The store's.
pub async fn facts(store: &Store, view: &View) -> Result<(Facts, Vec<FreshnessOfPartition>), StoreError> {
    tokio::try_join!(store.facts(view), store.freshness(view))
}

async fn rows(store: &Store, view: &View, facts: &Facts, query: &Query) -> Result<Rows, QueryError> {
    let whole = statement(store, view, facts, query, false)?;
    let refused = match store.answer(&whole, FORMAT).await {
        Err(refused) if is_out_of_memory(&refused) => refused,
        done => return Ok(done?),
    };
    let without_sets = statement(store, view, facts, query, true)?;
    if without_sets == whole {
        return Err(refused.into());
    }
    tracing::info!(
        view = view.name,
        "exact sets need too much memory, asking sketches alone"
    );
    Ok(store.answer(&without_sets, FORMAT).await?)
}

fn statement(
    store: &Store,
    view: &View,
    facts: &Facts,
    query: &Query,
    without_sets: bool,
) -> Result<Statement, StatementError> {
    fn names(names: &[String]) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }
    let merging = Merging {
        database: store.database(),
        view,
        publication: facts.newest().map(|newest| &newest.publication),
        // What is before the horizon is not answered, whether it is gone yet or not.
        from: query
            .range
            .from
            .max(held_from(facts).unwrap_or(i64::MIN))
            .min(query.range.to),
        to: query.range.to,
        bucket: query.range.grain,
        dimensions: &names(&query.dimensions),
        measures: &names(&query.measures),
    };
    let mut statement = merging.selecting(&Selection {
        filters: &query.filters,
        order: &query.order,
        // One more, to know whether there are more.
        limit: Some(query.limit + 1),
        layers: query.layers,
        without_sets,
    })?;
    statement.settings.extend(FORM);
    statement.settings.extend(ENDS_WITH_CALLER);
    statement.settings.push(MEMORY);
    Ok(statement)
}

/// The first moment that a view holds, in seconds since 1970; none where it holds all.
pub(crate) fn held_from(facts: &Facts) -> Option<i64> {
    facts
        .horizon
        .map(|day| i64::from(day.0).saturating_mul(SECONDS_PER_DAY))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::http::StatusCode;
    use shared_schemas::config::Config;
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixture::{facts, view};
    use crate::request::Fields;

    /// What comes of a query, and which statements were sent, where the store has no memory for those that contain a text.
    async fn asked(measures: &str, refused: &'static str) -> (Result<String, u16>, Vec<String>) {
        let statements = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&statements);
        let paths = Router::new().fallback(move |statement: String| {
            let refuses = statement.contains(refused);
            seen.lock().unwrap().push(statement);
            let message = "Code: 241. DB::Exception: Query memory limit exceeded";
            std::future::ready(if refuses {
                (StatusCode::INTERNAL_SERVER_ERROR, message)
            } else {
                (StatusCode::OK, "rows")
            })
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async { axum::serve(listener, paths).await });
        let text = format!("[clickhouse]\nurl = \"http://{address}\"");
        let config = Config::parse(&text, "highwater.toml", Path::new(""), &|_| None).config;
        let uri = format!("/?from=0&to=900&measures={measures}").parse().unwrap();
        let query = Query::check(Fields::of_address(&uri), view(), 1_001_000).unwrap();
        let facts = facts(&[(0, 8)], &[0], &[(0, 8, 12)]);
        let rows = rows(&Store::new(&config.clickhouse), view(), &facts, &query).await;
        serving.abort();
        let status = |error| Problem::from(error).status.as_u16();
        let rows = rows.map(|rows| String::from_utf8_lossy(&rows.body).into_owned());
        let statements = statements.lock().unwrap().clone();
        (rows.map_err(status), statements)
    }

    #[test]
    fn nothing_before_the_horizon_is_asked_for() {
        let config = Config::parse("", "highwater.toml", Path::new(""), &|_| None).config;
        let store = Store::new(&config.clickhouse);
        let from = |horizon: Option<i32>, from: i64| {
            let uri = format!("/?from={from}&to=900000&measures=flights").parse().unwrap();
            let query = Query::check(Fields::of_address(&uri), view(), 1_001_000_000).unwrap();
            let mut facts = facts(&[], &[], &[]);
            facts.horizon = horizon.map(shared_schemas::handoff::EventDay);
            let statement = statement(&store, view(), &facts, &query, false).unwrap();
            let of_name = |name| statement.parameters.iter().find(|(of, _)| of == name);
            [of_name("p0"), of_name("p1")].map(|value| value.unwrap().1.parse::<i64>().unwrap())
        };
        assert_eq!(from(None, 0), [0, 900_000]);
        assert_eq!(from(Some(2), 0), [172_800, 900_000]);
        assert_eq!(from(Some(2), 259_200), [259_200, 900_000]);
        assert_eq!(from(Some(100), 0), [900_000, 900_000], "an empty range, and no row");
    }

    #[tokio::test]
    async fn sketches_answer_where_sets_need_too_much_memory() {
        let (rows, statements) = asked("planes,flights", "uniqExactMerge").await;
        assert_eq!(rows, Ok("rows".to_owned()));
        assert_eq!(statements.len(), 2);
        assert!(statements[1].contains("uniqMerge") && !statements[1].contains("planes__exact"));
        // Once more, not again and again.
        let (rows, statements) = asked("planes,flights", "uniqMerge").await;
        assert_eq!((rows, statements.len()), (Err(422), 2));
        // Nothing else could be asked.
        let (rows, statements) = asked("delay_q,flights", "quantilesDDMerge").await;
        assert_eq!((rows, statements.len()), (Err(422), 1));
        let (rows, statements) = asked("planes", "no such text").await;
        assert_eq!((rows.is_ok(), statements.len()), (true, 1));
    }
}
