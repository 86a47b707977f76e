//! Which partitions wait while open cells take more than `speed.memory` allows.
//!
//! Rows are whole cells, so a cell is kept until its chunk ends: only reading on lets go of any. While they take too much one
//! partition at a time has its turn, up to the end of the chunk in which it is furthest; all others wait. So open cells take
//! no more than allowed and one chunk's, and reading goes on however little that is: also where there is but one partition.
//!
//! Only what is behind waits at first: a partition whose chunk's end is not in its log yet could have a turn for hours, and brings cells no faster
//! than events come. Such ones wait, too, once open cells take twice as much as allowed.
//!
//! A partition whose log has the rest of its chunk goes first, for its turn is sure to end. One that gives nothing, being at the end of
//! its log or without a leader, does not wait, and no other waits for it. Each has its turn before one has another.

use std::collections::{BTreeMap, BTreeSet};

use metrics::gauge;
use shared_schemas::handoff::{ChunkSize, Offset};

use super::Worker;
use super::fresh::precise;
use crate::error::SpeedError;

/// Whoever waited reads on together with others once open cells take less than so many quarters of what they may: with
/// fewer they would wait longer than they must, with more they would be stopped again at once.
const QUARTERS: u64 = 3;

/// What streams in just now waits as well once open cells take so many times what they may.
const FAR_OVER: u64 = 2;

/// How a partition is read.
#[derive(Debug, Clone)]
struct Place {
    /// From where, by each that reads it: at the log's head, and behind it.
    cursors: Vec<Offset>,
    /// Where its log ended when last looked.
    log_end: Offset,
    /// It may be read, and nothing has come for a while.
    is_silent: bool,
}

impl Place {
    /// The end of the chunk in which it is furthest, and how many offsets are left to it.
    fn next_end(&self, chunk: ChunkSize) -> Option<(Offset, u64)> {
        let ends = self.cursors.iter().map(|cursor| (chunk.end(*cursor), *cursor));
        let ends = ends.map(|(end, cursor)| (end, end.0.saturating_sub(cursor.0)));
        ends.min_by_key(|(_, left)| *left)
    }
}

/// A partition that could have the turn: the lowest gets it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// The rest of its chunk is not in the log yet.
    lacks_end: bool,
    had: bool,
    /// It is not the one whose turn it was.
    is_another: bool,
    /// How many offsets are left to the chunk's end.
    left: u64,
    turn: (u32, Offset),
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Whether open cells take too much.
    is_over: bool,
    /// The partition that reads on, and up to where.
    turn: Option<(u32, Offset)>,
    /// Those that had a turn since the others had theirs.
    had: BTreeSet<u32>,
    /// Those that wait.
    waiting: BTreeSet<u32>,
}

impl Turns {
    /// Whether the partition waits for its turn.
    pub(super) fn waits(&self, partition: u32) -> bool {
        self.waiting.contains(&partition)
    }

    /// Whether open cells take too much now; of those that have begun to wait it goes on a little longer.
    fn is_over(&self, open: u64, memory: u64) -> bool {
        let limit = if self.is_over { memory / 4 * QUARTERS } else { memory };
        open > limit
    }

    /// Open cells take no more than they may.
    fn end(&mut self) {
        *self = Self::default();
    }

    /// Open cells take too much, or far too much: decides who waits.
    fn take(&mut self, places: &BTreeMap<u32, Place>, chunk: ChunkSize, is_far: bool) {
        self.is_over = true;
        let is_over = |(number, end): &(u32, Offset)| {
            let is_before = |place: &Place| place.cursors.iter().any(|cursor| chunk.end(*cursor) == *end);
            !places.get(number).is_some_and(is_before)
        };
        let over = self.turn.take_if(|turn| is_over(turn)).map(|(number, _)| number);
        self.had.extend(over);
        let turn = self.turn;
        let candidate = |(number, place): (&u32, &Place)| {
            let (end, left) = place.next_end(chunk)?;
            let its = turn.filter(|(of, _)| of == number);
            Some(Candidate {
                lacks_end: its.map_or(end, |(_, end)| end) > place.log_end,
                had: false,
                is_another: its.is_none(),
                left,
                turn: its.unwrap_or((*number, end)),
            })
        };
        let speaking = places.iter().filter(|(_, place)| !place.is_silent);
        let mut candidates: Vec<Candidate> = speaking.clone().filter_map(candidate).collect();
        // Where some are sure to end their turns, they take them among themselves.
        let lack = candidates.iter().all(|one| one.lacks_end);
        let mut those = candidates.iter().filter(|one| one.lacks_end == lack);
        if those.all(|one| self.had.contains(&one.turn.0)) {
            self.had = over.into_iter().collect();
        }
        for one in &mut candidates {
            one.had = self.had.contains(&one.turn.0);
        }
        let goes_on = |one: &&Candidate| one.lacks_end && !is_far;
        let mut reads: BTreeSet<u32> = candidates.iter().filter(goes_on).map(|one| one.turn.0).collect();
        self.turn = candidates.into_iter().min().map(|one| one.turn);
        reads.extend(self.turn.map(|(number, _)| number));
        let waiting = speaking.map(|(number, _)| *number);
        self.waiting = waiting.filter(|number| !reads.contains(number)).collect();
    }
}

