//! Pickles that are read from end to end and must not be attacks: single ones, and
//! those that follow each other in a file, with other bytes around them. Only as
//! much of a file is read as the opcodes take.

use super::error::{Error, Result};
use super::preamble::PlainPickle;
use super::refusal::{Cause, Refusal};
use super::verdict;
use crate::budget::Share;
use crate::pickle::{self, ErrorKind, Limits, ParseError, Pickle, ReadAt, Window};
use crate::source::{self, Source, Span};

/// Pickles are read where they lie in the file.
impl ReadAt for Source {
    type Error = source::Error;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> source::Result<()> {
        Source::read_exact_at(self, buffer, offset)
    }
}

/// The same of a stretch of a file, with its own offsets.
impl ReadAt for Span<'_> {
    type Error = source::Error;

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> source::Result<()> {
        Span::read_exact_at(self, buffer, offset)
    }
}

/// Reads pickles one after the other.
pub struct Pickles<'a> {
    source: &'a Source,
    window: &'a Window<'a, Source>,
    share: &'a Share,
    at: u64,
}

impl<'a> Pickles<'a> {
    /// Those from byte `offset` of the file on.
    pub fn new(
        source: &'a Source,
        window: &'a Window<'a, Source>,
        share: &'a Share,
        offset: u64,
    ) -> Pickles<'a> {
        Pickles {
            source,
            window,
            share,
            at: offset,
        }
    }

    /// The next pickle. What is dangerous in it is refused.
    pub fn next(&mut self) -> Result<Pickle<'a>> {
        let pickle = parse_at(self.window, self.at, self.share)?;
        self.at = pickle.end();
        Ok(pickle)
    }

    /// The next pickle, which is of plain values.
    pub fn next_plain(&mut self) -> Result<PlainPickle<'a>> {
        let (start, window) = (self.at, self.window);
        let pickle = self.next()?;
        let end = pickle.end();
        // Once as bytes, and once as values.
        self.share.take((end - start).saturating_mul(2))?;
        PlainPickle::new(&pickle, end - start, || Ok(window.bytes(start..end)?))
    }

    /// The bytes after the last pickle.
    pub fn take(&mut self, len: u64) -> Result<Vec<u8>> {
        let bytes = self.source.read_at(self.at, len);
        let bytes = bytes.map_err(|error| cut_off(error, "inside a record"))?;
        self.at += len;
        Ok(bytes)
    }

    /// Leaves out bytes after the last pickle.
    pub fn skip(&mut self, len: u64) {
        self.at = self.at.saturating_add(len);
    }

    /// Bytes from the start of the file to what was not read yet.
    pub fn offset(&self) -> u64 {
        self.at
    }
}

/// The pickles of the whole of `source` can be read through this.
pub fn window(source: &Source) -> Window<'_, Source> {
    Window::new(source, source.size())
}

/// The pickle at the start of `bytes`, which must not be an attack.
pub fn parse<'p>(bytes: &'p [u8], share: &Share) -> Result<Pickle<'p>> {
    harmless(pickle::parse(bytes, &Limits::sharing(share)).map_err(ParseError::Pickle))
}

/// The same of bytes so few that nothing needs to be taken for them.
pub fn parse_small(bytes: &[u8]) -> Result<Pickle<'_>> {
    harmless(pickle::parse(bytes, &Limits::default()).map_err(ParseError::Pickle))
}

/// The pickle at `offset` of what `window` shows, which must not be an attack.
pub fn parse_at<'p, R>(window: &'p Window<'_, R>, offset: u64, share: &Share) -> Result<Pickle<'p>>
where
    R: ReadAt<Error = source::Error>,
{
    harmless(pickle::parse_at(window, offset, &Limits::sharing(share)))
}

fn harmless<'p>(
    pickle: std::result::Result<Pickle<'p>, ParseError<source::Error>>,
) -> Result<Pickle<'p>> {
    let pickle = pickle.map_err(refuse)?;
    match verdict::find_in(&pickle) {
        Some(attack) => Err(attack.into()),
        None => Ok(pickle),
    }
}

/// Why a pickle that cannot be read to its end is refused.
pub fn refuse(failure: ParseError<source::Error>) -> Error {
    let error = match failure {
        ParseError::Pickle(error) => error,
        ParseError::Read(error) => return error.into(),
    };
    if let Some(attack) = verdict::find(&error.imports) {
        return attack.into();
    }
    if let ErrorKind::Memory(much) = error.kind {
        return much.into();
    }
    let cause = match error.kind {
        ErrorKind::NoStop | ErrorKind::NoNewline | ErrorKind::Truncated { .. } => {
            Cause::NotDownloaded
        }
        ErrorKind::Limit { .. } => Cause::TooLarge,
        _ => Cause::Malformed,
    };
    Refusal::new(cause, format!("its pickle is broken: {error}")).into()
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
