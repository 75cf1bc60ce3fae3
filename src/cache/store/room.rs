//! How much the store may take, and what goes when it is too much: what nobody can
//! ask for any more, then what was used least recently, unless it is open.

use nix::sys::statvfs::statvfs;

use super::Store;
use super::error::Error;
use super::inventory::Inventory;
use super::locks::{Attempt, Held, remove};
use super::provenance::Entry;
use crate::cache::directory::Name;

/// How much the converted files may take together. Never more than there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    Bytes(u64),
    /// So much that a tenth of the file system stays free.
    #[default]
    KeepFree,
}

/// What the converted files take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupancy {
    pub files: usize,
    /// Bytes, those of unfinished files with them.
    pub bytes: u64,
    /// Bytes that they may take as things are now.
    pub limit: u64,
    /// Bytes that are free on their file system.
    pub free: u64,
}

impl Store {
    pub fn occupancy(&self) -> Result<Occupancy, Error> {
        self.occupancy_of(&Inventory::take(&self.directory)?)
    }

    fn occupancy_of(&self, inventory: &Inventory) -> Result<Occupancy, Error> {
        let root = self.directory.root();
        let stats = statvfs(root).map_err(|error| Error::at(root, error))?;
        let bytes_of = |blocks: u64| blocks.saturating_mul(stats.fragment_size());
        let free = bytes_of(stats.blocks_available());
        let bytes = inventory.bytes();
        let most = bytes.saturating_add(free);
        let limit = match self.limit {
            Limit::Bytes(limit) => limit.min(most),
            Limit::KeepFree => most.saturating_sub(bytes_of(stats.blocks()) / 10),
        };
        Ok(Occupancy {
            files: inventory.data.len(),
            bytes,
            limit,
            free,
        })
    }

    /// Makes room for a file of `needed` bytes. Two processes that do this at the
    /// same moment may both find the same room: then the store takes too much until
    /// the next time.
    pub(super) fn make_room(&self, needed: u64) -> Result<(), Error> {
        if self.lacks(&Inventory::take(&self.directory)?, needed)? == 0 {
            return Ok(());
        }
        if let Err(error) = self.collect() {
            log::warn!("{error}");
        }
        let inventory = Inventory::take(&self.directory)?;
        let lacks = self.lacks(&inventory, needed)?;

        // Nothing goes before it is known that enough can go.
        let mut victims = Vec::new();
        let mut freed: u64 = 0;
        for (name, size) in self.by_worth(&inventory) {
            if freed >= lacks {
                break;
            }
            let path = self.directory.file(&name);
            if let Ok(Attempt::Held(held)) = Held::existing(&path) {
                victims.push((name, held));
                freed = freed.saturating_add(size);
            }
        }
        if freed < lacks {
            let limit = self.occupancy_of(&inventory)?.limit;
            return Err(Error::NoRoom { needed, limit });
        }
        for (name, held) in victims {
            let record = self.directory.record(&name);
            remove(&record)
                .and_then(|()| held.remove())
                .map_err(|error| Error::at(&record, error))?;
        }
        Ok(())
    }

    /// Converted files with their bytes, those that are missed least first.
    fn by_worth(&self, inventory: &Inventory) -> Vec<(Name, u64)> {
        let reachable = |(name, _): &(Name, u64)| {
            let entry = Entry::load(&self.directory, name);
            matches!(entry, Ok(Some(entry)) if entry.is_reachable(&self.directory))
        };
        let (wanted, mut files): (Vec<_>, Vec<_>) =
            inventory.by_use().into_iter().partition(reachable);
        files.extend(wanted);
        files
    }

    /// Bytes that have to go before there is room for `needed`.
    fn lacks(&self, inventory: &Inventory, needed: u64) -> Result<u64, Error> {
        let Occupancy { bytes, limit, .. } = self.occupancy_of(inventory)?;
        match needed > limit {
            true => Err(Error::NoRoom { needed, limit }),
            false => Ok(bytes.saturating_add(needed).saturating_sub(limit)),
        }
    }
}
