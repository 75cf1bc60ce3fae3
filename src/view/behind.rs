//! Behind a reader, what it has got is in the page cache twice: as bytes of the
//! mount, and as bytes of the source. When memory is short, the source's go.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use nix::sys::sysinfo::sysinfo;

use crate::source::Source;

/// Bytes that are passed on before it is looked at memory again.
const STEP: u64 = 32 << 20;
/// The part of all memory that is not to be used up by bytes that are there twice.
const SPARE: u64 = 8;

/// What was passed on from one source lately.
#[derive(Debug, Default)]
pub(super) struct Behind(Mutex<Passed>);

#[derive(Debug, Default)]
struct Passed {
    stretches: Vec<Range<u64>>,
    /// Bytes: the sum of theirs.
    bytes: u64,
}

impl Behind {
    /// The bytes `[from, from + len)` of `source` have been passed on.
    pub fn pass(&self, source: &Source, from: u64, len: u64) {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match passed.stretches.last_mut() {
            Some(last) if last.end == from => last.end = from.saturating_add(len),
            _ => passed.stretches.push(from..from.saturating_add(len)),
        }
        passed.bytes = passed.bytes.saturating_add(len);
        if passed.bytes < STEP {
            return;
        }
        let passed = std::mem::take(&mut *passed);
        if is_short() {
            for stretch in passed.stretches {
                source.let_go(stretch);
            }
        }
    }
}

/// Whether so little memory is unused that to hold something twice pushes out
/// something else.
fn is_short() -> bool {
    sysinfo().is_ok_and(|memory| memory.ram_unused() < memory.ram_total() / SPARE)
}
