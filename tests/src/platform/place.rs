//! Where a layer finds its servers, and the folder of one that runs as a process of its own.

use std::path::{Path, PathBuf};

use super::{Platform, VIEWS};

/// How a layer reaches the servers.
#[derive(Debug, Clone)]
pub struct Place {
    /// `kafka.brokers`.
    pub brokers: String,
    /// `clickhouse.url`.
    pub clickhouse: String,
    /// `kafka.group`.
    pub group: String,
    /// The lines of `[speed]`.
    pub speed: String,
    /// Further sections.
    pub more: String,
    /// The definitions, with `TOPIC` for the topic: [`VIEWS`], or others.
    pub views: String,
}

/// The configuration of layers: where servers are, and what else.
pub(super) fn config_text(place: &Place, database: &str, archive: &str) -> String {
    let Place {
        brokers,
        clickhouse,
        group,
        speed,
        more,
        ..
    } = place;
    format!(
        "[kafka]\nbrokers = \"{brokers}\"\ngroup = \"{group}\"\n[clickhouse]\nurl = \"{clickhouse}\"\n\
         database = \"{database}\"\n[archive]\nurl = \"{archive}\"\ncommit_every = \"200ms\"\n[speed]\n{speed}\n\
         [serve]\nlisten = \"127.0.0.1:0\"\n[batch]\ncut_wait = \"30s\"\n{more}\n"
    )
}

impl Platform {
    /// Where this process's layers find the servers.
    pub fn place(&self) -> Place {
        Place {
            brokers: self.config.kafka.bootstrap_servers(),
            clickhouse: self.config.clickhouse.url.to_string(),
            group: self.config.kafka.group.clone(),
            speed: "flush = \"50ms\"".to_owned(),
            more: String::new(),
            views: VIEWS.to_owned(),
        }
    }

    /// Makes a folder with the configuration and definitions of a process that works for this platform from that place.
    pub fn folder_of(&self, name: &str, place: &Place) -> anyhow::Result<PathBuf> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(folder.join("definitions"))?;
        let archive = self.config.archive.url.to_string();
        let text = config_text(place, &self.config.clickhouse.database, &archive);
        std::fs::write(folder.join("highwater.toml"), text)?;
        let views = place.views.replace("TOPIC", &self.topic);
        std::fs::write(folder.join("definitions/views.toml"), views)?;
        Ok(folder)
    }

    /// The last lines that each of its processes said.
    pub fn said(&self) -> String {
        let folders = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let logs = folders.map(|folder| folder.path().join("log"));
        let said = logs.filter(|log| log.is_file()).map(|log| {
            let last = local_stack::process::tail(&log);
            format!("\n--- {}\n{last}", log.display())
        });
        said.collect()
    }

    /// What belongs to the platform.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
