//! A way to the engine that a test can close, hold, and lead to where the engine came back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where connections lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    To(SocketAddr),
    /// Taken, and never answered.
    Held,
}

/// A TCP proxy on a port of its own, for as long as the test runs.
pub(super) struct Proxy {
    address: SocketAddr,
    way: Arc<Mutex<Way>>,
    /// How many connections were held, and how many of those their callers have closed.
    held: watch::Receiver<(usize, usize)>,
}

fn address(url: &str) -> anyhow::Result<SocketAddr> {
    Ok(url.strip_prefix("http://").context("no http:// address")?.parse()?)
}

impl Proxy {
    pub(super) async fn start(url: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let way = Arc::new(Mutex::new(Way::To(address(url)?)));
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

    /// Leads new connections there.
    pub(super) fn lead_to(&self, url: &str) -> anyhow::Result<()> {
        *self.way.lock().unwrap() = Way::To(address(url)?);
        Ok(())
    }

    /// Takes new requests and answers none.
    pub(super) fn hold(&self) {
        *self.way.lock().unwrap() = Way::Held;
    }

    /// Waits until so many requests were held, and so many of their callers have gone away.
    pub(super) async fn until_held(&mut self, taken: usize, gone: usize) -> anyhow::Result<()> {
        self.held
            .wait_for(|(held, closed)| *held >= taken && *closed >= gone)
            .await?;
        Ok(())
    }
}

/// Passes requests on until one side ends. A connection is kept between requests, so where it leads is asked before each
/// piece that the caller sends.
async fn pass(mut caller: TcpStream, way: Arc<Mutex<Way>>, held: Arc<watch::Sender<(usize, usize)>>) {
    let Way::To(target) = *way.lock().unwrap() else {
        return hold(caller, &held).await;
    };
    let Ok(mut engine) = TcpStream::connect(target).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = caller.read(&mut asked) => match read {
                Ok(count) if count > 0 => {
                    if *way.lock().unwrap() == Way::Held {
                        return hold(caller, &held).await;
                    }
                    if tokio::io::AsyncWriteExt::write_all(&mut engine, &asked[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
            read = engine.read(&mut answered) => match read {
                Ok(count) if count > 0 => {
                    if tokio::io::AsyncWriteExt::write_all(&mut caller, &answered[..count]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            },
        }
    }
}

/// Reads until the caller goes away.
async fn hold(mut caller: TcpStream, held: &watch::Sender<(usize, usize)>) {
    held.send_modify(|(taken, _)| *taken += 1);
    let mut asked = vec![0; 1 << 16];
    while matches!(caller.read(&mut asked).await, Ok(count) if count > 0) {}
    held.send_modify(|(_, gone)| *gone += 1);
}
