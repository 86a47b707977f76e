//! The engine: a bounded number of statements at once, each on a connection of its own, and their end.
//!
//! A connection costs 0.2 ms, so each statement gets a fresh one and no setting of one client reaches another. Calls into
//! the library block, so each runs on a thread of tokio's blocking pool. A statement is stopped by `KILL QUERY` from another
//! connection: the library has no call for that.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::timeout;

use crate::config::{self, Bounds};
use crate::exception::{Exception, code};
use crate::library::{Answer, Connection, Library, LibraryError};
use crate::request::Ask;
use crate::session::{Lease, Sessions};
use crate::statement::{Class, ID_SETTING, Statement};

/// How often a statement that is to end is told so, until it does.
const KILL_EVERY: Duration = Duration::from_millis(100);
/// `KILL QUERY` finds a place when all others are taken.
const PLACES_TO_KILL: usize = 4;

/// How many statements run and wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Statements at once.
    pub(crate) running: usize,
    /// Statements that wait for a place.
    pub(crate) waiting: usize,
    /// How long they wait.
    pub(crate) patience: Duration,
}

/// The engine, started.
#[derive(Debug)]
pub(crate) struct Engine {
    library: &'static Library,
    arguments: Vec<String>,
    /// Keeps the engine running between statements.
    root: Mutex<Option<Connection>>,
    places: Arc<Semaphore>,
    places_to_kill: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    limits: Limits,
    running: Mutex<HashMap<String, Arc<Running>>>,
    pub(crate) sessions: Sessions,
    pub(crate) version: String,
    pub(crate) time_zone: String,
}

/// A statement in the engine.
#[derive(Debug)]
struct Running {
    cancelled: AtomicBool,
    done: watch::Sender<bool>,
}

/// Where rows go.
#[derive(Debug)]
pub(crate) enum Outlet {
    /// To whoever reads the other end.
    Pipe(pipe::Sender),
    /// Into a file, to be read at the end.
    File(File),
}

impl Outlet {
    fn path(&self) -> String {
        let descriptor = match self {
            Outlet::Pipe(sender) => sender.as_raw_fd(),
            Outlet::File(file) => file.as_raw_fd(),
        };
        format!("/proc/self/fd/{descriptor}")
    }
}

/// A statement to run.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) text: Vec<u8>,
    pub(crate) statement: Statement,
    pub(crate) ask: Ask,
    pub(crate) session: Option<Lease>,
    pub(crate) outlet: Option<Outlet>,
    pub(crate) data: Option<File>,
}

/// A statement that was started. Dropped before its end, it ends the statement.
#[derive(Debug)]
pub(crate) struct Started {
    engine: Arc<Engine>,
    id: String,
    running: Arc<Running>,
    answer: oneshot::Receiver<Result<Answer, Exception>>,
}

impl Started {
    /// Waits for the end.
    pub(crate) async fn answer(&mut self) -> Result<Answer, Exception> {
        let lost = || Err(Exception::logical("the thread that ran the statement is gone"));
        (&mut self.answer).await.unwrap_or_else(|_| lost())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if !*self.running.done.borrow() {
            tracing::debug!(query_id = self.id, "ending a statement whose client is gone");
            self.engine.clone().cancel(self.id.clone(), self.running.clone());
        }
    }
}

/// A connection that must be there.
fn connection(lease: &mut Option<Connection>) -> Result<&mut Connection, Exception> {
    lease
        .as_mut()
        .ok_or_else(|| Exception::logical("the session has no connection"))
}

/// A string of SQL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn quoted_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

impl Engine {
    /// Starts the engine on a data folder.
    pub(crate) fn start(
        library: &'static Library,
        data: &Path,
        bounds: Bounds,
        limits: Limits,
    ) -> anyhow::Result<Self> {
        let (server, users) = config::write(data, bounds)?;
        let arguments = vec![
            format!("--path={}", data.join("store").display()),
            format!("--config-file={}", server.display()),
            format!("--users_config={}", users.display()),
        ];
        let mut root = library.connect(&arguments)?;
        let about = root.query(b"SELECT version(), timezone()", "TSV", &[])?.body;
        let about = String::from_utf8_lossy(&about).into_owned();
        let mut about = about.trim_end().split('\t').map(str::to_owned);
        Ok(Engine {
            library,
            arguments,
            root: Mutex::new(Some(root)),
            places: Arc::new(Semaphore::new(limits.running)),
            places_to_kill: Arc::new(Semaphore::new(PLACES_TO_KILL)),
            queue: Arc::new(Semaphore::new(limits.waiting)),
            limits,
            running: Mutex::default(),
            sessions: Sessions::default(),
            version: about.next().unwrap_or_default(),
            time_zone: about.next().unwrap_or_default(),
        })
    }

