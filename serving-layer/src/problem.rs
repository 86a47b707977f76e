//! What a caller is told when there is no answer: RFC 9457 problem documents.
//!
//! A handler returns a [`Problem`]; it travels in the response's extensions until [`crate::frame`] knows the request's id
//! and writes the document. So every problem has the same form, whoever found it.

use std::fmt::Write;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use shared_connections::store::StoreError;

/// The content type of a problem document.
pub(crate) const CONTENT_TYPE: &str = "application/problem+json";

/// How soon asking again makes sense, in seconds, where the store is away.
const STORE_RETRY: u16 = 5;
/// The same where too much is asked at once.
const BUSY_RETRY: u16 = 1;

/// ClickHouse's numbers for a statement that ran too long.
const TOO_LONG: [u32; 2] = [159, 160];
/// ClickHouse's number for a statement that needs too much memory.
const TOO_MUCH_MEMORY: u32 = 241;
/// In that error's message where it was not the statement's own limit.
const MEMORY_OF_ALL: &str = "(total)";

/// Something wrong with one parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The parameter, as the caller wrote it.
    pub parameter: String,
    /// What kind of fault it is; stable.
    pub code: &'static str,
    /// What is wrong.
    pub detail: String,
    /// What to write instead.
    pub mend: String,
    /// Whether it is well formed and still cannot be answered.
    #[serde(skip)]
    pub impossible: bool,
}

impl Fault {
    /// A parameter that cannot be read.
    pub fn malformed(parameter: &str, code: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            parameter: parameter.to_owned(),
            code,
            detail: detail.into(),
            mend: mend.into(),
            impossible: false,
        }
    }

    /// A parameter that can be read, and asks for what there is not.
    pub fn impossible(parameter: &str, code: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            impossible: true,
            ..Self::malformed(parameter, code, detail, mend)
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// What kind of problem it is; stable.
    pub code: &'static str,
    /// The kind in words.
    pub title: &'static str,
    /// This problem in words.
    pub detail: String,
    /// What is wrong with which parameter.
    pub errors: Vec<Fault>,
    /// After how many seconds to ask again.
    pub retry_after: Option<u16>,
    /// For the log, never for the caller: what a human must look at.
    pub cause: Option<Box<str>>,
}

#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: &'a str,
    errors: &'a [Fault],
}

/// Whether the store refused a statement because it, or all of them together, would take too much memory.
pub(crate) fn is_out_of_memory(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { code, .. } if *code == TOO_MUCH_MEMORY)
}

