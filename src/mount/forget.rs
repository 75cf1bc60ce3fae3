//! Notifications that make the kernel forget what it was told. None of them waits for
//! the answer to a request, nor for a lock that is held while one is waited for: a
//! notification that did would keep the device open when this process is killed, and
//! whoever waits for an answer would wait for ever.

use std::fs::File;
use std::io::{self, Write};

use fuser::{INodeNo, Notifier};
use log::debug;

use super::watch::Forget;

/// `FUSE_NOTIFY_INC_EPOCH`, since Linux 6.16: whatever name the kernel was told of
/// before is looked up again at its next use. What is below and who works in there
/// stays. fuser offers no such notification.
const INCREMENT_EPOCH: i32 = 8;

/// The kernel's side of a mount.
#[derive(Debug)]
pub struct Kernel {
    notifier: Notifier,
    device: File,
}

impl Kernel {
    /// `device` is the descriptor that the requests come from.
    pub fn new(notifier: Notifier, device: File) -> Kernel {
        Kernel { notifier, device }
    }
}

/// Has all names behind `device` looked up again.
///
/// # Errors
/// Of the kind [`io::ErrorKind::InvalidInput`] where the kernel has no such
/// notification.
pub fn names(mut device: &File) -> io::Result<()> {
    // `fuse_out_header`, whose request number is that of none.
    let mut message = [0; 16];
    message[..4].copy_from_slice(&16_u32.to_ne_bytes());
    message[4..8].copy_from_slice(&INCREMENT_EPOCH.to_ne_bytes());
    device.write_all(&message)
}

impl Forget for Kernel {
    fn names(&self) {
        report(names(&self.device));
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
