//! What is agreed with the kernel about a mount: capabilities, queue lengths,
//! read-ahead.

use std::fs;

use fuser::{InitFlags, KernelConfig};
use log::{debug, info};

/// Reads ahead that may be under way at once, of all files together: were they used up by
/// one file whose source hangs, nobody would read ahead any more.
const MAX_BACKGROUND: u16 = 1024;

/// KiB read ahead of a sequential reader and of a page fault. The kernel's own
/// 128 makes requests of 128 KiB, one at a time. With this several requests of
/// 1 MiB are under way at once; more gain nothing, and scattered faults pay for
/// them.
const READ_AHEAD_KIB: u32 = 2048;

/// What the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub passthrough: bool,
    /// Directories need not be opened, and their listings are kept.
    pub no_opendir: bool,
}

/// Asks for the capabilities this mount works best with.
pub fn negotiate(config: &mut KernelConfig) -> Granted {
    for capability in [
        // Requests of one asynchronous direct read run beside each other.
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
        // A file shown as it is may grow in place: drop its pages then.
        InitFlags::FUSE_AUTO_INVAL_DATA,
    ] {
        if let Err(missing) = config.add_capabilities(capability) {
            debug!("kernel without {missing:?}");
        }
    }
    // Neither can fail: the values are not zero.
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(MAX_BACKGROUND / 4 * 3);

    // A depth of 2 lets the source lie on overlayfs, as in every container. The
    // price is that no overlayfs can have this mount as a layer.
    let passthrough = config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(2).is_ok();
    let no_opendir = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
    Granted {
        passthrough,
        no_opendir: no_opendir.is_ok(),
    }
}

/// Raises the read-ahead of the mount with device number `device`. At the
/// handshake the kernel grants no more than its default, so this is done from
/// outside, which only root may do.
pub fn raise_read_ahead(device: u64) {
    let (major, minor) = (libc::major(device), libc::minor(device));
    if major != 0 {
        // Every FUSE mount has an anonymous device; this is somebody's disk.
        return;
    }
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    match fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        Ok(()) => debug!("{setting} = {READ_AHEAD_KIB}"),
        Err(error) => info!(
            "{setting}: {error}. Sequential reads are faster after: \
             echo {READ_AHEAD_KIB} | sudo tee {setting}"
        ),
    }
}
