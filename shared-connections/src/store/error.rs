//! What can go wrong with the store, and what it asks of whoever met it: send again, find the row, or call a human.

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
    /// Rows of ours and a table of theirs don't fit each other.
    #[error("ClickHouse was asked to {doing}, and the table is not as expected: {why}")]
    Schema {
        /// What it was asked.
        doing: String,
        /// What does not fit.
        why: String,
    },
    /// So many rows of one insert were refused, or all, that it is no matter of single rows.
    #[error("ClickHouse refuses rows of an insert into {table}, {refused} and maybe more, the first one {key}: {why}")]
    ManyRefused {
        /// The table.
        table: String,
        /// How many were refused until it was given up.
        refused: usize,
        /// The first one's key.
        key: String,
        /// What ClickHouse said of the first one.
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

/// What an error asks of whoever sent the request.
///
/// A code that is in no list is [`ErrorKind::Unknown`], and not fatal: ending a process, or giving up rows, on an error
/// that nobody has met before would turn a bad minute into a loss. So it is retried like a passing one, without end; but
/// it is told as an error, since it may never pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// It passes by itself: network, overload, memory, too many parts, read-only for a while. Send again, with growing
    /// pauses.
    Passing,
    /// Nobody knows. Send again, with growing pauses, and tell a human.
    Unknown,
    /// The server refuses a value. Sending the same rows again can't help, other rows may well be taken:
    /// [`Store::insert_isolating`](super::Store::insert_isolating) finds out which.
    OfInsert,
    /// No request of this kind can succeed before a human has changed something: a table that is not as it should be,
    /// or a user who may not. [`StoreError::remedy`] says what.
    Fatal(Fault),
}

/// What a human must see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A table or column is not there, or not of the type that the definitions ask for.
    Schema,
    /// The user is unknown, or may not do this.
    Access,
    /// The request itself is none: a mistake of ours, or a server too old for it.
    Request,
}

