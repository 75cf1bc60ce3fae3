//! Why the store of converted files did not do what it was asked to. Each of these
//! leaves the checkpoint readable where it lies.

use std::io;
use std::path::{Path, PathBuf};

use indicatif::BinaryBytes;

use super::shortage::Shortage;
use crate::source;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {error}. The cache directory must be one that this user may write to")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: {error}. Free some space there, or make the cache smaller with --cache-size")]
    Full { path: PathBuf, error: io::Error },
    #[error("{size} do not fit into the cache: {shortage}", size = BinaryBytes(*.needed))]
    NoRoom { needed: u64, shortage: Shortage },
    #[error("{path}: is being written by another process or thread")]
    Busy { path: PathBuf },
    #[error("the copy was given up")]
    Aborted,
    #[error("{path}: changed while it was copied into the cache")]
    Changed { path: PathBuf },
    #[error("{path}: {error}. It was to be copied into the cache")]
    Source { path: PathBuf, error: source::Error },
    #[error("{path}: is a safetensors file already, and is read where it lies")]
    Native { path: PathBuf },
    #[error("{path}: {what}. The disk or file system of the cache loses data")]
    Damaged { path: PathBuf, what: &'static str },
}

impl Error {
    /// Whether it is for want of space, so that the next file is likely to fail too.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Error::NoRoom { .. } | Error::Full { .. })
    }

    /// Of something done to `path`, which lies in the cache directory.
    pub(super) fn at(path: &Path, error: impl Into<io::Error>) -> Error {
        let (path, error) = (path.to_path_buf(), error.into());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::Full { path, error }
            }
            _ => Error::Io { path, error },
        }
    }

    /// Of reading the source at `path`.
    pub(super) fn of_source(path: &Path, error: source::Error) -> Error {
        let path = path.to_path_buf();
        match error {
            source::Error::Changed => Error::Changed { path },
            error => Error::Source { path, error },
        }
    }
}
