//! What a configured address says: is it this machine's, and which port is free.
//!
//! The stack starts a server only where its address is on loopback, so that a configuration that names a real cluster
//! can never bring up a second one beside it. Names are not looked up for that question: `localhost` and loopback
//! numbers count, a name that happens to resolve to loopback today does not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::StackError;

/// The setting that holds Kafka's address.
pub const BROKERS: &str = "kafka.brokers";
/// The setting that holds ClickHouse's address.
pub const CLICKHOUSE_URL: &str = "clickhouse.url";

/// How long a connection to loopback may take before nothing is said to listen there.
const CONNECT: Duration = Duration::from_millis(500);

/// An address on this machine's loopback interface; port 0 means any free one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loopback(SocketAddr);

impl Loopback {
    /// The loopback address that `host` and `port` name, if they do.
    pub fn of(host: &str, port: u16) -> Option<Self> {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let ip = if bare.eq_ignore_ascii_case("localhost") {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            bare.parse().ok().filter(IpAddr::is_loopback)?
        };
        Some(Self(SocketAddr::new(ip, port)))
    }

    /// The port, 0 for any.
    pub fn port(self) -> u16 {
        self.0.port()
    }

    /// The same interface, another port.
    pub fn with_port(self, port: u16) -> Self {
        Self(SocketAddr::new(self.0.ip(), port))
    }

    /// The interface.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// Does anything accept connections here?
    pub fn is_listened_to(self) -> bool {
        TcpStream::connect_timeout(&self.0, CONNECT).is_ok()
    }

    /// This address if its port is free; for port 0 the one that was `kept` from the last start, if still free, else
    /// any. None where the asked-for port is taken.
    pub fn free(self, kept: Option<u16>) -> std::io::Result<Option<Self>> {
        let wanted = if self.port() == 0 {
            kept.unwrap_or(0)
        } else {
            self.port()
        };
        match TcpListener::bind(SocketAddr::new(self.ip(), wanted)) {
            Ok(listener) => Ok(Some(self.with_port(listener.local_addr()?.port()))),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                if self.port() == 0 && wanted != 0 {
                    self.free(None)
                } else {
                    Ok(None)
                }
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Display for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the stack does about one configured address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// One address on loopback: started here, unless it is there already.
    Here(Loopback),
    /// Elsewhere, or several: used as it is.
    Elsewhere,
}

/// Where `kafka.brokers` points.
pub fn brokers(value: &str) -> Result<Place, StackError> {
    let wrong = |why: &str| StackError::Address {
        setting: BROKERS,
        value: value.to_owned(),
        why: why.to_owned(),
    };
    let mut places = Vec::new();
    for broker in value.split(',').map(str::trim) {
        let (host, port) = broker
            .rsplit_once(':')
            .ok_or_else(|| wrong("needs a port: write it as \"127.0.0.1:9092\""))?;
        let port = port
            .parse()
            .map_err(|_| wrong("has a port that is no number from 0 to 65535"))?;
        if host.is_empty() {
            return Err(wrong("needs a host: write it as \"127.0.0.1:9092\""));
        }
        match Loopback::of(host, port) {
            Some(here) => places.push(Place::Here(here)),
            None if port == 0 => return Err(wrong("has port 0, which only a loopback address may have")),
            None => places.push(Place::Elsewhere),
        }
    }
    match places.as_slice() {
        [one] => Ok(one.clone()),
        many if many
            .iter()
            .any(|place| matches!(place, Place::Here(here) if here.port() == 0)) =>
        {
            Err(wrong(
                "names several brokers and a port 0: only a single loopback broker is started here",
            ))
        }
        _ => Ok(Place::Elsewhere),
    }
}

/// Where `clickhouse.url` points.
pub fn clickhouse(url: &str) -> Result<Place, StackError> {
    let wrong = |why: &str| StackError::Address {
        setting: CLICKHOUSE_URL,
        value: url.to_owned(),
        why: why.to_owned(),
    };
    let parsed = reqwest::Url::parse(url).map_err(|_| wrong("is no URL: write it as \"http://127.0.0.1:8123\""))?;
    let host = parsed
        .host_str()
        .ok_or_else(|| wrong("needs a host: write it as \"http://127.0.0.1:8123\""))?;
    match parsed.scheme() {
        "https" => Ok(Place::Elsewhere),
        "http" => {
            let port = parsed.port_or_known_default().unwrap_or(80);
            match Loopback::of(host, port) {
                Some(_) if !matches!(parsed.path(), "" | "/") => Ok(Place::Elsewhere),
                Some(here) => Ok(Place::Here(here)),
                None if port == 0 => Err(wrong("has port 0, which only a loopback address may have")),
                None => Ok(Place::Elsewhere),
            }
        }
        _ => Err(wrong("must begin with http:// or https://")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_loopback_broker_is_started_here() {
        let here = |text: &str| match brokers(text).unwrap() {
            Place::Here(address) => address.to_string(),
            Place::Elsewhere => "elsewhere".to_owned(),
        };
        assert_eq!(here("127.0.0.1:9092"), "127.0.0.1:9092");
        assert_eq!(here("127.8.0.1:9092"), "127.8.0.1:9092");
        assert_eq!(here("LocalHost:0"), "127.0.0.1:0");
        assert_eq!(here("[::1]:9092"), "[::1]:9092");
        assert_eq!(here("kafka:9092"), "elsewhere");
        assert_eq!(here("0.0.0.0:9092"), "elsewhere");
        assert_eq!(here("127.0.0.1:9092,127.0.0.1:9093"), "elsewhere");
        for wrong in [
            "127.0.0.1",
            ":9092",
            "127.0.0.1:x",
            "127.0.0.1:70000",
            "kafka:0",
            "127.0.0.1:0,b:9092",
            "",
        ] {
            assert!(matches!(brokers(wrong), Err(StackError::Address { .. })), "{wrong}");
        }
    }

    #[test]
    fn only_plain_http_on_loopback_is_started_here() {
        let here = |text: &str| match clickhouse(text).unwrap() {
            Place::Here(address) => address.to_string(),
            Place::Elsewhere => "elsewhere".to_owned(),
        };
        assert_eq!(here("http://127.0.0.1:8123"), "127.0.0.1:8123");
        assert_eq!(here("http://localhost:0/"), "127.0.0.1:0");
        assert_eq!(here("http://[::1]:8123"), "[::1]:8123");
        assert_eq!(here("https://127.0.0.1:8443"), "elsewhere");
        assert_eq!(here("http://127.0.0.1/proxy/clickhouse"), "elsewhere");
        assert_eq!(here("http://clickhouse.internal:8123"), "elsewhere");
        for wrong in ["127.0.0.1:8123", "tcp://127.0.0.1:9000", "http://clickhouse:0", ""] {
            assert!(matches!(clickhouse(wrong), Err(StackError::Address { .. })), "{wrong}");
        }
    }

    #[test]
    fn a_kept_port_is_taken_again_while_it_is_free() {
        let any = Loopback::of("127.0.0.1", 0).unwrap();
        let first = any.free(None).unwrap().unwrap();
        assert_eq!(any.free(Some(first.port())).unwrap(), Some(first));
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(any.with_port(port).is_listened_to());
        assert_eq!(any.with_port(port).free(None).unwrap(), None);
        assert_ne!(any.free(Some(port)).unwrap().unwrap().port(), port);
    }
}
