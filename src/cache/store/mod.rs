//! Converted files kept as a whole. Several processes share them; what is
//! missing, damaged or too much is taken away, and made again when needed.
//!
//! Every file has a record beside it ([`provenance`](provenance)). A file without
//! one is no file of the store, whatever it holds: it counts once the record is
//! there, which is written last and removed first.

mod checksums;
mod copy;
mod error;
mod inventory;
mod leftovers;
mod locks;
mod promotion;
mod provenance;
mod room;
mod scratch;
mod shortage;

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;

use crate::cache::directory::{Directory, Name};
use crate::convert::Reader;
use crate::source::{self, Bytes, Source, local};
use inventory::Inventory;
use locks::{Attempt, Held, leads_to, open, remove, share};
use provenance::{Entry, Flaw};

pub use error::Error;
pub use promotion::Promotion;
pub use provenance::{Provenance, Stamp};
pub use room::{Limit, Occupancy};
pub use scratch::Scratch;
pub use shortage::Shortage;

/// Files whose record need not be read again while their inodes stay as they are.
const VERIFIED: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// The last use is known to within this much.
const USE: Duration = Duration::from_secs(60);
/// Bytes compared at a time.
const COMPARED: usize = 256 << 10;

/// The converted files in a directory. A clone is the same store.
#[derive(Clone, Debug)]
pub struct Store {
    pub(super) directory: Directory,
    pub(super) limit: Limit,
    /// Files and their records as they were when they fitted together.
    verified: Arc<Mutex<LruCache<Name, [Stamp; 2]>>>,
    /// Files that were complained about.
    flawed: Arc<Mutex<LruCache<Name, ()>>>,
}

/// A promoted file, open. It stays where it is while this lives,
/// and while the kernel has the same open file.
#[derive(Debug)]
pub struct Promoted {
    source: Source,
    stamp: Stamp,
    record: PathBuf,
}

impl Promoted {
    /// The whole file. Its descriptor carries the lock: a duplicate of it keeps the
    /// file, one that is opened by its path does not.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What its inode said when it was opened: which file it is, and that nobody
    /// wrote to it.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Bytes `[offset, offset + len)` of the extent of `size` bytes from `start` on,
    /// cut at its end.
    pub fn read(
        &self,
        start: u64,
        size: u64,
        offset: u64,
        len: usize,
    ) -> source::Result<Bytes<'_>> {
        let end = offset.saturating_add(len as u64).min(size);
        let offset = offset.min(end);
        self.source.check()?;
        self.source
            .reply(start.saturating_add(offset), (end - offset) as usize)
    }
}

impl Drop for Promoted {
    fn drop(&mut self) {
        touch(&self.record);
    }
}

/// What the store says about one of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub name: Name,
    /// The file that it was made from.
    pub source: PathBuf,
    /// The dotted path of the value of that, where it was asked for by name.
    pub root: Option<String>,
    /// Bytes.
    pub size: u64,
    /// To within a minute.
    pub last_used: SystemTime,
    /// Somebody has it open.
    pub in_use: bool,
}

/// What came of the wish to remove a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// So many bytes went.
    Removed(u64),
    InUse,
    Missing,
}

/// What came of the wish to remove all files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleared {
    pub files: usize,
    pub bytes: u64,
    /// Files that stay because somebody has them open.
    pub in_use: usize,
}

/// Whether a file of the store has the bytes that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    Same,
    /// Not from this chunk on, which begins at so many bytes.
    Differs(u64),
    Missing,
}

impl Store {
    pub fn new(directory: Directory, limit: Limit) -> Store {
        Store {
            directory,
            limit,
            verified: Arc::new(Mutex::new(LruCache::new(VERIFIED))),
            flawed: Arc::new(Mutex::new(LruCache::new(VERIFIED))),
        }
    }

    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Opens the file called `name` and marks it as used.
    pub fn find(&self, name: &Name) -> Option<Promoted> {
        let path = self.directory.file(name);
        let flaw = match self.look(name, &path) {
            Ok(promoted) => return promoted,
            Err(flaw) => flaw,
        };
        let what = match flaw {
            Flaw::Unreadable(error) => error.to_string(),
            Flaw::Damaged(what) => {
                self.discard(name);
                format!("{what}. It is removed, and made again when needed")
            }
        };
        // What cannot be removed is found again at every look.
        if lock(&self.flawed).put(*name, ()).is_none() {
            log::warn!("{}: {what}", path.display());
        }
        None
    }

