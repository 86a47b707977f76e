//! Exhaustive checks within bounds, long random walks beyond them, and every rule broken in turn.

use stateright::{Checker, Model};

use super::rules::Rule;
use super::world::{Action, Budget, Protocol, Record, World};
use crate::handoff::{ChunkSize, Offset};

/// A log in which each letter is an event, a repeated letter a repeat, and `-` a hole.
fn log(text: &str) -> Vec<Record> {
    let record = |(offset, letter): (usize, u8)| {
        (letter != b'-').then(|| Record {
            offset: Offset(offset as u64),
            event: letter - b'a',
        })
    };
    text.bytes().enumerate().filter_map(record).collect()
}

fn protocol(chunk: u64, text: &str, workers: usize, runs: usize, budget: Budget) -> Protocol {
    let chunk = ChunkSize::new(chunk).unwrap();
    Protocol {
        chunk,
        log: log(text),
        window: 8,
        workers,
        runs,
        budget,
        broken: None,
    }
}

fn check(name: &str, protocol: Protocol) {
    let started = std::time::Instant::now();
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    println!(
        "{name}: {} states, {} unique, depth {}, {:?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    for (property, path) in checker.discoveries() {
        if property.starts_with("every") || property.starts_with("it") {
            let last = path.last_state().clone();
            let steps: Vec<_> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
            panic!(
                "{name}: {property}: {:?}\n{}\n{last:#?}",
                last.violated,
                steps.join("\n")
            );
        }
    }
}

/// Numbers that look random and are the same for a seed everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit
    }
}

/// One random walk; the steps that led to a violated law.
fn walk(protocol: &Protocol, seed: u64, length: usize) -> Option<(Vec<Action>, World, &'static str)> {
    let mut random = Random::of(seed);
    let mut world = protocol.init_states().remove(0);
    let mut steps = Vec::new();
    for _ in 0..length {
        let mut actions = Vec::new();
        protocol.actions(&world, &mut actions);
        let rare = |action: &Action| {
            use Action as A;
            matches!(
                action,
                A::CrashWorker(_)
                    | A::CrashRun(_)
                    | A::LoseReply(_)
                    | A::Half(_)
                    | A::Delay(_)
                    | A::Retain
                    | A::LoseArchive
                    | A::Overdue(_)
                    | A::FallBack(_)
                    | A::Rollback(_)
            )
        };
        let common = random.below(8) > 0;
        let mut choices: Vec<_> = actions.iter().filter(|action| !common || !rare(action)).collect();
        if choices.is_empty() {
            choices = actions.iter().collect();
        }
        if choices.is_empty() {
            break;
        }
        let action = choices[random.below(choices.len())].clone();
        let Some(next) = protocol.next_state(&world, action.clone()) else {
            continue;
        };
        world = next;
        steps.push(action);
        if let Some(law) = world.violated {
            return Some((steps, world, law));
        }
        if random.below(12) == 0 && !protocol.becomes_whole(&world) {
            let world = protocol.settled(&world);
            return Some((steps, world, "it does not become whole once faults end"));
        }
    }
    None
}

const LOGS: [(u64, &str); 8] = [
    (2, "abcdef"),
    (2, "ab-def"),
    (2, "a--def"),
    (4, "abcdefgh"),
    (4, "abc--fgh"),
    (2, "ab---fg"),
    (2, "abacbd"),
    (4, "abcabdec"),
];

fn wild(seed: u64) -> Protocol {
    let mut random = Random::of(seed ^ 0xABCD);
    let (chunk, text) = LOGS[random.below(LOGS.len())];
    let repeats = text.starts_with("aba") || text.starts_with("abca");
    let mut upto = |limit: u8| random.below(usize::from(limit) + 1) as u8;
    let budget = Budget {
        faults: upto(6),
        retention: if repeats { 0 } else { upto(3) },
        pins: 1 + upto(5),
        rollbacks: upto(2),
        collections: upto(2),
        queries: upto(4),
        archive_losses: upto(1),
    };
    protocol(chunk, text, 2, 2, budget)
}

fn walks(broken: Option<Rule>, seeds: std::ops::Range<u64>, length: usize) -> Option<String> {
    for seed in seeds {
        let protocol = Protocol { broken, ..wild(seed) };
        if let Some((steps, world, law)) = walk(&protocol, seed, length) {
            let steps: Vec<_> = steps.iter().map(|action| format!("{action:?}")).collect();
            return Some(format!(
                "seed {seed}: {law}\n{protocol:?}\n{}\n{world:?}",
                steps.join("\n")
            ));
        }
    }
    None
}

#[test]
fn random_walks() {
    let count: u64 = std::env::var("WALKS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2000);
    let started = std::time::Instant::now();
    if let Some(failure) = walks(None, 0..count, 300) {
        panic!("{failure}");
    }
    println!("{count} walks in {:?}", started.elapsed());
}
