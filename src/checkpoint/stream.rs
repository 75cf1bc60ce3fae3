//! Pickles that follow each other in a file, with other bytes around them. Only
//! as much of the file is read as they take.

use super::refusal::{Cause, Refusal};
use super::{Error, Result, danger};
use crate::pickle::{self, ErrorKind, Limits, Pickle};
use crate::source::{self, Source};

/// How much is read at first, and then as long as a pickle goes on.
const STEPS: [u64; 4] = [256 << 10, 4 << 20, 32 << 20, 256 << 20];

/// Reads pickles one after the other.
pub struct Pickles<'a> {
    bytes: &'a [u8],
    /// Bytes from the start of the file to `bytes`.
    start: u64,
    at: usize,
    /// The file goes on after `bytes`.
    more: bool,
}

/// Why a pickle could not be had.
pub enum Failure {
    /// It goes on after the bytes that were read.
    TooShort,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Error(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Error(refusal.into())
    }
}

/// Calls `read` with the pickles from `offset` on: again with more of the file
/// as long as one is cut off.
pub fn with_pickles<T>(
    source: &Source,
    offset: u64,
    mut read: impl FnMut(Pickles<'_>) -> std::result::Result<T, Failure>,
) -> Result<T> {
    let left = source.size().saturating_sub(offset);
    for step in STEPS {
        let bytes = source.read_at(offset, left.min(step))?;
        let pickles = Pickles {
            bytes: &bytes,
            start: offset,
            at: 0,
            more: step < left,
        };
        match read(pickles) {
            Ok(value) => return Ok(value),
            Err(Failure::Error(error)) => return Err(error),
            Err(Failure::TooShort) => {}
        }
    }
    Err(Refusal::new(Cause::TooLarge, "its pickle is longer than 256 MiB").into())
}

impl<'a> Pickles<'a> {
    /// The next pickle.
    pub fn next(&mut self) -> std::result::Result<Pickle<'a>, Failure> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let error = match pickle::parse(rest, &Limits::default()) {
            Ok(pickle) => {
                self.at += pickle.end();
                return Ok(pickle);
            }
            Err(error) => error,
        };
        let cut_off = matches!(
            error.kind,
            ErrorKind::NoStop | ErrorKind::NoNewline | ErrorKind::Truncated { .. }
        );
        if cut_off && self.more {
            return Err(Failure::TooShort);
        }
        if let Some(attack) = danger::find(&error.imports) {
            return Err(attack.into());
        }
        let cause = match cut_off {
            true => Cause::NotDownloaded,
            false => Cause::Malformed,
        };
        Err(Refusal::new(cause, format!("its pickle is broken: {error}")).into())
    }

    /// The bytes after the last pickle; too few of them when the file ends.
    pub fn take(&mut self, len: usize) -> std::result::Result<&'a [u8], Failure> {
        let end = self.at.checked_add(len);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None if self.more => Err(Failure::TooShort),
            None => Err(Refusal::new(Cause::NotDownloaded, "the file was cut off").into()),
        }
    }

    /// Bytes from the start of the file to what follows the last pickle.
    pub fn offset(&self) -> u64 {
        self.start + self.at as u64
    }
}

/// A read past the end of the file means that it was cut off there.
pub fn cut_off(error: source::Error, place: &str) -> Error {
    match error {
        source::Error::PastEnd { .. } => Refusal::new(
            Cause::NotDownloaded,
            format!("the file ends {place}: it was cut off"),
        )
        .into(),
        error => error.into(),
    }
}
