//! The connection between a FUSE mount and the process that serves it: which process
//! that is, and the kernel's switch to end it whatever that process does.
//!
//! The kernel numbers connections as it does the devices of their mounts: N is the
//! minor number of the device 0:N.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};

use super::mountinfo::{self, Mount};
use super::process::{self, Process};

/// Where fusectl(5) is mounted.
const CONTROL: &str = "/sys/fs/fuse/connections";

fn number(mount: &Mount) -> u64 {
    libc::minor(mount.device).into()
}

/// Ends the connection of `mount`: every request that waits fails, and so does every
/// later one.
///
/// # Errors
/// There is no fusectl, the mount is another user's, or gone.
pub fn abort(mount: &Mount) -> io::Result<()> {
    let path = format!("{CONTROL}/{}/abort", number(mount));
    let mut switch = OpenOptions::new().write(true).open(path)?;
    // The number may be another connection's by now. What is open stays what it is.
    if !mountinfo::mounts()?
        .iter()
        .any(|other| other.is_same(mount))
    {
        return Err(io::ErrorKind::NotFound.into());
    }
    switch.write_all(b"1")
}

/// How many requests wait for their answers. 0 where this user may not know.
pub fn waiting(mount: &Mount) -> u64 {
    let waiting = fs::read_to_string(format!("{CONTROL}/{}/waiting", number(mount)));
    let waiting = waiting.ok().and_then(|text| text.trim().parse().ok());
    waiting.unwrap_or_default()
}

/// A descriptor by whose name others find the process that serves `mount` where the
/// kernel does not say which it is, before Linux 6.18.
pub fn declare(mount: &Mount) -> io::Result<OwnedFd> {
    let name = format!("{DECLARED}{}", number(mount));
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?)
}

const DECLARED: &str = "stfs:";

/// Which processes serve which connections, this one left out.
#[derive(Debug)]
pub struct Servers(Vec<Server>);

#[derive(Debug, PartialEq, Eq)]
struct Server {
    pid: i32,
    connection: u64,
    /// Where only the process says so: whose it is.
    claimed_by: Option<u32>,
}

impl Servers {
    /// As far as this user may see them.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn find() -> io::Result<Servers> {
        Ok(Servers(process::others()?.flat_map(served_by).collect()))
    }

    /// The process that serves `mount`.
    pub fn of(&self, mount: &Mount) -> Option<Process> {
        let serves = |server: &&Server| {
            // What a process says goes for mounts of its own user only.
            let claimed = |user| mountinfo::user(mount) == Some(user);
            server.connection == number(mount) && server.claimed_by.is_none_or(claimed)
        };
        // The number was not held when it was found.
        let held = |server: &Server| {
            let process = Process::hold(server.pid)?;
            served_by(server.pid).contains(server).then_some(process)
        };
        self.0.iter().filter(serves).find_map(held)
    }
}

fn served_by(pid: i32) -> Vec<Server> {
    let (mut proven, mut claims, mut unsaid) = (vec![], vec![], false);
    for open in process::descriptors(pid).unwrap_or_default() {
        if is_device(&open.link) {
            match open.info("fuse_connection") {
                Some(connection) => proven.push(connection),
                None => unsaid = true,
            }
        } else {
            claims.extend(declared(&open.link));
        }
    }
    proven.dedup();
    let server = |claimed_by| {
        move |connection| Server {
            pid,
            connection,
            claimed_by,
        }
    };
    match (proven.is_empty(), process::user(pid)) {
        (true, Some(user)) if unsaid => claims.into_iter().map(server(Some(user))).collect(),
        _ => proven.into_iter().map(server(None)).collect(),
    }
}

/// Whether a descriptor is that of a FUSE server, wherever its mount namespace has the
/// device.
fn is_device(link: &Path) -> bool {
    let name = link.file_name();
    name.is_some_and(|name| name.as_bytes().starts_with(b"fuse"))
}

fn declared(link: &Path) -> Option<u64> {
    let name = link.to_str()?.strip_prefix("/memfd:")?;
    let name = name.strip_prefix(DECLARED)?;
    name.strip_suffix(" (deleted)")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn where_the_kernel_does_not_say_it_the_process_does() {
        let Ok(device) = OpenOptions::new().read(true).write(true).open("/dev/fuse") else {
            return crate::skip::skip("no /dev/fuse");
        };
        let user = rustix::process::getuid().as_raw();
        let mount = |user| {
            let line = format!("97 1 0:44 / /mnt rw - fuse.stfs /models ro,user_id={user}");
            Mount::parse(line.as_bytes()).unwrap()
        };
        // Of a device that is no mount's the kernel says nothing.
        let mut child = Command::new("sleep")
            .arg("60")
            .stdin(device)
            .stdout(declare(&mount(user)).unwrap())
            .spawn()
            .unwrap();
        let pid = child.id().try_into().unwrap();
        let servers = Servers(served_by(pid));
        let found = servers.of(&mount(user)).map(|process| process.pid());
        // What it says of another user's mount is not believed.
        let another = servers.of(&mount(user + 1)).is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((found, another), (Some(pid), false));
    }

    #[test]
    fn a_connection_that_is_not_there_is_not_ended() {
        let line = b"97 1 0:1048575 / /mnt rw - fuse.stfs /models ro,user_id=0";
        assert!(abort(&Mount::parse(line).unwrap()).is_err());
    }
}
