//! What cells are taken apart with: of each kind of rows what the store holds and what the archive gives, read once for all slices.
//!
//! However many differences there are, the store is asked once for each kind, and the archive is read as often: cells lie on disk from then on,
//! in the order of their keys, and each slice of differences looks up its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::row::OwnedRow;
use shared_schemas::handoff::{Offset, OffsetSet, Partition, Start, TopicId};
use shared_schemas::store::cells::{Among, Starts, totals_of_starts};

use super::apart::{Apart, Judge, Kind, Known, Piece, Totals, apart, in_total, without_broken};
use super::cause::Cause;
use super::compare::{Cells, Difference, with_layers};
use super::explain::{Compared, Explaining};
use super::laid::{Laid, merged};
use super::reach::Reach;
use super::sorted::{Stream, of_keys, sorted};
use super::{OfView, computing};
use crate::error::RunError;
use crate::retry::patiently;

/// So many events that may be counted are looked at for a slice: of more nothing is proved.
const MOST_KNOWN: usize = 50_000;
/// Of more archived events that were read under other rules none is laid down, where it is not known yet which cells differ.
const MOST_OTHERS: u64 = 1 << 20;

/// All rows of a kind, and what the archive gives for them.
pub(super) struct Source {
    /// Why they may differ; they may not, if it is none.
    kind: Option<Kind>,
    held: Laid,
    predicted: Laid,
    /// Where rules may change it, what the archive gives of those offsets alone whose events are in it for certain.
    present: Option<Laid>,
    /// Both over all values of dimensions that a key changes.
    totals: Option<[Laid; 2]>,
    /// Archived events that may be counted, each in a row of its own; none where they are too many.
    known: Option<Laid>,
    /// So many events may be counted that are not archived.
    most: u64,
}

