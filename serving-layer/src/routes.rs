//! The paths, and a thin handler for each: what came is checked, one function asked, its result written.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use chrono::Utc;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use serde_json::Value;
use shared_connections::store::{Store, StoreError};
use shared_schemas::definitions::Definitions;
use shared_schemas::view::View;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::changed::Building;
use crate::frame;
use crate::problem::{Fault, Problem};
use crate::query::{self, Asked, Reply};
use crate::request::{Fields, Query};
use crate::views::{ViewPage, Views};
use crate::watch::{Seen, Watched};

/// As many requests to the store at once: it works on them together, so more would only make each slower.
const AT_ONCE: usize = 64;
/// The largest body of a query, in bytes: a thousand filter values are less.
const BODY: usize = 256 << 10;

/// What handlers need.
#[derive(Debug)]
pub(crate) struct Serving {
    definitions: Arc<Definitions>,
    store: Store,
    metrics: MetricsHandle,
    watched: Arc<Watched>,
    places: Semaphore,
}

/// The handle has no `Debug`.
struct MetricsHandle(PrometheusHandle);

impl std::fmt::Debug for MetricsHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MetricsHandle")
    }
}

type Shared = State<Arc<Serving>>;

impl Serving {
    pub(crate) fn new(
        definitions: Arc<Definitions>,
        store: Store,
        metrics: PrometheusHandle,
        watched: Arc<Watched>,
    ) -> Self {
        Self {
            definitions,
            store,
            metrics: MetricsHandle(metrics),
            watched,
            places: Semaphore::new(AT_ONCE),
        }
    }

    fn view(&self, name: &str) -> Result<&View, Problem> {
        let known = || self.definitions.views.iter().map(|view| view.name.as_str());
        self.definitions
            .view(name)
            .ok_or_else(|| Problem::unknown_view(name, known()))
    }
}

/// All paths.
pub(crate) fn router(serving: Arc<Serving>) -> Router {
    let paths = Router::new()
        .route("/api/v1/views", get(list))
        .route("/api/v1/views/{view}", get(page))
        .route("/api/v1/views/{view}/query", get(query_by_address).post(query_by_body))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_text))
        .with_state(serving);
    framed(paths, frame::REQUEST_LIMIT)
}

/// Paths with what every request has, whatever becomes of it.
fn framed(paths: Router, limit: Duration) -> Router {
    paths
        .fallback(nothing_there)
        .method_not_allowed_fallback(other_method)
        .layer(DefaultBodyLimit::max(BODY))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(limit, frame::around))
}

async fn list(State(serving): Shared, uri: Uri) -> Result<Response, Problem> {
    without_parameters(&uri)?;
    // There is a list without ClickHouse too, so it is there however busy this is.
    let place = serving.places.try_acquire();
    let store = place.is_ok().then_some(&serving.store);
    json(&Views::of(&serving.definitions, store).await)
}

async fn page(State(serving): Shared, Path(name): Path<String>, uri: Uri) -> Result<Response, Problem> {
    let view = serving.view(&name)?;
    without_parameters(&uri)?;
    let _place = serving.places.try_acquire().map_err(|_| Problem::overloaded())?;
    json(
        &page_of(&serving.store, view)
            .await
            .map_err(|error| Problem::of_store(&error))?,
    )
}

/// The page of the definition that answers.
async fn page_of(store: &Store, view: &View) -> Result<ViewPage, StoreError> {
    let (facts, freshness) = query::facts(store, view).await?;
    let building = Building::ask(store, view, &facts, &freshness).await?;
    let definition = building.as_ref().map(|building| building.definition().clone());
    let Some(changed) = building.and_then(Building::changed) else {
        return Ok(ViewPage::of(view, &facts, &freshness, definition, now()));
    };
    let instead = &changed.instead.view;
    let (mut facts, freshness) = query::facts(store, instead).await?;
    let now = now();
    changed.raise_horizon(&mut facts, now);
    Ok(ViewPage::of(instead, &facts, &freshness, definition, now))
}

async fn query_by_address(State(serving): Shared, Path(name): Path<String>, uri: Uri) -> Result<Response, Problem> {
    let view = serving.view(&name)?;
    answer(&serving, view, Fields::of_address(&uri)).await
}

async fn query_by_body(
    State(serving): Shared,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let view = serving.view(&name)?;
    without_parameters(&uri)?;
    let object = object(&headers, body)?;
    answer(&serving, view, Fields::of_body(object)).await
}

