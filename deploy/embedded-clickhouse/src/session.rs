//! Sessions: connections that outlive a request, with their temporary tables and what `SET` set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use crate::exception::{Exception, code};
use crate::library::Connection;
use crate::request::SessionAsk;

/// More sessions than this are a client that forgets them.
const MOST: usize = 1000;

#[derive(Debug)]
struct Session {
    connection: Arc<tokio::sync::Mutex<Option<Connection>>>,
    expires: Instant,
}

/// All sessions of the server.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: Mutex<HashMap<String, Session>>,
}

/// A session in use by one request. Its connection is made by the first one.
pub(crate) type Lease = OwnedMutexGuard<Option<Connection>>;

impl Sessions {
    /// Takes the session that a request asks for. One request at a time, as in ClickHouse.
    pub(crate) fn lease(&self, ask: &SessionAsk) -> Result<Lease, Exception> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        Self::sweep(&mut sessions, now);
        if !sessions.contains_key(&ask.id) {
            if ask.existing {
                return Err(Exception::new(
                    code::SESSION_NOT_FOUND,
                    format!("Session {} not found", ask.id),
                ));
            }
            if sessions.len() >= MOST {
                return Err(Exception::new(
                    code::TOO_MANY_SIMULTANEOUS_QUERIES,
                    format!("there are {MOST} sessions already: close some with close_session=1"),
                ));
            }
        }
        let session = sessions.entry(ask.id.clone()).or_insert_with(|| Session {
            connection: Arc::default(),
            expires: now + ask.timeout,
        });
        session.expires = now + ask.timeout;
        let connection = session.connection.clone();
        if ask.close {
            sessions.remove(&ask.id);
        }
        connection.try_lock_owned().map_err(|_| {
            Exception::new(
                code::SESSION_IS_LOCKED,
                format!("Session {} is locked by a concurrent client", ask.id),
            )
        })
    }

    /// Ends those that nobody asked for in time.
    pub(crate) fn expire(&self) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        Self::sweep(&mut sessions, Instant::now());
    }

    fn sweep(sessions: &mut HashMap<String, Session>, now: Instant) {
        sessions.retain(|_, session| {
            if session.connection.try_lock().is_err() {
                // in use: its time begins when it is free
                session.expires = session.expires.max(now + Duration::from_secs(1));
            }
            session.expires > now
        });
    }

    /// Ends all.
    pub(crate) fn clear(&self) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
