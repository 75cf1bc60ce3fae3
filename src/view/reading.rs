//! How an open file is being read, as far as the requests of the kernel tell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes: the grain in which it is known what was read.
const BLOCK: u64 = 1 << 20;

/// What a file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// From its first byte to its last.
    Whole,
    /// Through a mapping.
    Mapped,
}

#[derive(Debug)]
pub(super) struct Reading {
    /// Blocks that were asked for, and how many of them are left.
    blocks: Mutex<(Vec<bool>, u64)>,
    /// A descriptor was closed.
    closed: AtomicBool,
    /// The use has been told.
    told: AtomicBool,
}

impl Reading {
    /// Of a file of `size` bytes.
    pub fn new(size: u64) -> Reading {
        let blocks = size.div_ceil(BLOCK);
        Reading {
            blocks: Mutex::new((Vec::new(), blocks)),
            closed: AtomicBool::new(false),
            told: AtomicBool::new(blocks == 0),
        }
    }

    /// A descriptor of the file was closed. Who reads on has it mapped (or has
    /// another copy of the descriptor, which is as good a sign of lasting
    /// interest).
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Takes note of a request for `len` bytes from `offset` on, inside the file.
    /// Some the first time that the use is known.
    pub fn note(&self, offset: u64, len: u64) -> Option<Use> {
        if self.told.load(Ordering::Relaxed) || len == 0 {
            return None;
        }
        let found = match self.closed.load(Ordering::Relaxed) {
            true => Use::Mapped,
            false if self.completes(offset, len) => Use::Whole,
            false => return None,
        };
        (!self.told.swap(true, Ordering::Relaxed)).then_some(found)
    }

    /// Whether every block has been asked for with this request.
    fn completes(&self, offset: u64, len: u64) -> bool {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, left) = &mut *blocks;
        let last = usize::try_from((offset.saturating_add(len) - 1) / BLOCK);
        let (Ok(first), Ok(last)) = (usize::try_from(offset / BLOCK), last) else {
            return false;
        };
        // Grows with what is read: a large file that is read in pieces stays cheap.
        if asked.len() <= last {
            asked.resize(last + 1, false);
        }
        for block in asked.iter_mut().take(last + 1).skip(first) {
            if !std::mem::replace(block, true) {
                *left = left.saturating_sub(1);
            }
        }
        *left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_read_once_in_pieces_is_not_read_whole() {
        let reading = Reading::new(3 * BLOCK + 1);
        assert_eq!(reading.note(0, BLOCK), None);
        assert_eq!(reading.note(2 * BLOCK, BLOCK + 1), None);
        assert_eq!(reading.note(0, BLOCK), None);
        assert_eq!(reading.note(BLOCK, 10), Some(Use::Whole));
        assert_eq!(reading.note(BLOCK, 10), None, "told once");
    }

    #[test]
    fn who_reads_after_the_close_has_it_mapped() {
        let reading = Reading::new(100 * BLOCK);
        assert_eq!(reading.note(0, 4096), None);
        reading.close();
        assert_eq!(reading.note(50 * BLOCK, 4096), Some(Use::Mapped));
    }

    #[test]
    fn an_empty_file_has_no_use() {
        assert_eq!(Reading::new(0).note(0, 0), None);
    }
}
