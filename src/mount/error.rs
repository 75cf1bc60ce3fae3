//! What can go wrong with a mount as a whole, in words and with the remedy.

use std::io;
use std::path::{Path, PathBuf};

use super::holders::Holders;
use crate::view;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{}: cannot be mounted: {why}. Give a directory that you may read", .path.display())]
    Source { path: PathBuf, why: view::Error },

    #[error("{}: no such directory, and {} is not there to make it in. Run: mkdir -p {}",
        .path.display(), .parent.display(), .path.display())]
    NoParent { path: PathBuf, parent: PathBuf },
    #[error("{}: not a directory. Choose a directory as mount point", .0.display())]
    NotADirectory(PathBuf),
    #[error("{}: already mounted ({fs_type} of {}). Unmount it first: {umount} {}",
        .path.display(), .source_name, .path.display())]
    AlreadyMounted {
        path: PathBuf,
        fs_type: String,
        source_name: String,
        umount: &'static str,
    },
    #[error("{}: not empty. Choose an empty directory, or cover what is in it with -o nonempty", .0.display())]
    NotEmpty(PathBuf),
    #[error("{}: lies inside the source {}. Choose a mount point outside of it",
        .path.display(), .source_dir.display())]
    InsideSource { path: PathBuf, source_dir: PathBuf },
    #[error("{}: would cover the source {}. Choose a mount point that does not contain it",
        .path.display(), .source_dir.display())]
    CoversSource { path: PathBuf, source_dir: PathBuf },

    #[error(
        "/dev/fuse: missing. Run: modprobe fuse. In a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
    )]
    NoDevice,
    #[error(
        "/dev/fuse: not open to you. Run: sudo chmod 666 /dev/fuse (the usual mode), or mount as root"
    )]
    DeviceDenied,
    #[error("fusermount3: not found. Install the package fuse3, or mount as root")]
    NoHelper,
    #[error("{}: --allow-other and --allow-root are not permitted to you. \
        Add the line user_allow_other to /etc/fuse.conf, or mount as root", .0.display())]
    AllowOther(PathBuf),
    #[error("{}: {message}", .path.display())]
    Helper { path: PathBuf, message: String },

    #[error("{}: nothing is mounted here", .0.display())]
    NotMounted(PathBuf),
    #[error("{}: a mount of type {fs_type}, not one of stfs. Use umount(8)", .path.display())]
    NotStfs { path: PathBuf, fs_type: String },
    #[error("{}: in use by {holders}. End that, detach the mount with --lazy, or end it with --force",
        .path.display())]
    Busy { path: PathBuf, holders: Holders },
    #[error("{}: not permitted. Unmount it as root or as the user who mounted it", .0.display())]
    NotPermitted(PathBuf),
    #[error("{}: unmounted, but its process {pid} is still there. Run: kill -9 {pid}", .path.display())]
    StillRunning { path: PathBuf, pid: i32 },
    #[error("{}: unmounted, and its process {pid} killed, but that waits in the kernel, perhaps for its source",
        .path.display())]
    StillWaiting { path: PathBuf, pid: i32 },
    #[error("{}: unmounted, but its process {pid} is stopped. It ends when it goes on. Run: kill -CONT {pid}",
        .path.display())]
    StillStopped { path: PathBuf, pid: i32 },
    #[error("{}: its process {pid} waits in the kernel, and only root can free it. \
        Run as root: stfs umount {}", .path.display(), .path.display())]
    Held { path: PathBuf, pid: i32 },
    #[error("{}: already mounted, and its process {pid} is stopped. Let it go on (kill -CONT {pid}), \
        or end it: stfs umount --force {}", .path.display(), .path.display())]
    Stopped { path: PathBuf, pid: i32 },

    #[error("{}: cannot {what}: {why}", .path.display())]
    Io {
        path: PathBuf,
        what: &'static str,
        why: io::Error,
    },
    /// What the background process said before it ended.
    #[error("{0}")]
    Background(String),
}

impl Error {
    /// Turns the reason why `what` cannot be done with `path` into an error.
    pub(super) fn io(path: &Path, what: &'static str) -> impl Fn(io::Error) -> Error + use<> {
        let path = path.to_owned();
        move |why| Error::Io {
            path: path.clone(),
            what,
            why,
        }
    }
}
