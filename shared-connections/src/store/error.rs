//! What can go wrong with the store, and whether trying again can mend it.

use std::time::Duration;

use shared_schemas::store::statement::BELOW_FLOOR;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing answers there.
    #[error("ClickHouse at {url} (clickhouse.url) can't be reached")]
    Away {
        /// Its configured address.
        url: String,
        /// What the network said.
        source: clickhouse::error::Error,
    },
    /// It did not answer in time. What it was asked may have happened.
    #[error("ClickHouse did not {doing} within {} s", limit.as_secs())]
    Slow {
        /// What it was asked, as in "insert into progress".
        doing: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It answered with an error.
    #[error("ClickHouse could not {doing}: {message}")]
    Refused {
        /// What it was asked.
        doing: String,
        /// Its error code; 0 where its message has none.
        code: u32,
        /// Its message.
        message: String,
    },
    /// What came back is not what was written.
    #[error("ClickHouse was asked to {doing}, and its answer can't be read: {why}")]
    Unreadable {
        /// What it was asked.
        doing: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// Rows that don't make an insert.
    #[error("rows for {table} can't be sent")]
    Rows {
        /// The table.
        table: String,
        /// What is wrong with them.
        source: arrow::error::ArrowError,
    },
}

/// Codes that pass by themselves: overload, memory, too many parts, read-only for a while, network between replicas.
const PASSING: [u32; 13] = [159, 160, 164, 202, 203, 209, 210, 236, 241, 242, 252, 319, 999];

impl StoreError {
    pub(super) fn new(url: &str, doing: &str, source: clickhouse::error::Error) -> Self {
        use clickhouse::error::Error;
        let doing = doing.to_owned();
        match source {
            Error::BadResponse(message) => {
                let message = first_line(&message);
                Self::Refused {
                    doing,
                    code: code(&message),
                    message,
                }
            }
            Error::Network(_) | Error::TimedOut => Self::Away {
                url: url.to_owned(),
                source,
            },
            other => Self::Unreadable {
                doing,
                why: other.to_string(),
            },
        }
    }

    /// Whether the same request may well succeed later, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Away { .. } | Self::Slow { .. } => true,
            Self::Refused { code, .. } => PASSING.contains(code),
            Self::Unreadable { .. } | Self::Rows { .. } => false,
        }
    }

    /// Whether a merging statement was refused since its publication lies below the floor: read the facts again.
    pub fn is_below_floor(&self) -> bool {
        matches!(self, Self::Refused { message, .. } if message.contains(BELOW_FLOOR))
    }
}

/// ClickHouse's messages begin `Code: 60. DB::Exception: …`.
fn code(message: &str) -> u32 {
    let digits = message
        .split_once("Code: ")
        .and_then(|(_, rest)| rest.split(|letter: char| !letter.is_ascii_digit()).next());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

fn first_line(message: &str) -> String {
    message.trim().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(message: &str) -> StoreError {
        StoreError::new(
            "http://db",
            "do it",
            clickhouse::error::Error::BadResponse(message.to_owned()),
        )
    }

    #[test]
    fn codes_say_whether_it_passes() {
        let parts = refused("Code: 252. DB::Exception: Too many parts (3000).\nstack");
        assert!(parts.is_passing());
        assert_eq!(
            parts.to_string(),
            "ClickHouse could not do it: Code: 252. DB::Exception: Too many parts (3000)."
        );
        assert!(!refused("Code: 60. DB::Exception: Unknown table").is_passing());
        assert!(!refused("no code").is_passing());
    }

    #[test]
    fn the_floor_is_told_from_other_errors() {
        assert!(refused(&format!("Code: 395. DB::Exception: {BELOW_FLOOR}: while executing")).is_below_floor());
        assert!(!refused("Code: 395. DB::Exception: something else").is_below_floor());
    }
}
