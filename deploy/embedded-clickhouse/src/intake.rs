//! A request's body: the statement, and the data of an `INSERT`.
//!
//! Data goes into a file without a name in the data folder, so that memory stays flat, nothing is left behind by a crash, and
//! a client that goes away half-way has inserted nothing: the statement starts when its data is whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::compression::BlockReader;
use crate::exception::{Exception, code};
use crate::request::Ask;
use crate::statement::{self, Class, Reading, Statement};

/// How much of a body is read to find where its statement ends, at first.
const FIRST_LOOK: usize = 64 << 10;
/// The longest statement, data of an `INSERT` not counted. The engine's own `max_query_size` is the tighter bound.
const LONGEST_STATEMENT: usize = 16 << 20;

/// A request that was read to its end.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) text: Vec<u8>,
    pub(crate) statement: Statement,
    /// The data of an `INSERT`.
    pub(crate) data: Option<File>,
}

/// Reads a body. `folder` is where data is kept, `limit` the size of all of it, unpacked.
pub(crate) fn take(ask: &Ask, body: impl Read + Send, folder: &Path, limit: u64) -> Result<Intake, Exception> {
    let mut body: Box<dyn Read + Send + '_> = match ask.coding_in {
        Some(coding) => coding.unpack(body).map_err(|e| unreadable(&e))?,
        None => Box::new(body),
    };
    if ask.blocks_in {
        body = Box::new(BlockReader::new(body));
    }
    let mut body = Limited { body, left: limit };
    let mut text = ask.query.clone().map(String::into_bytes).unwrap_or_default();
    if !text.is_empty() {
        text.push(b'\n');
    }
    let url = text.len();
    let mut look = FIRST_LOOK;
    let (statement, whole) = loop {
        let wanted = (look + url).saturating_sub(text.len());
        let got = (&mut body)
            .take(wanted as u64)
            .read_to_end(&mut text)
            .map_err(|e| unreadable(&e))?;
        let last = got < wanted;
        match statement::read(&text, url, last)? {
            Reading::Whole(statement) => break (statement, last),
            Reading::Unfinished if look < LONGEST_STATEMENT => look *= 2,
            Reading::Unfinished => {
                return Err(Exception::new(
                    code::QUERY_IS_TOO_LARGE,
                    "the statement is longer than 16 MiB",
                ));
            }
        }
    };
    let data = match &statement.class {
        Class::Inserts(insert) => {
            let mut file = tempfile::tempfile_in(folder).map_err(|e| unkept(&e))?;
            file.write_all(&text[insert.data..]).map_err(|e| unkept(&e))?;
            if !whole {
                copy(&mut body, &mut file)?;
            }
            text.truncate(insert.data);
            Some(file)
        }
        _ => None,
    };
    Ok(Intake { text, statement, data })
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), Exception> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to.write_all(&buffer[..count]).map_err(|e| unkept(&e))?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(&e)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the body is larger than this server takes: send less, or raise --max-body")]
struct TooLarge;

/// A body that may not go on for ever.
struct Limited<R> {
    body: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(out)?;
        self.left = self
            .left
            .checked_sub(count as u64)
            .ok_or_else(|| io::Error::other(TooLarge))?;
        Ok(count)
    }
}

fn unreadable(e: &io::Error) -> Exception {
    if let Some(exception) = e.get_ref().and_then(|inner| inner.downcast_ref::<Exception>()) {
        return exception.clone();
    }
    let code = if e.get_ref().is_some_and(|inner| inner.is::<TooLarge>()) {
        code::TOO_MANY_BYTES
    } else if e.to_string().starts_with("Checksum") {
        code::CHECKSUM_DOESNT_MATCH
    } else if matches!(
        e.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::TimedOut
    ) {
        code::NETWORK_ERROR
    } else {
        code::CANNOT_DECOMPRESS
    };
    Exception::new(code, format!("cannot read the body: {e}"))
}

fn unkept(e: &io::Error) -> Exception {
    Exception::new(
        code::CANNOT_WRITE_TO_FILE_DESCRIPTOR,
        format!("cannot keep the body in the data folder: {e}"),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;
    use crate::compression::Coding;

    fn take_all(ask: &Ask, body: &[u8], limit: u64) -> Result<(String, Vec<u8>), Exception> {
        let folder = tempfile::tempdir().expect("a folder");
        let intake = take(ask, body, folder.path(), limit)?;
        let mut data = Vec::new();
        if let Some(mut file) = intake.data {
            file.rewind()
                .and_then(|()| file.read_to_end(&mut data))
                .expect("the data");
        }
        Ok((String::from_utf8_lossy(&intake.text).into_owned(), data))
    }

    #[test]
    fn data_is_kept_apart() {
        let large: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let body = [&b"INSERT INTO t FORMAT RowBinary\n"[..], &large].concat();
        let (text, data) = take_all(&Ask::default(), &body, u64::MAX).expect("taken");
        assert_eq!(text, "INSERT INTO t FORMAT RowBinary\n");
        assert_eq!(data, large);
        let ask = Ask {
            query: Some("INSERT INTO t FORMAT RowBinary".into()),
            ..Ask::default()
        };
        let (text, data) = take_all(&ask, &large, u64::MAX).expect("taken");
        assert_eq!((text.as_str(), data), ("INSERT INTO t FORMAT RowBinary\n", large));
    }

    #[test]
    fn a_statement_may_be_long() {
        let query = format!("SELECT '{}'", "x".repeat(3_000_000));
        assert_eq!(
            take_all(&Ask::default(), query.as_bytes(), u64::MAX).expect("taken").0,
            query
        );
    }

    #[test]
    fn bounds_hold() {
        let body = [&b"INSERT INTO t FORMAT TSV\n"[..], &[b'1'; 200_000]].concat();
        assert_eq!(
            take_all(&Ask::default(), &body, 100_000).expect_err("too large").code(),
            code::TOO_MANY_BYTES
        );
        let bomb = zstd::bulk::compress(&body, 3).expect("packed");
        let ask = Ask {
            coding_in: Some(Coding::Zstd),
            ..Ask::default()
        };
        assert_eq!(
            take_all(&ask, &bomb, 100_000).expect_err("too large").code(),
            code::TOO_MANY_BYTES
        );
        assert_eq!(
            take_all(&ask, b"not packed", 100).expect_err("garbage").code(),
            code::CANNOT_DECOMPRESS
        );
        assert_eq!(
            take_all(&ask, &bomb[..bomb.len() / 2], 1 << 30)
                .expect_err("cut")
                .code(),
            code::CANNOT_DECOMPRESS
        );
    }
}