impl OfView<'_> {
    /// Takes cells apart that differ and that nothing explains, and puts them down to what their pieces prove.
    pub(super) async fn take_apart(
        &self,
        of: &Compared<'_>,
        with: &mut Explaining,
        different: &mut [Difference],
    ) -> Result<(), RunError> {
        let is_open = |one: &&Difference| one.cause == Cause::Unexplained;
        let open = different.iter().filter(is_open);
        let open: BTreeSet<_> = open.filter_map(|one| one.cell.clone()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut sources = match with.sources.take() {
            Some(sources) => sources,
            None => self.sources(of, with).await?,
        };
        let mut pieces = Vec::with_capacity(sources.len());
        for source in &mut sources {
            pieces.push(self.piece(of, with, source, &open).await?);
        }
        with.sources = Some(sources);
        if pieces.is_empty() {
            return Ok(());
        }
        let rules = of.ground.pinned.rules().into_keys();
        let rules: BTreeSet<_> = rules.map(|(_, rules)| rules.to_owned()).collect();
        let judge = Judge {
            view: self.view,
            reach: Reach::of_keys(self.view, self.dataset),
            rules: rules.len().max(1),
            pieces,
        };
        judge.judge(different);
        Ok(())
    }

    /// Reads all that cells are taken apart with; nothing where no row may differ.
    async fn sources(&self, of: &Compared<'_>, with: &Explaining) -> Result<Vec<Source>, RunError> {
        let chunk = self.chunk()?;
        let loose = of.loose(chunk, |partition, range| with.classified.known(partition, range));
        let apart = apart(&of.ground.partitions, chunk, of.ledgers, of.other, &loose);
        let apart = self.without_broken(apart, of).await?;
        if apart.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = Starts::new();
        for (partition, starts) in apart.values().flatten() {
            all.entry(*partition).or_default().extend(starts);
        }
        let kinds = apart.iter().map(|(kind, starts)| (Some(*kind), Among::Only(starts)));
        let mut sources = Vec::new();
        for (kind, among) in std::iter::once((None, Among::Without(&all))).chain(kinds) {
            sources.push(self.source(of, with, kind, among, &loose).await?);
        }
        Ok(sources)
    }

    async fn source(
        &self,
        of: &Compared<'_>,
        with: &Explaining,
        kind: Option<Kind>,
        among: Among<'_>,
        loose: &Starts,
    ) -> Result<Source, RunError> {
        let failed = |error| computing(of.days, &error);
        let reach = Reach::of_keys(self.view, self.dataset);
        let has_totals = kind == Some(Kind::Keys) && reach.is_of_cells();
        // Cells that are one over all values of a dimension are of others too.
        let only = with.only.as_ref().filter(|_| !has_totals);
        let (spill, keys) = (of.rooms.apart.spill(), 1 + self.view.dimensions.len());
        let schema = with.merge.schema();
        let laid = async |cells: Stream| {
            let cells = match only {
                Some(only) => of_keys(schema, keys, cells, Arc::clone(only)).map_err(failed)?,
                None => cells,
            };
            let cells = sorted(&of.rooms.apart, schema, keys, cells).await.map_err(failed)?;
            Laid::of_sorted(&spill, schema, keys, cells).await.map_err(failed)
        };
        let counted = of.ground.of_starts(self.chunk()?, among);
        let predicted = laid(self.predicted(&with.of_both, of, among, counted.clone())).await?;
        let (mut present, mut known, mut most) = (None, None, 0);
        let mut events = None;
        if kind == Some(Kind::Rules) {
            let parted = of.other.parted(&counted, loose, self.chunk()?);
            present = Some(laid(self.predicted(&with.of_both, of, among, parted.certain)).await?);
            most = parted.unknown.saturating_add(unsure(of, among));
            if only.is_some() || archived(of, &parted.possible).await? <= MOST_OTHERS {
                let possible = self.events(of, of.days);
                let (classes, classified, cells) = (&with.classes, &with.classified, only.map(AsRef::as_ref));
                let possible = classes.each(possible, of.days, classified, &parted.possible, cells);
                events = Some(possible.await.map_err(failed)?);
            }
        }
        if kind == Some(Kind::CutShort) {
            let repeats = self.events(of, of.days);
            let repeats = with.classes.known(repeats, of.days, &with.classified, &counted).await;
            events = Some(repeats.map_err(failed)?);
        }
        if let Some(cells) = events {
            let schema = with.classes.columns();
            let cells = match only {
                Some(only) => of_keys(schema, keys, cells, Arc::clone(only)).map_err(failed)?,
                None => cells,
            };
            let cells = sorted(&of.rooms.apart, schema, keys, cells).await.map_err(failed)?;
            known = Some(Laid::of_sorted(&spill, schema, keys, cells).await.map_err(failed)?);
        }
        // The store's answer is asked for last: it is read from then on, and not kept waiting.
        let held = self.held(&of.rooms.apart, of, among).await.map_err(failed)?;
        let held = match only {
            Some(only) => held.with_keys(Arc::clone(only)),
            None => held,
        };
        let held = Laid::down(&spill, held, of.days).await?;
        let mut totals = None;
        if has_totals {
            let total = async |cells: &Laid| {
                let cells = in_total(&with.merge, &reach.dimensions, cells.rows()?);
                let cells = sorted(&of.rooms.apart, schema, keys, cells).await?;
                let cells = merged(with.merge.clone(), keys, cells, of.rooms.apart.memory() / GATHERED);
                Laid::of_sorted(&spill, schema, keys, cells).await
            };
            totals = Some([
                total(&held).await.map_err(failed)?,
                total(&predicted).await.map_err(failed)?,
            ]);
        }
        Ok(Source {
            kind,
            held,
            predicted,
            present,
            totals,
            known,
            most,
        })
    }

    /// What a slice of differences needs of it.
    async fn piece(
        &self,
        of: &Compared<'_>,
        with: &Explaining,
        source: &mut Source,
        open: &BTreeSet<OwnedRow>,
    ) -> Result<Piece, RunError> {
        let failed = |error| computing(of.days, &error);
        let plan_error = |error: arrow::error::ArrowError| RunError::Plan(error.to_string());
        let held = source.held.of(open).map_err(failed)?;
        let predicted = source.predicted.of(open).map_err(failed)?;
        let predicted = self.as_cells(&with.merge, predicted, of.days).await?;
        let mut present = None;
        if let Some(cells) = &mut source.present {
            let cells = cells.of(open).map_err(failed)?;
            present = Some(self.as_cells(&with.merge, cells, of.days).await?);
        }
        let mut totals = None;
        if let Some(sides) = &mut source.totals {
            let dimensions = Reach::of_keys(self.view, self.dataset).dimensions;
            totals = Some(Totals::of(self.view, &with.merge, &dimensions, open, sides).map_err(failed)?);
        }
        let mut known = None;
        if let Some(events) = &mut source.known {
            let most = MOST_KNOWN.min(of.rooms.most());
            let events = events.at_most(open, most).map_err(failed)?;
            if events.iter().map(RecordBatch::num_rows).sum::<usize>() < most {
                let events = with.classes.one_by_one(&events).map_err(failed)?;
                let least = present.as_ref().unwrap_or(&predicted);
                let found = Known::of(self.view, &with.merge, least, events).await;
                known = Some(found.map_err(failed)?);
            }
        }
        Ok(Piece {
            kind: source.kind,
            held: Cells::new(self.view, &with_layers(of.schema), &held).map_err(plan_error)?,
            predicted,
            present,
            totals,
            known,
            most: source.most,
        })
    }

    /// Without starts whose rows don't come to what their ledgers say.
    async fn without_broken(&self, apart: Apart, of: &Compared<'_>) -> Result<Apart, RunError> {
        let Some(plain) = self.view.plain_count().map(|plain| plain.name) else {
            return Ok(apart);
        };
        let mut held = BTreeMap::new();
        for starts in apart.values() {
            let database = self.batch.store.database();
            let Some(statement) = totals_of_starts(database, self.view, &plain, starts) else {
                continue;
            };
            self.reads.of_store();
            let answer = patiently(|| self.batch.store.answer(&statement, "TabSeparated")).await?;
            held.extend(String::from_utf8_lossy(&answer.body).lines().filter_map(total_of_start));
        }
        let is_whole = self.view.keep.is_none() && of.ground.pinned.horizon.is_none();
        Ok(without_broken(apart, of.ledgers, &held, is_whole))
    }
}

