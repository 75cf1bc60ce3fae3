//! How a converted file gets into the store: written under another name, checked,
//! and given its own when it is whole and on the disk.

use std::fs;
use std::io;
use std::ops::ControlFlow;

use super::Store;
use super::copy::Copy;
use super::error::Error;
use super::locks::{Attempt, Claim, Held, leads_to, open, remove, share};
use super::provenance::{Entry, Provenance, Stamp};
use crate::cache::directory::{Name, make};
use crate::convert::Reader;

/// What came of a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promotion {
    /// With the entries of the archive that are not what its checksums say.
    Made(Vec<String>),
    /// It was there.
    Already,
}

impl Promotion {
    /// What is to be said of the checkpoint, if something is.
    pub fn warning(&self) -> Option<String> {
        let Promotion::Made(mismatches) = self else {
            return None;
        };
        let (first, more) = mismatches.split_first()?;
        let others = match more.len() {
            0 => String::new(),
            more => format!(", nor that of {more} others"),
        };
        Some(format!(
            "the checksum of the entry `{}` does not match{others}: the file is damaged, or was \
             written so. torch does not look at checksums: what it would load is what is shown. \
             Download the file again if in doubt",
            first.escape_debug()
        ))
    }
}

impl Store {
    /// Puts what `reader` reads into the store as `name`. `step` is called with the bytes written so far, every few megabytes,
    /// and may take its time; what it breaks off leaves nothing behind.
    ///
    /// The reader must be of the file that `name` was made from: its source has to
    /// keep its version from before the reader was opened until after the copy.
    pub fn promote(
        &self,
        name: &Name,
        provenance: &Provenance,
        reader: &Reader,
        step: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Promotion, Error> {
        if reader.plan().is_native() {
            let path = provenance.source.clone();
            return Err(Error::Native { path });
        }
        if self.peek(name).is_some() {
            return Ok(Promotion::Already);
        }
        let claim = self.claim(name)?;
        // Another may have finished it before there was the claim.
        if self.peek(name).is_some() {
            return Ok(Promotion::Already);
        }
        let size = reader.plan().size();
        self.take_room(&claim, size, size)?;
        self.lend(reader);
        let mismatches = Copy::new(reader, &claim).run(step)?;
        self.finish(&claim, name, provenance)?;
        Ok(Promotion::Made(mismatches))
    }

    pub(super) fn claim(&self, name: &Name) -> Result<Claim, Error> {
        let root = self.directory.root();
        self.directory
            .prepare()
            .and_then(|()| make(&self.directory.incoming()))
            .map_err(|error| Error::at(root, error))?;
        let path = self.directory.incoming_file(name);
        let claim = Claim::take(&path).map_err(|error| Error::at(&path, error))?;
        match claim {
            Some(claim) if !self.is_busy(name)? => Ok(claim),
            _ => Err(Error::Busy {
                path: self.directory.file(name),
            }),
        }
    }

    /// Whether somebody is finishing or removing the file at this moment.
    fn is_busy(&self, name: &Name) -> Result<bool, Error> {
        let path = self.directory.file(name);
        let failed = |error| Error::at(&path, error);
        match open(&path) {
            Ok(file) => Ok(!share(&file).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Gives the file its name, and then its record. Until there is one, the lock of
    /// the claim keeps others from collecting it.
    fn finish(&self, claim: &Claim, name: &Name, provenance: &Provenance) -> Result<(), Error> {
        let path = self.directory.file(name);
        let failed = |error| Error::at(&path, error);
        let done = || -> io::Result<()> {
            make(path.parent().unwrap_or(self.directory.root()))?;
            // What is there has no record, or one that does not fit. A process that
            // removes it at this very moment may take the new file with it: then
            // that is made again.
            remove(&self.directory.record(name))?;
            if let Attempt::Held(old) = Held::existing(&path)? {
                old.remove()?;
            }
            fs::rename(claim.path(), &path)?;
            // The inode changes once more when it gets its name.
            let stamp = Stamp::from(&claim.file().metadata()?);
            let entry = Entry::new(provenance.clone(), stamp).encode(name);
            let entry = entry.ok_or(io::ErrorKind::InvalidFilename)?;
            let place = self.directory.record(name);
            self.directory.write_durably(&place, &[&entry])
        };
        done().map_err(|error| {
            if leads_to(&path, claim.file()).unwrap_or(false) {
                let _ = remove(&path);
            }
            failed(error)
        })
    }
}
