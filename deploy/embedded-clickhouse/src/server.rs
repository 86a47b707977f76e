//! The HTTP server: from a connection to a response.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Access;
use crate::engine::{Engine, Order, Outlet};
use crate::exception::{Exception, code};
use crate::intake::{self, Intake};
use crate::request::{self, Ask};
use crate::respond::{self, About, Body, Reply};
use crate::statement::Class;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 1024;
/// Bodies that are read at once, each on a thread of its own.
const BODIES: usize = 64;
/// The largest form: a statement and its parameters.
const LARGEST_FORM: usize = 16 << 20;
/// The pipe that rows leave the engine through: what Linux allows without privileges.
const PIPE: i32 = 1 << 20;

/// What requests need.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) engine: Arc<Engine>,
    pub(crate) access: Access,
    pub(crate) about: About,
    /// Where bodies and kept results go.
    pub(crate) spool: PathBuf,
    pub(crate) largest_body: u64,
    /// How long a client may be silent within a request.
    pub(crate) idle: Duration,
    pub(crate) bodies: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(
        engine: Arc<Engine>,
        access: Access,
        display_name: String,
        spool: PathBuf,
        largest_body: u64,
        idle: Duration,
    ) -> Self {
        let about = About {
            display_name,
            version: engine.version.clone(),
            time_zone: engine.time_zone.clone(),
        };
        Service {
            engine,
            access,
            about,
            spool,
            largest_body,
            idle,
            bodies: Arc::new(Semaphore::new(BODIES)),
        }
    }
}

/// Serves until told to stop, then lets requests end. The engine is the caller's to stop.
pub(crate) async fn serve(listener: TcpListener, service: Arc<Service>, stop: CancellationToken) -> TaskTracker {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(e) => {
                    // Out of descriptors, most likely: the next try waits for one to be free.
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let service = service.clone();
        let stop = stop.clone();
        connections.spawn(async move {
            converse(stream, service, stop).await;
            drop(place);
        });
    }
    connections.close();
    connections
}

