//! What every request has, whatever it asks: an id, a time limit, a place in the metrics, and a problem in one form.

use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use metrics::{counter, histogram};
use shared_schemas::store::STATEMENT_LIMIT;
use uuid::Uuid;

use crate::problem::{self, Problem};

/// The header with a request's id, in and out.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a caller.
const LONGEST_ID: usize = 128;

/// How long a request may take as a whole: its statement, and what is read before and after it.
pub(crate) const REQUEST_LIMIT: Duration = Duration::from_secs(STATEMENT_LIMIT.as_secs() + 15);

/// Around every request; none takes longer than the limit.
pub(crate) async fn around(State(limit): State<Duration>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = request_id(request.headers());
    let method = known_method(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let mut response = tokio::time::timeout(limit, next.run(request))
        .await
        .unwrap_or_else(|_| {
            let detail = format!("there was no answer within {} s", limit.as_secs());
            Problem::timeout(detail).into_response()
        });
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        write_problem(&problem, &id, &mut response);
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    // Every answer depends on the moment.
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    let status = response.status().as_u16().to_string();
    tracing::debug!(%id, method, route, status, "answered");
    counter!("highwater_http_requests_total", "route" => route.clone(), "method" => method, "status" => status)
        .increment(1);
    histogram!("highwater_http_request_seconds", "route" => route).record(begun.elapsed().as_secs_f64());
    response
}

/// Puts the problem's document into the response, and its cause into the log.
fn write_problem(problem: &Problem, id: &str, response: &mut Response) {
    if let Some(cause) = &problem.cause {
        tracing::error!(request_id = id, code = problem.code, "{cause}");
    }
    *response.body_mut() = problem.document(id).into();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    if let Some(seconds) = problem.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
}

/// The caller's id, if it is a plain one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= LONGEST_ID && id.bytes().all(|byte| byte.is_ascii_graphic()))
        .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned)
}

/// A method as a label: callers can send any word.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