impl Worker {
    /// Lets partitions wait while open cells take more than they may, and says so.
    pub(super) fn take_turns(&mut self) -> Result<(), SpeedError> {
        let (open, memory) = (self.open_bytes(), self.setup.speed.memory);
        let (was_over, is_over) = (self.turns.is_over, self.turns.is_over(open, memory));
        if !was_over && !is_over {
            return Ok(());
        }
        let before = self.turns.waiting.len();
        if is_over {
            let places = self.places();
            self.turns
                .take(&places, self.chunk, open > memory.saturating_mul(FAR_OVER));
        } else {
            self.turns.end();
        }
        self.front.wait(&self.turns.waiting)?;
        for catch_up in &mut self.catch_ups {
            catch_up.wait(&self.turns.waiting)?;
        }
        let (dataset, waiting) = (self.setup.dataset.name.clone(), self.turns.waiting.len());
        if is_over && !was_over {
            tracing::warn!(
                dataset,
                open_mib = open >> 20,
                memory_mib = memory >> 20,
                "open cells take more than `speed.memory`: partitions are read one at a time until chunks end; raise it, start \
                 further workers, or give the dataset a smaller `chunk`"
            );
        } else if was_over && !is_over {
            tracing::info!(
                dataset,
                "open cells take no more than they may, all partitions are read"
            );
        }
        if before != waiting || was_over != is_over {
            gauge!("highwater_speed_waiting_partitions", "dataset" => dataset).set(precise(waiting as u64));
        }
        Ok(())
    }

    /// The bytes of open cells.
    fn open_bytes(&self) -> u64 {
        let open: usize = self.views.iter().map(|view| view.aggregate.cells().bytes()).sum();
        open as u64
    }