/// ClickHouse's codes (its `ErrorCodes.cpp`, as of 26.5) that are understood; all others are unknown.
const CODES: [(ErrorKind, &[u32]); 5] = [
    (
        ErrorKind::Passing,
        &[
            3,   // UNEXPECTED_END_OF_FILE: a request that was cut off on its way
            23,  // CANNOT_READ_FROM_ISTREAM
            24,  // CANNOT_WRITE_TO_OSTREAM
            32,  // ATTEMPT_TO_READ_AFTER_EOF: as 3
            74,  // CANNOT_READ_FROM_FILE_DESCRIPTOR
            75,  // CANNOT_WRITE_TO_FILE_DESCRIPTOR: the disk is full, or fails
            76,  // CANNOT_OPEN_FILE: too many are open
            95,  // CANNOT_READ_FROM_SOCKET
            96,  // CANNOT_WRITE_TO_SOCKET
            159, // TIMEOUT_EXCEEDED
            160, // TOO_SLOW
            164, // READONLY: a user or server that is read-only for a while
            173, // CANNOT_ALLOCATE_MEMORY
            198, // DNS_ERROR
            201, // QUOTA_EXCEEDED: quotas are by interval
            202, // TOO_MANY_SIMULTANEOUS_QUERIES
            203, // NO_FREE_CONNECTION
            204, // CANNOT_FSYNC
            209, // SOCKET_TIMEOUT
            210, // NETWORK_ERROR
            225, // NO_ZOOKEEPER
            236, // ABORTED: the server ends
            241, // MEMORY_LIMIT_EXCEEDED
            242, // TABLE_IS_READ_ONLY
            243, // NOT_ENOUGH_SPACE
            244, // UNEXPECTED_ZOOKEEPER_ERROR
            252, // TOO_MANY_PARTS
            254, // NO_ACTIVE_REPLICAS
            265, // NO_AVAILABLE_REPLICA
            279, // ALL_CONNECTION_TRIES_FAILED
            285, // TOO_FEW_LIVE_REPLICAS
            286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
            297, // SHARD_HAS_NO_CONNECTIONS
            319, // UNKNOWN_STATUS_OF_INSERT: every row replaces itself, so sending again is right
            364, // RECEIVED_ERROR_TOO_MANY_REQUESTS
            394, // QUERY_WAS_CANCELLED: by somebody's KILL QUERY
            410, // EXTERNAL_SERVER_IS_NOT_RESPONDING
            425, // SYSTEM_ERROR
            439, // CANNOT_SCHEDULE_TASK
            473, // DEADLOCK_AVOIDED
            499, // S3_ERROR
            500, // AZURE_BLOB_STORAGE_ERROR
            574, // DISTRIBUTED_TOO_MANY_PENDING_BYTES
            586, // CANNOT_CREATE_FILE
            677, // THREAD_WAS_CANCELED
            692, // TOO_MANY_MUTATIONS
            700, // USER_SESSION_LIMIT_EXCEEDED
            733, // TABLE_IS_BEING_RESTARTED
            745, // SERVER_OVERLOADED
            749, // TCP_CONNECTION_LIMIT_REACHED
            762, // HTTP_CONNECTION_LIMIT_REACHED
            999, // KEEPER_EXCEPTION
        ],
    ),
    (
        ErrorKind::OfInsert,
        &[
            6,   // CANNOT_PARSE_TEXT
            26,  // CANNOT_PARSE_QUOTED_STRING
            27,  // CANNOT_PARSE_INPUT_ASSERTION_FAILED
            33,  // CANNOT_READ_ALL_DATA: a state that ends too early
            38,  // CANNOT_PARSE_DATE
            41,  // CANNOT_PARSE_DATETIME
            69,  // ARGUMENT_OUT_OF_BOUND
            70,  // CANNOT_CONVERT_TYPE
            72,  // CANNOT_PARSE_NUMBER
            117, // INCORRECT_DATA
            128, // TOO_LARGE_ARRAY_SIZE
            130, // CANNOT_READ_ARRAY_FROM_TEXT
            131, // TOO_LARGE_STRING_SIZE
            190, // SIZES_OF_ARRAYS_DONT_MATCH
            248, // INVALID_PARTITION_VALUE
            321, // VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE
            349, // CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN
            376, // CANNOT_PARSE_UUID
            407, // DECIMAL_OVERFLOW
            467, // CANNOT_PARSE_BOOL
            469, // VIOLATED_CONSTRAINT
            503, // AGGREGATE_FUNCTION_THROW: a state that is none
            563, // CANNOT_READ_MAP_FROM_TEXT
            632, // UNEXPECTED_DATA_AFTER_PARSED_VALUE
            691, // UNKNOWN_ELEMENT_OF_ENUM
            760, // UNICODE_ERROR
        ],
    ),
    (
        ErrorKind::Fatal(Fault::Schema),
        &[
            7,   // INCORRECT_NUMBER_OF_COLUMNS
            8,   // THERE_IS_NO_COLUMN
            9,   // SIZES_OF_COLUMNS_DOESNT_MATCH
            10,  // NOT_FOUND_COLUMN_IN_BLOCK
            16,  // NO_SUCH_COLUMN_IN_TABLE
            20,  // NUMBER_OF_COLUMNS_DOESNT_MATCH
            36,  // BAD_ARGUMENTS
            43,  // ILLEGAL_TYPE_OF_ARGUMENT
            44,  // ILLEGAL_COLUMN
            47,  // UNKNOWN_IDENTIFIER
            50,  // UNKNOWN_TYPE
            53,  // TYPE_MISMATCH
            60,  // UNKNOWN_TABLE
            81,  // UNKNOWN_DATABASE
            122, // INCOMPATIBLE_COLUMNS
            342, // METADATA_MISMATCH
            386, // NO_COMMON_TYPE
            728, // UNEXPECTED_DATA_TYPE
            741, // TABLE_UUID_MISMATCH
        ],
    ),
    (
        ErrorKind::Fatal(Fault::Access),
        &[
            192, // UNKNOWN_USER
            193, // WRONG_PASSWORD
            194, // REQUIRED_PASSWORD
            195, // IP_ADDRESS_NOT_ALLOWED
            291, // DATABASE_ACCESS_DENIED
            492, // ACCESS_ENTITY_NOT_FOUND
            497, // ACCESS_DENIED
            516, // AUTHENTICATION_FAILED
            720, // USER_EXPIRED
            767, // REQUIRED_SECOND_FACTOR
        ],
    ),
    (
        ErrorKind::Fatal(Fault::Request),
        &[
            1,   // UNSUPPORTED_METHOD
            46,  // UNKNOWN_FUNCTION
            48,  // NOT_IMPLEMENTED
            62,  // SYNTAX_ERROR
            63,  // UNKNOWN_AGGREGATE_FUNCTION
            73,  // UNKNOWN_FORMAT
            115, // UNKNOWN_SETTING
            344, // SUPPORT_IS_DISABLED
            452, // SETTING_CONSTRAINT_VIOLATION
        ],
    ),
];

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
            Error::SchemaMismatch(why) => Self::Schema { doing, why },
            other => Self::Unreadable {
                doing,
                why: other.to_string(),
            },
        }
    }

    /// What it asks of whoever sent the request.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Away { .. } | Self::Slow { .. } => ErrorKind::Passing,
            Self::Refused { code, .. } => CODES
                .iter()
                .find(|(_, codes)| codes.contains(code))
                .map_or(ErrorKind::Unknown, |(kind, _)| *kind),
            Self::Unreadable { .. } => ErrorKind::Unknown,
            Self::Schema { .. } | Self::ManyRefused { .. } => ErrorKind::Fatal(Fault::Schema),
            Self::Rows { .. } => ErrorKind::Fatal(Fault::Request),
        }
    }

    /// What a human can do about a fatal one, as the end of a sentence.
    pub fn remedy(&self) -> Option<&'static str> {
        match self.kind() {
            ErrorKind::Fatal(Fault::Schema) => Some(
                "its tables are not as these definitions and this version of highwater make them: undo what altered \
                 them; or, of a view's own alone, drop them, start again, and have them filled by `highwater speed redo` and `highwater batch run \
                 --full`",
            ),
            ErrorKind::Fatal(Fault::Access) => Some(
                "check clickhouse.user and clickhouse.password, and that this user may read and write clickhouse.database",
            ),
            ErrorKind::Fatal(Fault::Request) => Some(
                "the server may be too old for this version of highwater; else this is a mistake of ours, please report it",
            ),
            ErrorKind::Passing | ErrorKind::Unknown | ErrorKind::OfInsert => None,
        }
    }

    /// Whether the same request may well succeed later, without anybody mending anything.
    pub fn is_passing(&self) -> bool {
        self.kind() == ErrorKind::Passing
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
    fn codes_are_sorted_and_unknown_ones_are_no_loss() {
        let kind = |code: u32| refused(&format!("Code: {code}. DB::Exception: x")).kind();
        for code in [159, 164, 241, 242, 252, 319, 999] {
            assert_eq!(kind(code), ErrorKind::Passing, "{code}");
        }
        for code in [6, 27, 33, 69, 70, 117, 131, 321, 349, 469] {
            assert_eq!(kind(code), ErrorKind::OfInsert, "{code}");
        }
        for code in [16, 20, 36, 47, 53, 60, 81] {
            assert_eq!(kind(code), ErrorKind::Fatal(Fault::Schema), "{code}");
        }
        for code in [192, 497, 516] {
            assert_eq!(kind(code), ErrorKind::Fatal(Fault::Access), "{code}");
        }
        assert_eq!((kind(4_242), kind(0)), (ErrorKind::Unknown, ErrorKind::Unknown));
        assert_eq!(refused("<html>502 Bad Gateway</html>").kind(), ErrorKind::Unknown);
        let mut all: Vec<_> = CODES.iter().flat_map(|(_, codes)| codes.iter()).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a code is in two lists");
    }

    #[test]
    fn what_is_fatal_says_what_to_do() {
        let denied = refused("Code: 516. DB::Exception: Authentication failed");
        assert!(denied.remedy().is_some_and(|what| what.contains("clickhouse.password")));
        assert!(refused("Code: 252. DB::Exception: Too many parts").remedy().is_none());
    }

    #[test]
    fn the_floor_is_told_from_other_errors() {
        assert!(refused(&format!("Code: 395. DB::Exception: {BELOW_FLOOR}: while executing")).is_below_floor());
        assert!(!refused("Code: 395. DB::Exception: something else").is_below_floor());
    }
}
