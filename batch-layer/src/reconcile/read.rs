//! What the store holds of some days, as a stream of cells in the order of their keys; read in pieces where it is too much for one answer.
//!
//! Exact sets come as hexadecimal digits, so a block of a statement's answer can pass what the server can write or has memory
//! for. Then the time that is asked for is halved, down to one window. What came before the answer broke off comes once more then, and so it
//! does where a connection was lost: of cells with equal keys only one is taken, once they are sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, RecordBatch, UInt64Array};
use arrow::buffer::Buffer;
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamDecoder;
use datafusion::common::{DataFusionError, Result};
use futures::StreamExt;
use shared_connections::store::{AtLength, Pace, Store, StoreError};
use shared_schemas::handoff::{EventDay, Mark, Partition, Publication, Start};
use shared_schemas::store::Statement;
use shared_schemas::store::cells::{Among, HeldCells, Starts, times_of};
use shared_schemas::view::View;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::OfView;
use super::compare::{Cells, with_layers};
use super::explain::Compared;
use super::sorted::{Side, sorted};
use crate::error::RunError;
use crate::recompute::Room;
use crate::retry::patiently;

/// ClickHouse's codes for an answer that is too large: a string, an array, memory, and what Arrow says.
const TOO_LARGE: [u32; 5] = [128, 131, 173, 241, 1002];

/// Batches that wait for the sort: one to work on and one to come.
const AHEAD: usize = 2;

/// A batch that is handed on takes no more than such a part of the memory, unless it is of one row.
const PIECES: usize = 32;

/// Which rows are read; owned, since a task of its own reads them.
struct Reader {
    store: Store,
    view: View,
    publication: Option<Publication>,
    starts: BTreeMap<Partition, (Mark, Start)>,
    among: Chosen,
    days: BTreeSet<EventDay>,
    schema: SchemaRef,
    /// So many bytes are handed on at once, about.
    piece: usize,
}

/// [`Among`], owned.
enum Chosen {
    All,
    Only(Starts),
    Without(Starts),
}

impl Chosen {
    fn of(among: Among<'_>) -> Self {
        match among {
            Among::All => Self::All,
            Among::Only(starts) => Self::Only(starts.clone()),
            Among::Without(starts) => Self::Without(starts.clone()),
        }
    }

    fn among(&self) -> Among<'_> {
        match self {
            Self::All => Among::All,
            Self::Only(starts) => Among::Only(starts),
            Self::Without(starts) => Among::Without(starts),
        }
    }
}

/// Why reading the store ended early, as its error is; a stream of batches can only carry words.
pub(super) type Broken = Arc<Mutex<Option<RunError>>>;

impl OfView<'_> {
    /// The cells that an answer is made of, or some rows of them, each once and in the order of their keys. Their columns are the
    /// schema's, and the layers'.
    pub(super) async fn held(&self, room: &Room, of: &Compared<'_>, among: Among<'_>) -> Result<Side> {
        self.reads.of_store();
        let schema = with_layers(of.schema);
        let reader = Reader {
            store: self.batch.store.clone(),
            view: self.view.clone(),
            // Batch rows go with all others, not with chosen ones.
            publication: of.publication.filter(|_| !matches!(among, Among::Only(_))).cloned(),
            starts: of.ground.starts(),
            among: Chosen::of(among),
            days: of.days.clone(),
            schema: Arc::clone(&schema),
            piece: room.memory() / PIECES,
        };
        let broken = Broken::default();
        let (to, from) = mpsc::channel(AHEAD);
        let mut task = JoinSet::new();
        let slot = Arc::clone(&broken);
        task.spawn(async move {
            if let Err(error) = reader.read(&to).await {
                let why = DataFusionError::Execution(error.to_string());
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                // Who has gone needs no telling.
                let _ = to.send(Err(why)).await;
            }
        });
        // The task ends with the stream.
        let next = |(mut from, mut task): (mpsc::Receiver<Result<RecordBatch>>, JoinSet<()>)| async move {
            if let Some(batch) = from.recv().await {
                return Some((batch, (from, task)));
            }
            // A task that panicked has not read to the end.
            let panicked = task.join_next().await?.err()?;
            Some((Err(DataFusionError::External(Box::new(panicked))), (from, task)))
        };
        let cells = futures::stream::unfold((from, task), next).boxed();
        let keys = 1 + self.view.dimensions.len();
        let cells = sorted(room, &schema, keys, cells).await?;
        Ok(Side::new(&schema, keys, cells)?.each_once().told_by(broken))
    }
}

