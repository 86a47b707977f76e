//! A test in a process of its own: for what touches the whole process, as limits and crashes do.

use std::process::Command;

use anyhow::ensure;

/// Set in that process.
const ALONE: &str = "HIGHWATER_TEST_ALONE";

/// Whether the test was run in a process of its own, which is done with by now: it has shown what it said. There itself it says no.
///
/// A write beyond a limit on file sizes is an error there, and not the end.
///
/// # Errors
/// The test failed there, or there is none of that name in that module (`module_path!()`).
pub fn is_elsewhere(module: &str, test: &str) -> anyhow::Result<bool> {
    let mut command = Command::new("bash");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]);
    is_elsewhere_by(command, module, test)
}

/// The same by way of a command that goes on with the program that it is given.
#[expect(clippy::print_stdout, reason = "it is what the test itself would have said")]
pub(crate) fn is_elsewhere_by(mut command: Command, module: &str, test: &str) -> anyhow::Result<bool> {
    if std::env::var_os(ALONE).is_some() {
        return Ok(false);
    }
    let module = module.split_once("::").map_or("", |(_, module)| module);
    let output = command
        .arg(std::env::current_exe()?)
        .args([&format!("{module}::{test}"), "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {complained}", output.status);
    ensure!(said.contains("1 passed"), "no test of that name ran");
    Ok(true)
}

/// No file that this process writes may become larger than so many bytes, as if the disk were full; none: any may.
pub fn limit_files(bytes: Option<u64>) -> anyhow::Result<()> {
    limit_files_of(std::process::id(), bytes)
}

/// As [`limit_files`], for another process.
pub fn limit_files_of(pid: u32, bytes: Option<u64>) -> anyhow::Result<()> {
    let soft = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    let status = Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--fsize={soft}:unlimited")])
        .status()?;
    ensure!(status.success(), "prlimit: {status}");
    Ok(())
}