    fn look(&self, name: &Name, path: &Path) -> Result<Option<Promoted>, Flaw> {
        let Some(entry) = Entry::load(&self.directory, name)? else {
            return Ok(None);
        };
        let file = match open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Flaw::Unreadable(error)),
        };
        if !share(&file).map_err(Flaw::Unreadable)? {
            return Ok(None);
        }
        // Before there was the lock, it may have been removed or replaced.
        if !leads_to(path, &file).map_err(Flaw::Unreadable)? {
            return Ok(None);
        }
        let source = local::adopt(file, path.to_path_buf()).map_err(Flaw::Unreadable)?;
        let now = source.file().map(File::metadata).transpose();
        let now = now.map_err(Flaw::Unreadable)?;
        if now.is_none_or(|now| Stamp::from(&now) != entry.stamp) {
            return match Entry::load(&self.directory, name)? {
                Some(again) if again == entry => Err(Flaw::Damaged("was changed")),
                _ => Ok(None),
            };
        }
        let record = self.directory.record(name);
        touch(&record);
        let stamp = entry.stamp;
        Ok(Some(Promoted {
            source,
            stamp,
            record,
        }))
    }

    /// Which file [`Store::find`] would open, and its bytes, as far as can be told
    /// without opening it. Cheap enough for every lookup.
    pub fn peek(&self, name: &Name) -> Option<Stamp> {
        let stamp = |path: &Path| Some(Stamp::from(&fs::symlink_metadata(path).ok()?));
        // Most are not there: this is all that it takes to know.
        let record = stamp(&self.directory.record(name))?;
        let now = [stamp(&self.directory.file(name))?, record];
        if lock(&self.verified).get(name) == Some(&now) {
            return Some(now[0]);
        }
        match Entry::load(&self.directory, name) {
            Ok(None) => None,
            Ok(Some(entry)) if entry.stamp == now[0] => {
                lock(&self.verified).put(*name, now);
                Some(entry.stamp)
            }
            // Says what is wrong with it.
            _ => {
                let promoted = self.find(name)?;
                let metadata = promoted.source.file()?.metadata().ok()?;
                Some(Stamp::from(&metadata))
            }
        }
    }

    /// Removes what does not fit together. Whoever has it open keeps it open.
    fn discard(&self, name: &Name) {
        let record = self.directory.record(name);
        if let Err(error) = remove(&record) {
            log::debug!("{}: {error}", record.display());
        }
        // The rest goes with the leftovers when it does not go now.
        if let Ok(Attempt::Held(held)) = Held::existing(&self.directory.file(name)) {
            let _ = held.remove();
        }
    }

    /// Removes a file that nobody has open.
    pub fn evict(&self, name: &Name) -> Result<Evicted, Error> {
        let path = self.directory.file(name);
        let failed = |error| Error::at(&path, error);
        let held = match Held::existing(&path).map_err(failed)? {
            Attempt::Held(held) => held,
            Attempt::InUse => return Ok(Evicted::InUse),
            Attempt::Missing => return Ok(Evicted::Missing),
        };
        remove(&self.directory.record(name)).map_err(failed)?;
        let size = held.size().map_err(failed)?;
        held.remove().map_err(failed)?;
        Ok(Evicted::Removed(size))
    }

    /// Removes all files that nobody has open, and all leftovers.
    pub fn clear(&self) -> Result<Cleared, Error> {
        let mut cleared = Cleared::default();
        for name in Inventory::take(&self.directory)?.data.keys() {
            match self.evict(name)? {
                Evicted::Removed(bytes) => {
                    cleared.files += 1;
                    cleared.bytes = cleared.bytes.saturating_add(bytes);
                }
                Evicted::InUse => cleared.in_use += 1,
                Evicted::Missing => {}
            }
        }
        self.collect()?;
        Ok(cleared)
    }

    /// What there is, the least recently used first.
    pub fn list(&self) -> Result<Vec<Item>, Error> {
        let inventory = Inventory::take(&self.directory)?;
        let items = inventory.by_use().into_iter().filter_map(|(name, size)| {
            let entry = Entry::load(&self.directory, &name).ok()??;
            let attempt = Held::existing(&self.directory.file(&name));
            Some(Item {
                name,
                source: entry.provenance.source,
                root: entry.provenance.root,
                size,
                last_used: *inventory.records.get(&name)?,
                in_use: matches!(attempt, Ok(Attempt::InUse)),
            })
        });
        Ok(items.collect())
    }

    /// Compares a file with what `reader` makes, which it was made from.
    pub fn verify(&self, name: &Name, reader: &Reader) -> Result<Comparison, Error> {
        let Some(promoted) = self.find(name) else {
            return Ok(Comparison::Missing);
        };
        self.lend(reader);
        let path = self.directory.file(name);
        let size = reader.plan().size();
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        if promoted.source.size() != size {
            return Ok(Comparison::Differs(0));
        }
        let mut at = 0;
        while at < size {
            reader
                .read_to(at, COMPARED, &mut wanted)
                .map_err(|error| Error::of_source(reader.source().location(), error))?;
            found.resize(wanted.len(), 0);
            match promoted.source.read_exact_at(&mut found, at) {
                Ok(()) if !wanted.is_empty() && found == wanted => at += found.len() as u64,
                Ok(()) => return Ok(Comparison::Differs(at)),
                Err(source::Error::Io(error)) => return Err(Error::at(&path, error)),
                Err(_) => return Ok(Comparison::Differs(at)),
            }
        }
        Ok(Comparison::Same)
    }
}

/// Marks a record as used. Nobody depends on it: in a directory that is not
/// writable nothing is evicted either.
fn touch(record: &Path) {
    let Ok(file) = File::open(record) else {
        return;
    };
    let used = file.metadata().and_then(|metadata| metadata.modified());
    let lately = |used: SystemTime| used.elapsed().is_ok_and(|since| since < USE);
    if !used.is_ok_and(lately) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