/// A part of the memory in which cells are gathered to be made one.
pub(super) const GATHERED: usize = 8;

/// How many events are archived at those offsets.
async fn archived(of: &Compared<'_>, offsets: &BTreeMap<Partition, OffsetSet>) -> Result<u64, RunError> {
    let mut events: u64 = 0;
    for (partition, offsets) in offsets {
        for range in offsets.ranges() {
            events = events.saturating_add(of.ground.pinned.events_within(*partition, *range).await?);
        }
    }
    Ok(events)
}

/// In so many cases filters of those starts did not know.
fn unsure(of: &Compared<'_>, among: Among<'_>) -> u64 {
    let of_starts = of
        .ledgers
        .iter()
        .filter(|(partition, start, _)| among.counts(*partition, *start));
    of_starts
        .map(|(_, _, ledger)| ledger.unsure)
        .fold(0, u64::saturating_add)
}

/// A line of [`totals_of_starts`].
fn total_of_start(line: &str) -> Option<((Partition, Start), u64)> {
    let mut words = line.split('\t');
    let topic = TopicId(words.next()?.parse().ok()?);
    let number = words.next()?.parse().ok()?;
    let start = Start(Offset(words.next()?.parse().ok()?));
    Some(((Partition { topic, number }, start), words.next()?.parse().ok()?))
}
