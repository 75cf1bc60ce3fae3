//! Drop-behind: what a reader has got is in the page cache twice, as pages of the
//! mount and as pages of the source. When memory gets short the source's go, before
//! anything goes that is there once.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::sysinfo::sysinfo;

use crate::view::Pages;

/// Bytes that are read before memory is looked at again.
const STEP: u64 = 32 << 20;
/// How often memory is looked at after a read, for others use it too, and for how long.
const AGAIN: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
/// The part of all memory that is not to be used up by pages that are there twice.
const SPARE: u64 = 8;
/// Bytes of the largest folios. One goes as a whole.
const FOLIO: u64 = 2 << 20;
/// Extents that are remembered. Of what is read here and there the oldest are
/// forgotten, and left to the kernel.
const MOST: usize = 1 << 12;

/// What was read from sources and may be there twice.
#[derive(Default)]
pub struct DropBehind {
    read: Mutex<Read>,
    /// Memory is short, or this is about to go.
    wake: Condvar,
}

#[derive(Default)]
struct Read {
    extents: Vec<Extent>,
    /// Bytes, since memory was last looked at.
    bytes: u64,
    /// When the last of them were read.
    last: Option<Instant>,
    /// There is a thread that drops them.
    started: bool,
}

/// Bytes of one source.
struct Extent {
    pages: Arc<dyn Pages>,
    bytes: Range<u64>,
}

impl Extent {
    /// What tells its source from others.
    fn source(&self) -> *const () {
        Arc::as_ptr(&self.pages).cast()
    }
}

impl DropBehind {
    /// The bytes `bytes` of the source of `pages` have gone to the page cache of the
    /// mount.
    pub fn note(self: &Arc<Self>, pages: Arc<dyn Pages>, bytes: Range<u64>) {
        let mut read = self.lock();
        let len = bytes.end.saturating_sub(bytes.start);
        let extent = Extent { pages, bytes };
        // Requests that run beside each other come a little out of order.
        let known = read.extents.iter_mut().rev().take(8).find(|known| {
            known.bytes.end == extent.bytes.start && known.source() == extent.source()
        });
        match known {
            Some(known) => known.bytes.end = extent.bytes.end,
            None => {
                if read.extents.len() >= MOST {
                    read.extents.drain(..MOST / 2);
                }
                read.extents.push(extent);
            }
        }
        if !std::mem::replace(&mut read.started, true) {
            let behind = self.clone();
            let run = move || watch(&behind);
            let thread = thread::Builder::new().name("drop-behind".into());
            read.started = thread.spawn(run).is_ok();
        }
        read.bytes = read.bytes.saturating_add(len);
        let now = Instant::now();
        // After a rest the thread has to be told that there is something again.
        let rested = read
            .last
            .is_none_or(|last| now.duration_since(last) > LONGEST);
        read.last = Some(now);
        let is_due = read.bytes >= STEP;
        if is_due {
            read.bytes = 0;
        }
        drop(read);
        if rested || is_due && is_short() {
            self.wake.notify_one();
        }
    }

    fn drop_pages(&self) {
        let extents = std::mem::take(&mut self.lock().extents);
        let mut left = Vec::new();
        for extent in merged(extents) {
            let Range { start, end } = extent.bytes;
            // The reader is about to go on in the last of these folios.
            let last = end - end % FOLIO;
            let first = start - start % FOLIO;
            if first < last {
                extent.pages.drop_pages(first..last);
            }
            if last < end {
                left.push(Extent {
                    bytes: start.max(last)..end,
                    ..extent
                });
            }
        }
        let mut read = self.lock();
        left.append(&mut read.extents);
        read.extents = left;
    }

    fn lock(&self) -> MutexGuard<'_, Read> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops what is there twice whenever memory is short, as long as somebody reads; then
/// waits until somebody does again. It ends with the process.
fn watch(behind: &DropBehind) {
    loop {
        let read = behind.lock();
        let rests = read.last.is_none_or(|last| last.elapsed() > LONGEST);
        match rests {
            true => drop(behind.wake.wait(read)),
            false => drop(behind.wake.wait_timeout(read, AGAIN)),
        }
        if is_short() {
            behind.drop_pages();
        }
    }
}

/// The same extents, those that touch joined.
fn merged(mut extents: Vec<Extent>) -> Vec<Extent> {
    extents.sort_unstable_by_key(|extent| (extent.source() as usize, extent.bytes.start));
    extents.dedup_by(|next, extent| {
        let joined = next.source() == extent.source() && next.bytes.start <= extent.bytes.end;
        if joined {
            extent.bytes.end = extent.bytes.end.max(next.bytes.end);
        }
        joined
    });
    extents
}

/// Whether so little memory is unused that to hold something twice pushes out
/// something else.
fn is_short() -> bool {
    sysinfo().is_ok_and(|memory| memory.ram_unused() < memory.ram_total() / SPARE)
}
