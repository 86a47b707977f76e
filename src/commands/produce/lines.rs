//! The lines of a file, unpacked, read one at a time and never a whole file at once.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, ensure};
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressStyle};

/// Longer lines are refused: no topic takes them, and they would have to be held in memory.
pub(super) const LARGEST_LINE: usize = 64 << 20;
const BUFFER: usize = 256 << 10;

/// Lines of bytes, without their line feed.
pub(super) struct Lines {
    name: String,
    input: Box<dyn BufRead>,
    line: Vec<u8>,
    number: u64,
}

/// What is shown of the reading of a file, on a terminal only.
pub(super) fn progress(file: &Path) -> ProgressBar {
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file);
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length.len()), "{bar:30} {percent}% {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Lines {
    /// The lines of the file, or of stdin for `-`.
    pub(super) fn open(file: &Path, progress: &ProgressBar) -> anyhow::Result<Self> {
        if file == Path::new("-") {
            return Ok(Self::of("stdin".to_owned(), Box::new(std::io::stdin())));
        }
        let name = file.display().to_string();
        let unreadable = || format!("{name} can't be read");
        let opened = File::open(file).with_context(unreadable)?;
        ensure!(
            !opened.metadata().with_context(unreadable)?.is_dir(),
            "{name} is a folder"
        );
        let packed = progress.wrap_read(opened);
        let unpacked: Box<dyn Read> = match file.extension().and_then(|extension| extension.to_str()) {
            Some("gz") => Box::new(MultiGzDecoder::new(packed)),
            Some("zst") => Box::new(zstd::Decoder::new(packed).with_context(unreadable)?),
            _ => Box::new(packed),
        };
        Ok(Self::of(name, unpacked))
    }

    fn of(name: String, input: Box<dyn Read>) -> Self {
        Self {
            name,
            input: Box::new(BufReader::with_capacity(BUFFER, input)),
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line; the last one may lack its line feed.
    pub(super) fn next_line(&mut self) -> anyhow::Result<Option<&[u8]>> {
        self.line.clear();
        self.number += 1;
        let most = u64::try_from(LARGEST_LINE).unwrap_or(u64::MAX).saturating_add(1);
        let read = self.input.by_ref().take(most).read_until(b'\n', &mut self.line);
        let read = read.with_context(|| format!("{}, line {}: can't be read", self.name, self.number))?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        }
        ensure!(
            self.line.len() <= LARGEST_LINE,
            "{}, line {}: longer than {LARGEST_LINE} bytes",
            self.name,
            self.number
        );
        Ok(Some(&self.line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(input: &'static [u8]) -> Vec<Vec<u8>> {
        let mut lines = Lines::of("test".to_owned(), Box::new(input));
        let mut all = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            all.push(line.to_vec());
        }
        all
    }

    #[test]
    fn a_line_is_what_stands_before_a_line_feed() {
        assert_eq!(lines(b""), [b""; 0]);
        assert_eq!(lines(b"\n"), [b""]);
        assert_eq!(lines(b"a\n\n\xFF\r\nlast"), [&b"a"[..], b"", b"\xFF\r", b"last"]);
    }

    #[test]
    fn a_line_that_no_topic_takes_is_named() {
        let input = std::io::repeat(b'x');
        let mut lines = Lines::of("endless".to_owned(), Box::new(input));
        let error = lines.next_line().unwrap_err().to_string();
        assert_eq!(error, "endless, line 1: longer than 67108864 bytes");
    }
}
