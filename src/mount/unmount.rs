//! Ending mounts, ours and those of other stfs processes.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::device::HELPER;
use super::xattr::xattr;
use super::{Error, PID_XATTR, mountinfo, mountpoint};

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
    let place = mountpoint::locate(path)?;
    let mount = mountinfo::mount_at(&place).map_err(Error::io(path, "read the mount table"))?;
    match mount {
        None => return Err(Error::NotMounted(path.to_owned())),
        Some(mount) if !mount.is_stfs() => {
            return Err(Error::NotStfs {
                path: path.to_owned(),
                fs_type: mount.fs_type.to_string_lossy().into_owned(),
            });
        }
        Some(_) => {}
    }
    if lazy || mountpoint::is_dead(&place) {
        return detach(&place);
    }
    // Held from before the unmount, so that the number cannot become another's.
    let daemon = daemon_of(&place).and_then(|pid| Some((pid, open_process(pid).ok()?)));
    release(&place, false)?;
    match daemon {
        Some((pid, process)) if !ends_within(&process, PATIENCE) => Err(Error::StillRunning {
            path: path.to_owned(),
            pid,
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
        if mount.device == device && mount.is_stfs() {
            result = detach(&mount.point).and(result);
        }
    }
    result
}

fn release(place: &Path, lazy: bool) -> Result<(), Error> {
    let failed = Error::io(place, "unmount");
    let target = CString::new(place.as_os_str().as_bytes()).map_err(|why| failed(why.into()))?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: a NUL-terminated string that outlives the call.
    if unsafe { libc::umount2(target.as_ptr(), flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EPERM) => release_by_helper(place, lazy),
        Some(libc::EBUSY) => Err(Error::Busy(place.to_owned())),
        Some(libc::EINVAL) => Err(Error::NotMounted(place.to_owned())),
        _ => Err(failed(error)),
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
fn daemon_of(place: &Path) -> Option<libc::pid_t> {
    let value = xattr(place, PID_XATTR).ok()?;
    std::str::from_utf8(&value).ok()?.parse().ok()
}

/// A descriptor that becomes readable when the process ends.
fn open_process(pid: libc::pid_t) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match i32::try_from(result) {
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ends_within(process: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: process.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = libc::c_int::try_from(left.as_millis()).unwrap_or(libc::c_int::MAX);
        // SAFETY: one pollfd, and the count says one.
        match unsafe { libc::poll(&mut poll, 1, millis) } {
            0 => return false,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            result => return result == 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_waited_for_and_no_longer_than_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = open_process(child.id().try_into().unwrap()).unwrap();
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
