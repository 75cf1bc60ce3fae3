//! Why there is no checkpoint: its bytes cannot be read, or it is refused.

use super::refusal::{Cause, Refusal};
use crate::budget::TooMuch;
use crate::source;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(source::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<source::Error> for Error {
    /// A refusal that was found while bytes were read is one, and no failed read.
    fn from(error: source::Error) -> Error {
        if let source::Error::Io(error) = &error
            && let Some(refusal) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            return Error::Refused(Refusal::clone(refusal));
        }
        Error::Source(error)
    }
}

impl Error {
    /// The refusal that this amounts to, for whoever has no other way to say it.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Error::Refused(refusal) => refusal,
            Error::Source(error) => Refusal::new(Cause::Changing, error.to_string()),
        }
    }
}

impl From<TooMuch> for Error {
    fn from(much: TooMuch) -> Error {
        Error::Refused(much.into())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
