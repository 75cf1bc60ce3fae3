//! An open file of this machine: reads by system call, and a mapping for the kernel
//! where a lease keeps that as it is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::buffer::spare_capacity;
use rustix::io::pread;

use super::inode::Inode;
use super::lease::Lease;
use crate::source::{Error, Mapped, Ranges, Result, System, Version};

/// File systems whose leases know of every writer (linux/magic.h). An overlay does not
/// know of those beneath it, nor a network of those elsewhere, and they say nothing of it.
const LEASED: [u64; 4] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
];

#[derive(Debug)]
pub struct Opened {
    file: Arc<File>,
    version: Version,
    /// None when the file system offers no mappings.
    mapping: OnceLock<Option<Mmap>>,
    /// None until it is asked for.
    lease: OnceLock<Asked>,
}

/// What became of the wish for a lease.
#[derive(Debug)]
enum Asked {
    /// It was taken while the file had the version that it was opened with.
    Granted(Arc<Lease>),
    /// Somebody has the file open for writing.
    Written,
    /// There is none to be had, which says nothing of the file.
    Unknown,
}

impl Opened {
    /// `version`: that of `file`, just opened.
    pub fn new(file: File, version: Version) -> Opened {
        Opened {
            file: Arc::new(file),
            version,
            mapping: OnceLock::new(),
            lease: OnceLock::new(),
        }
    }

    fn mapping(&self) -> Option<&Mmap> {
        self.mapping
            .get_or_init(|| {
                let len = usize::try_from(self.version.size).ok()?;
                // SAFETY: slices of it are handed out as `Mapped` alone, whose bytes
                // this process never reads; the kernel copies them and turns a page
                // that has gone into EFAULT.
                unsafe { MmapOptions::new().len(len).map(&*self.file) }.ok()
            })
            .as_ref()
    }

    fn lease(&self) -> &Asked {
        self.lease.get_or_init(|| match Lease::take(&self.file) {
            // What was written before it was taken has moved the stamps.
            Ok(lease) => match self.version() {
                Ok(now) if self.version.same_bytes(&now) => Asked::Granted(lease),
                _ => Asked::Unknown,
            },
            Err(Errno::EAGAIN) => Asked::Written,
            Err(_) => Asked::Unknown,
        })
    }

    fn leases_tell_all(&self) -> bool {
        let system = self.version.file.system;
        matches!(system, System::Lasting { kind, .. } if LEASED.contains(&kind))
    }
}

impl Ranges for Opened {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Error::Changed,
                _ => Error::Io(error),
            })
    }

    /// Without clearing what is written over.
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset.saturating_add(bytes.len() as u64);
            match pread(&*self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(Error::Changed),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        // There may be room for more.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn version(&self) -> io::Result<Version> {
        Ok(Inode::of(&self.file)?.version(self.version.file))
    }

    fn mapped(&self, offset: u64, len: usize) -> Option<Mapped<'_>> {
        if !self.leases_tell_all() {
            return None;
        }
        let Asked::Granted(lease) = self.lease() else {
            return None;
        };
        let start = usize::try_from(offset).ok()?;
        let bytes = self.mapping()?.get(start..start.checked_add(len)?)?;
        lease.lend(bytes)
    }

    fn is_written_to(&self) -> bool {
        match self.lease() {
            Asked::Granted(lease) => lease.is_broken(),
            Asked::Written => true,
            Asked::Unknown => false,
        }
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn drop_pages(&self, extent: Range<u64>) {
        let len = extent.end.saturating_sub(extent.start);
        if let Some(Some(mapping)) = self.mapping.get()
            && let (Ok(start), Ok(len)) = (usize::try_from(extent.start), usize::try_from(len))
        {
            // SAFETY: the mapping is of a file and never written to: what is taken
            // out of it is there again at the next access.
            let advised =
                unsafe { mapping.unchecked_advise_range(UncheckedAdvice::DontNeed, start, len) };
            if advised.is_err() {
                return;
            }
        }
        if let (Ok(start), Ok(len)) = (i64::try_from(extent.start), i64::try_from(len)) {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&self.file, start, len, advice);
        }
    }
}
