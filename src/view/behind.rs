//! Behind a reader, what it has got is in the page cache twice: as bytes of the
//! mount, and as bytes of the source. When memory gets short, the source's go,
//! before anything goes that is there once.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use nix::sys::sysinfo::sysinfo;

use super::file::Converted;
use crate::source::Source;

/// Bytes that are passed on before it is looked at memory again.
const STEP: u64 = 32 << 20;
/// How long it is not looked at memory when nothing is passed on: others use it too.
const REST: Duration = Duration::from_secs(1);
/// The part of all memory that is not to be used up by bytes that are there twice.
const SPARE: u64 = 8;
/// Bytes of the largest pieces that the page cache is made of. One goes as a whole.
const FOLIO: u64 = 2 << 20;
/// Stretches that are remembered. Of what is read here and there the oldest are
/// forgotten, and left to the kernel.
const MOST: usize = 1 << 12;

/// What was passed on from sources and may be there twice.
#[derive(Default)]
pub(super) struct Behind {
    passed: Mutex<Passed>,
    /// Memory is short, or this is about to go.
    wake: Condvar,
}

#[derive(Default)]
struct Passed {
    stretches: Vec<Stretch>,
    /// Bytes, since it was last looked at memory.
    bytes: u64,
    /// There is a thread that lets go of them.
    started: bool,
}

/// Bytes of one source.
struct Stretch {
    path: Arc<Path>,
    /// As long as it is open: it has its own mapping of the source.
    file: Weak<Converted>,
    bytes: Range<u64>,
}

impl Behind {
    /// The bytes `[from, from + len)` of the source of `file`, which is at `path`,
    /// have been passed on.
    pub fn pass(self: &Arc<Self>, file: &Arc<Converted>, path: &Arc<Path>, from: u64, len: u64) {
        let mut passed = self.lock();
        let end = from.saturating_add(len);
        // Requests that run beside each other come a little out of order.
        let known = passed.stretches.iter_mut().rev().take(8).find(|known| {
            known.bytes.end == from && Weak::as_ptr(&known.file) == Arc::as_ptr(file)
        });
        match known {
            Some(known) => known.bytes.end = end,
            None => {
                if passed.stretches.len() >= MOST {
                    passed.stretches.drain(..MOST / 2);
                }
                passed.stretches.push(Stretch {
                    path: path.clone(),
                    file: Arc::downgrade(file),
                    bytes: from..end,
                });
            }
        }
        if !std::mem::replace(&mut passed.started, true) {
            let behind = Arc::downgrade(self);
            let run = move || watch(&behind);
            passed.started = thread::Builder::new()
                .name("behind".into())
                .spawn(run)
                .is_ok();
        }
        passed.bytes = passed.bytes.saturating_add(len);
        if passed.bytes >= STEP {
            passed.bytes = 0;
            drop(passed);
            if is_short() {
                self.wake.notify_one();
            }
        }
    }

    fn let_go(&self) {
        let stretches = std::mem::take(&mut self.lock().stretches);
        let mut left = Vec::new();
        for stretch in merged(stretches) {
            let Range { start, end } = stretch.bytes;
            // The reader is about to go on in the last of these pieces.
            let last = end - end % FOLIO;
            stretch.release(start - start % FOLIO..last);
            if last < end {
                left.push(Stretch {
                    bytes: start.max(last)..end,
                    ..stretch
                });
            }
        }
        let mut passed = self.lock();
        left.append(&mut passed.stretches);
        passed.stretches = left;
    }

    fn lock(&self) -> MutexGuard<'_, Passed> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of what is there twice whenever memory is short, until nobody reads any
/// more.
fn watch(behind: &Weak<Behind>) {
    while let Some(behind) = behind.upgrade() {
        let passed = behind.lock();
        let woken = behind.wake.wait_timeout(passed, REST);
        drop(woken);
        if is_short() {
            behind.let_go();
        }
    }
}

/// The same stretches, those that touch joined.
fn merged(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_unstable_by_key(|stretch| {
        (Weak::as_ptr(&stretch.file) as usize, stretch.bytes.start)
    });
    stretches.dedup_by(|next, stretch| {
        let joined =
            Weak::ptr_eq(&next.file, &stretch.file) && next.bytes.start <= stretch.bytes.end;
        if joined {
            stretch.bytes.end = stretch.bytes.end.max(next.bytes.end);
        }
        joined
    });
    stretches
}

impl Stretch {
    /// Lets go of `bytes` of its source.
    fn release(&self, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        match self.file.upgrade() {
            Some(file) => file.source().let_go(bytes),
            // If it is another file by now, that one is read again: no harm is done.
            None => {
                if let Ok(source) = Source::open(&self.path) {
                    source.let_go(bytes);
                }
            }
        }
    }
}

/// Whether so little memory is unused that to hold something twice pushes out
/// something else.
fn is_short() -> bool {
    sysinfo().is_ok_and(|memory| memory.ram_unused() < memory.ram_total() / SPARE)
}