async fn converse(stream: TcpStream, service: Arc<Service>, stop: CancellationToken) {
    // Small responses are not to wait for more.
    let _ = stream.set_nodelay(true);
    let idle = service.idle;
    let flushed = Arc::new(Notify::new());
    let stream = Flushing {
        stream,
        flushed: flushed.clone(),
    };
    let respond = service_fn(move |request| {
        let (service, flushed) = (service.clone(), flushed.clone());
        async move { Ok::<_, Infallible>(service.respond(request, flushed).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(1 << 20)
        .serve_connection(TokioIo::new(stream), respond);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        tracing::debug!("a connection ended early: {e}");
    }
}

impl Service {
    async fn respond(&self, request: Request<Incoming>, flushed: Arc<Notify>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let ask = matches!(parts.method, Method::GET | Method::HEAD);
        match parts.uri.path() {
            "/ping" | "/replicas_status" if ask => return respond::text(&self.about, StatusCode::OK, "Ok.\n"),
            "/" if ask && parts.uri.query().is_none_or(str::is_empty) => {
                return respond::text(&self.about, StatusCode::OK, "Ok.\n");
            }
            "/" => {}
            path => {
                let text = format!(
                    "There is no handle {path}\n\nUse / or /ping for health checks.\nOr /replicas_status for more \
                     sophisticated health checks.\n\nSend queries from your program with POST method or GET /?query=...\n"
                );
                return respond::text(&self.about, StatusCode::NOT_FOUND, text);
            }
        }
        if !ask && parts.method != Method::POST && parts.method != Method::PUT {
            return respond::text(&self.about, StatusCode::NOT_IMPLEMENTED, "use GET or POST\n");
        }
        let mut id = String::new();
        match self.query(&parts, body, &mut id, flushed).await {
            Ok(response) => response,
            Err(exception) => {
                tracing::debug!(query_id = id, "{exception}");
                respond::error(&self.about, &id, &exception)
            }
        }
    }

    async fn query(
        &self,
        parts: &Parts,
        body: Incoming,
        id: &mut String,
        flushed: Arc<Notify>,
    ) -> Result<Response<Body>, Exception> {
        self.access.check(parts)?;
        let mut ask = request::read(parts)?;
        *id = ask.query_id.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let intake = match ask.form.take() {
            Some(boundary) => self.take_form(&mut ask, &boundary, body).await?,
            None => self.take(&ask, body).await?,
        };
        if ask.readonly && !intake.statement.only_reads() {
            return Err(Exception::new(
                code::READONLY,
                "Cannot execute query in readonly mode. For queries over HTTP, method GET implies readonly. You should use \
                 method POST for modifying queries",
            ));
        }
        let reply = Reply::new(&self.about, id, &ask, intake.statement.format.as_deref(), flushed)?;
        let session = ask
            .session
            .as_ref()
            .map(|session| self.engine.sessions.lease(session))
            .transpose()?;
        let Intake { text, statement, data } = intake;
        let rows = statement.class == Class::Rows;
        let wait_end = ask.wait_end;
        let mut order = Order {
            id: id.clone(),
            text,
            statement,
            ask,
            session,
            outlet: None,
            data,
        };
        if !rows {
            return reply.small(self.engine.run(order).await?).await;
        }
        if wait_end {
            let kept = tempfile::tempfile_in(&self.spool).and_then(|file| Ok((file.try_clone()?, file)));
            let (file, ours) = kept.map_err(|e| no_outlet(&e))?;
            order.outlet = Some(Outlet::File(file));
            return reply.kept(self.engine.run(order).await?, ours).await;
        }
        let (sender, receiver) = tokio::net::unix::pipe::pipe().map_err(|e| no_outlet(&e))?;
        // A smaller pipe is only slower.
        let _ = nix::fcntl::fcntl(&sender, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
        order.outlet = Some(Outlet::Pipe(sender));
        reply.rows(self.engine.run(order).await?, receiver).await
    }

    async fn take(&self, ask: &Ask, body: Incoming) -> Result<Intake, Exception> {
        let _place = self
            .bodies
            .acquire()
            .await
            .map_err(|_| Exception::new(code::ABORTED, "the server is shutting down"))?;
        let reader = BodyReader {
            body,
            idle: self.idle,
            runtime: Handle::current(),
            piece: Bytes::new(),
        };
        let (ask, spool, limit) = (ask.clone(), self.spool.clone(), self.largest_body);
        tokio::task::spawn_blocking(move || intake::take(&ask, reader, &spool, limit))
            .await
            .map_err(|_| Exception::logical("the thread that read the body is gone"))?
    }

    async fn take_form(&self, ask: &mut Ask, boundary: &str, body: Incoming) -> Result<Intake, Exception> {
        let unreadable =
            |e: &dyn std::fmt::Display| Exception::new(code::NETWORK_ERROR, format!("cannot read the body: {e}"));
        let collected = tokio::time::timeout(self.idle, Limited::new(body, LARGEST_FORM).collect());
        let body = collected
            .await
            .map_err(|e| unreadable(&e))?
            .map_err(|e| unreadable(&e))?
            .to_bytes();
        request::take_form(ask, boundary, &body)?;
        let (ask, spool, limit) = (ask.clone(), self.spool.clone(), self.largest_body);
        tokio::task::spawn_blocking(move || intake::take(&ask, io::empty(), &spool, limit))
            .await
            .map_err(|_| Exception::logical("the thread that read the body is gone"))?
    }
}

/// A connection that tells when it has written all it was given.
struct Flushing {
    stream: TcpStream,
    flushed: Arc<Notify>,
}

impl AsyncRead for Flushing {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, out)
    }
}

impl AsyncWrite for Flushing {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when nothing is left to write.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushed.notify_waiters();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A body, read by a thread that may wait.
struct BodyReader {
    body: Incoming,
    idle: Duration,
    runtime: Handle,
    piece: Bytes,
}

impl io::Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let lost = |e: hyper::Error| io::Error::new(io::ErrorKind::ConnectionAborted, e);
        while self.piece.is_empty() {
            let frame = self
                .runtime
                .block_on(tokio::time::timeout(self.idle, self.body.frame()));
            match frame {
                Ok(Some(Ok(frame))) => self.piece = frame.into_data().unwrap_or_default(),
                Ok(Some(Err(e))) => return Err(lost(e)),
                Ok(None) => return Ok(0),
                Err(_) => {
                    let silent = "the client sent nothing for too long";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
                }
            }
        }
        let count = self.piece.len().min(out.len());
        out[..count].copy_from_slice(&self.piece.split_to(count));
        Ok(count)
    }
}

fn no_outlet(e: &io::Error) -> Exception {
    Exception::new(
        code::CANNOT_WRITE_TO_FILE_DESCRIPTOR,
        format!("cannot make room for the result: {e}"),
    )
}
