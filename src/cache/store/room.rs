//! How much the store may take, and what goes when it is too much: what nobody can
//! ask for any more, then what was used least recently, unless it is open.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::{Statvfs, statvfs};

use super::Store;
use super::error::Error;
use super::inventory::Inventory;
use super::locks::{Attempt, Claim, Held, remove, take_turn};
use super::provenance::Entry;
use super::shortage::{Cause, Shortage};
use crate::cache::directory::Name;

/// How much the converted files may take together. Never more than there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    Bytes(u64),
    /// So much that a twentieth of the file system stays free, or 10 GiB where that is less.
    #[default]
    KeepFree,
}

/// No converted file has fewer bytes: a header that names one tensor.
const SMALLEST: u64 = 64;

/// Bytes that stay free on a large file system.
const RESERVE: u64 = 10 << 30;

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

/// The file system that the store lies on, in bytes.
struct Space {
    total: u64,
    free: u64,
}

impl Space {
    fn new(stats: &Statvfs) -> Space {
        let block = stats.fragment_size();
        Space {
            total: stats.blocks().saturating_mul(block),
            free: stats.blocks_available().saturating_mul(block),
        }
    }

    /// What stays free unless somebody says how much is to be taken.
    fn reserve(&self) -> u64 {
        RESERVE.min(self.total / 20)
    }
}

impl Store {
    pub fn occupancy(&self) -> Result<Occupancy, Error> {
        self.occupancy_of(&Inventory::take(&self.directory)?)
    }

    fn occupancy_of(&self, inventory: &Inventory) -> Result<Occupancy, Error> {
        let space = self.space()?;
        let bytes = inventory.bytes();
        let taken = bytes.saturating_sub(inventory.unwritten);
        let most = taken.saturating_add(space.free);
        let limit = match self.limit {
            Limit::Bytes(limit) => limit.min(most),
            Limit::KeepFree => most.saturating_sub(space.reserve()),
        };
        Ok(Occupancy {
            files: inventory.data.len(),
            bytes,
            limit,
            free: space.free,
        })
    }

    fn space(&self) -> Result<Space, Error> {
        let root = self.directory.root();
        let stats = statvfs(root).map_err(|error| Error::at(root, error))?;
        Ok(Space::new(&stats))
    }

    /// Whether the store may take a file of `needed` bytes at all, were nothing else in it.
    ///
    /// # Errors
    /// [`Error::NoRoom`] when it may not.
    pub fn check_room(&self, needed: u64) -> Result<(), Error> {
        let space = self.space()?;
        let allowed = match self.limit {
            Limit::Bytes(limit) => needed <= limit,
            Limit::KeepFree => true,
        };
        // Without a walk through the store, as long as there is plenty.
        if allowed && needed.saturating_add(space.reserve()) <= space.free {
            return Ok(());
        }
        self.lacks(&Inventory::take(&self.directory)?, needed)?;
        Ok(())
    }

    /// Why no file whatever gets into the store, if that is so.
    pub fn shortage(&self) -> Option<Shortage> {
        match self.check_room(SMALLEST) {
            Err(Error::NoRoom { shortage, .. }) => Some(shortage),
            _ => None,
        }
    }

    /// Makes room for `more` bytes of the file that `claim` is for, and takes it: from then
    /// on the others see that it has `size`. One process at a time does so.
    pub(super) fn take_room(&self, claim: &Claim, more: u64, size: u64) -> Result<(), Error> {
        let _turn = take_turn(&self.directory.tag());
        self.make_room(more)?;
        reserve(claim.file(), size).map_err(|error| Error::at(claim.path(), error))
    }

    fn make_room(&self, needed: u64) -> Result<(), Error> {
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
            return Err(self.no_room(needed, limit, Cause::InUse));
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
        if needed <= limit {
            return Ok(bytes.saturating_add(needed).saturating_sub(limit));
        }
        let space = self.space()?;
        let cause = match self.limit {
            Limit::Bytes(asked) if asked <= limit => Cause::Asked,
            Limit::Bytes(_) => Cause::Full,
            Limit::KeepFree => Cause::Reserved {
                free: space.free,
                reserve: space.reserve(),
            },
        };
        Err(self.no_room(needed, limit, cause))
    }

    fn no_room(&self, needed: u64, limit: u64, cause: Cause) -> Error {
        let root = self.directory.root().to_path_buf();
        let shortage = Shortage { root, limit, cause };
        Error::NoRoom { needed, shortage }
    }
}

/// Takes the space of a file that is empty, so that a disk that is full is found out before
/// anything is written.
fn reserve(file: &File, bytes: u64) -> Result<(), std::io::Error> {
    let len = i64::try_from(bytes).map_err(|_| Errno::EFBIG)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => Err(error.into()),
        // Most network file systems cannot do it: the length tells the others how much it will be.
        Err(_) => file.set_len(bytes),
    }
}
