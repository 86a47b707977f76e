//! What an HTTP request asks for: read from its method, address and headers alone.
//!
//! Parameters of the address are ClickHouse's: some steer the request, `param_x` are parameters of the query, all others are
//! settings. Headers count where the address is silent.

use std::time::Duration;

use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, Uri};

use crate::compression::{Coding, choose};
use crate::exception::{Exception, code};
use crate::statement::ID_SETTING;

const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
const LONGEST_SESSION_TIMEOUT: Duration = Duration::from_secs(3600);

/// A session that a request belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionAsk {
    pub(crate) id: String,
    /// How long it is kept after its last request.
    pub(crate) timeout: Duration,
    /// It must be there already.
    pub(crate) existing: bool,
    /// It ends with this request.
    pub(crate) close: bool,
}

/// A request for a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    /// The statement, or the part of it that is not in the body.
    pub(crate) query: Option<String>,
    pub(crate) database: Option<String>,
    /// The format of rows that the statement does not name.
    pub(crate) format: Option<String>,
    /// The client's id for the query.
    pub(crate) query_id: Option<String>,
    pub(crate) session: Option<SessionAsk>,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) parameters: Vec<(String, String)>,
    /// The method implies that nothing is changed.
    pub(crate) readonly: bool,
    /// The response in ClickHouse's blocks.
    pub(crate) blocks_out: bool,
    /// The body is in ClickHouse's blocks.
    pub(crate) blocks_in: bool,
    pub(crate) coding_out: Option<Coding>,
    pub(crate) coding_in: Option<Coding>,
    /// Nothing is sent before the query ends.
    pub(crate) wait_end: bool,
    /// The version of ClickHouse's protocol that the client reads rows in; 0: the oldest.
    pub(crate) protocol: u64,
    /// The boundary of a body that is a form.
    pub(crate) form: Option<String>,
}

fn bad(message: impl AsRef<str>) -> Exception {
    Exception::new(code::BAD_ARGUMENTS, message)
}

fn flag(name: &str, value: &str) -> Result<bool, Exception> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" | "" => Ok(false),
        _ => Err(bad(format!("{name} is 0 or 1, not '{value}'"))),
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .filter(|value| !value.is_empty())
}

/// The parameters of an address, decoded.
pub(crate) fn address(uri: &Uri) -> Vec<(String, String)> {
    form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect()
}

/// Reads a request without its body.
pub(crate) fn read(parts: &Parts) -> Result<Ask, Exception> {
    let headers = &parts.headers;
    let mut ask = Ask {
        database: header(headers, "x-clickhouse-database").map(str::to_owned),
        format: header(headers, "x-clickhouse-format").map(str::to_owned),
        query_id: header(headers, "x-clickhouse-query-id").map(str::to_owned),
        readonly: matches!(parts.method, Method::GET | Method::HEAD),
        coding_out: header(headers, ACCEPT_ENCODING.as_str()).and_then(choose),
        ..Ask::default()
    };
    if let Some(name) = header(headers, CONTENT_ENCODING.as_str()).filter(|name| !name.eq_ignore_ascii_case("identity"))
    {
        let unknown = || {
            Exception::new(
                code::NOT_IMPLEMENTED,
                format!("Unknown compression method '{name}': use gzip, deflate, zstd or lz4"),
            )
        };
        ask.coding_in = Some(Coding::named(name).ok_or_else(unknown)?);
    }
    ask.form = header(headers, CONTENT_TYPE.as_str()).and_then(boundary);
    let mut session = None;
    let mut timeout = SESSION_TIMEOUT;
    let (mut existing, mut close) = (false, false);
    for (name, value) in address(&parts.uri) {
        match name.as_str() {
            "query" => {
                let query = ask.query.get_or_insert_default();
                query.push_str(&value);
            }
            "database" => ask.database = Some(value),
            "default_format" => ask.format = Some(value),
            "query_id" => ask.query_id = Some(value),
            "session_id" => session = Some(value),
            "session_timeout" => timeout = session_timeout(&value)?,
            "session_check" => existing = flag(&name, &value)?,
            "close_session" => close = flag(&name, &value)?,
            "compress" => ask.blocks_out = flag(&name, &value)?,
            "decompress" => ask.blocks_in = flag(&name, &value)?,
            "wait_end_of_query" | "http_wait_end_of_query" => ask.wait_end = flag(&name, &value)?,
            "client_protocol_version" => {
                let wrong = |_| bad(format!("client_protocol_version is a number, not '{value}'"));
                ask.protocol = value.parse().map_err(wrong)?;
            }
            "enable_http_compression" => {
                if !flag(&name, &value)? {
                    ask.coding_out = None;
                }
            }
            "role" => {
                return Err(Exception::new(
                    code::NOT_IMPLEMENTED,
                    "there are no roles in the embedded server: leave 'role' out",
                ));
            }
            // Checked with the other credentials.
            "user" | "password" => {}
            // How results are buffered and progress is told: not done here, and not needed for a right answer.
            "quota_key"
            | "stacktrace"
            | "buffer_size"
            | "send_progress_in_http_headers"
            | "http_headers_progress_interval_ms"
            | "http_zlib_compression_level"
            | "framing" => {}
            _ => setting(&mut ask, name, value)?,
        }
    }
    ask.database = ask.database.filter(|d| !d.is_empty());
    ask.format = ask.format.filter(|f| !f.is_empty());
    ask.query_id = ask.query_id.filter(|id| !id.is_empty());
    if let Some(format) = &ask.format {
        check_name("format", format)?;
    }
    ask.session = session.filter(|id| !id.is_empty()).map(|id| SessionAsk {
        id,
        timeout,
        existing,
        close,
    });
    if ask.blocks_out {
        ask.coding_out = None;
    }
    Ok(ask)
}

