//! Definitions: TOML files of datasets and views, checked as a whole.
//!
//! Everything is read before anything is refused: a mistake in one file hides none in another, and one in a dataset
//! hides none in the views on it, except where they could not be told from its consequences.

mod datasets;
mod fields;
mod keep;
mod kept;
mod keys;
mod masks;
mod names;
mod views;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::dataset::Dataset;
use crate::mistake::{Mistake, Mistakes};
use crate::section::{Entry, Findings, Section, TomlFile};
use crate::view::View;
use datasets::DatasetReading;
pub use kept::{KEPT_FORM, KeptDefinition, KeptView, Unreadable};
use keys::KeyUse;

/// All datasets and views of an installation.
#[derive(Debug, Clone, Default)]
pub struct Definitions {
    /// The datasets, by file and then in the order of the definitions.
    pub datasets: Vec<Dataset>,
    /// The views, likewise.
    pub views: Vec<View>,
    /// Where they name keys of `hash` rules.
    keys: Vec<KeyUse>,
    /// The tables of the datasets and of the views, as TOML, by name.
    written: [BTreeMap<String, String>; 2],
}

/// The tables that a file of definitions may have.
const TABLES: [&str; 2] = ["dataset", "view"];

impl Definitions {
    /// Reads a file, or all `*.toml` files of a folder.
    ///
    /// # Errors
    /// All mistakes.
    pub fn load(path: &Path) -> Result<Self, Mistakes> {
        let (files, mut mistakes) = read_files(path);
        match Self::check(&files) {
            Ok(definitions) if mistakes.is_empty() => Ok(definitions),
            Ok(_) => Err(mistakes),
            Err(more) => {
                mistakes.extend(more);
                mistakes.sort();
                Err(mistakes)
            }
        }
    }

    /// Checks definitions given as names and texts of files.
    ///
    /// # Errors
    /// All mistakes.
    pub fn parse<N: Into<String>, T: Into<String>>(files: impl IntoIterator<Item = (N, T)>) -> Result<Self, Mistakes> {
        let file = |(name, text): (N, T)| TomlFile {
            name: name.into(),
            text: text.into(),
            secretive: false,
        };
        Self::check(&files.into_iter().map(file).collect::<Vec<_>>())
    }

    /// The dataset of that name.
    pub fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The view of that name.
    pub fn view(&self, name: &str) -> Option<&View> {
        self.views.iter().find(|view| view.name == name)
    }

    fn check(files: &[TomlFile]) -> Result<Self, Mistakes> {
        let (tables, mut findings): (Vec<_>, Vec<_>) = files.iter().map(TomlFile::parse).unzip();
        let wholes: Vec<Section<'_>> = tables.iter().map(Section::whole).collect();
        for (whole, findings) in wholes.iter().zip(&mut findings) {
            whole.only(&TABLES, findings);
        }

        let mut datasets: Vec<DatasetReading> = Vec::new();
        let mut written = <[BTreeMap<String, String>; 2]>::default();
        each_named("dataset", &wholes, &mut findings, |file, section, name, findings| {
            written[0].insert(name.key.to_owned(), section.written());
            datasets.push(datasets::read(file, section, name, findings));
        });
        topics_agree(&datasets, &mut findings);

        // What refers to nothing may refer to what could not be read.
        let all_whole = findings.iter().all(Findings::is_whole);
        let mut views = Vec::new();
        each_named("view", &wholes, &mut findings, |_, section, name, findings| {
            written[1].insert(name.key.to_owned(), section.written());
            views.extend(views::read(section, name, &datasets, all_whole, findings));
        });

        let mut mistakes = Mistakes::default();
        for findings in findings {
            mistakes.extend(findings.into_mistakes());
        }
        mistakes.sort();
        if mistakes.is_empty() {
            let read = datasets.into_iter().map(|reading| (reading.dataset, reading.keys));
            let (datasets, keys): (Vec<_>, Vec<_>) = read.unzip();
            let keys = keys.into_iter().flatten().collect();
            Ok(Self {
                datasets,
                views,
                keys,
                written,
            })
        } else {
            Err(mistakes)
        }
    }
}

