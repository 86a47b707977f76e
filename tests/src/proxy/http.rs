//! HTTP/1.1 between a server and its clients, one whole message at a time.
//!
//! A request is read whole before the server sees any of it, a reply whole before the caller does: so each can be lost,
//! kept or doubled as one. Clients of ClickHouse send one request at a time on a connection, and so do those of S3, whose
//! requests are looked at as statements too.

use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::rules::{Act, Gate, Rules, Then};
use super::{BUFFER, Shared, lock, paced};

/// Of a request's body so much is looked at: statements are shorter, rows are longer.
const LOOKED_AT: usize = 16 << 10;

/// One message as it came, framing and all.
struct Message {
    head: Vec<u8>,
    body: Vec<u8>,
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Request,
    Reply,
    /// It tells of a body and has none.
    ReplyToHead,
}

/// How a body ends.
enum Body {
    Length(usize),
    Chunks,
    /// With the connection.
    Rest,
}

/// A connection's end, with what was read of it and belongs to the next message.
struct Side {
    read: Vec<u8>,
    bytes: Vec<u8>,
}

impl Side {
    fn new() -> Self {
        Self {
            read: Vec::new(),
            bytes: vec![0; BUFFER],
        }
    }

    /// Reads more; false at the end.
    async fn more(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        let count = stream.read(&mut self.bytes).await?;
        self.read.extend_from_slice(&self.bytes[..count]);
        Ok(count > 0)
    }

