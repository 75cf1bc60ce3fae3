//! Copies a converted file into an empty one, piece by piece, and makes sure of it.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::unistd::{Whence, lseek};

use super::checksums::{Checksums, Mismatches};
use super::error::Error;
use super::locks::Claim;
use crate::convert::{Reader, Segment};
use crate::source;

/// Bytes between two looks at the source, and at the caller's wishes.
const CHUNK: u64 = 4 << 20;

pub struct Copy<'a> {
    reader: &'a Reader,
    claim: &'a Claim,
    /// Bytes on their way, when the kernel does not copy by itself.
    buffer: Vec<u8>,
    by_kernel: bool,
    checksums: Checksums,
}

impl<'a> Copy<'a> {
    pub fn new(reader: &'a Reader, claim: &'a Claim) -> Copy<'a> {
        Copy {
            reader,
            claim,
            buffer: Vec::new(),
            by_kernel: saves_a_copy(claim.file()),
            checksums: Checksums::of(reader),
        }
    }

    /// Writes the whole file to the disk, and tells which entries of the archive are
    /// not what its checksums say.
    ///
    /// # Errors
    /// [`Error::Changed`] unless the source is what it was when it was opened, in
    /// every respect that its inode knows of: by that it is called in the cache.
    pub fn run(
        mut self,
        step: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Mismatches, Error> {
        let size = self.reader.plan().size();
        let mut at = 0;
        while at < size {
            // Whole chunks of the copy lie in the largest folios there are.
            at += match self.reader.segment(at, CHUNK - at % CHUNK) {
                Segment::Direct { from, len } => self.copy(from, at, len)?,
                Segment::Assembled { len } => self.write(None, at, len)?,
            };
            self.reader.check().map_err(|error| self.lost(error))?;
            if step(at).is_break() {
                return Err(Error::Aborted);
            }
        }
        self.file().sync_all().map_err(|error| self.failed(error))?;
        self.check(size)?;
        let checksums = std::mem::take(&mut self.checksums);
        let mismatches = checksums
            .finish(self.reader)
            .map_err(|error| self.lost(error))?;
        self.reader
            .check_version()
            .map_err(|error| self.lost(error))?;
        Ok(mismatches)
    }

    fn file(&self) -> &File {
        self.claim.file()
    }

    /// Copies bytes that lie in the source, or the first of them. Says how many.
    fn copy(&mut self, from: u64, at: u64, len: u64) -> Result<u64, Error> {
        while self.by_kernel {
            let (mut input, mut output) = (self.offset(from)?, self.offset(at)?);
            let Some(source) = self.reader.source().file() else {
                break;
            };
            let (input, output) = (Some(&mut input), Some(&mut output));
            match copy_file_range(source, input, self.file(), output, len as usize) {
                // The source ends too early or cannot be read: reading says what it is.
                Ok(0) | Err(Errno::EIO) => break,
                Ok(copied) => return Ok(copied as u64),
                Err(Errno::EINTR) => {}
                Err(error @ (Errno::ENOSPC | Errno::EDQUOT)) => {
                    return Err(self.failed(error));
                }
                // Not between these two files, or not here at all.
                Err(_) => self.by_kernel = false,
            }
        }
        self.write(Some(from), at, len)
    }

    /// Writes bytes that are put together, or lie in the source from `from` on.
    fn write(&mut self, from: Option<u64>, at: u64, len: u64) -> Result<u64, Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        self.reader
            .read_to(at, len as usize, &mut buffer)
            .map_err(|error| self.lost(error))?;
        self.file()
            .write_all_at(&buffer, at)
            .map_err(|error| self.failed(error))?;
        if let Some(from) = from {
            self.checksums.pass(from, &buffer);
        }
        self.buffer = buffer;
        match self.buffer.len() as u64 == len && len > 0 {
            true => Ok(len),
            false => Err(self.damaged("the plan of it ends too early")),
        }
    }

    /// Looks at what the file system made of all that.
    fn check(&mut self, size: u64) -> Result<(), Error> {
        let file = self.file();
        let metadata = file.metadata().map_err(|error| self.failed(error))?;
        if metadata.len() != size {
            return Err(self.damaged("has another size than what was written"));
        }
        let header = self.reader.plan().header();
        let mut found = vec![0; header.len()];
        file.read_exact_at(&mut found, 0)
            .map_err(|error| self.failed(error))?;
        if found != header {
            return Err(self.damaged("begins with other bytes than what was written"));
        }
        self.check_holes(size)
    }

    /// A hole is where nothing was written, or where the file system keeps zeros:
    /// it may have one for zeros alone.
    fn check_holes(&mut self, size: u64) -> Result<(), Error> {
        let mut at = 0;
        while at < size {
            let hole = match lseek(self.file(), self.offset(at)?, Whence::SeekHole) {
                Ok(hole) => u64::try_from(hole).unwrap_or(size),
                // The file system does not tell.
                Err(_) => return Ok(()),
            };
            if hole >= size {
                return Ok(());
            }
            at = match lseek(self.file(), self.offset(hole)?, Whence::SeekData) {
                Ok(data) => u64::try_from(data).unwrap_or(size).min(size),
                Err(Errno::ENXIO) => size,
                Err(error) => return Err(self.failed(error)),
            };
            self.check_zeros(hole, at)?;
        }
        Ok(())
    }

    fn check_zeros(&mut self, start: u64, end: u64) -> Result<(), Error> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut at = start;
        while at < end {
            let len = CHUNK.min(end - at);
            self.reader
                .read_to(at, len as usize, &mut buffer)
                .map_err(|error| self.lost(error))?;
            if buffer.iter().any(|byte| *byte != 0) {
                return Err(self.damaged("has a hole where something was written"));
            }
            at += len;
        }
        self.buffer = buffer;
        Ok(())
    }

    /// As system calls have it.
    fn offset(&self, bytes: u64) -> Result<i64, Error> {
        i64::try_from(bytes).map_err(|_| self.failed(Errno::EFBIG))
    }

    fn failed(&self, error: impl Into<io::Error>) -> Error {
        Error::at(self.claim.path(), error)
    }

    fn lost(&self, error: source::Error) -> Error {
        Error::of_source(self.reader.source().location(), error)
    }

    fn damaged(&self, what: &'static str) -> Error {
        let path = self.claim.path().to_path_buf();
        Error::Damaged { path, what }
    }
}

/// Whether the file system of `file` can copy without moving the bytes: by sharing
/// them, or on its server. On the others copy_file_range moves them page by page,
/// and leaves them in the page cache in single pages: the copy is made in half the
/// time, and every load of it takes an eighth longer.
fn saves_a_copy(file: &File) -> bool {
    use nix::sys::statfs::{
        BTRFS_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OCFS2_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs,
    };
    /// linux/magic.h: `SMB2_SUPER_MAGIC`, `CEPH_SUPER_MAGIC`, and bcachefs' `BCACHEFS_STATFS_MAGIC`.
    const OTHERS: [u32; 3] = [0xfe53_4d42, 0x00c3_6400, 0xca45_1a4e];
    let sharing = [
        BTRFS_SUPER_MAGIC,
        XFS_SUPER_MAGIC,
        OCFS2_SUPER_MAGIC,
        NFS_SUPER_MAGIC,
    ];
    fstatfs(file).is_ok_and(|fs| {
        let FsType(kind) = fs.filesystem_type();
        sharing.iter().any(|FsType(known)| kind == *known) || OTHERS.contains(&(kind as u32))
    })
}
