//! What is open: numbered handles, and how each open inode is read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fuser::{BackingId, FileHandle};
use log::{info, warn};

/// Open files or directories, by the number the kernel names them with. A
/// number is never given twice.
pub struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            open: RwLock::default(),
        }
    }
}

impl<T> Handles<T> {
    pub fn insert(&self, value: impl Into<Arc<T>>) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, value.into());
        FileHandle(number)
    }

    pub fn get(&self, handle: FileHandle) -> Option<Arc<T>> {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&handle.0)
            .cloned()
    }

    pub fn remove(&self, handle: FileHandle) -> Option<Arc<T>> {
        self.open
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&handle.0)
    }
}

/// Which inodes are open for passthrough, that is read by the kernel straight
/// from the source file.
///
/// The kernel answers `EIO` to an open that differs from those of the same inode
/// that are still there: cached beside passthrough, or passthrough with another
/// backing. The first open of an inode therefore decides for all that come
/// before its last close.
#[derive(Default)]
pub struct Passthrough {
    offered: AtomicBool,
    fallback_logged: AtomicBool,
    open: Mutex<HashMap<u64, OpenInode>>,
}

struct OpenInode {
    handles: u64,
    /// `None`: read through this process and the page cache of the mount.
    backing: Option<Arc<BackingId>>,
}

impl Passthrough {
    /// Whether the kernel agreed to passthrough for this mount.
    pub fn offer(&self, offered: bool) {
        self.offered.store(offered, Ordering::Relaxed);
    }

    /// Counts one more open of `inode` and gives the backing it is to be answered
    /// with, if any, and whether it is open this once only. `register` makes the source
    /// file `file` known to the kernel.
    pub fn open(
        &self,
        inode: u64,
        file: Option<&File>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> (Option<Arc<BackingId>>, bool) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let state = open.entry(inode).or_insert_with(|| OpenInode {
            handles: 0,
            backing: file.and_then(|file| self.register(file, register)),
        });
        state.handles += 1;
        (state.backing.clone(), state.handles == 1)
    }

    /// Takes back one open of `inode`.
    pub fn close(&self, inode: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = open.get_mut(&inode) {
            state.handles -= 1;
            if state.handles == 0 {
                open.remove(&inode);
            }
        }
    }

    fn register(
        &self,
        file: &File,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.offered.load(Ordering::Relaxed) {
            return None;
        }
        match register(file) {
            Ok(backing) => Some(Arc::new(backing)),
            Err(error) => {
                // Without CAP_SYS_ADMIN no file will ever be accepted. Every other
                // refusal is about this file: where it lies, or a passing shortage.
                if error.raw_os_error() == Some(libc::EPERM) {
                    self.offer(false);
                    info!("no passthrough: {error}. Files are read through the daemon.");
                } else if !self.fallback_logged.swap(true, Ordering::Relaxed) {
                    warn!("no passthrough for a file: {error}. It is read through the daemon.");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_number_is_never_given_twice() {
        let handles = Handles::default();
        let first = handles.insert("a");
        assert_eq!(handles.get(first).as_deref(), Some(&"a"));
        assert_eq!(handles.remove(first).as_deref(), Some(&"a"));
        let second = handles.insert("b");
        assert_ne!(first, second);
        assert!(handles.get(first).is_none());
    }

    #[test]
    fn a_cached_inode_stays_cached_until_its_last_close() {
        let file = tempfile::tempfile().unwrap();
        let refuse = |_: &File| Err(io::Error::from_raw_os_error(libc::ELOOP));
        let passthrough = Passthrough::default();
        passthrough.offer(true);
        assert!(passthrough.open(2, Some(&file), refuse).0.is_none());
        let asked = |inode| {
            let mut asked = false;
            passthrough.open(inode, Some(&file), |_| {
                asked = true;
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            });
            asked
        };
        assert!(!asked(2), "open in cached mode");
        assert!(asked(3), "another inode decides for itself");
        passthrough.close(2);
        assert!(!asked(2), "still open once");
        passthrough.close(2);
        passthrough.close(2);
        assert!(asked(2), "all closed");
    }

    #[test]
    fn without_the_privilege_the_kernel_is_asked_once() {
        let file = tempfile::tempfile().unwrap();
        let passthrough = Passthrough::default();
        passthrough.offer(true);
        let mut asked = 0;
        for inode in 2..5 {
            passthrough.open(inode, Some(&file), |_| {
                asked += 1;
                Err(io::Error::from_raw_os_error(libc::EPERM))
            });
        }
        assert_eq!(asked, 1);
    }
}