    /// Whether so many bytes could be read.
    async fn has(&mut self, stream: &mut TcpStream, wanted: usize) -> io::Result<()> {
        while self.read.len() < wanted {
            if !self.more(stream).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Where the first line end at or after `from` ends.
    async fn line(&mut self, stream: &mut TcpStream, from: usize) -> io::Result<usize> {
        loop {
            let rest = self.read.get(from..).unwrap_or_default();
            if let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
                return Ok(from + at + 2);
            }
            if !self.more(stream).await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next message; none where the connection ends before it begins.
    async fn message(&mut self, stream: &mut TcpStream, of: Of) -> io::Result<Option<Message>> {
        if self.read.is_empty() && !self.more(stream).await? {
            return Ok(None);
        }
        let mut head = 0;
        loop {
            let end = self.line(stream, head).await?;
            let is_last = end == head + 2;
            head = end;
            if is_last {
                break;
            }
        }
        let end = match body_of(&self.read[..head], of) {
            Body::Length(length) => {
                self.has(stream, head + length).await?;
                head + length
            }
            Body::Chunks => self.chunks(stream, head).await?,
            Body::Rest => {
                while self.more(stream).await? {}
                self.read.len()
            }
        };
        let rest = self.read.split_off(end);
        let mut head_and_body = std::mem::replace(&mut self.read, rest);
        let body = head_and_body.split_off(head);
        Ok(Some(Message {
            head: head_and_body,
            body,
        }))
    }

    /// Where the last chunk ends.
    async fn chunks(&mut self, stream: &mut TcpStream, mut at: usize) -> io::Result<usize> {
        loop {
            let end = self.line(stream, at).await?;
            let size = String::from_utf8_lossy(&self.read[at..end - 2]).into_owned();
            let size = size.split(';').next().unwrap_or_default().trim().to_owned();
            let size = usize::from_str_radix(&size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            at = end;
            if size == 0 {
                break;
            }
            at += size + 2;
            self.has(stream, at).await?;
        }
        loop {
            let end = self.line(stream, at).await?;
            let is_last = end == at + 2;
            at = end;
            if is_last {
                return Ok(at);
            }
        }
    }
}

fn body_of(head: &[u8], of: Of) -> Body {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let header = |name: &str| {
        let mut lines = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| *known == name).map(|(_, value)| value.trim())
    };
    let is_empty = || {
        let status = head.split(' ').nth(1).unwrap_or_default();
        matches!(status, "204" | "304")
    };
    if of == Of::ReplyToHead || (of == Of::Reply && is_empty()) {
        return Body::Length(0);
    }
    if header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return Body::Chunks;
    }
    match header("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => Body::Length(length),
        None if of == Of::Reply => Body::Rest,
        None => Body::Length(0),
    }
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        [&self.head[..], &self.body].concat()
    }

    /// The statement: it may stand in the address, in the body, or in both.
    fn statement(&self) -> String {
        let line = self.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let body = &self.body[..self.body.len().min(LOOKED_AT)];
        format!("{}\n{}", unescaped(line), String::from_utf8_lossy(body))
    }

    /// The same with further settings in its address.
    fn with_settings(&self, settings: &str) -> Self {
        let head = String::from_utf8_lossy(&self.head);
        let (method, rest) = head.split_once(' ').unwrap_or_default();
        let (target, rest) = rest.split_once(' ').unwrap_or_default();
        let separator = if target.contains('?') { '&' } else { '?' };
        Self {
            head: format!("{method} {target}{separator}{settings} {rest}").into_bytes(),
            body: self.body.clone(),
        }
    }
}

/// The text behind a form's escapes.
fn unescaped(escaped: &[u8]) -> String {
    let mut text = Vec::with_capacity(escaped.len());
    let mut at = 0;
    while let Some(&byte) = escaped.get(at) {
        let hex = escaped
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        let escaped = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (byte, escaped) {
            (b'%', Some(byte)) => {
                text.push(byte);
                at += 2;
            }
            (b'+', _) => text.push(b' '),
            _ => text.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// A server's connection, made when it is first needed.
struct Server {
    stream: Option<(TcpStream, Side)>,
}

impl Server {
    /// Comes when a connection that was made is closed.
    async fn gone(&self) {
        match &self.stream {
            Some((stream, _)) => gone(stream).await,
            None => std::future::pending().await,
        }
    }

    async fn ask(&mut self, request: &Message, shared: &Shared) -> io::Result<Message> {
        if self.stream.is_none() {
            let to = *lock(&shared.to);
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            self.stream = Some((stream, Side::new()));
        }
        let Some((stream, side)) = &mut self.stream else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let answered = async {
            paced(stream, &request.bytes(), shared).await?;
            let of = if request.head.starts_with(b"HEAD ") {
                Of::ReplyToHead
            } else {
                Of::Reply
            };
            let reply = side.message(stream, of).await?;
            reply.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
        };
        let answered = answered.await;
        if answered.is_err() {
            self.stream = None;
        }
        answered
    }
}

/// Passes requests on until one side ends.
pub(super) async fn pass(caller: &mut TcpStream, shared: &Arc<Shared>, rules: &Mutex<Rules>) {
    // An end of any kind closes both connections: to the caller it is all the same.
    let _ = serve(caller, shared, rules).await;
}

async fn serve(caller: &mut TcpStream, shared: &Arc<Shared>, rules: &Mutex<Rules>) -> io::Result<()> {
    let mut server = Server { stream: None };
    let mut side = Side::new();
    loop {
        let request = tokio::select! {
            biased;
            request = side.message(caller, Of::Request) => request?,
            // A caller must see that its server went, or it would send its next request into nothing.
            () = server.gone() => None,
        };
        let Some(request) = request else {
            return Ok(());
        };
        let act = lock(rules).choose(&request.statement());
        let reply = match act {
            None => with_caller(caller, server.ask(&request, shared)).await?,
            Some(Act::HalveReply) => {
                let reply = with_caller(caller, server.ask(&request, shared)).await?;
                let bytes = [&reply.head[..], &reply.body[..reply.body.len() / 2]].concat();
                return paced(caller, &bytes, shared).await;
            }
            Some(act) => match acted(act, request, &mut server, caller, shared).await? {
                Some(reply) => reply,
                None => return Ok(()),
            },
        };
        paced(caller, &reply.bytes(), shared).await?;
    }
}

/// Awaits a reply for as long as the caller is there.
async fn with_caller<T>(caller: &TcpStream, reply: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::select! {
        reply = reply => reply,
        () = gone(caller) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

/// Comes when the other side has gone away: one that sends nothing, for it waits.
async fn gone(stream: &TcpStream) {
    let mut byte = [0];
    let _ = stream.peek(&mut byte).await;
}

/// What the caller gets; none where its connection is to be closed.
async fn acted(
    act: Act,
    request: Message,
    server: &mut Server,
    caller: &TcpStream,
    shared: &Arc<Shared>,
) -> io::Result<Option<Message>> {
    match act {
        Act::Lose => Ok(None),
        Act::LoseReply => server.ask(&request, shared).await.map(|_| None),
        Act::Leave => {
            let shared = Arc::clone(shared);
            tokio::spawn(async move { Server { stream: None }.ask(&request, &shared).await.map(drop) });
            Ok(None)
        }
        Act::Halve => {
            let to = *lock(&shared.to);
            let mut stream = TcpStream::connect(to).await?;
            stream.write_all(&request.head).await?;
            stream.write_all(&request.body[..request.body.len() / 2]).await?;
            stream.shutdown().await?;
            Ok(None)
        }
        Act::Twice => {
            server.ask(&request, shared).await?;
            server.ask(&request, shared).await.map(Some)
        }
        Act::AndAgain(gate) => {
            let reply = server.ask(&request, shared).await?;
            gate.take();
            tokio::spawn(send_on(gate, request, Arc::clone(shared)));
            Ok(Some(reply))
        }
        Act::InBlocks => {
            let settings = "min_insert_block_size_rows=1&max_insert_block_size=1&min_insert_block_size_bytes=1";
            server.ask(&request.with_settings(settings), shared).await.map(Some)
        }
        Act::Refuse(code) => Ok(Some(refusal(code))),
        Act::Status(status) => Ok(Some(answer(status))),
        // Its caller gets no whole reply.
        Act::HalveReply => Ok(None),
        Act::Hold(gate) => {
            gate.take();
            let is_gone = tokio::select! {
                biased;
                () = gone(caller) => true,
                then = gate.opened() => {
                    if then == Then::Lose {
                        return Ok(None);
                    }
                    false
                }
            };
            if is_gone {
                gate.left();
                tokio::spawn(send_on(gate, request, Arc::clone(shared)));
                return Ok(None);
            }
            // The connection to the server may have been idle for too long meanwhile.
            server.stream = None;
            let reply = server.ask(&request, shared).await?;
            gate.done();
            Ok(Some(reply))
        }
        Act::HoldReply(gate) => {
            let reply = server.ask(&request, shared).await?;
            gate.take();
            let then = tokio::select! {
                biased;
                () = gone(caller) => Then::Lose,
                then = gate.opened() => then,
            };
            Ok((then == Then::SendOn).then_some(reply))
        }
    }
}

/// Sends it when the gate opens, for nobody.
async fn send_on(gate: Arc<Gate>, request: Message, shared: Arc<Shared>) {
    if gate.opened().await == Then::SendOn {
        let _ = Server { stream: None }.ask(&request, &shared).await;
        gate.done();
    }
}

/// As S3 answers where it can't.
fn answer(status: u16) -> Message {
    let body = "<Error><Code>ATest</Code><Message>a test's answer</Message></Error>";
    let head = format!(
        "HTTP/1.1 {status} A Test\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Message {
        head: head.into_bytes(),
        body: body.as_bytes().to_vec(),
    }
}

/// As ClickHouse refuses.
fn refusal(code: u32) -> Message {
    let body = format!("Code: {code}. DB::Exception: a test's refusal. (A_TEST)\n").into_bytes();
    let length = body.len();
    let head = format!(
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nX-ClickHouse-Exception-Code: {code}\r\n\
         Content-Length: {length}\r\n\r\n"
    );
    Message {
        head: head.into_bytes(),
        body,
    }
}
