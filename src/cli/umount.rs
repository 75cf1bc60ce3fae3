//! `stfs umount`.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, say};
use crate::mount::{self, Manner};

/// End a mount
///
/// Returns when the mount and its process are gone, and within seconds in any case. A
/// mount whose process has died is cleared away. Of one that is in use it says by which
/// processes.
#[derive(Args)]
#[command(after_help = "Examples:
  stfs umount /mnt/models
  stfs umount --force /mnt/models")]
pub struct Arguments {
    /// Where the mount is
    mountpoint: PathBuf,
    /// Take the mount away even while it is in use: files that are open stay readable, and its process ends with the last of them
    #[arg(short, long, conflicts_with = "force")]
    lazy: bool,
    /// End the mount even while it is in use or its process does not answer: whoever uses it gets errors, and a process that has not ended after 10 seconds is killed
    #[arg(short, long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let manner = match (arguments.lazy, arguments.force) {
        (_, true) => Manner::Force,
        (true, _) => Manner::Lazy,
        _ => Manner::Ask,
    };
    if let Some(elsewhere) = mount::unmount(&arguments.mountpoint, manner)? {
        say(format_args!(
            "the same mount is at {} too, and goes on there",
            elsewhere.display()
        ));
    }
    Ok(())
}
