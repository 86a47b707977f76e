//! What a real server is told: one HTTP port on loopback, all its folders inside ours, one user.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::StackError;
use crate::address::Loopback;
use crate::folder::write_atomically;

use super::Access;

/// Writes the files that the server reads at its start.
pub(super) fn write(home: &Path, address: Loopback, access: &Access) -> Result<(), StackError> {
    // The user's name is an element of the file.
    if !access.user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        || !access
            .user
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    {
        return Err(StackError::Program(format!(
            "clickhouse.user = \"{}\" cannot be a user of a server that is started here: take letters, digits and _ - . only",
            access.user
        )));
    }
    write_atomically(&home.join("config.xml"), config(home, address).as_bytes())?;
    write_atomically(&home.join("users.xml"), users(access).as_bytes())
}

fn config(home: &Path, address: Loopback) -> String {
    let home = escape(&home.display().to_string());
    let (ip, port) = (address.ip(), address.port());
    format!(
        "<!-- Written at each start of `highwater up`. -->
<clickhouse>
  <listen_host>{ip}</listen_host>
  <http_port>{port}</http_port>
  <path>{home}/data/</path>
  <tmp_path>{home}/data/tmp/</tmp_path>
  <user_files_path>{home}/data/user_files/</user_files_path>
  <format_schema_path>{home}/data/format_schemas/</format_schema_path>
  <logger>
    <level>information</level>
    <log>{home}/server.log</log>
    <errorlog>{home}/server-errors.log</errorlog>
    <size>10M</size>
    <count>3</count>
    <console>false</console>
  </logger>
  <user_directories>
    <users_xml><path>{home}/users.xml</path></users_xml>
    <local_directory><path>{home}/data/access/</path></local_directory>
  </user_directories>
  <mark_cache_size>268435456</mark_cache_size>
  <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
</clickhouse>
"
    )
}

fn users(access: &Access) -> String {
    let user = &access.user;
    let password = if access.password.is_empty() {
        "<no_password/>".to_owned()
    } else {
        let hash = hex::encode(Sha256::digest(access.password.as_bytes()));
        format!("<password_sha256_hex>{hash}</password_sha256_hex>")
    };
    format!(
        "<!-- Written at each start of `highwater up`. -->
<clickhouse>
  <profiles><default/></profiles>
  <quotas><default/></quotas>
  <users>
    <{user}>
      {password}
      <networks><ip>127.0.0.0/8</ip><ip>::1</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <access_management>1</access_management>
    </{user}>
  </users>
</clickhouse>
"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_stored_as_its_hash() {
        let access = Access {
            user: "ann".to_owned(),
            password: "secret".to_owned(),
        };
        let users = users(&access);
        assert!(!users.contains("secret"));
        assert!(users.contains("2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"));
        assert!(super::users(&Access::default()).contains("<no_password/>"));
    }

    #[test]
    fn paths_are_escaped() {
        let config = config(Path::new("/a & b"), Loopback::of("127.0.0.1", 8123).unwrap());
        assert!(config.contains("<path>/a &amp; b/data/</path>"));
        assert!(config.contains("<http_port>8123</http_port>"));
    }
}
