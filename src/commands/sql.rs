//! `highwater sql`: a query over the archive.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use futures::StreamExt;
use highwater_batch::sql::output::{Form, Sink};
use highwater_batch::sql::{self, SqlError};
use shared_schemas::config::Config;
use shared_schemas::definitions::Definitions;
use tempfile::NamedTempFile;

use super::Place;
use super::used_wrongly;
use crate::signals::Signals;

/// Rows of a table for people, where nobody asks for more.
const ROWS_OF_A_TABLE: usize = 1000;

/// Ask the archive in SQL
///
/// Each dataset is a table: every archived event once, without repeats, by the rules of batch runs; with `_raw` behind its name
/// every event as it arrived. Columns are the declared fields, masked by the rules of now, and Highwater's own: `_event_time`, `_date`,
/// `_kafka_time`, `_partition`, `_offset`, `_topic`. A condition on the event's time, `_date` or offsets keeps files that
/// can't hold such events from being read. `SHOW TABLES` and `SHOW COLUMNS FROM flights` tell what there is. Memory is
/// `batch.memory`; what needs more goes to disk. The dialect is DataFusion's. Nothing can be changed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    highwater sql \"SELECT carrier, count(*) FROM flights GROUP BY carrier ORDER BY 2 DESC\"\n  \
    highwater sql \"SELECT * FROM flights_raw WHERE _date = '2013-01-31' AND _offset < 100\" --output json\n  \
    highwater sql \"SELECT * FROM flights WHERE _date >= '2013-12-01'\" --output parquet --file december.parquet")]
pub(crate) struct Sql {
    /// The query
    #[arg(value_name = "QUERY")]
    query: String,
    /// How the answer is written
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Where to; without it to stdout
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// At most so many rows; for a table 1,000 where nothing is said
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// Comma-separated values with a header
    Csv,
    /// One JSON array
    Json,
    /// A Parquet file; needs --file
    Parquet,
}

impl From<Format> for Form {
    fn from(format: Format) -> Self {
        match format {
            Format::Table => Self::Table,
            Format::Csv => Self::Csv,
            Format::Json => Self::Json,
            Format::Parquet => Self::Parquet,
        }
    }
}

impl Sql {
    pub(crate) fn run(self, place: &Place) -> anyhow::Result<ExitCode> {
        if self.output == Format::Parquet && self.file.is_none() {
            return Ok(used_wrongly(
                "a Parquet file is not for a terminal: name one with --file FILE",
            ));
        }
        let (config, definitions) = place.join_with_keys()?;
        tokio::runtime::Runtime::new()?.block_on(async {
            let mut signals = Signals::listen()?;
            tokio::select! {
                answered = self.answer(&config, &definitions) => answered,
                name = signals.next() => anyhow::bail!("{name}: the query was ended"),
            }
        })
    }

    async fn answer(&self, config: &Config, definitions: &Definitions) -> anyhow::Result<ExitCode> {
        let mut rows = match sql::query(config, definitions, &self.query).await {
            Ok(rows) => rows,
            Err(wrong @ (SqlError::Query(_) | SqlError::ReadOnly(_) | SqlError::Table { .. })) => {
                return Ok(used_wrongly(&wrong.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let (target, file) = self.target()?;
        let mut sink = Sink::new(self.output.into(), rows.schema(), target)?;
        let limit = self.limit.unwrap_or(match self.output {
            Format::Table => ROWS_OF_A_TABLE,
            Format::Csv | Format::Json | Format::Parquet => usize::MAX,
        });
        let mut written = 0;
        let mut is_cut = false;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| sql::broken(&error, config))?;
            let taken = batch.num_rows().min(limit - written);
            sink.write(batch.slice(0, taken))?;
            written += taken;
            is_cut = taken < batch.num_rows();
            if is_cut {
                break;
            }
        }
        sink.finish()?;
        if let (Some(file), Some(path)) = (file, &self.file) {
            file.persist(path)
                .with_context(|| format!("{} can't be written", path.display()))?;
        }
        if is_cut {
            // Nothing is left to do where even this can't be written.
            let _ = writeln!(
                std::io::stderr().lock(),
                "highwater: these are the first {written} rows, there are more: --limit N takes more"
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Stdout, or a file that gets its name once all is in it.
    fn target(&self) -> anyhow::Result<(Box<dyn Write + Send>, Option<NamedTempFile>)> {
        let Some(path) = &self.file else {
            return Ok((Box::new(BufWriter::new(std::io::stdout())), None));
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let file = NamedTempFile::new_in(folder).with_context(|| format!("{} can't be written", path.display()))?;
        let target: File = file.reopen()?;
        Ok((Box::new(BufWriter::new(target)), Some(file)))
    }
}
