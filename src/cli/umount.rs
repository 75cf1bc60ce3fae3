//! `stfs umount`.

use std::path::PathBuf;

use clap::Args;

use super::Failure;
use crate::mount;

/// End a mount
///
/// Returns when the mount and its process are gone. A mount whose process has
/// died is cleared away.
#[derive(Args)]
#[command(after_help = "Example:\n  stfs umount /mnt/models")]
pub struct Arguments {
    /// Where the mount is
    mountpoint: PathBuf,
    /// Take the mount away even while it is in use: files that are open stay readable, and its process ends with the last of them
    #[arg(short, long)]
    lazy: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    Ok(mount::unmount(&arguments.mountpoint, arguments.lazy)?)
}
