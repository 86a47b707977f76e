//! The protocol of a query: facts, then one statement, then gaps.
//!
//! Everything that decides what counts is read *before* the rows, from the same store; a publication that arrives in between
//! changes nothing. The statement checks the floor once more by itself, and where the floor has risen past the
//! publication, the facts are read again. Gaps are read after the rows, so that no row lacks what was not told.

use std::time::Instant;

use metrics::histogram;
use shared_connections::store::{Facts, FreshnessOfPartition, Store, StoreError};
use shared_schemas::handoff::{BadChunk, ChunkSize};
use shared_schemas::store::{Merging, Selection, Statement, StatementError};
use shared_schemas::view::View;

use crate::answer::{Answer, Unreadable};
use crate::coverage::Coverage;
use crate::problem::Problem;
use crate::request::Query;

/// How often the facts are read again because the floor rose past them. Collection waits minutes between two.
const TRIES: usize = 3;

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
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Store(error) => Self::of_store(&error),
            other => Self::internal(other.to_string()),
        }
    }
}

/// Answers a query.
///
/// # Errors
/// The store's, and what should not happen.
pub async fn answer(store: &Store, view: &View, has_event_id: bool, query: &Query) -> Result<Answer, QueryError> {
    let begun = Instant::now();
    let answer = tried(store, view, has_event_id, query).await;
    histogram!("highwater_query_seconds", "view" => view.name.clone()).record(begun.elapsed().as_secs_f64());
    answer
}

async fn tried(store: &Store, view: &View, has_event_id: bool, query: &Query) -> Result<Answer, QueryError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match once(store, view, has_event_id, query).await {
            Err(QueryError::Store(error)) if error.is_below_floor() && tries < TRIES => {
                tracing::debug!("the floor has passed the publication, reading the facts again");
            }
            done => return done,
        }
    }
}

async fn once(store: &Store, view: &View, has_event_id: bool, query: &Query) -> Result<Answer, QueryError> {
    let chunk = ChunkSize::new(view.chunk)?;
    let (facts, freshness) = facts(store, view).await?;
    let statement = statement(store, view, &facts, query)?;
    let rows = store.answer(&statement, "JSONCompact").await?;
    let after = store.progress(view, &facts.floor).await?;
    let coverage = Coverage::of(&facts, &after, &freshness, chunk, query.layers, query.range.now);
    Ok(Answer::of(
        view,
        has_event_id,
        query,
        &rows.body,
        &coverage,
        &facts,
        &freshness,
    )?)
}

/// What is read before the rows.
///
/// # Errors
/// The store's.
pub async fn facts(store: &Store, view: &View) -> Result<(Facts, Vec<FreshnessOfPartition>), StoreError> {
    // What freshness says is counted, the rows that are read later hold; so it matters only that both come before them.
    tokio::try_join!(store.facts(view), store.freshness(view))
}

fn statement(store: &Store, view: &View, facts: &Facts, query: &Query) -> Result<Statement, StatementError> {
    fn names(names: &[String]) -> Vec<&str> {
        names.iter().map(String::as_str).collect()
    }
    let merging = Merging {
        database: store.database(),
        view,
        publication: facts.newest().map(|newest| &newest.publication),
        from: query.range.from,
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
    })?;
    statement.settings.extend(FORM);
    statement.settings.extend(ENDS_WITH_CALLER);
    statement.settings.push(MEMORY);
    Ok(statement)
}
