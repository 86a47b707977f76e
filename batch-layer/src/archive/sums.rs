//! Checksums inside a file: what is read is what was written, or an error.
//!
//! Parquet's own page checksums are optional, and its writer has none; compression finds few errors, for zstd frames here
//! carry no checksum either. A flipped bit would thus become another number without a word. So a file's key-value metadata
//! holds a hash of each column chunk's bytes, and one of how rows and chunks are laid out, which guards what of the footer
//! decides about values. Readers fetch whole chunks and hash them: some gigabytes a second. Other programs ignore the key.
//! Files that are older than this have none and are read unchecked, as long as the footer has its other key.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter, encode_arrow_schema};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, ParquetMetaData, RowGroupMetaData};
use parquet::file::properties::WriterProperties;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// The key of the file's metadata.
const KEY: &str = "highwater.sums";

/// A group of rows is written once it takes so much memory: it is what a reader holds, too.
pub(super) const ROW_GROUP: usize = 16 << 20;

/// As it stands in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Listed {
    shape: String,
    /// Where each chunk begins, how long it is, its hash.
    chunks: Vec<(u64, u64, String)>,
}

/// The hashes of a file's chunks.
#[derive(Debug, Default)]
pub(super) struct Sums {
    chunks: HashMap<(u64, u64), String>,
}

impl Sums {
    /// Those of a file; nothing where it has none.
    ///
    /// # Errors
    /// Its footer is not as it was written.
    pub(super) fn of(metadata: &ParquetMetaData) -> Result<Option<Arc<Self>>, ParquetError> {
        let pairs = || metadata.file_metadata().key_value_metadata().into_iter().flatten();
        let Some(pair) = pairs().find(|pair| pair.key == KEY) else {
            // Every writer of ours says what the columns are in Arrow: a footer that zeros end early says neither.
            if pairs().all(|pair| pair.key != ARROW_SCHEMA_META_KEY) {
                return Err(wrong("its footer is not as it was written"));
            }
            return Ok(None);
        };
        let listed = pair.value.as_deref().and_then(|text| serde_json::from_str(text).ok());
        let listed: Listed = listed.ok_or_else(|| wrong("its list of checksums can't be read"))?;
        let arrow = pairs().find(|pair| pair.key == ARROW_SCHEMA_META_KEY);
        let arrow = arrow.and_then(|pair| pair.value.as_deref()).unwrap_or_default();
        if listed.shape != shape(arrow, metadata.row_groups()) {
            return Err(wrong("its footer is not as it was written"));
        }
        let chunks = listed.chunks.into_iter();
        Ok(Some(Arc::new(Self {
            chunks: chunks.map(|(from, length, hash)| ((from, length), hash)).collect(),
        })))
    }

    /// Whether these bytes are what was written there.
    ///
    /// # Errors
    /// They are not, or are no whole chunk.
    pub(super) fn check(&self, range: &Range<u64>, bytes: &[u8]) -> Result<(), ParquetError> {
        match self.chunks.get(&(range.start, range.end - range.start)) {
            Some(hash) if *hash == text(bytes) => Ok(()),
            Some(_) => Err(wrong(&format!(
                "its bytes {} to {} are not as they were written",
                range.start, range.end
            ))),
            None => Err(wrong("its checksums don't say what it holds")),
        }
    }
}

fn wrong(what: &str) -> ParquetError {
    ParquetError::General(what.to_owned())
}

fn text(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

/// How rows and chunks are laid out, and the columns' types in Arrow's form.
fn shape(arrow: &str, groups: &[RowGroupMetaData]) -> String {
    let mut said = format!("{arrow};");
    for group in groups {
        said.push_str(&format!("{};", group.num_rows()));
        for chunk in group.columns() {
            let (from, length) = chunk.byte_range();
            said.push_str(&format!(
                "{},{:?},{:?},{from},{length},{};",
                chunk.column_path(),
                chunk.column_type(),
                chunk.compression(),
                chunk.num_values()
            ));
        }
    }
    text(said.as_bytes())
}

/// Writes a file, a group of rows after the other.
pub(super) struct FileWriter {
    writer: ArrowWriter<Vec<u8>>,
    /// The columns' types, as the writer puts them into the file.
    arrow: String,
    listed: Listed,
    /// Bytes that were taken out of the writer.
    taken: u64,
}

impl FileWriter {
    pub(super) fn new(schema: &SchemaRef, properties: WriterProperties) -> Result<Self, ParquetError> {
        Ok(Self {
            writer: ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties))?,
            arrow: encode_arrow_schema(schema),
            listed: Listed::default(),
            taken: 0,
        })
    }

    /// Takes rows; the file's next bytes, where a group of rows is full.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, ParquetError> {
        self.writer.write(batch)?;
        if self.writer.in_progress_size() >= ROW_GROUP {
            self.writer.flush()?;
        }
        self.take()
    }

    /// The file's last bytes.
    pub(super) fn finish(&mut self) -> Result<Vec<u8>, ParquetError> {
        self.writer.flush()?;
        let mut bytes = self.take()?;
        self.listed.shape = shape(&self.arrow, self.writer.flushed_row_groups());
        let listed = serde_json::to_string(&self.listed).map_err(|error| wrong(&error.to_string()))?;
        self.writer
            .append_key_value_metadata(KeyValue::new(KEY.to_owned(), listed));
        self.writer.finish()?;
        bytes.append(self.writer.inner_mut());
        Ok(bytes)
    }

    /// What is written and was not taken yet, hashed.
    fn take(&mut self) -> Result<Vec<u8>, ParquetError> {
        let groups = self.writer.flushed_row_groups();
        let known = self.listed.chunks.len();
        if groups.iter().map(|group| group.columns().len()).sum::<usize>() == known {
            return Ok(Vec::new());
        }
        self.writer.sync()?;
        let bytes = std::mem::take(self.writer.inner_mut());
        let chunks = self
            .writer
            .flushed_row_groups()
            .iter()
            .flat_map(RowGroupMetaData::columns);
        for chunk in chunks.skip(known) {
            let (from, length) = chunk.byte_range();
            let place = from.checked_sub(self.taken).and_then(|from| usize::try_from(from).ok());
            let held = place.and_then(|place| bytes.get(place..)?.get(..usize::try_from(length).ok()?));
            let held = held.ok_or_else(|| wrong("a column chunk is not where the writer says"))?;
            self.listed.chunks.push((from, length, text(held)));
        }
        self.taken += bytes.len() as u64;
        Ok(bytes)
    }
}
