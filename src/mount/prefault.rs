//! Prefault: pages stored in the mount's page cache before they are asked for.
//!
//! Making the tensors of a file touches one page of each, and reads nothing else
//! yet. Each of those page faults would read a whole read-ahead window; but which
//! pages they are is known from the plan, and so they are there before the first
//! open returns.
//!
//! What is read from end to end is better left to the kernel's own read-ahead:
//! storing it from threads beside the reader is a fifth slower.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use log::debug;

use crate::view::{Bytes, OpenFile};

/// Bytes. Larger pages are divided by it.
const PAGE: u64 = 4096;
/// Bytes stored at once, at most.
const BLOCK: u64 = 1 << 20;
/// Extents prefaulted for one file, at most.
const MOST: usize = 1 << 15;
/// How long an open waits for its pages; the rest of them come later, or when
/// the kernel asks. Without an end to it, threads that open files could wait for
/// pages that are locked by requests which wait for a thread.
const PATIENCE: Duration = Duration::from_millis(20);

/// Prefaults files that are opened for the first time.
#[derive(Default)]
pub struct Prefaulter {
    notifier: OnceLock<Notifier>,
    /// Inodes whose pages were stored. They stay from one open to the next.
    done: Mutex<HashSet<u64>>,
    work: OnceLock<SyncSender<Job>>,
}

struct Job {
    inode: u64,
    file: Arc<OpenFile>,
    extents: Vec<Range<u64>>,
    done: SyncSender<()>,
}

impl Prefaulter {
    /// From here on pages can be stored.
    pub fn start(&self, notifier: Notifier) {
        // There is one session, which calls this once.
        let _ = self.notifier.set(notifier);
    }

    /// `file`, of `size` bytes, is about to be open as `inode`, to be read
    /// through this process.
    pub fn opened(&self, inode: u64, file: &Arc<OpenFile>, size: u64) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        if !self.done().insert(inode) {
            return;
        }
        let extents = pages(&file.touched(), size);
        let touched: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
        // Where most pages are touched, reading ahead has them as soon.
        if extents.is_empty() || touched > size / 2 {
            return;
        }
        let work = self.work.get_or_init(|| start_thread(notifier.clone()));
        let (done, wait) = sync_channel(1);
        let job = Job {
            inode,
            file: file.clone(),
            extents,
            done,
        };
        if work.try_send(job).is_ok() {
            // Late pages are none the worse.
            let _ = wait.recv_timeout(PATIENCE);
        }
    }

    /// The kernel has forgotten `inode`, and its pages with it.
    pub fn forgotten(&self, inode: u64) {
        self.done().remove(&inode);
    }

    fn done(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the thread that stores pages. It ends with the sender.
fn start_thread(notifier: Notifier) -> SyncSender<Job> {
    let (sender, jobs): (_, Receiver<Job>) = sync_channel(64);
    let run = move || {
        for job in jobs {
            if let Err(error) = job.run(&notifier) {
                debug!("prefault of {}: {error}", job.inode);
            }
            // Whoever opened the file may have lost patience.
            let _ = job.done.try_send(());
        }
    };
    if let Err(error) = thread::Builder::new().name("prefault".into()).spawn(run) {
        debug!("no thread to prefault: {error}");
    }
    sender
}

impl Job {
    fn run(&self, notifier: &Notifier) -> io::Result<()> {
        for extent in self.extents.iter().take(MOST) {
            let len = usize::try_from(extent.end - extent.start).map_err(io::Error::other)?;
            let bytes = self.file.read_ahead(extent.start, len);
            let bytes = bytes.map_err(io::Error::other)?;
            let bytes = match &bytes {
                Bytes::Mapped(bytes) => bytes,
                Bytes::Owned(bytes) => bytes.as_slice(),
            };
            notifier.store(INodeNo(self.inode), extent.start, bytes)?;
        }
        Ok(())
    }
}

/// The extents of whole pages, up to the end of the file, that hold `touched`,
/// which is in order.
fn pages(touched: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    for part in touched {
        let start = part.start - part.start % PAGE;
        let end = part.end.next_multiple_of(PAGE).min(size);
        match extents.last_mut() {
            Some(last) if start <= last.end && end.saturating_sub(last.start) <= BLOCK => {
                last.end = end.max(last.end);
            }
            _ => extents.push(start..end),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_whole_and_neighbours_go_together() {
        let touched = [
            0..5000,
            8100..8101,
            9000..9001,
            40_000..40_001,
            50_000..50_001,
        ];
        assert_eq!(
            pages(&touched, 50_100),
            [0..12_288, 36_864..40_960, 49_152..50_100]
        );
    }

    #[test]
    fn an_extent_is_no_longer_than_a_block() {
        let touched: Vec<_> = (0..1000).map(|page| page * PAGE..page * PAGE + 1).collect();
        let extents = pages(&touched, 1000 * PAGE);
        assert!(
            extents
                .iter()
                .all(|extent| extent.end - extent.start <= BLOCK)
        );
        assert_eq!(extents.len(), 4);
    }
}
