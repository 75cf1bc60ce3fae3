//! One opened source file: which file it is, its bytes by range, and a mapping
//! that replies to the kernel are taken from.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

mod metadata;

pub use metadata::{Identity, Metadata, is_circle};

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

/// Bytes of a reply.
#[derive(Debug)]
pub enum Bytes<'a> {
    /// Lies in a mapping of the source. Only to be handed to the kernel, never to
    /// be read by this process: the file may shrink at any moment, and then a
    /// read is SIGBUS where a system call is EFAULT.
    Mapped(&'a [u8]),
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
}

/// A regular file, open for reading.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    identity: Identity,
    /// None when the file system offers no mappings.
    mapping: OnceLock<Option<Mmap>>,
}

impl Source {
    /// Opens the regular file at `path`, following symbolic links. A named pipe
    /// is refused without waiting for its writer.
    pub fn open(path: &Path) -> io::Result<Source> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)?;
        let metadata = Metadata::from(file.metadata()?);
        if !metadata.is_file {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Source {
            path: path.to_path_buf(),
            identity: metadata.identity,
            file,
            mapping: OnceLock::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// The identity at the time of opening.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes, at the time of opening.
    pub fn size(&self) -> u64 {
        self.identity.size
    }

    /// Fails with [`Error::Changed`] when the open file no longer holds the bytes
    /// it was opened with.
    pub fn check(&self) -> Result<()> {
        let now = Metadata::from(self.file.metadata()?).identity;
        if self.identity.same_bytes(&now) {
            Ok(())
        } else {
            Err(Error::Changed)
        }
    }

    /// Fails with [`Error::Changed`] when anything about the inode moved since
    /// opening, its names included. What is derived from a read of the whole
    /// file may be kept under its identity only after this.
    pub fn check_identity(&self) -> Result<()> {
        if Metadata::from(self.file.metadata()?).identity == self.identity {
            Ok(())
        } else {
            Err(Error::Changed)
        }
    }

    /// Fills `buffer` with the bytes from `offset` on.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.require(offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Changed,
                _ => Error::Io(error),
            })
    }

    /// The `len` bytes from `offset` on. Nothing is allocated before the span is
    /// known to lie inside the file.
    pub fn read_at(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        self.require(offset, len)?;
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let mut buffer = vec![0; len];
        self.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// The `len` bytes from `offset` on for a reply to the kernel: a slice of the
    /// mapping where there is one, else read. The caller checks the file with
    /// [`Source::check`] first: a page that was cut in two reads as zeros.
    pub fn reply(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        self.require(offset, len as u64)?;
        let slice = self.mapping().and_then(|mapping| {
            let start = usize::try_from(offset).ok()?;
            mapping.get(start..start.checked_add(len)?)
        });
        match slice {
            Some(slice) => Ok(Bytes::Mapped(slice)),
            None => Ok(Bytes::Owned(self.read_at(offset, len as u64)?)),
        }
    }

    /// Lets the page cache forget the bytes of `stretch`. Those that other processes
    /// have mapped stay.
    pub fn let_go(&self, stretch: Range<u64>) {
        let len = stretch.end.saturating_sub(stretch.start);
        if let Some(Some(mapping)) = self.mapping.get()
            && let (Ok(start), Ok(len)) = (usize::try_from(stretch.start), usize::try_from(len))
        {
            // SAFETY: the mapping is of a file and never written to: what is taken
            // out of it is there again at the next access.
            let advised =
                unsafe { mapping.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
            if advised.is_err() {
                return;
            }
        }
        if let (Ok(start), Ok(len)) = (i64::try_from(stretch.start), i64::try_from(len)) {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            // Whether it is done makes no difference to what is read.
            let _ = posix_fadvise(&self.file, start, len, advice);
        }
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

    fn mapping(&self) -> Option<&Mmap> {
        self.mapping
            .get_or_init(|| {
                let len = usize::try_from(self.size()).ok()?;
                // SAFETY: the slice is handed out as `Bytes::Mapped` alone, whose
                // bytes this process never reads; the kernel copies them and turns
                // a page that has gone into EFAULT.
                unsafe { MmapOptions::new().len(len).map(&self.file) }.ok()
            })
            .as_ref()
    }
}

/// A stretch of a source, with offsets of its own.
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