/// Takes a parameter of the query, or a setting.
pub(crate) fn setting(ask: &mut Ask, name: String, value: String) -> Result<(), Exception> {
    check_name("setting", &name)?;
    if let Some(parameter) = name.strip_prefix("param_") {
        ask.parameters.push((parameter.to_owned(), value));
    } else if name == ID_SETTING {
        return Err(bad(format!("the setting '{name}' is used by this server itself")));
    } else {
        ask.settings.push((name, value));
    }
    Ok(())
}

/// Names become part of a statement, so they are plain words.
fn check_name(what: &str, name: &str) -> Result<(), Exception> {
    let plain = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    if plain {
        Ok(())
    } else {
        Err(bad(format!("'{name}' is no name of a {what}")))
    }
}

fn session_timeout(value: &str) -> Result<Duration, Exception> {
    let invalid = |why: &str| {
        Exception::new(
            code::INVALID_SESSION_TIMEOUT,
            format!("Invalid session timeout: '{value}'{why}"),
        )
    };
    let timeout = value.parse().map(Duration::from_secs).map_err(|_| invalid(""))?;
    if timeout > LONGEST_SESSION_TIMEOUT {
        return Err(invalid(", larger than max_session_timeout: 3600"));
    }
    Ok(timeout)
}

fn boundary(content_type: &str) -> Option<String> {
    let (kind, rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    rest.split(';')
        .find_map(|p| p.trim().strip_prefix("boundary="))
        .map(|b| b.trim_matches('"').to_owned())
}

/// Takes the fields of a form: the query, its parameters, settings. Files (external tables) are refused.
pub(crate) fn take_form(ask: &mut Ask, boundary: &str, body: &[u8]) -> Result<(), Exception> {
    let wrong = || Exception::new(code::BAD_REQUEST_PARAMETER, "the form in the body cannot be read");
    let delimiter = format!("--{boundary}");
    let mut rest = body.strip_prefix(delimiter.as_bytes()).ok_or_else(wrong)?;
    let between = format!("\r\n{delimiter}");
    while !rest.starts_with(b"--") {
        rest = rest.strip_prefix(b"\r\n").ok_or_else(wrong)?;
        let head_end = find(rest, b"\r\n\r\n").ok_or_else(wrong)?;
        let end = find(&rest[head_end + 2..], between.as_bytes()).ok_or_else(wrong)? + head_end + 2;
        let head = std::str::from_utf8(&rest[..head_end]).map_err(|_| wrong())?;
        let value = std::str::from_utf8(rest.get(head_end + 4..end).unwrap_or_default())
            .map_err(|_| wrong())?
            .to_owned();
        rest = &rest[end + between.len()..];
        if head.contains("filename=") {
            return Err(Exception::new(
                code::NOT_IMPLEMENTED,
                "external tables are not taken by the embedded server: insert them into a table first",
            ));
        }
        let name = head
            .split("name=\"")
            .nth(1)
            .and_then(|n| n.split('"').next())
            .ok_or_else(wrong)?;
        match name {
            "query" => ask.query.get_or_insert_default().push_str(&value),
            "database" => ask.database = Some(value),
            _ => setting(ask, name.to_owned(), value)?,
        }
    }
    Ok(())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use hyper::Request;
    use proptest::prelude::*;

    use super::*;

    fn ask(uri: &str, headers: &[(&str, &str)]) -> Result<Ask, Exception> {
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn parameters_and_headers() {
        let ask = ask(
            "/?query=SELECT+%7Bx:UInt8%7D&param_x=1&max_threads=2&database=d&query_id=q&compress=1&default_format=TSV&wait_end_of_query=1",
            &[("x-clickhouse-database", "other"), ("accept-encoding", "gzip"), ("content-encoding", "zstd")],
        )
        .expect("read");
        assert_eq!(ask.query.as_deref(), Some("SELECT {x:UInt8}"));
        assert_eq!(ask.parameters, [("x".to_owned(), "1".to_owned())]);
        assert_eq!(ask.settings, [("max_threads".to_owned(), "2".to_owned())]);
        assert_eq!(
            (ask.database.as_deref(), ask.query_id.as_deref()),
            (Some("d"), Some("q"))
        );
        assert_eq!(ask.format.as_deref(), Some("TSV"));
        assert!(ask.blocks_out && ask.wait_end && !ask.readonly);
        assert_eq!((ask.coding_out, ask.coding_in), (None, Some(Coding::Zstd)));
    }

    #[test]
    fn sessions() {
        let session = ask("/?session_id=a&session_timeout=5&session_check=1", &[])
            .expect("read")
            .session;
        assert_eq!(
            session,
            Some(SessionAsk {
                id: "a".into(),
                timeout: Duration::from_secs(5),
                existing: true,
                close: false
            })
        );
        assert_eq!(
            ask("/?session_id=a&session_timeout=x", &[]).expect_err("wrong").code(),
            code::INVALID_SESSION_TIMEOUT
        );
        assert_eq!(
            ask("/?session_id=a&session_timeout=9999", &[])
                .expect_err("wrong")
                .code(),
            code::INVALID_SESSION_TIMEOUT
        );
    }

    #[test]
    fn names_cannot_smuggle_sql() {
        for uri in ["/?a%20=1,%20b=1", "/?a%27=1", "/?default_format=a%20b", "/?=1"] {
            assert_eq!(ask(uri, &[]).expect_err(uri).code(), code::BAD_ARGUMENTS, "{uri}");
        }
    }

    #[test]
    fn unknown_codings_are_refused() {
        assert_eq!(
            ask("/", &[("content-encoding", "br")]).expect_err("refused").code(),
            code::NOT_IMPLEMENTED
        );
        assert_eq!(ask("/?role=x", &[]).expect_err("refused").code(), code::NOT_IMPLEMENTED);
    }

    #[test]
    fn forms_as_the_clickhouse_crate_sends_them() {
        let body = "--B\r\nContent-Disposition: form-data; name=\"query\"\r\n\r\nSELECT {x:String}\r\n\
                    --B\r\nContent-Disposition: form-data; name=\"param_x\"\r\n\r\n\r\na\r\nb\r\n--B--\r\n";
        let mut ask = Ask::default();
        take_form(&mut ask, "B", body.as_bytes()).expect("read");
        assert_eq!(ask.query.as_deref(), Some("SELECT {x:String}"));
        assert_eq!(ask.parameters, [("x".to_owned(), "\r\na\r\nb".to_owned())]);
        let file = "--B\r\nContent-Disposition: form-data; name=\"t\"; filename=\"f\"\r\n\r\nx\r\n--B--\r\n";
        assert_eq!(
            take_form(&mut ask, "B", file.as_bytes()).expect_err("refused").code(),
            code::NOT_IMPLEMENTED
        );
        let empty = "--B\r\nContent-Disposition: form-data; name=\"param_y\"\r\n\r\n\r\n--B--\r\n";
        take_form(&mut ask, "B", empty.as_bytes()).expect("read");
        assert_eq!(ask.parameters[1], ("y".to_owned(), String::new()));
    }

    proptest! {
        #[test]
        fn nothing_panics(query in "[ -~]{0,60}", header in "[ -~]{0,30}", body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let encoded: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
            let uri = format!("/?query={encoded}&{}", encoded.replace('+', "="));
            if let Ok(read) = ask(&uri, &[("content-type", &header)]) {
                prop_assert_eq!(read.query, Some(query));
            }
            let _ = take_form(&mut Ask::default(), "B", &[b"--B\r\n", &body[..]].concat());
        }
    }
}
