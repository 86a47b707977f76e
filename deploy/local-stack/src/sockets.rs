//! Who listens on a port, from `/proc`.
//!
//! A server that we started counts as ready only when the port's listening socket is *its own*: between choosing a
//! free port and the child's bind somebody else may have taken it, and then a stranger would answer in its place.

use std::fs;

use crate::address::Loopback;

/// The process that listens on a TCP port of this machine, as far as we may see it: other users' processes hide theirs.
pub fn listener(port: u16) -> Option<u32> {
    let sockets = listening(port);
    if sockets.is_empty() {
        return None;
    }
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|pid| holds_any(*pid, &sockets))
}

/// Does this process listen at this address of this machine?
///
/// Somebody must answer before `/proc` is read: the system goes through a table for millions of connections to write it, which
/// takes milliseconds, and who waits for a server asks often.
pub fn listens(pid: u32, address: Loopback) -> bool {
    if !address.is_listened_to() {
        return false;
    }
    let sockets = listening(address.port());
    !sockets.is_empty() && holds_any(pid, &sockets)
}

/// The name of a process, for messages.
pub fn name(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned())
}

/// `socket:[inode]` of each socket that listens on the port.
fn listening(port: u16) -> Vec<String> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|table| {
            table
                .lines()
                .filter_map(|line| listening_inode(line, port))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// One row of `/proc/net/tcp`: local address in field 1, state in field 3 (`0A` = listening), inode in field 9.
fn listening_inode(line: &str, port: u16) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
    (local == port && *fields.get(3)? == "0A").then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
}

fn holds_any(pid: u32, sockets: &[String]) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_leads_to_the_process_that_listens_on_it() {
        let listener_socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener_socket.local_addr().unwrap().port();
        let here = Loopback::of("localhost", port).unwrap();
        assert!(listens(std::process::id(), here));
        assert_eq!(listener(port), Some(std::process::id()));
        assert!(!listens(1, here));
        drop(listener_socket);
        assert!(!listens(std::process::id(), here));
    }
}
