//! Ending mounts, ours and those of other stfs processes.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::device::HELPER;
use super::error::Error;
use super::mountinfo;
use super::xattr::{self, xattr};

/// How long the process of an unmounted mount is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unmounts the stfs mount at `path` and waits until its process has ended.
/// With `lazy` it only disappears from the directory tree: its process ends
/// with the last use of it, which is not waited for. A mount whose process is
/// gone already is always detached.
///
/// # Errors
/// No stfs mount is there, it is in use, or it belongs to somebody else.
pub fn unmount(path: &Path, lazy: bool) -> Result<(), Error> {
    let place = mountinfo::locate(path)?;
    let mount = mountinfo::mount_at(&place).map_err(Error::io(path, "read the mount table"))?;
    match mount {
        None => return Err(Error::NotMounted(path.to_owned())),
        Some(mount) if !mountinfo::is_stfs(&mount) => {
            return Err(Error::NotStfs {
                path: path.to_owned(),
                fs_type: mount.fs_type.to_string_lossy().into_owned(),
            });
        }
        Some(_) => {}
    }
    if lazy || mountinfo::is_dead(&place) {
        return detach(&place);
    }
    // Held from before the unmount, so that the number cannot become another's.
    let daemon =
        daemon_of(&place).and_then(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)));
    release(&place, false)?;
    match daemon {
        Some((pid, process)) if !ends_within(&process, PATIENCE) => Err(Error::StillRunning {
            path: path.to_owned(),
            pid: pid.as_raw_nonzero().get(),
        }),
        _ => Ok(()),
    }
}

/// Takes the mount at `place` out of the directory tree, used or not.
///
/// # Errors
/// Nothing is mounted there, or the mount belongs to somebody else.
pub fn detach(place: &Path) -> Result<(), Error> {
    release(place, true)
}

/// Takes every mount of the file system `device` out of the directory tree.
///
/// # Errors
/// The last of them that failed to go.
pub fn detach_device(device: u64) -> Result<(), Error> {
    let mounts =
        mountinfo::mounts().map_err(Error::io(Path::new("/proc/self/mountinfo"), "read it"))?;
    let mut result = Ok(());
    for mount in mounts.iter().rev() {
        if mount.device == device && mountinfo::is_stfs(mount) {
            result = detach(&mount.point).and(result);
        }
    }
    result
}

fn release(place: &Path, lazy: bool) -> Result<(), Error> {
    let flags = match lazy {
        true => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
        false => MntFlags::UMOUNT_NOFOLLOW,
    };
    match umount2(place, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => release_by_helper(place, lazy),
        Err(Errno::EBUSY) => Err(Error::Busy(place.to_owned())),
        Err(Errno::EINVAL) => Err(Error::NotMounted(place.to_owned())),
        Err(error) => Err(Error::io(place, "unmount")(error.into())),
    }
}

/// An ordinary user's way to unmount what is their own.
fn release_by_helper(place: &Path, lazy: bool) -> Result<(), Error> {
    let output = Command::new(HELPER)
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(place)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoHelper,
            _ => Error::io(place, "unmount through fusermount3")(error),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("busy") {
        Err(Error::Busy(place.to_owned()))
    } else if message.contains("not found in") || message.contains("not permitted") {
        Err(Error::NotPermitted(place.to_owned()))
    } else {
        Err(Error::Helper {
            path: place.to_owned(),
            message: message.trim().to_owned(),
        })
    }
}

/// The process that serves the mount at `place`, as the mount itself says. None
/// where the mount does not let this user in.
fn daemon_of(place: &Path) -> Option<Pid> {
    let value = xattr(place, xattr::PID).ok()?;
    Pid::from_raw(std::str::from_utf8(&value).ok()?.parse().ok()?)
}

/// Whether the process behind a pidfd ends, which makes it readable.
fn ends_within(process: impl AsFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut ends = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut ends, timeout) {
            Err(Errno::EINTR) => {}
            result => return result == Ok(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_waited_for_and_no_longer_than_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(!ends_within(&process, Duration::from_millis(20)));
        child.kill().unwrap();
        assert!(ends_within(&process, PATIENCE));
        child.wait().unwrap();
    }

    #[test]
    fn only_stfs_mounts_are_unmounted() {
        let error = unmount(Path::new("/proc"), true).unwrap_err();
        assert!(matches!(error, Error::NotStfs { .. }), "{error}");
        let dir = tempfile::tempdir().unwrap();
        let error = unmount(dir.path(), true).unwrap_err();
        assert!(matches!(error, Error::NotMounted(_)), "{error}");
    }
}