    /// Waits for a place. Bounded in number and time: who finds none is told so while it can still go elsewhere.
    async fn place(&self, class: &Class) -> Result<OwnedSemaphorePermit, Exception> {
        let closed = |_| Exception::new(code::ABORTED, "the server is shutting down");
        if *class == Class::Kills {
            return self.places_to_kill.clone().acquire_owned().await.map_err(closed);
        }
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let full = |why: &str| {
            let running = self.limits.running;
            Exception::new(
                code::TOO_MANY_SIMULTANEOUS_QUERIES,
                format!("Too many simultaneous queries. Maximum: {running}, {why}"),
            )
        };
        if self.places.is_closed() {
            return Err(Exception::new(code::ABORTED, "the server is shutting down"));
        }
        let _waiting = self.queue.try_acquire().map_err(|_| full("and as many wait as may"))?;
        match timeout(self.limits.patience, self.places.clone().acquire_owned()).await {
            Ok(place) => place.map_err(closed),
            Err(_) => Err(full("and none ended in time")),
        }
    }

    /// Starts a statement as soon as there is a place.
    pub(crate) async fn run(self: &Arc<Self>, mut order: Order) -> Result<Started, Exception> {
        let place = self.place(&order.statement.class).await?;
        let running = Arc::new(Running {
            cancelled: AtomicBool::new(false),
            done: watch::Sender::new(false),
        });
        {
            let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            if all.contains_key(&order.id) {
                return Err(Exception::new(
                    code::QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING,
                    format!("Query with id = {} is already running", order.id),
                ));
            }
            all.insert(order.id.clone(), running.clone());
        }
        let (answered, answer) = oneshot::channel();
        let started = Started {
            engine: self.clone(),
            id: order.id.clone(),
            running: running.clone(),
            answer,
        };
        let engine = self.clone();
        tokio::task::spawn_blocking(move || {
            let result = engine.perform(&mut order, &running);
            engine
                .running
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&order.id);
            // The pipe's end tells its reader that all rows are there, so what else a client may wait for comes before.
            let outlet = order.outlet.take();
            drop(order);
            drop(place);
            running.done.send_replace(true);
            // Nobody waits any more where the client is gone.
            let _ = answered.send(result);
            drop(outlet);
        });
        Ok(started)
    }

    fn perform(&self, order: &mut Order, running: &Running) -> Result<Answer, Exception> {
        match order.session.take() {
            Some(mut lease) => {
                if lease.is_none() {
                    *lease = Some(self.connect()?);
                }
                let kept = keep_state(connection(&mut lease)?, &order.ask)?;
                let result = perform_on(connection(&mut lease)?, order, running);
                for statement in kept {
                    if let Err(e) = connection(&mut lease)?.query(statement.as_bytes(), "TSV", &[]) {
                        tracing::warn!("a session ends, its settings cannot be restored: {e}");
                        *lease = None;
                        break;
                    }
                }
                result
            }
            None => perform_on(&mut self.connect()?, order, running),
        }
    }

    fn connect(&self) -> Result<Connection, Exception> {
        self.library
            .connect(&self.arguments)
            .map_err(|e: LibraryError| Exception::logical(&e.to_string()))
    }

    /// Ends a statement: tells it so until it has ended, for one that has not begun cannot hear it.
    fn cancel(self: Arc<Self>, id: String, running: Arc<Running>) {
        if running.cancelled.swap(true, Ordering::SeqCst) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            let mut done = running.done.subscribe();
            while timeout(KILL_EVERY, done.wait_for(|done| *done)).await.is_err() {
                let engine = self.clone();
                let statement = format!(
                    "KILL QUERY WHERE Settings[{}] = {} ASYNC",
                    quoted(ID_SETTING),
                    quoted(&id)
                );
                let told =
                    tokio::task::spawn_blocking(move || engine.connect()?.query(statement.as_bytes(), "TSV", &[]));
                if let Ok(Err(e)) = told.await {
                    tracing::warn!(query_id = id, "cannot end a statement: {e}");
                }
            }
        });
    }

    /// Takes no more statements, waits for those that run, ends what is left, and stops the engine. False if some
    /// statement could not be ended in time; then the engine runs on and the process must be left without its exit handlers.
    pub(crate) async fn shut_down(self: Arc<Self>, grace: Duration, deadline: Duration) -> bool {
        self.places.close();
        self.places_to_kill.close();
        let started = Instant::now();
        if !self.all_done(grace).await {
            let left: Vec<_> = {
                let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                all.iter().map(|(id, running)| (id.clone(), running.clone())).collect()
            };
            tracing::info!("ending {} statements", left.len());
            for (id, running) in left {
                self.clone().cancel(id, running);
            }
            if !self.all_done(deadline.saturating_sub(started.elapsed())).await {
                return false;
            }
        }
        tokio::task::spawn_blocking(move || {
            self.sessions.clear();
            self.root.lock().unwrap_or_else(PoisonError::into_inner).take();
        })
        .await
        .is_ok()
    }

    async fn all_done(&self, within: Duration) -> bool {
        let wait = async {
            loop {
                let next = {
                    let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
                    all.values().next().cloned()
                };
                let Some(running) = next else { break };
                // The sender lives as long as we hold `running`, so this ends with the statement.
                let _ = running.done.subscribe().wait_for(|done| *done).await;
            }
        };
        timeout(within, wait).await.is_ok()
    }
}