impl Reader {
    /// Hands on all cells as they come, in any order; some of them twice where an answer broke off.
    async fn read(&self, to: &mpsc::Sender<Result<RecordBatch>>) -> Result<(), RunError> {
        // Times yet to be read, the first one on top.
        let mut waiting: Vec<_> = times_of(&self.days).into_iter().collect();
        while let Some(time) = waiting.pop() {
            let cells = HeldCells {
                database: self.store.database(),
                view: &self.view,
                publication: self.publication.as_ref(),
                starts: &self.starts,
                among: self.among.among(),
                days: &self.days,
                time,
            };
            let Some(statement) = cells.statement() else {
                continue;
            };
            // What is too large stays so: that is not asked again as it is.
            let answer = patiently(|| async {
                match self.hand_on(&statement, to).await {
                    Err(Unread::Store(error)) if is_too_large(&error) => Ok(Some(Unread::Store(error))),
                    Err(Unread::Store(error)) => Err(error),
                    Err(error) => Ok(Some(error)),
                    Ok(()) => Ok(None),
                }
            });
            match answer.await? {
                None => {}
                Some(Unread::Rows(error)) => return Err(RunError::Plan(error.to_string())),
                Some(Unread::Store(error)) => {
                    let [first, second] = halves(time, self.view.grain.as_secs()).ok_or(error)?;
                    tracing::debug!(
                        view = self.view.name,
                        "too many cells for one answer: asking for half as many"
                    );
                    waiting.extend([second, first]);
                }
            }
        }
        Ok(())
    }

    async fn hand_on(&self, statement: &Statement, to: &mpsc::Sender<Result<RecordBatch>>) -> Result<(), Unread> {
        let mut answer = Batches::of(&self.store, statement)?;
        while let Some(batch) = answer.next().await? {
            let batch = Cells::read(&self.view, &self.schema, &batch)?;
            for piece in pieces(&batch, self.piece)? {
                if to.send(Ok(piece)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Why an answer in Arrow was not read to its end.
pub(super) enum Unread {
    Store(StoreError),
    /// It is not what was asked for.
    Rows(ArrowError),
}

impl From<StoreError> for Unread {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ArrowError> for Unread {
    fn from(error: ArrowError) -> Self {
        Self::Rows(error)
    }
}

/// Copies of a batch's rows, in batches of about so many bytes: slices would each count as large as the whole.
fn pieces(batch: &RecordBatch, most: usize) -> Result<Vec<RecordBatch>, ArrowError> {
    let rows = batch.num_rows();
    let bytes: usize = batch
        .columns()
        .iter()
        .map(|column| column.get_array_memory_size())
        .sum();
    let count = (bytes / most.max(1) + 1).min(rows.max(1));
    let length = rows.div_ceil(count).max(1);
    let piece = |from: usize| {
        let numbers = (from..(from + length).min(rows)).map(|row| row as u64);
        take_record_batch(batch, &UInt64Array::from_iter_values(numbers))
    };
    (0..rows).step_by(length).map(piece).collect()
}

/// The answer of a lengthy statement, batch by batch.
pub(super) struct Batches<'a> {
    pieces: AtLength<'a>,
    decoder: StreamDecoder,
    /// What has come and is not decoded yet.
    bytes: Buffer,
}

impl<'a> Batches<'a> {
    pub(super) fn of(store: &'a Store, statement: &Statement) -> Result<Self, StoreError> {
        Ok(Self {
            pieces: store.begin_at_length(statement, "ArrowStream", Pace::AT_LENGTH)?,
            decoder: StreamDecoder::new(),
            bytes: Buffer::from(Vec::<u8>::new()),
        })
    }

    /// The next batch; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, Unread> {
        loop {
            while !self.bytes.is_empty() {
                if let Some(batch) = self.decoder.decode(&mut self.bytes)? {
                    return Ok(Some(batch));
                }
            }
            let Some(bytes) = self.pieces.next().await? else {
                self.decoder.finish()?;
                return Ok(None);
            };
            self.bytes = Buffer::from(bytes);
        }
    }
}

fn is_too_large(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { code, .. } if TOO_LARGE.contains(code))
}

/// Two halves of a time, each of whole windows; `None` of a single one.
fn halves((from, to): (i64, i64), grain: u64) -> Option<[(i64, i64); 2]> {
    let grain = i64::try_from(grain).ok().filter(|grain| *grain > 0)?;
    let windows = (to - from).div_euclid(grain);
    let middle = from + windows / 2 * grain;
    (windows > 1).then_some([(from, middle), (middle, to)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_halved_down_to_a_window() {
        let days = BTreeSet::from([EventDay(1), EventDay(3)]);
        assert_eq!(times_of(&days), Some((86_400, 345_600)));
        assert_eq!(times_of(&BTreeSet::new()), None);
        assert_eq!(
            halves((86_400, 345_600), 86_400),
            Some([(86_400, 172_800), (172_800, 345_600)])
        );
        assert_eq!(halves((86_400, 172_800), 86_400), None);
        // All windows are in some half, and none is cut.
        let mut waiting = vec![(0, 86_400)];
        let mut single = Vec::new();
        while let Some(time) = waiting.pop() {
            match halves(time, 3_600) {
                Some([first, second]) => waiting.extend([second, first]),
                None => single.push(time),
            }
        }
        let windows: Vec<_> = (0..24).map(|hour| (hour * 3_600, (hour + 1) * 3_600)).collect();
        assert_eq!(single, windows);
    }

    #[test]
    fn only_what_is_too_large_is_halved() {
        let refused = |code| StoreError::Refused {
            doing: "answer a query".to_owned(),
            code,
            message: String::new(),
        };
        assert!(is_too_large(&refused(241)));
        assert!(!is_too_large(&refused(60)));
    }
}
