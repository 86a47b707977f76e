//! The response: its headers, and rows as they come.
//!
//! As in ClickHouse, nothing is sent before the first MiB of rows or the end: an error by then has its own HTTP status, and
//! the summary is whole. An error after that can only be told in the body: between marks that carry the tag of the header
//! `X-ClickHouse-Exception-Tag`, after which the connection is cut, so that no client takes half a result for a whole one.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Seek};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::http::response::Builder;
use hyper::{Response, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::time::{interval, timeout};

use crate::compression::Packer;
use crate::engine::Started;
use crate::exception::{Exception, code};
use crate::library::{Answer, Counters};
use crate::native::Native;
use crate::request::Ask;

/// Rows that are held back before the response begins.
const HELD_BACK: usize = 1 << 20;
/// Pieces of a response that wait for a slow client: with the pipe's own MiB all that a large result takes of memory.
const PIECES_IN_FLIGHT: usize = 2;
const PIECE: usize = 256 << 10;
/// How long a client may take to receive the text of an error that cuts its response.
const PATIENCE_TO_CUT: Duration = Duration::from_secs(30);

/// How often a client of a silent query is looked for.
const LOOK_FOR_CLIENT: Duration = Duration::from_millis(100);

/// The body of any response.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// What every response tells of the server.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) display_name: String,
    pub(crate) version: String,
    pub(crate) time_zone: String,
}

/// A body that is there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn header(builder: Builder, name: &'static str, value: &str) -> Builder {
    match HeaderValue::from_str(value) {
        Ok(value) => builder.header(name, value),
        Err(_) => builder,
    }
}

/// A text of this server, such as the answer to a ping.
pub(crate) fn text(about: &About, status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=UTF-8"));
    if let Ok(name) = HeaderValue::from_str(&about.display_name) {
        headers.insert("X-ClickHouse-Server-Display-Name", name);
    }
    response
}

/// An error, while nothing has been sent.
pub(crate) fn error(about: &About, id: &str, exception: &Exception) -> Response<Body> {
    let message = format!("{}\n", exception.message(&about.version));
    let mut response = text(about, exception.status(), message);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"));
    headers.insert("X-ClickHouse-Exception-Code", HeaderValue::from(exception.code()));
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert("X-ClickHouse-Query-Id", id);
    }
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

fn summary(counters: &Counters, started: Instant) -> String {
    let Counters {
        read_rows,
        read_bytes,
        written_rows,
        written_bytes,
        result_rows,
        result_bytes,
    } = counters;
    let elapsed = started.elapsed().as_nanos();
    format!(
        "{{\"read_rows\":\"{read_rows}\",\"read_bytes\":\"{read_bytes}\",\"written_rows\":\"{written_rows}\",\
         \"written_bytes\":\"{written_bytes}\",\"total_rows_to_read\":\"0\",\"result_rows\":\"{result_rows}\",\
         \"result_bytes\":\"{result_bytes}\",\"elapsed_ns\":\"{elapsed}\"}}"
    )
}

/// ClickHouse's content type of a format.
fn content_type(format: &str) -> &'static str {
    let base = format.to_ascii_lowercase();
    match base.as_str() {
        "jsoneachrow" | "jsonlines" | "ndjson" | "jsoncompacteachrow" | "jsonstringseachrow" => {
            "application/x-ndjson; charset=UTF-8"
        }
        "parquet"
        | "arrow"
        | "arrowstream"
        | "orc"
        | "avro"
        | "native"
        | "rowbinary"
        | "rowbinarywithnames"
        | "rowbinarywithnamesandtypes"
        | "msgpack"
        | "npy"
        | "rawblob"
        | "bsoneachrow" => "application/octet-stream",
        "xml" => "application/xml; charset=UTF-8",
        "markdown" => "text/markdown; charset=UTF-8",
        name if name.starts_with("json") => "application/json; charset=UTF-8",
        name if name.starts_with("csv") => "text/csv; charset=UTF-8; header=absent",
        name if name.starts_with("tabseparated") || name.starts_with("tsv") => {
            "text/tab-separated-values; charset=UTF-8"
        }
        _ => "text/plain; charset=UTF-8",
    }
}

/// A response in the making.
pub(crate) struct Reply {
    about: About,
    id: String,
    format: String,
    tag: String,
    out: Outgoing,
    builder: Builder,
    began: Instant,
    flushed: Arc<Notify>,
}

