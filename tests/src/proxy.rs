//! A way between two processes that a test can cut, hold, slow down, or make say something else.
//!
//! Every connection is accepted here and led on to one server. What becomes of all of them is the [`Way`]; what becomes of
//! single ClickHouse statements is for [`rules`](Rules), where the proxy reads HTTP. It runs on a thread of its own and
//! ends when it is dropped, with all its connections.

mod http;
mod rules;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use rules::{Act, Gate, Rules, Then, inserts_into};

const BUFFER: usize = 1 << 16;

/// What becomes of all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Bytes pass.
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// No byte passes until the way is open again, as while cables are unplugged.
    Silent,
    /// The server is gone without a word: connections are taken, never answered, and dead for ever.
    HalfOpen,
    /// So many bytes a second pass, for each connection and direction.
    Slow(u32),
}

/// What the proxy reads of what passes.
enum Protocol {
    Bytes,
    Statements(Arc<Mutex<Rules>>),
}

struct Shared {
    to: Mutex<SocketAddr>,
    way: watch::Sender<Way>,
    protocol: Protocol,
}

/// A TCP proxy on a port of its own.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    end: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// The address behind `http://`, or the address itself.
fn address(url: &str) -> anyhow::Result<SocketAddr> {
    url.trim_start_matches("http://")
        .parse()
        .with_context(|| format!("{url} is no address"))
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Leads bytes to that address, as of Kafka.
    pub fn of_bytes(to: &str) -> anyhow::Result<Self> {
        Self::start(to, Protocol::Bytes)
    }

    /// Leads HTTP requests to ClickHouse at that URL, or to S3: a request's first line is part of its statement.
    pub fn of_statements(url: &str) -> anyhow::Result<Self> {
        Self::start(url, Protocol::Statements(Arc::default()))
    }

    fn start(to: &str, protocol: Protocol) -> anyhow::Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        let shared = Arc::new(Shared {
            to: Mutex::new(address(to)?),
            way: watch::Sender::new(Way::Open),
            protocol,
        });
        let end = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (served, ends) = (Arc::clone(&shared), end.clone());
        let serve = move || {
            let accepting = async { ends.run_until_cancelled(accept(listener, served)).await };
            // Dropping the runtime drops every connection.
            runtime.block_on(accepting);
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(serve)?;
        Ok(Self {
            address: bound,
            shared,
            end,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The same as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads new connections there.
    pub fn lead_to(&self, to: &str) -> anyhow::Result<()> {
        *lock(&self.shared.to) = address(to)?;
        Ok(())
    }

    /// What becomes of all connections from now on.
    pub fn set(&self, way: Way) {
        self.shared.way.send_replace(way);
    }

    /// Does that with the statements that `choose` names, asked for each in the order of arrival; the first rule that
    /// answers decides.
    pub fn on(&self, choose: impl FnMut(&str) -> Option<Act> + Send + 'static) {
        if let Protocol::Statements(rules) = &self.shared.protocol {
            lock(rules).add(choose);
        }
    }

    /// Does that once, with the statement after the next `skip` that `marks` says yes to.
    pub fn once(&self, skip: usize, marks: impl Fn(&str) -> bool + Send + 'static, act: Act) {
        let mut left = skip;
        let mut act = Some(act);
        self.on(move |statement| {
            if !marks(statement) {
                return None;
            }
            if left == 0 {
                return act.take();
            }
            left -= 1;
            None
        });
    }

    /// Forgets all rules. What they hold is held until its gate opens.
    pub fn forget(&self) {
        if let Protocol::Statements(rules) = &self.shared.protocol {
            lock(rules).clear();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let Ok(listener) = TcpListener::from_std(listener) else {
        return;
    };
    loop {
        // An accept fails when the caller has gone already, or for want of file descriptors.
        if let Ok((caller, _)) = listener.accept().await {
            tokio::spawn(lead(caller, Arc::clone(&shared)));
        }
    }
}

/// One connection, to its end.
async fn lead(mut caller: TcpStream, shared: Arc<Shared>) {
    // Small messages: without it each waits for the acknowledgement of the one before.
    let _ = caller.set_nodelay(true);
    let mut way = shared.way.subscribe();
    let doomed = async {
        let doom = way.wait_for(|way| matches!(way, Way::Cut | Way::HalfOpen)).await;
        doom.map_or(Way::Cut, |way| *way)
    };
    let passing = async {
        match &shared.protocol {
            Protocol::Bytes => pass(&mut caller, &shared).await,
            Protocol::Statements(rules) => http::pass(&mut caller, &shared, rules).await,
        }
    };
    let doom = tokio::select! {
        doom = doomed => doom,
        () = passing => return,
    };
    if doom == Way::HalfOpen {
        // Kept and never answered, until the caller gives up.
        let mut bytes = vec![0; BUFFER];
        while matches!(caller.read(&mut bytes).await, Ok(count) if count > 0) {}
    }
}

async fn pass(caller: &mut TcpStream, shared: &Shared) {
    let to = *lock(&shared.to);
    let Ok(mut server) = TcpStream::connect(to).await else {
        return;
    };
    let _ = server.set_nodelay(true);
    let (from_caller, to_caller) = caller.split();
    let (from_server, to_server) = server.split();
    tokio::select! {
        () = copy(from_caller, to_server, shared) => {}
        () = copy(from_server, to_caller, shared) => {}
    }
}

async fn copy(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    shared: &Shared,
) {
    let mut bytes = vec![0; BUFFER];
    while let Ok(count) = from.read(&mut bytes).await {
        if count == 0 || paced(&mut to, &bytes[..count], shared).await.is_err() {
            return;
        }
    }
}

/// Writes as fast as the way allows.
async fn paced(
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    mut bytes: &[u8],
    shared: &Shared,
) -> std::io::Result<()> {
    let mut way = shared.way.subscribe();
    while !bytes.is_empty() {
        let now = way.wait_for(|way| *way != Way::Silent).await;
        let now = now.map_or(Way::Cut, |way| *way);
        let Way::Slow(speed) = now else {
            return to.write_all(bytes).await;
        };
        // A tenth of a second's at a time.
        let part = usize::try_from(speed / 10).unwrap_or(BUFFER).clamp(1, bytes.len());
        to.write_all(&bytes[..part]).await?;
        bytes = &bytes[part..];
        let micros = u64::try_from(part).unwrap_or_default() * 1_000_000 / u64::from(speed.max(1));
        tokio::time::sleep(Duration::from_micros(micros)).await;
    }
    Ok(())
}