/// Calls `read` for each table `[kind.NAME]` of all files; a name that comes again is noted, and read all the same.
fn each_named<'t, 'f>(
    kind: &str,
    wholes: &[Section<'t>],
    findings: &mut [Findings<'f>],
    mut read: impl FnMut(usize, &Section<'t>, &Entry<'t>, &mut Findings<'f>),
) {
    let mut first: BTreeMap<&str, String> = BTreeMap::new();
    for (file, (whole, findings)) in wholes.iter().zip(findings).enumerate() {
        let Some(tables) = whole.section(kind, findings) else {
            continue;
        };
        for entry in tables.entries() {
            let Some(section) = entry.section(&format!("{kind}.{}", entry.key), findings) else {
                continue;
            };
            names::check(kind, entry.key, &entry.key_span, findings);
            let here = format!("{}:{}", findings.file_name(), findings.place(&entry.key_span).line);
            if let Some(there) = first.get(entry.key) {
                let what = format!("there is another {kind} `{}`, at {there}", entry.key);
                findings.add(&entry.key_span, what, "another name");
            } else {
                first.insert(entry.key, here);
            }
            read(file, &section, &entry, findings);
        }
    }
}

/// Two datasets may read one topic, but it has one number of partitions. Topics that Kafka takes for one, and a topic
/// that gets another's dead letters, cannot be.
fn topics_agree(datasets: &[DatasetReading], findings: &mut [Findings<'_>]) {
    for (index, one) in datasets.iter().enumerate() {
        let differs = |other: &&DatasetReading| {
            other.dataset.topic == one.dataset.topic && other.dataset.partitions != one.dataset.partitions
        };
        if let Some(other) = datasets[..index].iter().find(differs) {
            let what = format!(
                "the topic `{}` has {} partitions here and {} for the dataset `{}`",
                one.dataset.topic, one.dataset.partitions, other.dataset.partitions, other.dataset.name
            );
            findings[one.file].add(&one.span, what, format!("`partitions = {}`", other.dataset.partitions));
        }
        let (topic, others) = (
            &one.dataset.topic,
            datasets[..index].iter().map(|other| &other.dataset.topic),
        );
        let dead_letters = |topic: &str| format!("{topic}.dead-letters");
        let clash = others.into_iter().find_map(|other| {
            let alike = topic != other && topic.replace('.', "_") == other.replace('.', "_");
            let fed = dead_letters(topic) == *other || dead_letters(other) == *topic;
            let alike =
                alike.then(|| format!("Kafka takes the topic `{topic}` and `{other}` for the same: `.` is `_` there"));
            alike.or(fed.then(|| format!("of the topics `{topic}` and `{other}` one gets the other's dead letters")))
        });
        if let Some(what) = clash {
            findings[one.file].add(&one.span, what, "another topic".to_owned());
        }
    }
}

fn read_files(path: &Path) -> (Vec<TomlFile>, Mistakes) {
    let mut mistakes = Mistakes::default();
    let mut wrong = |path: &Path, what: String, instead: &str| {
        let file = path.display().to_string();
        mistakes.add(Mistake {
            file,
            place: None,
            what,
            instead: Some(instead.to_owned()),
        });
    };
    let elsewhere = "a TOML file, or a folder of them, under `definitions` in highwater.toml";
    let paths = if path.is_dir() {
        match toml_files(path) {
            Ok(paths) if paths.is_empty() => {
                wrong(path, "the folder has no *.toml file".to_owned(), elsewhere);
                paths
            }
            Ok(paths) => paths,
            Err(error) => {
                wrong(path, format!("the folder can't be read: {error}"), elsewhere);
                Vec::new()
            }
        }
    } else {
        vec![path.to_owned()]
    };
    let mut files = Vec::new();
    for path in paths {
        // Reading a pipe or a device could wait for ever, or never end.
        if std::fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
            wrong(&path, "is no regular file".to_owned(), elsewhere);
            continue;
        }
        match std::fs::read(&path).map(String::from_utf8) {
            Ok(Ok(text)) => files.push(TomlFile {
                name: path.display().to_string(),
                text,
                secretive: false,
            }),
            Ok(Err(error)) => {
                let at = error.utf8_error().valid_up_to();
                wrong(&path, format!("is not UTF-8 from byte {at} on"), "save it as UTF-8");
            }
            Err(error) => wrong(&path, format!("can't be read: {error}"), elsewhere),
        }
    }
    (files, mistakes)
}

/// The definitions of a folder by name. Hidden files are an editor's own.
fn toml_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests;