/// Runs a statement on a connection, with its settings, its database and its id.
fn perform_on(connection: &mut Connection, order: &Order, running: &Running) -> Result<Answer, Exception> {
    let mut set = format!("SET {ID_SETTING} = {}", quoted(&order.id));
    for (name, value) in &order.ask.settings {
        set.push_str(&format!(", {name} = {}", quoted(value)));
    }
    connection.query(set.as_bytes(), "TSV", &[])?;
    if let Some(database) = &order.ask.database {
        connection.query(format!("USE {}", quoted_name(database)).as_bytes(), "TSV", &[])?;
    }
    if running.cancelled.load(Ordering::SeqCst) {
        return Err(Exception::new(code::QUERY_WAS_CANCELLED, "Query was cancelled"));
    }
    let outlet = order.outlet.as_ref().map(Outlet::path);
    let inlet = order
        .data
        .as_ref()
        .map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    let format = order.ask.format.as_deref().unwrap_or("TabSeparated");
    let data_format = match &order.statement.class {
        Class::Inserts(insert) => insert.format.as_deref().unwrap_or(format),
        _ => format,
    };
    let inlet = inlet.as_deref().map(|path| (path, data_format));
    let sql = order.statement.for_engine(&order.text, outlet.as_deref(), inlet);
    connection.query(&sql, format, &order.ask.parameters)
}

/// The statements that give a session back what the parameters of one request change.
fn keep_state(connection: &mut Connection, ask: &Ask) -> Result<Vec<String>, Exception> {
    let mut kept = Vec::new();
    if ask.database.is_some() {
        let current = connection.query(b"SELECT currentDatabase()", "RawBLOB", &[])?.body;
        kept.push(format!("USE {}", quoted_name(&String::from_utf8_lossy(&current))));
    }
    if !ask.settings.is_empty() {
        let names: Vec<String> = ask.settings.iter().map(|(name, _)| quoted(name)).collect();
        let select = format!(
            "SELECT name, value, changed FROM system.settings WHERE name IN ({})",
            names.join(", ")
        );
        let rows = connection.query(select.as_bytes(), "JSONCompactEachRow", &[])?.body;
        for row in serde_json::Deserializer::from_slice(&rows).into_iter::<(String, String, u8)>() {
            let (name, value, changed) = row.map_err(|e| Exception::logical(&e.to_string()))?;
            let value = if changed == 0 {
                "DEFAULT".to_owned()
            } else {
                quoted(&value)
            };
            kept.push(format!("SET {name} = {value}"));
        }
    }
    Ok(kept)
}
