//! Notifications that make the kernel forget what it was told.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use fuser::{INodeNo, Notifier};
use log::debug;

use super::watch::Forget;

/// `FUSE_NOTIFY_INVAL_ENTRY`.
const INVALIDATE_ENTRY: i32 = 3;
/// `FUSE_EXPIRE_ONLY`: the name stays in the cache, and with it what is below and who
/// works in there, until another lookup says that it is something else. Kernels before
/// 6.2 overlook it and take the name out.
const EXPIRE_ONLY: u32 = 1;

/// The kernel's side of a mount.
#[derive(Debug)]
pub struct Kernel {
    notifier: Notifier,
    device: File,
}

impl Kernel {
    /// `device` is the descriptor that the requests come from.
    pub fn new(notifier: Notifier, device: OwnedFd) -> Kernel {
        Kernel {
            notifier,
            device: device.into(),
        }
    }

    /// Has a name expire, which fuser offers no notification for.
    fn expire(&self, directory: u64, name: &OsStr) -> io::Result<()> {
        let length = u32::try_from(name.len()).map_err(io::Error::other)?;
        let whole = length.checked_add(33).ok_or(io::ErrorKind::InvalidInput)?;
        // `fuse_out_header`, whose request number is that of none, and
        // `fuse_notify_inval_entry_out`.
        let mut message = [0; 32];
        message[..4].copy_from_slice(&whole.to_ne_bytes());
        message[4..8].copy_from_slice(&INVALIDATE_ENTRY.to_ne_bytes());
        message[16..24].copy_from_slice(&directory.to_ne_bytes());
        message[24..28].copy_from_slice(&length.to_ne_bytes());
        message[28..].copy_from_slice(&EXPIRE_ONLY.to_ne_bytes());
        let parts = [&message, name.as_bytes(), b"\0"].map(IoSlice::new);
        (&self.device).write_vectored(&parts).map(drop)
    }
}

impl Forget for Kernel {
    fn name(&self, directory: u64, name: &OsStr) {
        report(self.expire(directory, name));
    }

    fn attributes(&self, inode: u64) {
        report(self.notifier.inval_inode(INodeNo(inode), -1, 0));
    }

    fn listing(&self, directory: u64) {
        report(self.notifier.inval_inode(INodeNo(directory), 0, 0));
    }
}

/// What the kernel does not know it need not forget.
fn report(result: io::Result<()>) {
    match result {
        Err(why) if why.kind() != io::ErrorKind::NotFound => debug!("forget: {why}"),
        _ => {}
    }
}
