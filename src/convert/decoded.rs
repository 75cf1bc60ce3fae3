//! Storages that have to be decoded before they can be read by ranges: block by block,
//! as far as somebody asks, for all readers of a plan that are open.
//!
//! Blocks that were decoded are put down in the scratch space that a reader brought
//! along. Where there is none, or no room, the last few stay in memory, and the others
//! are decoded again from the nearest [point](Points).

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use lru::LruCache;

use super::codec::{Decoder, Input};
use super::points::Points;
use super::scratch::Scratch;
use crate::checkpoint::Encoded;
use crate::source::{Error, Result, Source};

/// Bytes decoded at a time, but for the last of a storage. Whoever waits for others
/// waits for one of these at a time.
const BLOCK: u64 = 512 << 10;
/// Blocks that stay in memory where there is no room for them.
const RECENT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// A stretch of the source, and how many bytes it is said to decode to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decoded {
    pub encoded: Encoded,
    /// Bytes, decoded. Nothing is believed of it until the last of them is there.
    pub len: u64,
}

/// A block of a storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub storage: Decoded,
    /// Its number.
    pub block: u64,
}

impl Place {
    /// Bytes from the start of the storage.
    fn start(self) -> u64 {
        self.block.saturating_mul(BLOCK)
    }

    /// Bytes.
    fn len(self) -> u64 {
        self.storage.len.saturating_sub(self.start()).min(BLOCK)
    }

    fn next(self) -> Option<Place> {
        let block = self.block.checked_add(1)?;
        let next = Place { block, ..self };
        (next.len() > 0).then_some(next)
    }
}

/// What is decoded of the storages of one file.
#[derive(Default)]
pub struct Decoding {
    scratch: OnceLock<Box<dyn Scratch>>,
    progress: Mutex<Progress>,
    /// Somebody is done with a block.
    moved: Condvar,
}

/// Nothing is read or decoded while this is locked.
struct Progress {
    /// Where blocks lie in the scratch space.
    put_down: HashMap<Place, u64>,
    recent: LruCache<Place, Arc<Vec<u8>>>,
    points: Points,
    /// Blocks that somebody is decoding, none of them twice.
    under_way: BTreeSet<Place>,
}

impl Default for Progress {
    fn default() -> Progress {
        Progress {
            put_down: HashMap::new(),
            recent: LruCache::new(RECENT),
            points: Points::default(),
            under_way: BTreeSet::new(),
        }
    }
}

/// Where a block is to be had.
enum Block {
    PutDown(u64),
    Here(Arc<Vec<u8>>),
}

impl fmt::Debug for Decoding {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.debug_struct("Decoding").finish_non_exhaustive()
    }
}

impl Decoding {
    /// What is decoded from now on is put down in `scratch`, unless there is such a
    /// space already.
    pub fn lend(&self, scratch: Box<dyn Scratch>) {
        let _ = self.scratch.set(scratch);
    }

    /// Fills `buffer` with the bytes of `storage` from `offset` on.
    pub fn read_exact_at(
        &self,
        source: &Source,
        storage: &Decoded,
        buffer: &mut [u8],
        offset: u64,
    ) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > storage.len) {
            let (wanted, size) = (end.unwrap_or(u64::MAX), storage.len);
            return Err(Error::PastEnd { wanted, size });
        }
        let mut input = Input::new(source, storage.encoded);
        let (mut buffer, mut at) = (buffer, offset);
        while !buffer.is_empty() {
            let place = Place {
                storage: *storage,
                block: at / BLOCK,
            };
            let skip = at - place.start();
            let len = (place.len() - skip).min(buffer.len() as u64);
            let (head, rest) = buffer.split_at_mut(len as usize);
            self.copy(&mut input, place, skip, head)?;
            (buffer, at) = (rest, at + len);
        }
        Ok(())
    }

    /// Fills `out` with bytes of one block, from `skip` on.
    fn copy(&self, input: &mut Input, place: Place, skip: u64, out: &mut [u8]) -> Result<()> {
        loop {
            match self.block(input, place)? {
                Block::Here(bytes) => {
                    let skip = skip as usize;
                    out.copy_from_slice(&bytes[skip..skip + out.len()]);
                    return Ok(());
                }
                Block::PutDown(at) => match self.fetch(at.saturating_add(skip), out) {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        log::debug!(
                            "{}: decoded again: {error}",
                            input.source().location().display()
                        );
                        self.lock().put_down.remove(&place);
                    }
                },
            }
        }
    }

    fn fetch(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self.scratch.get() {
            Some(scratch) => scratch.read_exact_at(out, at),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// The block at `place`. Those that have to be decoded before it are, one after the
    /// other, by whoever wants one that comes after them.
    fn block(&self, input: &mut Input, place: Place) -> Result<Block> {
        let mut progress = self.lock();
        loop {
            if let Some(at) = progress.put_down.get(&place) {
                return Ok(Block::PutDown(*at));
            }
            if let Some(bytes) = progress.recent.get(&place) {
                return Ok(Block::Here(bytes.clone()));
            }
            let nearest = Place {
                block: progress.points.nearest(place),
                ..place
            };
            if progress.under_way.range(nearest..=place).next().is_some() {
                let woken = self.moved.wait(progress);
                progress = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let decoder = progress.points.take(nearest);
            let under_way = UnderWay::begin(self, &mut progress, nearest);
            drop(progress);
            let bytes = self.decode(input, nearest, decoder)?;
            drop(under_way);
            if nearest == place {
                return Ok(Block::Here(bytes));
            }
            progress = self.lock();
        }
    }

    /// Decodes the block at `place`. Without a decoder it is the first.
    fn decode(
        &self,
        input: &mut Input,
        place: Place,
        decoder: Option<Decoder>,
    ) -> Result<Arc<Vec<u8>>> {
        let mut decoder = match decoder {
            Some(decoder) => decoder,
            None => Decoder::new(&place.storage.encoded, place.storage.len)?,
        };
        let mut bytes = vec![0; place.len() as usize];
        decoder.fill(input, &mut bytes)?;
        let next = place.next();
        if next.is_none() {
            decoder.finish(input)?;
        }
        // What was decoded is of the old file only if that is still there.
        input.source().check()?;
        let bytes = Arc::new(bytes);
        let known = self.lock().put_down.contains_key(&place);
        let scratch = self.scratch.get().filter(|_| !known);
        let put_down = scratch.and_then(|scratch| scratch.put(&bytes));
        let mut progress = self.lock();
        match put_down {
            Some(at) => drop(progress.put_down.insert(place, at)),
            None if known => {}
            None => drop(progress.recent.put(place, bytes.clone())),
        }
        if let Some(next) = next {
            progress.points.put(next, decoder);
        }
        Ok(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that a block is being decoded, for as long as it lives, and wakes those who
/// wait for that.
struct UnderWay<'a> {
    decoding: &'a Decoding,
    place: Place,
}

impl<'a> UnderWay<'a> {
    fn begin(decoding: &'a Decoding, progress: &mut Progress, place: Place) -> UnderWay<'a> {
        progress.under_way.insert(place);
        UnderWay { decoding, place }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.decoding.lock().under_way.remove(&self.place);
        self.decoding.moved.notify_all();
    }
}
