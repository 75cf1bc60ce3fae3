//! Where the bytes of a pickle come from: a slice, or a file of which only the
//! opcodes are read.

use std::borrow::Cow;
use std::cell::Cell;
use std::convert::Infallible;
use std::ops::Range;

use elsa::FrozenVec;

use super::error::{ErrorKind, Stop};
use super::limits::Limits;

/// Bytes that are read by range.
pub trait ReadAt {
    /// Why bytes could not be read.
    type Error;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// The bytes cannot be read, or end before the buffer is full.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Self::Error>;
}

/// What the machine reads from. `'a` is how long the bytes stay.
pub(super) trait Input<'a> {
    type Error;

    /// Bytes from the start of the file to the end of the input.
    fn end(&self) -> u64;

    /// Payloads longer than this are left apart.
    fn apart(&self, limits: &Limits) -> u64;

    /// `wanted` bytes from `offset` on, or more; they lie before the end.
    fn hold(
        &self,
        offset: u64,
        wanted: u64,
        limits: &Limits,
    ) -> Result<&'a [u8], Stop<Self::Error>>;
}

impl<'a> Input<'a> for &'a [u8] {
    type Error = Infallible;

    fn end(&self) -> u64 {
        self.len() as u64
    }

    fn apart(&self, _: &Limits) -> u64 {
        u64::MAX
    }

    fn hold(&self, offset: u64, _: u64, _: &Limits) -> Result<&'a [u8], Stop<Infallible>> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        Ok(rest.unwrap_or_default())
    }
}

/// A file that pickles are read from. It keeps what was read for as long as
/// their objects borrow from it.
///
/// Reads follow the opcodes: the first one, and each after a payload left apart,
/// is short, and those that continue it double.
pub struct Window<'s, R: ?Sized> {
    source: &'s R,
    end: u64,
    first_read: u64,
    chunks: FrozenVec<Box<Chunk>>,
    /// Bytes in all chunks.
    held: Cell<u64>,
}

/// Bytes that were read together.
struct Chunk {
    /// Bytes from the start of the file.
    offset: u64,
    bytes: Vec<u8>,
}

impl Chunk {
    /// What there is from `offset` on, which may be where the chunk ends; None before
    /// and behind, and of an empty chunk.
    fn from(&self, offset: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        let rest = self.bytes.get(start..)?;
        (!self.bytes.is_empty()).then_some(rest)
    }
}

/// About the opcodes around one array.
const FIRST_READ: u64 = 512;
const LONGEST_READ: u64 = 4 << 20;

impl<'s, R: ReadAt + ?Sized> Window<'s, R> {
    /// The bytes of `source` up to `end`, which is its size or less: no pickle
    /// reaches beyond.
    pub fn new(source: &'s R, end: u64) -> Window<'s, R> {
        Window {
            source,
            end,
            first_read: FIRST_READ,
            chunks: FrozenVec::new(),
            held: Cell::new(0),
        }
    }

    /// Sets the bytes of a read that continues no other (512 by default).
    pub fn first_read(self, bytes: u64) -> Window<'s, R> {
        Window {
            first_read: bytes.clamp(1, LONGEST_READ),
            ..self
        }
    }

    /// Keeps `bytes`, which were read already: those of the file from `offset` on.
    pub fn holding(self, offset: u64, bytes: Vec<u8>) -> Window<'s, R> {
        self.held
            .set(self.held.get().saturating_add(bytes.len() as u64));
        self.chunks.push(Box::new(Chunk { offset, bytes }));
        self
    }

    /// The bytes of `range` of the file, which are read if they are not kept.
    ///
    /// # Errors
    ///
    /// They cannot be read, or reach beyond the end.
    pub fn bytes(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, R::Error> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut chunks = self.chunks.iter();
        if let Some(bytes) = chunks.find_map(|chunk| chunk.from(range.start)?.get(..len)) {
            return Ok(bytes.into());
        }
        let mut bytes = vec![0; len];
        self.source.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    }

    /// Bytes read and kept so far.
    pub fn held(&self) -> u64 {
        self.held.get()
    }
}

impl<'a, R: ReadAt + ?Sized> Input<'a> for &'a Window<'_, R> {
    type Error = R::Error;

    fn end(&self) -> u64 {
        self.end
    }

    fn apart(&self, limits: &Limits) -> u64 {
        limits.apart
    }

    fn hold(&self, offset: u64, wanted: u64, limits: &Limits) -> Result<&'a [u8], Stop<R::Error>> {
        let last = self.chunks.last();
        let next_read = match last.and_then(|last| Some((last, last.from(offset)?))) {
            Some((_, rest)) if rest.len() as u64 >= wanted => return Ok(rest),
            Some((last, _)) => (last.bytes.len() as u64 * 2).min(LONGEST_READ),
            None => self.first_read,
        };

        let beyond = || ErrorKind::Limit {
            what: "bytes held of the file",
            limit: limits.held,
        };
        let length = next_read.max(wanted).min(self.end.saturating_sub(offset));
        let held = self.held.get().saturating_add(length);
        let size = usize::try_from(length).map_err(|_| beyond())?;
        if held > limits.held {
            return Err(beyond().into());
        }
        limits.take(length)?;
        let mut bytes = vec![0; size];
        self.source
            .read_exact_at(&mut bytes, offset)
            .map_err(Stop::Read)?;
        self.held.set(held);
        let chunk = Box::new(Chunk { offset, bytes });
        Ok(&self.chunks.push_get(chunk).bytes)
    }
}
