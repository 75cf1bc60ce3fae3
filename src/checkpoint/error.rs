//! Why there is no checkpoint: its bytes cannot be read, or it is refused.

use super::refusal::{Cause, Refusal};
use crate::source;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
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

pub type Result<T> = std::result::Result<T, Error>;
