//! Making the mount: a `/dev/fuse` descriptor on one side, a mounted directory
//! on the other. By mount(2) where that is permitted, else by fusermount3.
//!
//! fuser can mount by itself, but would take commas in the source's name for
//! options, show no file system type of our own, and at its end unmount
//! whatever lies at the path by then.

use std::ffi::{CString, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::ptr;

use super::{Error, mountinfo};

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
    // SAFETY: these calls have no preconditions.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let mut data = format!(
        "fd={},rootmode={root_mode:o},user_id={uid},group_id={gid},default_permissions",
        device.as_raw_fd()
    );
    if attributes.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
    if attributes.noexec {
        flags |= libc::MS_NOEXEC;
    }
    if attributes.noatime {
        flags |= libc::MS_NOATIME;
    }
    let source = CString::new(attributes.source.as_bytes())?;
    let place = CString::new(place.as_os_str().as_bytes())?;
    let fs_type = CString::new(mountinfo::FS_TYPE)?;
    let data = CString::new(data)?;
    // SAFETY: all pointers are to NUL-terminated strings that outlive the call.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            place.as_ptr(),
            fs_type.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    if result == 0 {
        Ok(device.into())
    } else {
        Err(io::Error::last_os_error())
    }
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
    let mut byte = 0u8;
    let mut part = libc::iovec {
        iov_base: ptr::from_mut(&mut byte).cast(),
        iov_len: 1,
    };
    // Room for one descriptor, aligned as a header has to be.
    let mut control = [0u64; 4];
    // SAFETY: all zeros is a valid, empty message header.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control);
    let received = loop {
        // SAFETY: the header points to live buffers of the lengths it gives.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        match received {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => continue,
            -1 => return Err(io::Error::last_os_error()),
            received => break received,
        }
    };
    if received == 0 {
        return Ok(None);
    }
    // SAFETY: recvmsg filled the header in; CMSG_FIRSTHDR gives null or a header
    // that lies in `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message).as_ref() };
    // SAFETY: CMSG_LEN only computes.
    let length = unsafe { libc::CMSG_LEN(mem::size_of::<libc::c_int>() as u32) } as usize;
    match header {
        Some(header)
            if header.cmsg_level == libc::SOL_SOCKET
                && header.cmsg_type == libc::SCM_RIGHTS
                && header.cmsg_len >= length =>
        {
            // SAFETY: the header says that a descriptor follows, and it is ours now.
            Ok(Some(unsafe {
                let data = libc::CMSG_DATA(header).cast::<libc::c_int>();
                OwnedFd::from_raw_fd(data.read_unaligned())
            }))
        }
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
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
