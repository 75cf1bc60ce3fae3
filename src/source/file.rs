//! One opened file of a source: which bytes it holds, those bytes by range, and
//! replies for the kernel.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{Metadata, Version};

/// Why bytes of a source could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file was truncated or written to after it was opened.
    #[error("the file changed while it was open")]
    Changed,
    #[error("the file ends at byte {size}, before byte {wanted}")]
    PastEnd { wanted: u64, size: u64 },
}

pub type Result<T> = std::result::Result<T, Error>;

/// What a source reads its bytes from. Offsets and lengths are in bytes, and were
/// found to lie inside the file as it was opened.
pub trait Ranges: Debug + Send + Sync {
    /// Fills `buffer` with the bytes from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()>;

    /// The `len` bytes from `offset` on.
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Which version the open file has now, its names included.
    fn version(&self) -> io::Result<Version>;

    /// The bytes `[offset, offset + len)` where they are mapped, to be handed to
    /// the kernel: those that the file was opened with, and nothing else.
    fn mapped(&self, offset: u64, len: usize) -> Option<Mapped<'_>> {
        let _ = (offset, len);
        None
    }

    /// Whether somebody has the file open for writing, as far as this machine knows.
    fn is_written_to(&self) -> bool {
        false
    }

    /// The file, where the kernel has it open.
    fn file(&self) -> Option<&File> {
        None
    }

    /// Lets the page cache forget the bytes of `extent`. Those that other processes
    /// have mapped stay. Whether it is done makes no difference to what is read.
    fn drop_pages(&self, extent: Range<u64>) {
        let _ = extent;
    }
}

/// Bytes in a mapping of a source, which stay what they are until this is dropped. Yet no
/// lender can hold a writer up for ever, and where the file shrinks a read is SIGBUS where
/// a system call is EFAULT: they are for the kernel alone, and not to be kept.
pub struct Mapped<'a> {
    bytes: &'a [u8],
    lender: &'a dyn Lender,
}

/// What keeps mapped bytes as they are for as long as somebody has them.
pub trait Lender: Sync {
    /// Somebody who had some has them no longer.
    fn returned(&self);
}

impl<'a> Mapped<'a> {
    /// `lender` has counted them as lent.
    pub(super) fn new(bytes: &'a [u8], lender: &'a dyn Lender) -> Mapped<'a> {
        Mapped { bytes, lender }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes, to be passed to a system call.
    ///
    /// # Safety
    /// Nothing but the kernel reads them: not a single byte may be looked at, copied
    /// or compared in this process.
    pub unsafe fn for_kernel(&self) -> &[u8] {
        self.bytes
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        self.lender.returned();
    }
}

impl Debug for Mapped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mapped({} bytes)", self.len())
    }
}

/// Bytes of a reply.
#[derive(Debug)]
pub enum Bytes<'a> {
    Mapped(Mapped<'a>),
    Owned(Vec<u8>),
}

