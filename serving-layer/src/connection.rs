//! Connections: so many at once, and none that nothing comes or goes on.
//!
//! A caller that sends its request a byte now and then, or never reads its answer, would else hold its place for ever.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::frame::REQUEST_LIMIT;

/// As many connections at once, idle ones among them; more wait to be accepted.
const CONNECTIONS: usize = 1_024;
/// How long nothing may come or go on a connection: longer than any answer takes.
const IDLE: Duration = Duration::from_secs(REQUEST_LIMIT.as_secs() + 45);

/// A listener that accepts so many connections at once.
pub(crate) struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
}

/// A connection with its place, closed once it was idle for too long.
pub(crate) struct Placed<S> {
    stream: S,
    limit: Duration,
    idle: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Bounded {
    pub(crate) fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

impl Listener for Bounded {
    type Io = Placed<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        // The semaphore is never closed, so there is always a place in the end.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Answers are written whole; a delay would only add to them.
        let _ = stream.set_nodelay(true);
        (Placed::new(stream, IDLE, place), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl<S> Placed<S> {
    fn new(stream: S, limit: Duration, place: Option<OwnedSemaphorePermit>) -> Self {
        Self {
            stream,
            limit,
            idle: Box::pin(tokio::time::sleep(limit)),
            _place: place,
        }
    }

    /// Passes on what came of it; an error instead where nothing came for too long.
    fn timed<T>(&mut self, polled: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            ready!(self.idle.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let until = Instant::now() + self.limit;
        self.idle.as_mut().reset(until);
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.timed(polled, cx)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buffer);
        self.timed(polled, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, buffers);
        self.timed(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_connection_that_nothing_comes_on_is_closed() {
        let (mut caller, ours) = tokio::io::duplex(4);
        let mut ours = Placed::new(ours, Duration::ZERO, None);
        caller.write_all(b"GET ").await.unwrap();
        let mut read = [0; 4];
        ours.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"GET ");
        assert_eq!(ours.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_caller_that_does_not_read_is_let_go() {
        let (_caller, ours) = tokio::io::duplex(4);
        let mut ours = Placed::new(ours, Duration::ZERO, None);
        let written = ours.write_all(b"an answer").await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