async fn answer(serving: &Serving, view: &View, fields: Fields) -> Result<Response, Problem> {
    let (store, now) = (&serving.store, now());
    let checked = Query::check(fields.clone(), view, now);
    let fits = checked.is_ok();
    let Ok(_place) = serving.places.try_acquire() else {
        return Err(checked.err().map_or_else(Problem::overloaded, Problem::of_faults));
    };
    let changed = match checked {
        Ok(query) => {
            let dataset = serving.definitions.dataset(&view.dataset);
            let asked = Asked {
                view,
                has_event_id: dataset.is_none_or(|dataset| !dataset.event_id.is_empty()),
                instead: None,
            };
            match query::answer(store, asked, &query).await? {
                Reply::Answer(answer) => return json(&answer),
                Reply::Changed(changed) => *changed,
            }
        }
        // What the definition does not have, the old one may, if that is the one that answers. What is wrong can be said without
        // the store, so where that is away it is.
        Err(faults) => match query::changed(store, view).await {
            Ok(Some(changed)) => changed,
            Ok(None) | Err(_) => return Err(Problem::of_faults(faults)),
        },
    };
    let query = Query::check(fields, &changed.instead.view, now).map_err(|faults| changed.problem(faults, fits))?;
    match query::answer(store, changed.asked(), &query).await? {
        Reply::Answer(answer) => json(&answer),
        Reply::Changed(_) => Err(Problem::internal("what answers instead of a view was changed itself")),
    }
}

async fn healthz() -> Response {
    Json(serde_json::json!({"status": "ok"})).into_response()
}

/// Whether queries can be answered: the store is asked, now.
async fn readyz(State(serving): Shared) -> Result<Response, Problem> {
    serving.store.ping().await.map_err(|error| Problem {
        status: StatusCode::SERVICE_UNAVAILABLE,
        code: "store_down",
        ..Problem::of_store(&error)
    })?;
    json(&Ready {
        status: "ready",
        seen: serving.watched.seen(),
    })
}

/// What `/readyz` says of a process that can answer.
#[derive(Serialize)]
struct Ready {
    status: &'static str,
    #[serde(flatten)]
    seen: Seen,
}

async fn metrics_text(State(serving): Shared) -> Response {
    let form = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (form, serving.metrics.0.render()).into_response()
}

async fn nothing_there(uri: Uri) -> Problem {
    Problem::no_such_path(uri.path())
}

async fn other_method(method: Method, uri: Uri) -> Problem {
    Problem::method_not_allowed(method.as_str(), uri.path())
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands over what it caught")]
fn panicked(caught: Box<dyn Any + Send>) -> Response {
    let said = caught
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| caught.downcast_ref::<&str>().copied());
    Problem::internal(format!("a handler panicked: {}", said.unwrap_or("without a word"))).into_response()
}

/// Refuses parameters in the address where none is taken.
fn without_parameters(uri: &Uri) -> Result<(), Problem> {
    let given = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let faults: Vec<_> = given
        .map(|(name, _)| {
            let detail = "there are no parameters in this address";
            Fault::malformed(
                &name,
                "unknown_parameter",
                detail,
                "leave it out; a POST has its fields in the body",
            )
        })
        .collect();
    if faults.is_empty() {
        Ok(())
    } else {
        Err(Problem::of_faults(faults))
    }
}

/// The body as a JSON object.
fn object(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<serde_json::Map<String, Value>, Problem> {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    if !essence.trim().eq_ignore_ascii_case("application/json") {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "The body is not JSON",
            "send a JSON object, with the header `Content-Type: application/json`",
        ));
    }
    let body = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body_too_large",
                "The body is too large",
                format!(
                    "a query has at most {BODY} bytes, and this one has {}",
                    length.unwrap_or("more")
                ),
            )
        } else {
            malformed_body("it did not come whole".to_owned())
        }
    })?;
    match serde_json::from_slice(&body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(malformed_body("it is JSON, but no object".to_owned())),
        Err(error) => Err(malformed_body(format!("it is no JSON: {error}"))),
    }
}

fn malformed_body(detail: String) -> Problem {
    let mend = "a JSON object, as in {\"measures\": [\"flights\"], \"grain\": \"1h\"}";
    Problem::of_faults(vec![Fault::malformed("body", "malformed_value", detail, mend)])
}

fn json<T: Serialize>(body: &T) -> Result<Response, Problem> {
    let body = serde_json::to_vec(body).map_err(|error| Problem::internal(error.to_string()))?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

/// The one "now" of a request, in milliseconds since 1970.
fn now() -> i64 {
    Utc::now().timestamp_millis()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    /// The status and the document, where there is one.
    async fn ask(paths: Router, limit: Duration) -> (u16, Value) {
        let request = Request::get("/it").body(Body::empty()).unwrap();
        let response = framed(paths, limit).oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_that_does_not_say_what_happened() {
        async fn panics() -> Response {
            panic!("a secret")
        }
        let (status, document) = ask(Router::new().route("/it", get(panics)), frame::REQUEST_LIMIT).await;
        assert_eq!((status, &document["code"]), (500, &Value::from("internal")));
        assert!(!document.to_string().contains("secret"), "{document}");
        assert_eq!(document["request_id"].as_str().map(str::len), Some(36));
    }

    #[tokio::test]
    async fn an_answer_that_takes_too_long_is_a_problem() {
        let paths = Router::new().route("/it", get(std::future::pending::<Response>));
        let (status, document) = ask(paths, Duration::ZERO).await;
        assert_eq!((status, &document["code"]), (504, &Value::from("timeout")));
    }
}