    fn places(&self) -> BTreeMap<u32, Place> {
        let log_ends = self.front.reader().log_ends();
        let place = |number: u32| {
            let head = self.front.cursor(number)?;
            let readers = self.catch_ups.iter().filter_map(|catch_up| catch_up.is_silent(number));
            let place = Place {
                cursors: self.behind_cursors(number).chain([head]).collect(),
                log_end: log_ends.get(&number).copied().unwrap_or_default(),
                is_silent: readers.chain(self.front.is_silent(number)).all(|is_silent| is_silent),
            };
            Some((number, place))
        };
        (0..self.topic.partitions).filter_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: u64 = 64;

    fn chunk() -> ChunkSize {
        ChunkSize::new(CHUNK).unwrap()
    }

    fn place(cursor: u64, log_end: u64) -> Place {
        Place {
            cursors: vec![Offset(cursor)],
            log_end: Offset(log_end),
            is_silent: false,
        }
    }

    fn turn(turns: &mut Turns, places: &[Place]) -> (Option<u32>, Vec<u32>) {
        turns.take(&(0..).zip(places.iter().cloned()).collect(), chunk(), true);
        let reads = turns.turn.map(|(number, _)| number);
        (reads, turns.waiting.iter().copied().collect())
    }

    #[test]
    fn what_streams_in_waits_only_where_cells_take_far_too_much() {
        let (live, behind) = (place(100, 101), place(10, 300));
        let places: BTreeMap<u32, Place> = (0..).zip([live.clone(), behind.clone(), live, behind]).collect();
        let mut turns = Turns::default();
        turns.take(&places, chunk(), false);
        assert_eq!(turns.waiting, BTreeSet::from([3]), "one that is behind has its turn");
        turns.take(&places, chunk(), true);
        assert_eq!(turns.waiting, BTreeSet::from([0, 2, 3]));
    }

    #[test]
    fn the_furthest_whose_chunk_is_in_the_log_goes_first() {
        let mut turns = Turns::default();
        let mut places = [place(10, 500), place(40, 500), place(60, 61)];
        assert_eq!(turn(&mut turns, &places), (Some(1), vec![0, 2]));
        places[0].cursors = vec![Offset(10), Offset(190)];
        assert_eq!(turn(&mut turns, &places).0, Some(1), "up to the end of its chunk");
        places[1].cursors = vec![Offset(70)];
        assert_eq!(turn(&mut turns, &places), (Some(0), vec![1, 2]));
        places[0].cursors = vec![Offset(12), Offset(200)];
        assert_eq!(
            turn(&mut turns, &places).0,
            Some(1),
            "what is behind the head counts, too"
        );
        places[0].log_end = Offset(13);
        places[1].log_end = Offset(71);
        assert_eq!(
            turn(&mut turns, &places).0,
            Some(1),
            "where all wait for more, it goes on"
        );
        places[1].cursors = vec![Offset(128)];
        assert_eq!(turn(&mut turns, &places).0, Some(2), "each before one again");
        places[2].is_silent = true;
        assert_eq!(
            turn(&mut turns, &places),
            (Some(0), vec![1]),
            "nobody waits for it, nor it for others"
        );
        places.iter_mut().for_each(|place| place.is_silent = true);
        assert_eq!(turn(&mut turns, &places), (None, vec![]));
    }

    #[test]
    fn the_only_one_goes_on() {
        let mut turns = Turns::default();
        assert!(turns.is_over(11, 10) && !turns.is_over(10, 10));
        for cursor in [3, 63, 64, 65, 200] {
            assert_eq!(turn(&mut turns, &[place(cursor, 70)]), (Some(0), vec![]));
        }
        assert!(turns.is_over(7, 10) && !turns.is_over(6, 10));
        turns.end();
        assert!(!turns.is_over(10, 10));
    }

    proptest! {
        /// Each record is a cell. However the partitions are read, open cells stay within the limit, one chunk and what is read before
        /// the next decision; and all is read in the end.
        #[test]
        fn open_cells_are_bounded_and_all_is_read(
            logs in prop::collection::vec((0..CHUNK, 0_u64..600), 1..7),
            limit in 1_u64..300,
            reads in prop::collection::vec((any::<prop::sample::Index>(), 1_u64..5), 1..40),
        ) {
            let begin: Vec<u64> = logs.iter().map(|(begin, _)| *begin).collect();
            let mut cursors = begin.clone();
            let end = |number: usize| logs[number].0 + logs[number].1;
            let mut turns = Turns::default();
            // A partition's cells are those of its open chunk.
            let open = |cursors: &[u64]| -> u64 {
                let of = cursors.iter().zip(&begin).map(|(cursor, begin)| cursor - (cursor / CHUNK * CHUNK).max(*begin));
                of.sum()
            };
            let at_once = 4;
            let most = FAR_OVER * limit + CHUNK + at_once * (logs.len() as u64 + 1);
            for (which, count) in reads.iter().cycle().take(20_000) {
                if turns.is_over(open(&cursors), limit) {
                    let places = cursors.iter().enumerate().map(|(number, cursor)| {
                        let is_silent = *cursor == end(number);
                        Place { is_silent, ..place(*cursor, end(number)) }
                    });
                    turns.take(&(0..).zip(places).collect(), chunk(), open(&cursors) > FAR_OVER * limit);
                } else {
                    turns.end();
                }
                let may: Vec<usize> = (0..logs.len())
                    .filter(|number| cursors[*number] < end(*number))
                    .filter(|number| !turns.waits(u32::try_from(*number).unwrap()))
                    .collect();
                let left: u64 = (0..logs.len()).map(|number| end(number) - cursors[number]).sum();
                prop_assert_eq!(may.is_empty(), left == 0, "nobody reads on");
                let Some(number) = (!may.is_empty()).then(|| may[which.index(may.len())]) else {
                    break;
                };
                cursors[number] = (cursors[number] + count).min(end(number));
                let rests: u64 = (0..logs.len()).filter(|number| cursors[*number] == end(*number)).map(|_| CHUNK).sum();
                prop_assert!(open(&cursors) <= most + rests, "{} open", open(&cursors));
            }
            prop_assert!((0..logs.len()).all(|number| cursors[number] == end(number)));
        }
    }
}
