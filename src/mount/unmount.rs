//! Ending mounts, ours and those of other stfs processes. Where a process does not
//! answer, its connection is ended first: a mount that is taken out of the directory
//! tree before leaves whoever waits for it waiting for ever.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::geteuid;

use super::connection;
use super::device::HELPER;
use super::error::Error;
use super::holders::Holders;
use super::mountinfo::{self, Mount};
use super::process::Process;
use super::state::Server;

/// How long the process of an unmounted mount is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long requests are waited for that hold a mount.
const PATIENCE_WITH_REQUESTS: Duration = Duration::from_secs(1);

/// How long one is waited for that was killed.
const PATIENCE_AFTER_KILL: Duration = Duration::from_secs(2);

/// What is done about a mount that is in use. One whose process is gone is taken away
/// in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It stays.
    Ask,
    /// It only disappears from the directory tree: its process ends with the last use
    /// of it, which is not waited for.
    Lazy,
    /// Its connection is ended, and then its process, whatever that does.
    Force,
}

/// Unmounts the stfs mount at `path` and waits until its process has ended, for a
/// bounded time. Where the same file system is mounted elsewhere too, its process stays,
/// and the other place is returned.
///
/// # Errors
/// No stfs mount is there, it is in use, it belongs to somebody else, or its process
/// does not end.
pub fn unmount(path: &Path, manner: Manner) -> Result<Option<PathBuf>, Error> {
    let place = mountinfo::locate(path).map_err(|error| match error {
        Error::NoParent { path, .. } => Error::NotMounted(path),
        error => error,
    })?;
    let table = Error::io(path, "read the mount table");
    let mount = match mountinfo::mount_at(&place).map_err(&table)? {
        None => return Err(Error::NotMounted(path.to_owned())),
        Some(mount) if !mount.is_stfs() => {
            return Err(Error::NotStfs {
                path: path.to_owned(),
                fs_type: mount.fs_type.to_string_lossy().into_owned(),
            });
        }
        Some(mount) => mount,
    };
    // Held from before the unmount, so that its number cannot become another's.
    let server = Server::of(&mount).map_err(Error::io(path, "look for its process"))?;
    if manner == Manner::Force || server.is_dead(&mount) {
        return end(&mount, &server).map(|()| None);
    }
    let released = match manner {
        Manner::Lazy => release(&mount, Release::Used),
        _ => release_unused(&mount),
    };
    match released {
        Err(Error::Busy { .. }) if has_died(&mount) => return end(&mount, &server).map(|()| None),
        released => released?,
    }
    let elsewhere = mounts_of(&mount).map_err(&table)?.pop();
    if manner == Manner::Lazy || elsewhere.is_some() {
        return Ok(elsewhere.map(|mount| mount.point));
    }
    match (&server, server.process()) {
        (Server::Stopped(process), _) => Err(Error::StillStopped {
            path: path.to_owned(),
            pid: process.pid(),
        }),
        (_, Some(process)) if !process.ends_within(PATIENCE) => Err(Error::StillRunning {
            path: path.to_owned(),
            pid: process.pid(),
        }),
        _ => Ok(None),
    }
}

fn has_died(mount: &Mount) -> bool {
    Server::of(mount).is_ok_and(|server| server.is_dead(mount))
}

/// Ends the mount and its process, whatever it does.
fn end(mount: &Mount, server: &Server) -> Result<(), Error> {
    sever(mount, server.process())?;
    let Some(process) = server.process() else {
        return Ok(());
    };
    // One that is stopped has no way to end by itself.
    let stopped = matches!(server, Server::Stopped(_));
    if !stopped && process.ends_within(PATIENCE) {
        return Ok(());
    }
    kill(process, &mount.point)
}

fn kill(process: &Process, path: &Path) -> Result<(), Error> {
    let killed = process.kill();
    killed.map_err(Error::io(path, "kill its process"))?;
    match process.ends_within(PATIENCE_AFTER_KILL) {
        true => Ok(()),
        false => Err(Error::StillWaiting {
            path: path.to_owned(),
            pid: process.pid(),
        }),
    }
}

