//! Room in the cache directory for what readers decode. It counts like a file that is
//! being written, and goes with whoever reads, or when he was killed.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::Store;
use super::error::Error;
use super::locks::Claim;
use crate::cache::directory::Name;
use crate::convert;

/// Bytes that room is made for at a time: as many as there are already, within these
/// bounds.
const LEAST: u64 = 4 << 20;
const MOST: u64 = 64 << 20;

/// A file of the cache directory that nobody else finds. There is none before something
/// is put down.
#[derive(Debug)]
pub struct Scratch {
    store: Store,
    claim: OnceLock<Claim>,
    space: Mutex<Space>,
}

#[derive(Debug, Default)]
struct Space {
    /// Bytes that were given out.
    used: u64,
    /// Bytes that the file counts.
    reserved: u64,
    /// Nothing more is put down.
    full: bool,
}

impl Store {
    /// Room for what a reader decodes, as far as the limit goes.
    pub fn scratch(&self) -> Scratch {
        Scratch {
            store: self.clone(),
            claim: OnceLock::new(),
            space: Mutex::default(),
        }
    }

    /// Gives `reader` room if it would decode the same bytes over and over, even when it
    /// is read once from its first byte to its last.
    pub fn lend(&self, reader: &convert::Reader) {
        if reader.plan().gathers_decoded() {
            reader.lend(Box::new(self.scratch()));
        }
    }
}

impl convert::Scratch for Scratch {
    fn put(&self, bytes: &[u8]) -> Option<u64> {
        let at = self.reserve(bytes.len() as u64)?;
        let claim = self.claim.get()?;
        let written = claim.file().write_all_at(bytes, at);
        written
            .map_err(|error| self.close(&Error::at(claim.path(), error)))
            .ok()?;
        Some(at)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let claim = self.claim.get().ok_or(io::ErrorKind::NotFound)?;
        let read = claim.file().read_exact_at(buffer, at);
        read.inspect_err(|_| self.lock().full = true)
    }
}

impl Scratch {
    /// Where `len` bytes may be written.
    fn reserve(&self, len: u64) -> Option<u64> {
        let mut space = self.lock();
        if space.full {
            return None;
        }
        let at = space.used;
        let end = at.checked_add(len)?;
        if end > space.reserved
            && let Err(error) = self.grow(&mut space, end)
        {
            space.full = true;
            drop(space);
            self.close(&error);
            return None;
        }
        space.used = end;
        Some(at)
    }

    /// Makes room up to `end` at least.
    fn grow(&self, space: &mut Space, end: u64) -> Result<(), Error> {
        let lacks = end - space.reserved;
        let claim = match self.claim.get() {
            Some(claim) => claim,
            None => {
                let claim = self.store.claim(&new_name())?;
                self.claim.get_or_init(|| claim)
            }
        };
        let mut more = space.reserved.clamp(LEAST, MOST).max(lacks);
        loop {
            let reserved = space.reserved.saturating_add(more);
            match self.store.take_room(claim, more, reserved) {
                Ok(()) => {
                    space.reserved = reserved;
                    return Ok(());
                }
                Err(Error::NoRoom { .. }) if more > lacks => more = (more / 2).max(lacks),
                Err(error) => return Err(error),
            }
        }
    }

    /// Nothing more is put down: what is decoded from now on stays in memory, if it
    /// stays at all.
    fn close(&self, error: &Error) {
        self.lock().full = true;
        log::debug!("what is decoded may have to be decoded again: {error}");
    }

    fn lock(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that nothing else has.
fn new_name() -> Name {
    let number = RandomState::new().hash_one(std::process::id());
    Name::of(&[b"scratch", &number.to_le_bytes()])
}