impl Reply {
    /// `flushed` tells when all that was given to the connection is written.
    pub(crate) fn new(
        about: &About,
        id: &str,
        ask: &Ask,
        format: Option<&str>,
        flushed: Arc<Notify>,
    ) -> Result<Reply, Exception> {
        let format = format.or(ask.format.as_deref()).unwrap_or("TabSeparated").to_owned();
        let packer = Packer::new(ask.coding_out, ask.blocks_out).map_err(|e| Exception::logical(&e.to_string()))?;
        let native = format.eq_ignore_ascii_case("native").then(|| Native::new(ask.protocol));
        let tag = uuid::Uuid::new_v4().simple().to_string()[..16].to_owned();
        let mut builder = Response::builder().header(CONTENT_TYPE, content_type(&format));
        for (name, value) in [
            ("X-ClickHouse-Query-Id", id),
            ("X-ClickHouse-Format", &format),
            ("X-ClickHouse-Server-Display-Name", &about.display_name),
            ("X-ClickHouse-Timezone", &about.time_zone),
            ("X-ClickHouse-Exception-Tag", &tag),
        ] {
            builder = header(builder, name, value);
        }
        if let Some(coding) = ask.coding_out {
            builder = builder.header(CONTENT_ENCODING, coding.name());
        }
        Ok(Reply {
            about: about.clone(),
            id: id.to_owned(),
            format,
            tag,
            out: Outgoing { native, packer },
            builder,
            began: Instant::now(),
            flushed,
        })
    }

    fn build(self, body: Body) -> Response<Body> {
        let about = self.about;
        self.builder.body(body).unwrap_or_else(|e| {
            tracing::error!(query_id = self.id, format = self.format, "cannot build a response: {e}");
            error(&about, "", &Exception::logical("the response cannot be built"))
        })
    }

    /// A result that is there.
    fn whole(mut self, answer: &Answer, rows: Bytes) -> Result<Response<Body>, Exception> {
        let mut packed = BytesMut::from(self.out.pack(rows)?);
        packed.extend_from_slice(&self.out.finish()?);
        self.builder = header(
            self.builder,
            "X-ClickHouse-Summary",
            &summary(&answer.counters, self.began),
        );
        Ok(self.build(full(packed.freeze())))
    }

    /// The end of a statement without rows, or with few.
    pub(crate) async fn small(self, mut started: Started) -> Result<Response<Body>, Exception> {
        let mut answer = started.answer().await?;
        let rows = std::mem::take(&mut answer.body).into();
        self.whole(&answer, rows)
    }

    /// Rows from a pipe.
    pub(crate) async fn rows(
        self,
        mut started: Started,
        mut rows: pipe::Receiver,
    ) -> Result<Response<Body>, Exception> {
        let mut head = BytesMut::with_capacity(64 << 10);
        loop {
            if head.capacity() - head.len() < (16 << 10) {
                head.reserve(head.capacity());
            }
            let count = rows.read_buf(&mut head).await.map_err(|e| unreadable(&e))?;
            if count == 0 {
                let answer = started.answer().await?;
                return self.whole(&answer, head.freeze());
            }
            if head.len() >= HELD_BACK {
                break;
            }
        }
        Ok(self.stream(move |pump| pump.rows(started, head.freeze(), rows)))
    }

    /// Rows that were kept in a file until the end of the statement.
    pub(crate) async fn kept(mut self, mut started: Started, mut rows: File) -> Result<Response<Body>, Exception> {
        let answer = started.answer().await?;
        rows.rewind().map_err(|e| unreadable(&e))?;
        self.builder = header(
            self.builder,
            "X-ClickHouse-Summary",
            &summary(&answer.counters, self.began),
        );
        Ok(self.stream(move |pump| pump.file(rows)))
    }

    fn stream<F: Future<Output = ()> + Send + 'static>(mut self, run: impl FnOnce(Pump) -> F) -> Response<Body> {
        let (pieces, body) = mpsc::channel(PIECES_IN_FLIGHT);
        self.builder = self.builder.status(StatusCode::OK);
        let pump = Pump {
            out: self.out.take(),
            tag: self.tag.clone(),
            version: self.about.version.clone(),
            pieces,
        };
        tokio::spawn(run(pump));
        let flushed = self.flushed.clone();
        let body = StreamBody::new(body.then(move |piece| {
            let flushed = flushed.clone();
            async move {
                match piece {
                    Piece::Rows(rows) => Ok(Frame::data(rows)),
                    Piece::Cut => {
                        // The HTTP library drops what it holds when a body fails, so it is given time to write it.
                        let _ = timeout(PATIENCE_TO_CUT, flushed.notified()).await;
                        Err(io::Error::other("the query failed after the response began"))
                    }
                }
            }
        }));
        self.build(body.boxed_unsync())
    }
}

fn unreadable(e: &io::Error) -> Exception {
    Exception::new(
        code::CANNOT_READ_FROM_FILE_DESCRIPTOR,
        format!("cannot read the result: {e}"),
    )
}

