//! Addresses as the configuration writes them.

use std::fmt;
use std::net::IpAddr;

/// A host and a port. Port 0 stands for one that is still to be picked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// Reads `host:port`; IPv6 addresses stand in brackets.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (host, port) = split(text)?;
        let port = port.ok_or_else(|| format!("`{text}` has no port"))?;
        Ok(Self { host, port })
    }

    /// Whether it is on this machine's loopback interface.
    pub fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// An `http://` or `https://` address. User and password are configured apart, so that it can be shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpUrl {
    /// Whether it is `https`.
    pub tls: bool,
    /// Host and port.
    pub address: HostPort,
    /// What comes before each request's own path: empty, or `/` and more, without a `/` at its end.
    pub path: String,
}

impl HttpUrl {
    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port
    }

    /// A plain one on loopback.
    pub fn local(port: u16) -> Self {
        Self {
            tls: false,
            address: HostPort {
                host: "127.0.0.1".to_owned(),
                port,
            },
            path: String::new(),
        }
    }

    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err("it begins with neither `http://` nor `https://`".to_owned()),
        };
        if rest.contains(['?', '#']) {
            return Err("it has a query or a fragment".to_owned());
        }
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.contains('@') {
            return Err("it holds a user; `user` and `password` have keys of their own".to_owned());
        }
        let (host, port) = split(host)?;
        let port = port.unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            tls,
            address: HostPort { host, port },
            path: path.trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{}",
            if self.tls { "https" } else { "http" },
            self.address,
            self.path
        )
    }
}

fn split(text: &str) -> Result<(String, Option<u16>), String> {
    if text.contains('@') {
        return Err("it holds a user".to_owned());
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("its `[` is not closed")?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("`{host}` is no IPv6 address"));
            }
            match after.strip_prefix(':') {
                None if after.is_empty() => (host, None),
                None => return Err(format!("`{after}` stands where a port should")),
                Some(port) => (host, Some(port)),
            }
        }
        None => match text.split_once(':') {
            None => (text, None),
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address stands in brackets".to_owned()),
            Some((host, port)) => (host, Some(port)),
        },
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || !host.chars().all(legal) {
        return Err(format!("`{host}` is no host"));
    }
    let port = port
        .map(|port| port.parse().map_err(|_| format!("`{port}` is no port")))
        .transpose()?;
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read() {
        let url = HttpUrl::parse("https://proxy.example:8443/clickhouse/").unwrap();
        assert_eq!(url.to_string(), "https://proxy.example:8443/clickhouse");
        assert!(!url.address.is_loopback());
        assert!(HostPort::parse("[::1]:9092").unwrap().is_loopback());
        assert!(HostPort::parse("localhost:0").unwrap().is_loopback());
        for wrong in [
            "", ":1", "a", "a:b", "::1:9", "a:70000", "a b:1", "[x]:1", "[::1]", "a/b:1",
        ] {
            assert!(HostPort::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "127.0.0.1:8123",
            "ftp://a",
            "http://",
            "http://u:p@a:1",
            "http://a:1/?x=1",
        ] {
            assert!(HttpUrl::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(text in "\\PC{0,20}|(https?://)?[a-z:\\[\\]0-9./]{0,20}") {
            if let Ok(address) = HostPort::parse(&text) {
                prop_assert_eq!(HostPort::parse(&address.to_string()), Ok(address));
            }
            if let Ok(url) = HttpUrl::parse(&text) {
                prop_assert_eq!(HttpUrl::parse(&url.to_string()), Ok(url));
            }
        }
    }
}
