//! Rows of an answer, written in one of four forms as they come; a table alone is held until all is there.

use std::io::Write;

use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches_with_schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::SqlError;

/// The form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Columns for people.
    Table,
    /// Comma-separated values with a header.
    Csv,
    /// One JSON array of objects.
    Json,
    /// A Parquet file.
    Parquet,
}

type Target = Box<dyn Write + Send>;

/// Where rows go.
pub struct Sink(Writing);

enum Writing {
    Table {
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        target: Target,
    },
    Csv(Box<csv::Writer<Target>>),
    Json(arrow::json::Writer<Target, JsonArray>),
    Parquet(Box<ArrowWriter<Target>>),
}

fn failed(error: impl std::fmt::Display) -> SqlError {
    SqlError::Output(error.to_string())
}

impl Sink {
    /// For rows of that schema.
    ///
    /// # Errors
    /// A schema that the form can't hold.
    pub fn new(form: Form, schema: SchemaRef, target: Target) -> Result<Self, SqlError> {
        Ok(Self(match form {
            Form::Table => Writing::Table {
                schema,
                batches: Vec::new(),
                target,
            },
            Form::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(target);
                // The header, also where no row follows.
                writer.write(&RecordBatch::new_empty(schema)).map_err(failed)?;
                Writing::Csv(Box::new(writer))
            }
            Form::Json => Writing::Json(WriterBuilder::new().with_explicit_nulls(true).build(target)),
            Form::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .build();
                let writer = ArrowWriter::try_new(target, schema, Some(properties)).map_err(failed)?;
                Writing::Parquet(Box::new(writer))
            }
        }))
    }

    /// Takes rows.
    ///
    /// # Errors
    /// The target's, or values that the form can't hold.
    pub fn write(&mut self, rows: RecordBatch) -> Result<(), SqlError> {
        match &mut self.0 {
            Writing::Table { batches, .. } => batches.push(rows),
            Writing::Csv(writer) => writer.write(&rows).map_err(failed)?,
            Writing::Json(writer) => writer.write(&rows).map_err(failed)?,
            Writing::Parquet(writer) => writer.write(&rows).map_err(failed)?,
        }
        Ok(())
    }

    /// After the last row.
    ///
    /// # Errors
    /// The target's.
    pub fn finish(self) -> Result<(), SqlError> {
        let mut target = match self.0 {
            Writing::Table {
                schema,
                batches,
                mut target,
            } => {
                let table = pretty_format_batches_with_schema(schema, &batches).map_err(failed)?;
                writeln!(target, "{table}").map_err(failed)?;
                target
            }
            Writing::Csv(writer) => writer.into_inner(),
            Writing::Json(mut writer) => {
                writer.finish().map_err(failed)?;
                let mut target = writer.into_inner();
                writeln!(target).map_err(failed)?;
                target
            }
            Writing::Parquet(writer) => writer.into_inner().map_err(failed)?,
        };
        target.flush().map_err(failed)
    }
}