impl Bytes<'_> {
    /// Bytes.
    pub fn len(&self) -> usize {
        match self {
            Bytes::Mapped(bytes) => bytes.len(),
            Bytes::Owned(bytes) => bytes.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, to be passed to a system call.
    ///
    /// # Safety
    /// As [`Mapped::for_kernel`].
    pub unsafe fn for_kernel(&self) -> &[u8] {
        match self {
            // SAFETY: the caller sees to it.
            Bytes::Mapped(bytes) => unsafe { bytes.for_kernel() },
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct Source {
    location: PathBuf,
    metadata: Metadata,
    ranges: Box<dyn Ranges>,
}

impl Source {
    /// `location` is for people; `metadata` are those at the time of opening.
    pub fn new(location: PathBuf, metadata: Metadata, ranges: Box<dyn Ranges>) -> Source {
        Source {
            location,
            metadata,
            ranges,
        }
    }

    /// For people: nothing is looked up by it.
    pub fn location(&self) -> &Path {
        &self.location
    }

    /// The file, where the kernel has it open: it may then read or copy by itself.
    pub fn file(&self) -> Option<&File> {
        self.ranges.file()
    }

    /// Those at the time of opening.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The version at the time of opening.
    pub fn version(&self) -> &Version {
        &self.metadata.version
    }

    /// Bytes, at the time of opening.
    pub fn size(&self) -> u64 {
        self.version().size
    }

    /// Fails with [`Error::Changed`] when the open file no longer holds the bytes
    /// it was opened with, or may not: a write that is under way has moved the stamps
    /// already, and those of the file are still so young that they may be of one.
    ///
    /// Every write moves them before it touches a byte. So what was read between two
    /// calls that succeed are the bytes that the file was opened with.
    pub fn check(&self) -> Result<()> {
        let now = self.ranges.version()?;
        let same = self.version().same_bytes(&now);
        match same && (now.settled || !self.ranges.is_written_to()) {
            true => Ok(()),
            false => Err(Error::Changed),
        }
    }

    /// Fails with [`Error::Changed`] when anything about the file moved since
    /// opening, its names included. What is derived from a read of the whole file
    /// may be kept under its version only after this.
    pub fn check_version(&self) -> Result<()> {
        match self.version().same_stamps(&self.ranges.version()?) {
            true => Ok(()),
            false => Err(Error::Changed),
        }
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.require(offset, buffer.len() as u64)?;
        self.ranges.read_exact_at(buffer, offset)
    }

    /// The `len` bytes from `offset` on. Nothing is allocated before the span is
    /// known to lie inside the file.
    pub fn read_at(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.require(offset, len)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.ranges.read_at(offset, len)
    }

    /// The bytes of several ranges, in their order. Those that lie close are read
    /// together; where a read takes long, many are under way at once.
    pub fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Vec<u8>>> {
        super::read_many(ranges, |offset, len| self.read_at(offset, len))
    }

    /// The `len` bytes from `offset` on for a reply to the kernel, which are those that
    /// the file was opened with: in a mapping where that is certain for as long as the
    /// reply takes, else read and checked. The caller has called [`Source::check`].
    pub fn reply(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        self.require(offset, len as u64)?;
        if let Some(mapped) = self.ranges.mapped(offset, len) {
            return Ok(Bytes::Mapped(mapped));
        }
        let bytes = self.read_at(offset, len as u64)?;
        self.check()?;
        Ok(Bytes::Owned(bytes))
    }

    /// The bytes `[offset, offset + len)` as they are now, cut where the file ends
    /// now: of a file that is shown as it is.
    pub fn read_now(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let mut buffer = vec![0; len];
        let mut filled = 0;
        let Some(file) = self.file() else {
            let len = self.size().saturating_sub(offset).min(len as u64);
            return self.read_at(offset, len).map_err(io::Error::other);
        };
        while filled < len {
            match file.read_at(&mut buffer[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    /// Lets the page cache forget the bytes of `extent`. Those that other processes
    /// have mapped stay.
    pub fn drop_pages(&self, extent: Range<u64>) {
        self.ranges.drop_pages(extent);
    }

    /// Whether small reads cost next to nothing: the file lies on a disk of this
    /// machine.
    pub fn is_near(&self) -> bool {
        self.version().file.system.is_near()
    }

    /// The file from its first byte to its last.
    pub fn span(&self) -> Span<'_> {
        Span {
            source: self,
            start: 0,
            len: self.size(),
        }
    }

    fn require(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            end => Err(Error::PastEnd {
                wanted: end.unwrap_or(u64::MAX),
                size,
            }),
        }
    }
}

/// An extent of a source, with offsets of its own.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    source: &'a Source,
    /// Bytes from the start of the file.
    start: u64,
    /// Bytes. The end lies inside the file.
    len: u64,
}

impl<'a> Span<'a> {
    /// `len` bytes of `source` from `start` on.
    ///
    /// # Errors
    /// [`Error::PastEnd`] unless they lie inside the file.
    pub fn new(source: &'a Source, start: u64, len: u64) -> Result<Span<'a>> {
        source.require(start, len)?;
        Ok(Span { source, start, len })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Bytes from the start of the file.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// As [`Source::is_near`].
    pub fn is_near(&self) -> bool {
        self.source.is_near()
    }

    /// As [`Source::read_at`], with an offset from the start of the span.
    pub fn read_at(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.require(offset, len)?;
        self.source.read_at(self.start + offset, len)
    }

    /// As [`Source::read_exact_at`], with an offset from the start of the span.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.require(offset, buffer.len() as u64)?;
        self.source.read_exact_at(buffer, self.start + offset)
    }

    /// As [`Source::read_ranges`], with offsets from the start of the span.
    pub fn read_ranges(&self, ranges: &[Range<u64>]) -> Result<Vec<Vec<u8>>> {
        super::read_many(ranges, |offset, len| self.read_at(offset, len))
    }

    fn require(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            end => Err(Error::PastEnd {
                wanted: end.unwrap_or(u64::MAX),
                size: self.len,
            }),
        }
    }
}
