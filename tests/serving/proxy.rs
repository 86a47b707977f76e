//! A way to the engine that a test can close, hold, and lead to where the engine came back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What a merging statement has that no other has.
const MERGING: &[u8] = b"_below_floor";

/// Where connections lead, and what becomes of merging statements.
#[derive(Debug, Clone, Copy)]
struct Way {
    to: SocketAddr,
    /// Merging statements are taken, and never answered.
    holds: bool,
}

/// How many merging statements were held, and of how many the caller has gone away.
type Held = (usize, usize);

/// A TCP proxy on a port of its own, for as long as the test runs.
pub(super) struct Proxy {
    address: SocketAddr,
    way: Arc<Mutex<Way>>,
    held: watch::Receiver<Held>,
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    Ok(url.strip_prefix("http://").context("no http:// address")?.parse()?)
}

impl Proxy {
    pub(super) async fn start(url: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let way = Way {
            to: address(url)?,
            holds: false,
        };
        let way = Arc::new(Mutex::new(way));
        let (sender, held) = watch::channel((0, 0));
        let proxy = Self {
            address: listener.local_addr()?,
            way: Arc::clone(&way),
            held,
        };
        let sender = Arc::new(sender);
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                tokio::spawn(pass(caller, Arc::clone(&way), Arc::clone(&sender)));
            }
        });
        Ok(proxy)
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Leads new connections there, and holds nothing any more.
    pub(super) fn lead_to(&self, url: &str) -> anyhow::Result<()> {
        *self.way.lock().unwrap() = Way {
            to: address(url)?,
            holds: false,
        };
        Ok(())
    }

    /// Takes merging statements from now on and answers none.
    pub(super) fn hold(&self) {
        self.way.lock().unwrap().holds = true;
    }

    /// Waits until so many statements were held, and so many of their callers have gone away.
    pub(super) async fn until_held(&mut self, taken: usize, gone: usize) -> anyhow::Result<()> {
        self.held
            .wait_for(|(held, closed)| *held >= taken && *closed >= gone)
            .await?;
        Ok(())
    }
}

/// Passes requests on until one side ends.
async fn pass(mut caller: TcpStream, way: Arc<Mutex<Way>>, held: Arc<watch::Sender<Held>>) {
    let to = way.lock().unwrap().to;
    let Ok(mut engine) = TcpStream::connect(to).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = caller.read(&mut asked) => match read {
                Ok(count) if count > 0 => {
                    let merging = asked[..count].windows(MERGING.len()).any(|part| part == MERGING);
                    if merging && way.lock().unwrap().holds {
                        return hold(caller, &held).await;
                    }
                    if engine.write_all(&asked[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = engine.read(&mut answered) => match read {
                Ok(count) if count > 0 => {
                    if caller.write_all(&answered[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

/// Reads until the caller goes away.
async fn hold(mut caller: TcpStream, held: &watch::Sender<Held>) {
    held.send_modify(|(taken, _)| *taken += 1);
    let mut asked = vec![0; 1 << 16];
    while matches!(caller.read(&mut asked).await, Ok(count) if count > 0) {}
    held.send_modify(|(_, gone)| *gone += 1);
}
