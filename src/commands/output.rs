//! Data on stdout: a table for people, or JSON for programs.

use std::io::Write;

use serde::Serialize;

/// How data is written to stdout
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Output {
    /// How data is written to stdout
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// One JSON document
    Json,
}

impl Output {
    /// Writes data as JSON, or as the rows that `table` makes of it.
    pub(crate) fn print<T: Serialize + ?Sized>(
        self,
        data: &T,
        table: impl FnOnce(&T) -> Vec<Vec<String>>,
    ) -> anyhow::Result<()> {
        self.print_text(data, |data| columns(&table(data)))
    }

    /// Writes data as JSON, or as the text that `text` makes of it.
    pub(crate) fn print_text<T: Serialize + ?Sized>(
        self,
        data: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        match self.output {
            Format::Table => stdout.write_all(text(data).as_bytes())?,
            Format::Json => {
                let mut json = serde_json::to_vec_pretty(data)?;
                json.push(b'\n');
                stdout.write_all(&json)?;
            }
        }
        Ok(stdout.flush()?)
    }
}

/// Rows as lines, each column as wide as its widest cell.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut lines = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["time", "timestamp"], ["départs", "uint64"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), "time     timestamp\ndéparts  uint64\n");
    }
}
