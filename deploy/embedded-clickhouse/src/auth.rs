//! Who may ask: user and password, compared in constant time, and which web pages may not.
//!
//! Without a password the server answers on loopback only. There any program of the machine may ask, but a page in a
//! browser could as well: so a request that names a foreign origin, or a host that is not this machine, is refused.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, ORIGIN};
use hyper::http::request::Parts;
use sha2::{Digest, Sha256};

use crate::exception::{Exception, code};
use crate::request::address;

/// The user of a server without a password, as in ClickHouse.
const DEFAULT_USER: &str = "default";

/// Who may ask.
#[derive(Clone)]
pub(crate) struct Access {
    user: String,
    /// SHA-256 of the password; none: no password is asked for.
    password: Option<[u8; 32]>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Access {
    pub(crate) fn new(user: Option<String>, password: Option<&str>) -> Self {
        Access {
            user: user.unwrap_or_else(|| DEFAULT_USER.to_owned()),
            password: password.map(|password| Sha256::digest(password).into()),
        }
    }

    /// Refuses who may not ask.
    pub(crate) fn check(&self, parts: &Parts) -> Result<(), Exception> {
        let (user, password) = credentials(parts)?;
        let user = user.unwrap_or_else(|| DEFAULT_USER.to_owned());
        let refused = || {
            Exception::new(
                code::AUTHENTICATION_FAILED,
                format!("{user}: Authentication failed: password is incorrect, or there is no user with such name"),
            )
        };
        let same_user = same(&Sha256::digest(&user).into(), &Sha256::digest(&self.user).into());
        match &self.password {
            Some(expected) => {
                let given = Sha256::digest(password.unwrap_or_default()).into();
                if same(&given, expected) & same_user {
                    Ok(())
                } else {
                    Err(refused())
                }
            }
            None if !same_user => Err(refused()),
            None => check_page(parts),
        }
    }
}

/// Compares all bytes, whichever differs first.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// User and password: of headers, of Basic authentication or of the address, but of one of them only.
fn credentials(parts: &Parts) -> Result<(Option<String>, Option<String>), Exception> {
    let header = |name: &str| {
        parts
            .headers
            .get(name)
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
    };
    let headers = (header("x-clickhouse-user"), header("x-clickhouse-key"));
    let mut in_address = (None, None);
    for (name, value) in address(&parts.uri) {
        match name.as_str() {
            "user" => in_address.0 = Some(value),
            "password" => in_address.1 = Some(value),
            _ => {}
        }
    }
    let basic = parts.headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    let several = [
        headers.0.is_some() || headers.1.is_some(),
        basic.is_some(),
        in_address != (None, None),
    ];
    if several.iter().filter(|&&given| given).count() > 1 {
        return Err(Exception::new(
            code::AUTHENTICATION_FAILED,
            "Invalid authentication: it is not allowed to use several ways of authentication simultaneously",
        ));
    }
    let Some(basic) = basic else {
        return Ok(if headers == (None, None) { in_address } else { headers });
    };
    let unreadable = || {
        Exception::new(
            code::AUTHENTICATION_FAILED,
            "Invalid authentication: only Basic authentication is known",
        )
    };
    let (scheme, encoded) = basic.split_once(' ').ok_or_else(unreadable)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(unreadable());
    }
    let decoded = STANDARD.decode(encoded.trim()).map_err(|_| unreadable())?;
    let decoded = String::from_utf8(decoded).map_err(|_| unreadable())?;
    let (user, password) = decoded.split_once(':').ok_or_else(unreadable)?;
    Ok((Some(user.to_owned()), Some(password.to_owned())))
}

/// Refuses what a page of another site sends through the browser of someone on this machine.
fn check_page(parts: &Parts) -> Result<(), Exception> {
    let text = |name| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let refused = |what: &str| {
        Exception::new(
            code::AUTHENTICATION_FAILED,
            format!("{what}: set a user and a password to be asked from elsewhere than this machine"),
        )
    };
    if text(HOST).is_some_and(|host| !is_local(host)) {
        return Err(refused("the request is for another host"));
    }
    let origin = text(ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    if origin.is_some_and(|host| !is_local(host)) {
        return Err(refused("the request comes from the page of another site"));
    }
    Ok(())
}

/// Is it an address, or a name that can only mean this machine?
fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn check(access: &Access, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        access
            .check(&request.body(()).expect("a request").into_parts().0)
            .is_ok()
    }

    #[test]
    fn a_password_is_asked_for_where_set() {
        let access = Access::new(Some("ann".into()), Some("secret"));
        let basic = format!("Basic {}", STANDARD.encode("ann:secret"));
        assert!(check(
            &access,
            "/",
            &[("x-clickhouse-user", "ann"), ("x-clickhouse-key", "secret")]
        ));
        assert!(check(&access, "/?user=ann&password=secret", &[]));
        assert!(check(&access, "/", &[("authorization", &basic)]));
        assert!(!check(
            &access,
            "/",
            &[("x-clickhouse-user", "ann"), ("x-clickhouse-key", "wrong")]
        ));
        assert!(!check(
            &access,
            "/",
            &[("x-clickhouse-user", "bob"), ("x-clickhouse-key", "secret")]
        ));
        assert!(!check(&access, "/?user=ann", &[]));
        assert!(!check(&access, "/", &[]));
        assert!(!check(
            &access,
            "/?user=ann&password=secret",
            &[("authorization", &basic)]
        ));
        assert!(!check(&access, "/", &[("authorization", "Bearer x")]));
        assert!(!check(&access, "/", &[("authorization", "Basic !")]));
    }

    #[test]
    fn without_a_password_pages_of_other_sites_are_refused() {
        let access = Access::new(None, None);
        for local in ["localhost:8123", "127.0.0.1:1", "[::1]:8123", "10.0.0.1"] {
            assert!(check(&access, "/", &[("host", local)]), "{local}");
            assert!(
                check(&access, "/", &[("host", local), ("origin", &format!("http://{local}"))]),
                "{local}"
            );
        }
        assert!(!check(&access, "/", &[("host", "evil.example:8123")]));
        assert!(!check(
            &access,
            "/",
            &[("host", "localhost"), ("origin", "https://evil.example")]
        ));
        assert!(!check(&access, "/", &[("host", "localhost"), ("origin", "null")]));
        assert!(!check(&access, "/?user=bob", &[("host", "localhost")]));
    }
}
