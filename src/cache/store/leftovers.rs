//! What processes that were killed left behind, and how it goes.

use std::path::PathBuf;

use super::Store;
use super::error::Error;
use super::inventory::{Inventory, entries, folders};
use super::locks::{Attempt, Claim, Held, remove};
use crate::cache::directory::{Name, is_abandoned};

impl Store {
    /// Removes files that nobody writes, or will ever read, and says how many. An
    /// error keeps none of the others from going.
    pub fn collect(&self) -> Result<usize, Error> {
        let inventory = Inventory::take(&self.directory)?;
        let unrecorded = inventory.data.keys();
        let unrecorded = unrecorded.filter(|name| !inventory.records.contains_key(name));
        let empty = inventory.records.keys();
        let empty = empty.filter(|name| !inventory.data.contains_key(name));
        let results = unrecorded
            .map(|name| self.collect_unrecorded(name))
            .chain(empty.map(|name| self.collect_record(name)))
            .chain(inventory.incoming.keys().map(|name| self.unclaim(name)))
            .chain(self.abandoned()?.into_iter().map(|path| {
                remove(&path).map_err(|error| Error::at(&path, error))?;
                Ok(true)
            }));
        let (mut removed, mut failed) = (0, None);
        for result in results {
            match result {
                Ok(true) => removed += 1,
                Ok(false) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    /// Small files that will never be finished, wherever stfs writes some.
    fn abandoned(&self) -> Result<Vec<PathBuf>, Error> {
        let mut places = vec![self.directory.root().to_path_buf()];
        places.extend(folders(&self.directory.files())?);
        places.extend(folders(&self.directory.plans())?);
        let mut abandoned = Vec::new();
        for place in places {
            entries(&place, |entry, metadata| {
                abandoned.extend(is_abandoned(&entry.file_name(), metadata).then(|| entry.path()));
            })?;
        }
        Ok(abandoned)
    }

    /// A file whose record was never written, or is lost.
    fn collect_unrecorded(&self, name: &Name) -> Result<bool, Error> {
        let path = self.directory.file(name);
        let failed = |error| Error::at(&path, error);
        match Held::existing(&path).map_err(failed)? {
            // Whoever finishes it lets go of the lock once there is a record.
            Attempt::Held(held) if !self.directory.record(name).exists() => {
                held.remove().map_err(failed)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A record without its file.
    fn collect_record(&self, name: &Name) -> Result<bool, Error> {
        let path = self.directory.record(name);
        let failed = |error| Error::at(&path, error);
        crate::cache::directory::make(&self.directory.incoming()).map_err(failed)?;
        // Nobody makes the file meanwhile.
        let claim = Claim::take(&self.directory.incoming_file(name)).map_err(failed)?;
        if claim.is_none() || self.directory.file(name).exists() {
            return Ok(false);
        }
        remove(&path).map_err(failed)?;
        Ok(true)
    }

    /// A file that somebody began to write.
    fn unclaim(&self, name: &Name) -> Result<bool, Error> {
        let path = self.directory.incoming_file(name);
        let failed = |error| Error::at(&path, error);
        match Held::existing(&path).map_err(failed)? {
            Attempt::Held(held) => {
                held.remove().map_err(failed)?;
                Ok(true)
            }
            Attempt::InUse | Attempt::Missing => Ok(false),
        }
    }
}
