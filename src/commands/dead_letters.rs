//! `highwater dead-letters`: the records that were refused: which, why, what was in them; and sent again.

mod chosen;
mod list;
mod original;
mod replay;
mod show;

use std::process::ExitCode;

use super::Place;
use super::status::told;

/// Records that were refused
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater dead-letters list flights --reason bad_time\n  \
    highwater dead-letters show flights flights/3/81204\n  \
    highwater dead-letters replay flights --all --dry-run")]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Replay(replay::Replay),
}

/// Text that anybody may have sent, for a terminal: what would move the cursor or turn letters around is escaped.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for letter in text.chars() {
        let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if letter.is_control() || turns {
            plain.extend(letter.escape_default());
        } else {
            plain.push(letter);
        }
    }
    plain
}

impl DeadLetters {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::List(list) => list.run(place),
            Command::Show(show) => show.run(place),
            Command::Replay(replay) => replay.run(place),
        }
    }
}
