//! Why an operation on the tree failed.

use std::io;

use crate::source;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such file or directory")]
    NotFound,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    /// The source file behind the node is no longer the one the node was made from.
    #[error("the source changed")]
    Stale,
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// What is gone is to be looked up again.
pub(super) fn gone(error: io::Error) -> Error {
    use io::ErrorKind::{NotADirectory, NotFound, StaleNetworkFileHandle};
    match error.kind() {
        NotFound | NotADirectory | StaleNetworkFileHandle => Error::Stale,
        _ => Error::Io(error),
    }
}

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Error {
        match error {
            source::Error::Io(error) => gone(error),
            source::Error::Changed => Error::Stale,
            error @ source::Error::PastEnd { .. } => Error::Io(io::Error::other(error)),
        }
    }
}