/// Ends the connection of `mount`, and then takes every mount of its file system out of
/// the directory tree. `server` is the process behind it, where that is another one.
///
/// # Errors
/// It belongs to somebody else, or is held in a way that only root can end.
pub fn sever(mount: &Mount, server: Option<&Process>) -> Result<(), Error> {
    // Without fusectl there are two other ways: root's unmount, and the end of the process.
    if connection::abort(mount).is_err()
        && !geteuid().is_root()
        && let Some(process) = server
    {
        kill(process, &mount.point).map_err(|_| Error::Held {
            path: mount.point.clone(),
            pid: process.pid(),
        })?;
    }
    let failed = Error::io(&mount.point, "read the mount table");
    let mut result = Ok(());
    for mount in mounts_of(mount).map_err(&failed)?.into_iter().rev() {
        // Another mount on top of it is not this one's to take away.
        let uppermost = mountinfo::mount_at(&mount.point).map_err(&failed)?;
        if uppermost.is_some_and(|uppermost| uppermost.id == mount.id) {
            result = release(&mount, Release::Severed).and(result);
        }
    }
    result
}

/// The mounts of the file system that `mount` is of.
fn mounts_of(mount: &Mount) -> io::Result<Vec<Mount>> {
    let mut mounts = mountinfo::stfs_mounts()?;
    mounts.retain(|other| other.device == mount.device);
    Ok(mounts)
}

/// What may be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Release {
    Unused,
    Used,
    /// Its connection has ended, or ends here.
    Severed,
}

/// Whoever only looks at it, as `stfs status` does, is waited for.
fn release_unused(mount: &Mount) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE_WITH_REQUESTS;
    loop {
        match release(mount, Release::Unused) {
            Err(Error::Busy { holders, .. })
                if holders.are_requests() && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn release(mount: &Mount, release: Release) -> Result<(), Error> {
    let place = &mount.point;
    let flags = MntFlags::UMOUNT_NOFOLLOW
        | match release {
            Release::Unused => MntFlags::empty(),
            Release::Used => MntFlags::MNT_DETACH,
            Release::Severed => MntFlags::MNT_DETACH | MntFlags::MNT_FORCE,
        };
    match umount2(place, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => release_by_helper(mount, release != Release::Unused),
        Err(Errno::EBUSY) => Err(busy(mount)),
        Err(Errno::EINVAL) => Err(Error::NotMounted(place.to_owned())),
        Err(error) => Err(Error::io(place, "unmount")(error.into())),
    }
}

fn busy(mount: &Mount) -> Error {
    Error::Busy {
        path: mount.point.clone(),
        holders: Holders::of(mount),
    }
}

/// An ordinary user's way to unmount what is their own.
fn release_by_helper(mount: &Mount, lazy: bool) -> Result<(), Error> {
    let place = &mount.point;
    let failed = Error::io(place, "unmount through fusermount3");
    let mut helper = Command::new(HELPER)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(place)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoHelper,
            _ => failed(error),
        })?;
    let process = i32::try_from(helper.id()).ok().and_then(Process::hold);
    if process.is_some_and(|process| !process.ends_within(PATIENCE)) {
        return Err(failed(io::ErrorKind::TimedOut.into()));
    }
    let status = helper.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let mut message = vec![];
    if let Some(mut stderr) = helper.stderr.take() {
        // Whatever it is, it is only shown.
        let _ = stderr.read_to_end(&mut message);
    }
    let message = String::from_utf8_lossy(&message);
    if message.contains("busy") {
        Err(busy(mount))
    } else if message.contains("not found in") || message.contains("not permitted") {
        Err(Error::NotPermitted(place.to_owned()))
    } else {
        Err(Error::Helper {
            path: place.to_owned(),
            message: message.trim().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stfs_mounts_are_unmounted() {
        let error = unmount(Path::new("/proc"), Manner::Force).unwrap_err();
        assert!(matches!(error, Error::NotStfs { .. }), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let error = unmount(dir.path(), Manner::Force).unwrap_err();
        assert!(matches!(error, Error::NotMounted(_)), "{error}");
    }
}
