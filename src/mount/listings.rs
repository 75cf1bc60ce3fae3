//! Listings that are being read.
//!
//! There are no handles of directories: the kernel keeps listings and asks for each
//! part by inode and offset. An offset names the listing that it counts in, so that
//! whoever reads on after a change reads on in what he began with.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// Listings that are remembered, and entries of all of them, besides the last one.
/// Whoever reads on in one that was forgotten goes on at the same cursor in a new one.
const MOST: NonZeroUsize = NonZeroUsize::new(64).unwrap();
const MOST_ENTRIES: usize = 1 << 18;
/// Directories whose last listing is kept, and entries of each.
const MOST_KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();
const MOST_KEPT_ENTRIES: usize = 1 << 12;
/// How long one is remembered that nobody reads on in.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bits of an offset that count entries. The sign bit of all is never set.
const POSITION: u32 = 32;

/// Listings by number.
pub struct Listings<T> {
    next: AtomicU32,
    open: Mutex<LruCache<u32, Open<T>>>,
    /// The last of some directories.
    kept: Mutex<LruCache<u64, Arc<T>>>,
    /// Entries of a listing.
    len: fn(&T) -> usize,
}

struct Open<T> {
    listing: Arc<T>,
    read: Instant,
}

/// Where a listing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    listing: u32,
    /// Entries before it.
    pub position: u32,
}

impl Cursor {
    pub fn at(offset: u64) -> Cursor {
        Cursor {
            listing: (offset >> POSITION) as u32,
            position: offset as u32,
        }
    }

    /// The offset of the cursor that is `position` entries into the same listing.
    pub fn offset(self, position: u32) -> u64 {
        u64::from(self.listing) << POSITION | u64::from(position)
    }
}

impl<T> Listings<T> {
    /// Of listings that have `len` entries.
    pub fn new(len: fn(&T) -> usize) -> Self {
        Self {
            next: AtomicU32::new(0),
            open: Mutex::new(LruCache::new(MOST)),
            kept: Mutex::new(LruCache::new(MOST_KEPT)),
            len,
        }
    }

    /// The listing that `offset` counts in, or a new one, made by `list`.
    ///
    /// # Errors
    /// Those of `list`.
    pub fn get<E>(
        &self,
        offset: u64,
        list: impl FnOnce() -> Result<Arc<T>, E>,
    ) -> Result<(Cursor, Arc<T>), E> {
        let cursor = Cursor::at(offset);
        if let Some(open) = self.lock().get_mut(&cursor.listing) {
            open.read = Instant::now();
            return Ok((cursor, open.listing.clone()));
        }
        let listed = list()?;
        let cursor = Cursor {
            listing: 1 + self.next.fetch_add(1, Ordering::Relaxed) % (i32::MAX as u32),
            position: cursor.position,
        };
        let open = Open {
            listing: listed.clone(),
            read: Instant::now(),
        };
        let mut known = self.lock();
        known.put(cursor.listing, open);
        self.shed(&mut known);
        Ok((cursor, listed))
    }

    /// The listing that `offset` counts in, if it is remembered.
    pub fn has(&self, offset: u64) -> bool {
        self.lock().contains(&Cursor::at(offset).listing)
    }

    /// Remembers a listing of `directory` beyond its end.
    pub fn keep(&self, directory: u64, listing: &Arc<T>) {
        if (self.len)(listing) <= MOST_KEPT_ENTRIES {
            self.kept().put(directory, listing.clone());
        }
    }

    /// The last one that was kept of `directory`.
    pub fn last(&self, directory: u64) -> Option<Arc<T>> {
        self.kept().get(&directory).cloned()
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<u64, Arc<T>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what was read longest ago, of what is too old or too much.
    fn shed(&self, known: &mut LruCache<u32, Open<T>>) {
        let len = |open: &Open<T>| (self.len)(&open.listing);
        let mut entries: usize = known.iter().map(|(_, open)| len(open)).sum();
        while known.len() > 1
            && let Some((_, oldest)) = known.peek_lru()
            && (entries > MOST_ENTRIES || oldest.read.elapsed() > PATIENCE)
        {
            entries -= len(oldest);
            known.pop_lru();
        }
    }

    /// Forgets the listing of `cursor`, which has been read to its end.
    pub fn end(&self, cursor: Cursor) {
        self.lock().pop(&cursor.listing);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<u32, Open<T>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(what: &'static str) -> impl FnOnce() -> Result<Arc<&'static str>, ()> {
        move || Ok(Arc::new(what))
    }

    #[test]
    fn an_offset_stays_in_the_listing_it_was_given_in() {
        let listings = Listings::new(|_: &&str| 0);
        let (first, old) = listings.get(0, list("old")).unwrap();
        let (_, new) = listings.get(0, list("new")).unwrap();
        assert_eq!((*old, *new), ("old", "new"));
        let (cursor, still) = listings.get(first.offset(7), list("other")).unwrap();
        assert_eq!((*still, cursor.position), ("old", 7));
        listings.end(cursor);
        let (cursor, other) = listings.get(first.offset(7), list("other")).unwrap();
        assert_eq!((*other, cursor.position), ("other", 7));
    }

    #[test]
    fn listings_that_were_left_take_no_more_than_their_share() {
        let listings = Listings::new(|len: &usize| *len);
        let make = |len| move || Ok::<Arc<usize>, ()>(Arc::new(len));
        let (first, _) = listings.get(0, make(MOST_ENTRIES / 2)).unwrap();
        listings.get(0, make(MOST_ENTRIES / 4)).unwrap();
        // It is read on, so that another one goes.
        listings.get(first.offset(1), make(1)).unwrap();
        listings.get(0, make(MOST_ENTRIES / 2)).unwrap();
        assert_eq!(listings.lock().len(), 2);
        let (_, still) = listings.get(first.offset(1), make(1)).unwrap();
        assert_eq!(*still, MOST_ENTRIES / 2);
        // One alone may be as long as it is.
        listings.get(0, make(MOST_ENTRIES * 2)).unwrap();
        assert_eq!(listings.lock().len(), 1);
    }

    #[test]
    fn offsets_are_positive_to_whoever_takes_them_for_signed() {
        let listings = Listings::new(|_: &&str| 0);
        listings.next.store(u32::MAX - 3, Ordering::Relaxed);
        for _ in 0..8 {
            let (cursor, _) = listings.get(0, list("")).unwrap();
            assert!(i64::try_from(cursor.offset(u32::MAX)).unwrap() > 0);
        }
    }
}
