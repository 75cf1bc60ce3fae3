//! The local headers of the zip archives that a plan was made from, where nobody has
//! looked at them yet: planning predicts what they say. All are looked at together
//! before the first byte behind one is handed out.

use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::files::Files;
use crate::checkpoint::{ArchiveEntry, Checksum, Refusal, check_headers};
use crate::source::{Error, Result};

/// The entries that tensors lie in, and what their headers said.
#[derive(Debug)]
pub struct Headers {
    entries: Box<[ArchiveEntry]>,
    /// What was found, once somebody has looked.
    found: OnceLock<Option<Refusal>>,
    /// Held by whoever looks: the others wait for what he finds.
    looking: Mutex<()>,
}

impl Headers {
    pub fn new(entries: Vec<ArchiveEntry>) -> Headers {
        let found = match entries.iter().any(|entry| entry.is_predicted) {
            true => OnceLock::new(),
            false => None.into(),
        };
        Headers {
            entries: entries.into(),
            found,
            looking: Mutex::new(()),
        }
    }

    /// Fails unless the headers in `files` say what they were predicted to. They are
    /// read once, whoever asks.
    ///
    /// # Errors
    /// Those of [`refused`], for good; [`Error::Changed`], or that of a read.
    pub fn check(&self, files: &Files) -> Result<()> {
        if self.found.get().is_none() {
            let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
            if self.found.get().is_none() {
                let found = self.look(files)?;
                // Of another file they would say nothing.
                files.check()?;
                let _ = self.found.set(found);
            }
        }
        match self.refusal() {
            None => Ok(()),
            Some(refusal) => Err(refused(refusal)),
        }
    }

    /// Why the checkpoint is refused, once somebody has looked.
    pub fn refusal(&self) -> Option<Refusal> {
        self.found.get().cloned().flatten()
    }

    pub fn checksums(&self) -> impl Iterator<Item = Checksum<'_>> {
        self.entries.iter().filter_map(ArchiveEntry::checksum)
    }

    /// Bytes of memory that they take, about.
    pub fn weight(&self) -> usize {
        let entries = self.entries.iter();
        entries
            .map(|entry| size_of::<ArchiveEntry>() + entry.name.len())
            .sum()
    }

    fn look(&self, files: &Files) -> Result<Option<Refusal>> {
        for (companion, file) in files.all() {
            if let Some(refusal) = check_headers(&self.entries, companion, file)? {
                return Ok(Some(refusal));
            }
        }
        Ok(None)
    }
}

/// The error of reads of a checkpoint that is refused now that its headers have been
/// looked at: of the kind [`io::ErrorKind::InvalidData`], with the [`Refusal`] inside.
fn refused(refusal: Refusal) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::InvalidData, refusal))
}