impl Problem {
    /// A problem of that kind.
    pub fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            title,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            cause: None,
        }
    }

    /// What is wrong with a query: 422 where all of it is well formed, else 400.
    pub fn of_faults(errors: Vec<Fault>) -> Self {
        let mut detail = String::new();
        for fault in &errors {
            let separator = if detail.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(detail, "{separator}{}: {}", fault.parameter, fault.detail);
        }
        let (status, code, title) = if errors.iter().all(|fault| fault.impossible) {
            (
                StatusCode::UNPROCESSABLE_ENTITY,
                "impossible_query",
                "The query cannot be answered",
            )
        } else {
            (StatusCode::BAD_REQUEST, "invalid_query", "The query is malformed")
        };
        Self {
            errors,
            ..Self::new(status, code, title, detail)
        }
    }

    /// Nothing is at that path.
    pub fn no_such_path(path: &str) -> Self {
        let detail = format!("there is nothing at {path}: the views are at /api/v1/views");
        Self::new(StatusCode::NOT_FOUND, "no_such_path", "No such path", detail)
    }

    /// The path takes other methods.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let detail = format!("{path} does not take {method}");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Method not allowed",
            detail,
        )
    }

    /// There is no view of that name, but of these.
    pub fn unknown_view<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<_> = known.into_iter().collect();
        let detail = format!("there is no view `{name}`");
        let mend = if known.is_empty() {
            "define a view first".to_owned()
        } else {
            format!("one of {}", known.join(", "))
        };
        Self {
            errors: vec![Fault::malformed("view", "unknown_view", detail.clone(), mend)],
            ..Self::new(StatusCode::NOT_FOUND, "unknown_view", "No such view", detail)
        }
    }

    /// As many requests as can be answered at once are being answered.
    pub fn overloaded() -> Self {
        Self {
            retry_after: Some(BUSY_RETRY),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "Too many queries at once",
                "as many queries as can be answered at once are under way",
            )
        }
    }

    /// It took too long.
    pub fn timeout(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "timeout",
            "The answer took too long",
            detail,
        )
    }

    /// Something that should not happen; the cause goes to the log.
    pub fn internal(cause: impl Into<Box<str>>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "Something went wrong here",
                "this is a fault of the server; its log has more under the request's id",
            )
        }
    }

    /// What was to answer is not there any more.
    pub fn publication_gone() -> Self {
        Self {
            retry_after: Some(STORE_RETRY),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "publication_gone",
                "The publication was let go meanwhile",
                "publications were let go while the query was answered, several times in a row",
            )
        }
    }

    /// What a failure of the store means to the caller.
    pub fn of_store(error: &StoreError) -> Self {
        let unavailable = |code, title, detail: String| Self {
            retry_after: Some(STORE_RETRY),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, title, detail)
        };
        match error {
            StoreError::Away { .. } => unavailable("store_down", "The store is away", error.to_string()),
            StoreError::Slow { .. } => Self::timeout(error.to_string()),
            StoreError::Refused { code, .. } if TOO_LONG.contains(code) => {
                Self::timeout("the query ran longer than a query may: ask for a shorter range or fewer dimensions")
            }
            StoreError::Refused { message, .. } if is_out_of_memory(error) && !message.contains(MEMORY_OF_ALL) => {
                Self::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "query_too_large",
                    "The query needs too much memory",
                    "the query needs more memory than a query may: ask for a shorter range or fewer dimensions",
                )
            }
            _ if error.is_below_floor() => Self::publication_gone(),
            _ if error.is_passing() => unavailable(
                "store_busy",
                "The store is busy",
                "ClickHouse cannot answer for now".to_owned(),
            ),
            _ => Self::internal(error.to_string()),
        }
    }

    /// The document for one request.
    pub fn document(&self, request_id: &str) -> Vec<u8> {
        let document = Document {
            r#type: format!("urn:highwater:problem:{}", self.code),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id,
            errors: &self.errors,
        };
        // Texts and numbers alone are always written.
        serde_json::to_vec(&document).unwrap_or_default()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(code: u32, message: &str) -> (u16, &'static str) {
        let error = StoreError::Refused {
            doing: "answer a query".to_owned(),
            code,
            message: message.to_owned(),
        };
        let problem = Problem::of_store(&error);
        assert!(!problem.detail.contains("SELECT"), "{}", problem.detail);
        (problem.status.as_u16(), problem.code)
    }

    #[test]
    fn what_the_store_says_becomes_what_the_caller_can_do() {
        assert_eq!(of(159, "Timeout exceeded: elapsed 60 s"), (504, "timeout"));
        assert_eq!(of(241, "Query memory limit exceeded"), (422, "query_too_large"));
        assert_eq!(of(241, "(total) memory limit exceeded"), (503, "store_busy"));
        assert_eq!(of(202, "Too many simultaneous queries"), (503, "store_busy"));
        let below = shared_schemas::store::statement::BELOW_FLOOR;
        assert_eq!(of(395, below), (503, "publication_gone"));
        assert_eq!(of(60, "Unknown table in SELECT"), (500, "internal"));
        let slow = StoreError::Slow {
            doing: "answer a query".to_owned(),
            limit: Duration::from_secs(65),
        };
        assert_eq!(Problem::of_store(&slow).status, StatusCode::GATEWAY_TIMEOUT);
    }

    #[test]
    fn one_malformed_parameter_makes_a_query_malformed() {
        let fault = |impossible| Fault {
            impossible,
            ..Fault::malformed("grain", "x", "y", "z")
        };
        assert_eq!(Problem::of_faults(vec![fault(true), fault(true)]).status, 422);
        assert_eq!(Problem::of_faults(vec![fault(true), fault(false)]).status, 400);
    }
}
