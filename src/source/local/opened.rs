//! An open file of this machine: reads by system call, and a mapping for the
//! kernel.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use memmap2::{Mmap, MmapOptions, UncheckedAdvice};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::inode::Inode;
use crate::source::{Error, Mapped, Ranges, Result, Version};

#[derive(Debug)]
pub struct Opened {
    file: File,
    version: Version,
    /// None when the file system offers no mappings.
    mapping: OnceLock<Option<Mmap>>,
}

impl Opened {
    /// `version`: that of `file`, just opened.
    pub fn new(file: File, version: Version) -> Opened {
        Opened {
            file,
            version,
            mapping: OnceLock::new(),
        }
    }

    fn mapping(&self) -> Option<&Mmap> {
        self.mapping
            .get_or_init(|| {
                let len = usize::try_from(self.version.size).ok()?;
                // SAFETY: slices of it are handed out as `Mapped` alone, whose bytes
                // this process never reads; the kernel copies them and turns a page
                // that has gone into EFAULT.
                unsafe { MmapOptions::new().len(len).map(&self.file) }.ok()
            })
            .as_ref()
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

    fn version(&self) -> io::Result<Version> {
        Ok(Inode::of(&self.file)?.version(self.version.file))
    }

    fn mapped(&self, offset: u64, len: usize) -> Option<Mapped<'_>> {
        let start = usize::try_from(offset).ok()?;
        let bytes = self.mapping()?.get(start..start.checked_add(len)?)?;
        Some(Mapped::new(bytes))
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
