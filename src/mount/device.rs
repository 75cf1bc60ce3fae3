//! Making the mount: a `/dev/fuse` descriptor on one side, a mounted directory
//! on the other. By mount(2) where that is permitted, else by fusermount3.
//!
//! fuser can mount by itself, but would take commas in the source's name for
//! options, show no file system type of our own, and at its end unmount
//! whatever lies at the path by then.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{getgid, getuid};

use super::error::Error;
use super::mountinfo;

const DEVICE: &str = "/dev/fuse";

/// The setuid program of the package fuse3 that mounts for ordinary users.
pub const HELPER: &str = "fusermount3";

/// What the kernel is told about a mount, beside where it is.
#[derive(Clone, Debug)]
pub struct Attributes {
    /// The first field of `/proc/mounts`.
    pub source: OsString,
    /// Let other users in. Otherwise the kernel keeps even root out.
    pub allow_other: bool,
    pub noexec: bool,
    pub noatime: bool,
}

/// Mounts on `place` and gives the descriptor that requests are read from.
///
/// # Errors
/// FUSE is missing or not permitted.
pub fn attach(place: &Path, attributes: &Attributes) -> Result<OwnedFd, Error> {
    match attach_directly(place, attributes) {
        Ok(device) => Ok(device),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Err(Error::NoDevice),
            Some(libc::EPERM | libc::EACCES) => attach_by_helper(place, attributes),
            _ => Err(Error::io(place, "mount")(error)),
        },
    }
}

fn attach_directly(place: &Path, attributes: &Attributes) -> io::Result<OwnedFd> {
    let root_mode = fs::metadata(place)?.mode();
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        getuid(),
        getgid()
    );
    if attributes.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    if attributes.noexec {
        flags |= MsFlags::MS_NOEXEC;
    }
    if attributes.noatime {
        flags |= MsFlags::MS_NOATIME;
    }
    let source = attributes.source.as_os_str();
    let fs_type = Some(mountinfo::FS_TYPE);
    mount(Some(source), place, fs_type, flags, Some(data.as_str()))?;
    Ok(device.into())
}

fn attach_by_helper(place: &Path, attributes: &Attributes) -> Result<OwnedFd, Error> {
    let failed = Error::io(place, "mount through fusermount3");
    let (ours, theirs) = UnixStream::pair().map_err(&failed)?;
    let mut helper = Command::new(HELPER)
        .arg("-o")
        .arg(helper_options(attributes))
        .arg("--")
        .arg(place)
        // It sends the descriptor over the socket with this number: its input.
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::NoHelper,
            _ => failed(error),
        })?;
    let device = receive_descriptor(&ours).map_err(&failed)?;
    drop(ours);
    let mut message = String::new();
    if let Some(mut stderr) = helper.stderr.take() {
        // Whatever it is, it is only shown.
        let _ = stderr.read_to_string(&mut message);
    }
    helper.wait().map_err(failed)?;
    device.ok_or_else(|| {
        if message.contains("user_allow_other") {
            Error::AllowOther(place.to_owned())
        } else if message.contains("failed to open /dev/fuse") {
            Error::DeviceDenied
        } else {
            Error::Helper {
                path: place.to_owned(),
                message: message.trim().to_owned(),
            }
        }
    })
}

fn helper_options(attributes: &Attributes) -> OsString {
    let (_, subtype) = mountinfo::FS_TYPE.split_at("fuse.".len());
    let mut options = format!("ro,nosuid,nodev,default_permissions,subtype={subtype}");
    for (set, word) in [
        (attributes.allow_other, ",allow_other"),
        (attributes.noexec, ",noexec"),
        (attributes.noatime, ",noatime"),
    ] {
        if set {
            options.push_str(word);
        }
    }
    options.push_str(",fsname=");
    let mut options = options.into_bytes();
    for &byte in attributes.source.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            options.push(b'\\');
        }
        options.push(byte);
    }
    OsString::from_vec(options)
}

/// Receives one descriptor. `None` when the other side closes without sending.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut part = [IoSliceMut::new(&mut byte)];
    let mut control = cmsg_space!(RawFd);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut part, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            message => break message?,
        }
    };
    if message.bytes == 0 {
        return Ok(None);
    }
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let [descriptor] = descriptors[..]
        {
            // SAFETY: it came with this message, and so it is ours alone.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_cannot_become_an_option() {
        let attributes = Attributes {
            source: "/a,suid\\,dev b".into(),
            allow_other: true,
            noexec: false,
            noatime: true,
        };
        assert_eq!(
            helper_options(&attributes),
            std::ffi::OsStr::new(
                "ro,nosuid,nodev,default_permissions,subtype=stfs,allow_other,noatime,\
                 fsname=/a\\,suid\\\\\\,dev b"
            )
        );
    }

    #[test]
    fn silence_is_no_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive_descriptor(&ours).unwrap().is_none());
    }
}
