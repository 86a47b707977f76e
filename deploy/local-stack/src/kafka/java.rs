//! The Java runtime: found, new enough, and started alike for every use.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StackError;

/// What Kafka 4 needs.
const OLDEST: u32 = 17;
const HINT: &str =
    "install a Java 17 runtime or newer (debian: apt-get install openjdk-17-jre-headless), or set JAVA_HOME to one";

/// A Java runtime that is new enough.
#[derive(Debug)]
pub(super) struct Java {
    program: PathBuf,
    /// What it says of itself, all of it: one build of Java, and no other.
    pub(super) said: String,
}

/// `$JAVA_HOME/bin/java`, else `java` on PATH, if new enough.
pub(super) async fn find() -> Result<Java, StackError> {
    let java = std::env::var_os("JAVA_HOME")
        .filter(|home| !home.is_empty())
        .map_or_else(|| PathBuf::from("java"), |home| Path::new(&home).join("bin/java"));
    let output = tokio::process::Command::new(&java)
        .arg("-version")
        .kill_on_drop(true)
        .output()
        .await;
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            StackError::Program(format!("{} is missing, Kafka runs on it: {HINT}", java.display()))
        }
        _ => StackError::Program(format!("cannot run {}: {error}", java.display())),
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match major(&said) {
        Some(version) if version >= OLDEST => Ok(Java { program: java, said }),
        Some(version) => Err(StackError::Program(format!(
            "{} is Java {version}, Kafka needs {OLDEST}: {HINT}",
            java.display()
        ))),
        None => Err(StackError::Program(format!(
            "cannot tell the version of {} (it said: {}): {HINT}",
            java.display(),
            said.trim()
        ))),
    }
}

/// `openjdk version "17.0.15" …` is 17; `java version "1.8.0_292"` is 8.
fn major(said: &str) -> Option<u32> {
    let version = said.split_once("version \"")?.1;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    match numbers.next()?.parse().ok()? {
        1 => numbers.next()?.parse().ok(),
        major => Some(major),
    }
}

impl Java {
    /// A JVM in this folder; its classes, and what to run of them, are for the caller to add.
    pub(super) fn command(&self, home: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(home).env("LC_ALL", "C.UTF-8");
        // A start of seconds matters more than peak speed: one collector thread, the quick compiler only.
        command.args([
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:+ExitOnOutOfMemoryError",
        ]);
        command.args(["-Djava.awt.headless=true", "-XX:ErrorFile=jvm-error-%p.log"]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_in_both_spellings() {
        assert_eq!(major("openjdk version \"17.0.15\" 2025-04-15\nOpenJDK"), Some(17));
        assert_eq!(major("openjdk version \"21\" 2023-09-19"), Some(21));
        assert_eq!(major("java version \"1.8.0_292\""), Some(8));
        assert_eq!(
            major("Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version \"25-ea\" 2025"),
            Some(25)
        );
        assert_eq!(major("not java at all"), None);
    }
}
