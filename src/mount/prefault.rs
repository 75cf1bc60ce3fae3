//! Prefault: pages stored in the mount's page cache before they are asked for.
//!
//! Making the tensors of a file touches one page of each, and reads nothing else
//! yet. Each of those page faults would read a whole read-ahead window; but which
//! pages they are is known from the plan, and so they are there before the first
//! open returns.
//!
//! They are stored before that open is answered, and never afterwards: as long as nobody
//! has the file open, nobody can hold a page that a store would wait for, and this
//! process can end at any moment. Others who open the file wait for their turn.
//!
//! What is read from end to end is better left to the kernel's own read-ahead:
//! storing it from threads beside the reader is a fifth slower.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fuser::{INodeNo, Notifier};
use log::debug;

use crate::view::OpenFile;

/// Bytes. Larger pages are divided by it.
const PAGE: u64 = 4096;
/// Bytes stored at once, at most.
const BLOCK: u64 = 1 << 20;
/// Extents prefaulted for one file, at most.
const MOST: usize = 1 << 15;
/// How long an open takes longer for it, about. The kernel asks for what is missing then.
const PATIENCE: Duration = Duration::from_millis(20);

/// Prefaults files that are opened for the first time.
#[derive(Default)]
pub struct Prefaulter {
    notifier: OnceLock<Notifier>,
    state: Mutex<State>,
    /// A turn is over.
    next: Condvar,
}

#[derive(Default)]
struct State {
    /// Inodes whose pages were stored. They stay from one open to the next.
    done: HashSet<u64>,
    /// Inodes that are being opened.
    turns: HashSet<u64>,
}

/// The right to open a file, of which there is one for each.
pub struct Turn<'a> {
    prefaulter: &'a Prefaulter,
    inode: u64,
}

impl Prefaulter {
    /// From here on pages can be stored.
    pub fn start(&self, notifier: Notifier) {
        // There is one session, which calls this once.
        let _ = self.notifier.set(notifier);
    }

    /// Waits until nobody else opens `inode`, and keeps others waiting.
    pub fn turn(&self, inode: u64) -> Turn<'_> {
        let taken = |state: &mut State| state.turns.contains(&inode);
        let waited = self.next.wait_while(self.lock(), taken);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.turns.insert(inode);
        Turn {
            prefaulter: self,
            inode,
        }
    }

    /// Stores pages of `file`, of `size` bytes, which is about to be the only one open as
    /// `inode`.
    pub fn fill(&self, inode: u64, file: &OpenFile, size: u64) {
        let Some(notifier) = self.notifier.get() else {
            return;
        };
        if !self.lock().done.insert(inode) {
            return;
        }
        let extents = pages(touched(file.parts()), size);
        let touched: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
        // Where most pages are touched, reading ahead has them as soon.
        if touched > size / 2 {
            return;
        }
        if let Err(error) = store(notifier, inode, file, &extents) {
            debug!("prefault of {inode}: {error}");
        }
    }

    /// The kernel has forgotten `inode`, and its pages with it.
    pub fn forgotten(&self, inode: u64) {
        self.lock().done.remove(&inode);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.prefaulter.lock().turns.remove(&self.inode);
        self.prefaulter.next.notify_all();
    }
}

fn store(
    notifier: &Notifier,
    inode: u64,
    file: &OpenFile,
    extents: &[Range<u64>],
) -> io::Result<()> {
    let began = Instant::now();
    for extent in extents.iter().take(MOST) {
        if began.elapsed() > PATIENCE {
            break;
        }
        let len = usize::try_from(extent.end - extent.start).map_err(io::Error::other)?;
        let bytes = file.read_ahead(extent.start, len);
        let bytes = bytes.map_err(io::Error::other)?;
        // SAFETY: the notifier writes them to the device, and does nothing else.
        let bytes = unsafe { bytes.for_kernel() };
        notifier.store(INodeNo(inode), extent.start, bytes)?;
    }
    Ok(())
}

/// What a loader touches of these parts of a file when it makes the tensors: all of the
/// first, which is the header, and the first byte of each other.
fn touched(parts: Vec<Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    let parts = parts.into_iter().enumerate();
    parts.map(|(number, part)| match number {
        0 => part,
        _ => part.start..part.start.saturating_add(1),
    })
}

/// The extents of whole pages, up to the end of the file, that hold `touched`,
/// which is in order.
fn pages(touched: impl Iterator<Item = Range<u64>>, size: u64) -> Vec<Range<u64>> {
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
            pages(touched.into_iter(), 50_100),
            [0..12_288, 36_864..40_960, 49_152..50_100]
        );
    }

    #[test]
    fn an_extent_is_no_longer_than_a_block() {
        let touched = (0..1000).map(|page| page * PAGE..page * PAGE + 1);
        let extents = pages(touched, 1000 * PAGE);
        assert!(
            extents
                .iter()
                .all(|extent| extent.end - extent.start <= BLOCK)
        );
        assert_eq!(extents.len(), 4);
    }
}
