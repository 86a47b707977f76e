//! The engine's own configuration, written into the data folder at each start.
//!
//! Grants are listed, not taken away: what a later version of the engine adds is not allowed until it is listed here. A
//! client may do what concerns tables; it may not read or write files, call other hosts, define dictionaries (theirs can
//! run commands), manage users or stop the process. Table engines are those that keep their data in the data folder.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{fs, io};

const GRANTS: &str = "CHECK, SHOW, SELECT, INSERT, ALTER, CREATE DATABASE, CREATE TABLE, CREATE VIEW, \
     CREATE TEMPORARY TABLE, CREATE FUNCTION, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, dictGet, \
     SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM FLUSH, SYSTEM DROP CACHE, SYSTEM RELOAD, SYSTEM VIEWS";

/// Engines that keep their data in the data folder.
pub(crate) const TABLE_ENGINES: [&str; 17] = [
    "AggregatingMergeTree",
    "Buffer",
    "CoalescingMergeTree",
    "CollapsingMergeTree",
    "GenerateRandom",
    "GraphiteMergeTree",
    "Join",
    "Log",
    "Memory",
    "Merge",
    "MergeTree",
    "Null",
    "ReplacingMergeTree",
    "Set",
    "StripeLog",
    "SummingMergeTree",
    "TinyLog",
];

/// Bounds of the engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Memory of all queries together, in bytes.
    pub(crate) memory: u64,
    /// The longest a query may take, in seconds; 0 for any time.
    pub(crate) query_seconds: u64,
}

/// Writes the configuration, and tells where.
pub(crate) fn write(data: &Path, bounds: Bounds) -> io::Result<(PathBuf, PathBuf)> {
    let server = data.join("config.xml");
    let users = data.join("users.xml");
    replace(&server, &server_xml(bounds))?;
    replace(&users, &users_xml(bounds))?;
    Ok((server, users))
}

fn server_xml(bounds: Bounds) -> String {
    format!(
        "<clickhouse>\n  <max_server_memory_usage>{}</max_server_memory_usage>\n  \
         <mark_cache_size>268435456</mark_cache_size>\n  \
         <access_control_improvements><table_engines_require_grant>true</table_engines_require_grant>\
         </access_control_improvements>\n</clickhouse>\n",
        bounds.memory
    )
}

fn users_xml(bounds: Bounds) -> String {
    let mut engines = String::new();
    for engine in TABLE_ENGINES {
        engines.push_str(&format!("        <query>GRANT TABLE ENGINE ON {engine}</query>\n"));
    }
    let (time, constraints) = match bounds.query_seconds {
        0 => (String::new(), String::new()),
        seconds => (
            format!("      <max_execution_time>{seconds}</max_execution_time>\n"),
            format!(
                "      <constraints><max_execution_time><min>0.001</min><max>{seconds}</max></max_execution_time></constraints>\n"
            ),
        ),
    };
    // The first three are what the embedded engine sets otherwise than a server.
    format!(
        "<clickhouse>
  <profiles>
    <default>
      <implicit_select>0</implicit_select>
      <allow_introspection_functions>0</allow_introspection_functions>
      <storage_file_read_method>pread</storage_file_read_method>
{time}{constraints}    </default>
  </profiles>
  <users>
    <default>
      <password></password>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <grants>
        <query>GRANT {GRANTS} ON *.*</query>
{engines}      </grants>
    </default>
  </users>
  <quotas><default></default></quotas>
</clickhouse>
"
    )
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|e| e.error)?;
    fs::File::open(folder)?.sync_all()
}
