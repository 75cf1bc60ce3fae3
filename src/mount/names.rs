//! Names that were told lately, and what they stood for: what is answered with while a
//! source does not answer.

use std::ffi::{OsStr, OsString};
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Names that are remembered.
const MOST: NonZeroUsize = NonZeroUsize::new(1 << 13).unwrap();

/// Inode numbers by the number of the directory and the name.
pub struct Names(Mutex<LruCache<(u64, OsString), u64>>);

impl Default for Names {
    fn default() -> Names {
        Names(Mutex::new(LruCache::new(MOST)))
    }
}

impl Names {
    pub fn get(&self, directory: u64, name: &OsStr) -> Option<u64> {
        self.lock().get(&(directory, name.to_os_string())).copied()
    }

    pub fn put(&self, directory: u64, name: &OsStr, inode: u64) {
        self.lock().put((directory, name.to_os_string()), inode);
    }

    /// What the name stands for is not known any more.
    pub fn forget(&self, directory: u64, name: &OsStr) {
        self.lock().pop(&(directory, name.to_os_string()));
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(u64, OsString), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
