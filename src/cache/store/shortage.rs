//! Why the store may not take more, in words that say what to do.

use std::path::PathBuf;

use indicatif::BinaryBytes;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{root} may take {limit}{cause}", root = .root.display(), limit = BinaryBytes(*.limit))]
pub struct Shortage {
    /// The cache directory.
    pub root: PathBuf,
    /// Bytes that it may take.
    pub limit: u64,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// By the user.
    #[error(", as --cache-size says. Raise it")]
    Asked,
    #[error(
        ": {free} of its file system are free, and {reserve} stay so. Free some space there, name a \
         directory on another disk with --cache-dir, or say with --cache-size how much it may take",
        free = BinaryBytes(*.free), reserve = BinaryBytes(*.reserve)
    )]
    Reserved { free: u64, reserve: u64 },
    #[error(
        ": there is no more on its file system. Free some space there, or name a directory on \
         another disk with --cache-dir"
    )]
    Full,
    #[error(
        ", and what is open stays. Raise --cache-size, free some space, or end the mounts and \
         programs that use it"
    )]
    InUse,
}
