//! ClickHouse's errors: their code, their text and the HTTP status they are sent with.
//!
//! Clients read the code from `X-ClickHouse-Exception-Code` and parse the text, so both are kept as the engine gives
//! them: `Code: 60. DB::Exception: … (UNKNOWN_TABLE)`, to which a server appends its version.

use hyper::StatusCode;

/// Declares the codes this server raises itself, by ClickHouse's names and numbers.
macro_rules! codes {
    ($($name:ident = $code:literal),+ $(,)?) => {
        /// The codes this server raises itself.
        pub(crate) mod code {
            $(pub(crate) const $name: u32 = $code;)+
        }

        fn name(code: u32) -> &'static str {
            match code {
                $($code => stringify!($name),)+
                _ => "UNKNOWN_EXCEPTION",
            }
        }
    };
}

codes! {
    BAD_ARGUMENTS = 36,
    CHECKSUM_DOESNT_MATCH = 40,
    NOT_IMPLEMENTED = 48,
    LOGICAL_ERROR = 49,
    SYNTAX_ERROR = 62,
    CANNOT_READ_FROM_FILE_DESCRIPTOR = 74,
    CANNOT_WRITE_TO_FILE_DESCRIPTOR = 75,
    READONLY = 164,
    TOO_MANY_SIMULTANEOUS_QUERIES = 202,
    NETWORK_ERROR = 210,
    QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216,
    QUERY_IS_TOO_LARGE = 229,
    ABORTED = 236,
    CANNOT_DECOMPRESS = 271,
    TOO_MANY_BYTES = 307,
    INTO_OUTFILE_NOT_ALLOWED = 358,
    SESSION_NOT_FOUND = 372,
    SESSION_IS_LOCKED = 373,
    INVALID_SESSION_TIMEOUT = 374,
    QUERY_WAS_CANCELLED = 394,
    BAD_REQUEST_PARAMETER = 408,
    ACCESS_DENIED = 497,
    AUTHENTICATION_FAILED = 516,
}

/// An error as ClickHouse reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Exception {
    code: u32,
    text: String,
}

impl Exception {
    /// An error of this server, in ClickHouse's form.
    pub(crate) fn new(code: u32, message: impl AsRef<str>) -> Self {
        let message = message.as_ref();
        Exception {
            code,
            text: format!("Code: {code}. DB::Exception: {message}. ({})", name(code)),
        }
    }

    /// What should not happen.
    pub(crate) fn logical(message: &str) -> Self {
        Self::new(code::LOGICAL_ERROR, message)
    }

    /// An error of the engine; its text begins with `Code: N.`
    pub(crate) fn from_engine(text: String) -> Self {
        let code = text
            .strip_prefix("Code: ")
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next())
            .and_then(|digits| digits.parse().ok());
        match code {
            Some(code) => Exception { code, text },
            None => Exception {
                code: 1002,
                text: format!("Code: 1002. DB::Exception: {text} (UNKNOWN_EXCEPTION)"),
            },
        }
    }

    /// ClickHouse's number of this error.
    pub(crate) fn code(&self) -> u32 {
        self.code
    }

    /// The text as a server of that version sends it.
    pub(crate) fn message(&self, version: &str) -> String {
        let text = self.text.trim_end();
        if text.contains("(version ") {
            text.to_owned()
        } else {
            format!("{text} (version {version} (official build))")
        }
    }

    /// The HTTP status: ClickHouse's `exceptionCodeToHTTPStatus`, and 503 where this server itself has no room.
    pub(crate) fn status(&self) -> StatusCode {
        match self.code {
            194 => StatusCode::UNAUTHORIZED,
            192 | 193 | 497 | 512 | 516 => StatusCode::FORBIDDEN,
            6 | 8 | 15 | 25 | 26 | 27 | 36 | 37 | 38 | 41 | 44 | 53 | 62 | 72 | 117 | 123 | 167 | 168 | 223 | 321
            | 376 | 427 | 441 | 675 | 676 => StatusCode::BAD_REQUEST,
            46 | 47 | 50 | 56 | 60 | 63 | 73 | 78 | 81 | 115 | 152 | 336 | 511 => StatusCode::NOT_FOUND,
            229 | code::TOO_MANY_BYTES => StatusCode::PAYLOAD_TOO_LARGE,
            48 => StatusCode::NOT_IMPLEMENTED,
            76 | 209 | 439 => StatusCode::SERVICE_UNAVAILABLE,
            code::TOO_MANY_SIMULTANEOUS_QUERIES | code::ABORTED => StatusCode::SERVICE_UNAVAILABLE,
            381 => StatusCode::LENGTH_REQUIRED,
            159 => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}
