//! What becomes of single statements.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::watch;

use crate::stack::PATIENCE;

/// What becomes of one statement.
#[derive(Debug, Clone)]
pub enum Act {
    /// It never arrives: the connection is closed.
    Lose,
    /// It is done, and its reply is lost: the connection is closed.
    LoseReply,
    /// It goes on at the server while its caller is told, by a closed connection, that it failed.
    Leave,
    /// Half of it arrives, then both connections are closed.
    Halve,
    /// It is done twice, one after the other.
    Twice,
    /// It is done, and once more when the gate opens.
    AndAgain(Arc<Gate>),
    /// Each of its blocks is one row, so that it takes effect row by row.
    InBlocks,
    /// The server refuses it with that ClickHouse error code.
    Refuse(u32),
    /// It never arrives, and is answered with that status of HTTP, as S3 does.
    Status(u16),
    /// It is done, and half of its reply arrives before the connection is closed.
    HalveReply,
    /// It waits before the server sees it.
    Hold(Arc<Gate>),
    /// It is done, and its reply waits.
    HoldReply(Arc<Gate>),
}

/// What happens to what was held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on, also when its caller has gone.
    SendOn,
    /// It is lost.
    Lose,
}

/// How many came to a gate, and what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Came {
    taken: usize,
    /// Of those, how many callers have gone away.
    gone: usize,
    /// How many were sent on and answered after the gate had opened.
    done: usize,
}

/// Where statements wait.
#[derive(Debug)]
pub struct Gate {
    came: watch::Sender<Came>,
    then: watch::Sender<Option<Then>>,
}

impl Gate {
    /// A closed one.
    pub fn closed() -> Arc<Self> {
        Arc::new(Self {
            came: watch::Sender::new(Came::default()),
            then: watch::Sender::new(None),
        })
    }

    /// Opens it for all that wait and all that come.
    pub fn open(&self, then: Then) {
        self.then.send_replace(Some(then));
    }

    /// Waits until so many have come, and so many of their callers have gone away.
    pub async fn until_held(&self, taken: usize, gone: usize) -> anyhow::Result<()> {
        self.until(|came| came.taken >= taken && came.gone >= gone).await
    }

    /// Waits until so many that were held have been done after all.
    pub async fn until_done(&self, done: usize) -> anyhow::Result<()> {
        self.until(|came| came.done >= done).await
    }

    async fn until(&self, holds: impl FnMut(&Came) -> bool) -> anyhow::Result<()> {
        let mut came = self.came.subscribe();
        let waited = tokio::time::timeout(PATIENCE, came.wait_for(holds)).await;
        let now = *self.came.borrow();
        waited.with_context(|| format!("never at the gate: {now:?}"))??;
        Ok(())
    }

    pub(super) fn take(&self) {
        self.came.send_modify(|came| came.taken += 1);
    }

    pub(super) fn left(&self) {
        self.came.send_modify(|came| came.gone += 1);
    }

    pub(super) fn done(&self) {
        self.came.send_modify(|came| came.done += 1);
    }

    /// Waits until it opens.
    pub(super) async fn opened(&self) -> Then {
        let mut then = self.then.subscribe();
        let opened = then.wait_for(Option::is_some).await;
        opened.ok().and_then(|then| *then).unwrap_or(Then::Lose)
    }
}

type Choose = Box<dyn FnMut(&str) -> Option<Act> + Send>;

/// The rules, in the order in which they are asked.
#[derive(Default)]
pub struct Rules(Vec<Choose>);

impl Rules {
    pub(super) fn add(&mut self, choose: impl FnMut(&str) -> Option<Act> + Send + 'static) {
        self.0.push(Box::new(choose));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What becomes of that statement; none where it passes.
    pub(super) fn choose(&mut self, statement: &str) -> Option<Act> {
        self.0.iter_mut().find_map(|choose| choose(statement))
    }
}

/// Whether a statement inserts into that table.
pub fn inserts_into(table: &str) -> impl Fn(&str) -> bool + Send + Clone + 'static {
    let table = format!("`{table}`");
    move |statement| statement.contains("INSERT INTO") && statement.contains(&table)
}