/// What rows go through on their way out.
struct Outgoing {
    native: Option<Native>,
    packer: Packer,
}

impl Outgoing {
    fn take(&mut self) -> Outgoing {
        let packer = std::mem::replace(&mut self.packer, Packer::Plain);
        Outgoing {
            native: self.native.take(),
            packer,
        }
    }

    fn pack(&mut self, rows: Bytes) -> Result<Bytes, Exception> {
        let refused = |e: io::Error| Exception::new(code::NOT_IMPLEMENTED, e.to_string());
        let rows = match &mut self.native {
            Some(native) => native.take(&rows).map_err(refused)?.into(),
            None => rows,
        };
        self.packer.pack(rows).map_err(|e| unpacked(&e))
    }

    fn finish(&mut self) -> Result<Bytes, Exception> {
        if self.native.as_ref().is_some_and(|native| !native.is_done()) {
            return Err(Exception::logical("the engine's last block is not whole"));
        }
        self.take().packer.finish().map_err(|e| unpacked(&e))
    }
}

fn unpacked(e: &io::Error) -> Exception {
    Exception::logical(&format!("cannot compress the response: {e}"))
}

/// Brings rows to a client, as fast as it takes them.
struct Pump {
    out: Outgoing,
    tag: String,
    version: String,
    pieces: mpsc::Sender<Piece>,
}

/// A part of a response.
enum Piece {
    Rows(Bytes),
    /// The connection is to be cut, once the client has what came before.
    Cut,
}

impl Pump {
    /// False: there is nobody to send more to.
    async fn send(&mut self, rows: Bytes) -> bool {
        match self.out.pack(rows) {
            Ok(piece) if piece.is_empty() => true,
            Ok(piece) => self.pieces.send(Piece::Rows(piece)).await.is_ok(),
            Err(exception) => {
                self.tell(&exception).await;
                false
            }
        }
    }

    async fn rows(mut self, mut started: Started, head: Bytes, mut rows: pipe::Receiver) {
        if !self.send(head).await {
            return;
        }
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE);
            let gone = futures::future::poll_fn(|context| self.pieces.poll_ready(context).map(|ready| ready.is_err()));
            // A client that takes nothing more is waited for, one that is gone is not.
            if gone.await {
                return;
            }
            let count = match self.read(&mut rows, &mut piece).await {
                Some(Ok(count)) => count,
                Some(Err(e)) => return self.fail(&unreadable(&e)).await,
                None => return,
            };
            if count == 0 {
                break;
            }
            if !self.send(piece.split().freeze()).await {
                return;
            }
        }
        match started.answer().await {
            Ok(_) => self.finish().await,
            Err(exception) => self.fail(&exception).await,
        }
    }

    /// Reads rows, unless the client goes away meanwhile: a statement may be silent for long.
    async fn read(&self, rows: &mut pipe::Receiver, piece: &mut BytesMut) -> Option<io::Result<usize>> {
        let mut watch = interval(LOOK_FOR_CLIENT);
        loop {
            tokio::select! {
                count = rows.read_buf(piece) => return Some(count),
                _ = watch.tick() => if self.pieces.is_closed() { return None },
            }
        }
    }

    async fn file(mut self, rows: File) {
        let mut rows = tokio::fs::File::from_std(rows);
        let mut piece = BytesMut::new();
        loop {
            piece.reserve(PIECE);
            match rows.read_buf(&mut piece).await {
                Ok(0) => return self.finish().await,
                Ok(_) => {
                    if !self.send(piece.split().freeze()).await {
                        return;
                    }
                }
                Err(e) => return self.fail(&unreadable(&e)).await,
            }
        }
    }

    async fn finish(mut self) {
        match self.out.finish() {
            // Whether the client still takes it changes nothing.
            Ok(last) => drop(self.pieces.send(Piece::Rows(last)).await),
            Err(exception) => self.tell(&exception).await,
        }
    }

    async fn fail(mut self, exception: &Exception) {
        self.tell(exception).await;
    }

    /// Tells an error after rows were sent, and cuts the connection.
    async fn tell(&mut self, exception: &Exception) {
        let (tag, message) = (&self.tag, exception.message(&self.version));
        let length = message.len() + 1;
        let block = format!("\r\n__exception__\r\n{tag}\r\n{message}\n{length} {tag}\r\n__exception__\r\n");
        // Past what rewrites rows: this is none.
        let mut packer = self.out.take().packer;
        let piece = packer.pack(block.into()).unwrap_or_default();
        let last = packer.finish().unwrap_or_default();
        for piece in [Piece::Rows(piece), Piece::Rows(last), Piece::Cut] {
            if self.pieces.send(piece).await.is_err() {
                return;
            }
        }
    }
}
