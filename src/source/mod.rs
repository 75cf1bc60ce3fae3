//! The one door for bytes: a tree of directories and files below one root, and
//! the files in it by ranges.
//!
//! ```text
//! version   which bytes a file holds, and how far that can be trusted
//! file      one opened file: ranges, replies for the kernel, its version
//! local     a directory of this machine, everything relative to its descriptor
//! memory    a tree in memory, with faults and delays on demand
//! ```

mod file;
pub mod local;
mod many;
pub mod memory;
mod version;

use std::ffi::{OsStr, OsString};
use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use file::{Bytes, Error, Lender, Mapped, Ranges, Result, Source, Span};
pub use local::{Links, LocalTree};
pub use many::read_many;
pub use version::{FileId, Metadata, Rights, System, Version};

/// A directory of a source, held: what is found through it lies in it, whatever
/// becomes of its path meanwhile. The root of the source is one too.
pub trait Tree: Debug + Send + Sync {
    /// From the root of the source; empty for the root itself.
    fn path(&self) -> &Path;

    /// For people: where the directory is, on this machine or elsewhere. Nothing is
    /// ever looked up by it.
    fn location(&self) -> PathBuf;

    /// Those of the directory at the moment it was entered.
    fn metadata(&self) -> &Metadata;

    /// The directory at `path` from the root of the source, whichever directory of
    /// it this is.
    ///
    /// # Errors
    /// There is none, or the root is gone: that is [`io::ErrorKind::NotConnected`],
    /// and never an empty directory.
    fn enter(&self, path: &Path) -> io::Result<Arc<dyn Tree>>;

    /// The names in the directory, in no order, without `.` and `..`.
    fn list(&self) -> io::Result<Vec<OsString>>;

    /// What stands under `name` in the directory. Symbolic links are followed as
    /// far as the tree permits. What is not there is [`Found::Missing`], also a
    /// name that the file system could not have.
    fn stat(&self, name: &OsStr) -> io::Result<Found>;

    /// Opens the regular file `name` in the directory, as [`Tree::stat`] finds it. A
    /// named pipe is refused without waiting for its writer.
    fn open(&self, name: &OsStr) -> io::Result<Source>;

    /// What tells the file `name` from others over remounts: what the file system
    /// is mounted from, and the path in it. None where that cannot be told.
    fn address(&self, name: &OsStr) -> Option<Vec<u8>>;

    /// The directory, where this machine has it and no link led here.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether what is found in the directory changes only when it or a file in it does:
    /// no link leads elsewhere, and no file has another name.
    fn stands_alone(&self) -> bool {
        false
    }

    /// The figures of the file system.
    fn space(&self) -> io::Result<Space>;
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Missing,
    Directory(Metadata),
    File(Metadata),
    /// A pipe, socket or device.
    Special,
    /// A symbolic link that is not followed: the metadata are its own. Or a mount that is
    /// not touched: they are those of the directory that the name is in.
    Blocked(Metadata, Obstacle),
}

/// Why a symbolic link is not followed, or a mount not touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    #[error("this symbolic link leads nowhere: the file it names does not exist")]
    Nowhere,
    #[error("this symbolic link leads in a circle")]
    Circle,
    #[error(
        "this symbolic link leads out of the mounted directory, which is not followed when other \
         users may read the mount"
    )]
    Outside,
    #[error(
        "this symbolic link leads through a directory that not everybody may enter, which is not \
         followed when other users may read the mount"
    )]
    Private,
    #[error("this symbolic link leads back to a directory that it lies in")]
    Upwards,
    #[error("what this symbolic link leads to may not be looked at")]
    Forbidden,
    #[error(
        "this leads into this mount itself, or into one of stfs that was mounted later and could \
         lead back here"
    )]
    Younger,
}

impl From<Obstacle> for io::Error {
    fn from(obstacle: Obstacle) -> io::Error {
        match obstacle {
            Obstacle::Nowhere => io::ErrorKind::NotFound.into(),
            _ => io::Error::new(io::ErrorKind::PermissionDenied, obstacle.to_string()),
        }
    }
}

/// The figures of a file system, as `statvfs` gives them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}
