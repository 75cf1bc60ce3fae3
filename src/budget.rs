//! How much memory work on files may take at once, in the process as a whole.
//!
//! Whoever makes something of a file has a [`Share`], and takes from it before he
//! allocates by what the file says. What he took is given back with the share. Who
//! finds the budget used up waits for his turn; what would take more than one file
//! may is [told so](TooMuch).
//!
//! ```text
//! half of the budget   the reserve: of one share at a time, and the most of any share
//! a quarter            what all shares take from first, the reserve aside
//! a quarter            what is known of files, and what is not counted exactly
//! ```
//!
//! Whoever waits goes on as soon as there is room outside of the reserve, or with that, in
//! the order of coming; and who has the reserve never waits: what he may take at all is there. So each wait
//! ends, whatever the others hold.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

/// Every share has as much from the start, which is not counted: most files take no
/// more, and never wait.
const FREE: u64 = 256 << 10;
/// So much is asked for at once, at least.
const STEP: u64 = 1 << 20;
/// The least that is of use.
pub const LEAST: u64 = 64 << 20;

/// Memory for work on files. Copies are of the same memory.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    total: u64,
    state: Mutex<State>,
    /// The first in line, or what he waits for, may be another one now.
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes that are left outside of the reserve.
    left: u64,
    /// Whether a share has the reserve.
    is_reserved: bool,
    /// Bytes that were given back so far.
    returned: u64,
    /// Who waits, first the next one.
    line: VecDeque<u64>,
    /// The number of whoever gets in line next.
    next: u64,
}

/// What one file would take, and may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// Bytes that it takes at least.
    pub wanted: u64,
    /// Bytes that any file may take.
    pub most: u64,
}

impl fmt::Display for TooMuch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MIB: u64 = 1 << 20;
        write!(
            f,
            "it takes at least {} MiB of memory, and no file may take more than {} MiB",
            self.wanted.div_ceil(MIB),
            self.most / MIB
        )
    }
}

impl std::error::Error for TooMuch {}

/// The budget of the process, where nobody says another one.
impl Default for Budget {
    fn default() -> Budget {
        static PROCESS: LazyLock<Budget> = LazyLock::new(|| Budget::new(for_machine(memory())));
        PROCESS.clone()
    }
}

/// A sixteenth of the memory of the machine, but neither too little for large
/// checkpoints nor more than they take.
fn for_machine(memory: Option<u64>) -> u64 {
    const LOW: u64 = 256 << 20;
    const HIGH: u64 = 2 << 30;
    memory.map_or(LOW, |memory| (memory / 16).clamp(LOW, HIGH))
}

/// Bytes that the machine has.
fn memory() -> Option<u64> {
    let info = nix::sys::sysinfo::sysinfo().ok()?;
    Some(info.ram_total())
}

impl Budget {
    /// Of `total` bytes.
    pub fn new(total: u64) -> Budget {
        Budget(Arc::new(Shared {
            total,
            state: Mutex::new(State {
                left: total / 4,
                is_reserved: false,
                returned: 0,
                line: VecDeque::new(),
                next: 0,
            }),
            moved: Condvar::new(),
        }))
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.0.total
    }

    /// Bytes that one file may take.
    pub fn most(&self) -> u64 {
        self.0.total / 2
    }

    /// Bytes that were given back so far, by all who took more than a little.
    pub fn returned(&self) -> u64 {
        self.lock().returned
    }

    /// A share of which nothing is taken yet. Nobody has two at a time: he could wait
    /// for himself.
    pub fn share(&self) -> Share {
        Share {
            budget: self.clone(),
            used: Cell::new(0),
            granted: Cell::new(FREE.min(self.most())),
            common: Cell::new(0),
            has_reserve: Cell::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one piece of work has taken of the budget.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    /// Bytes that are in use.
    used: Cell<u64>,
    /// Bytes that may be in use without asking again: the most that ever were, or more.
    granted: Cell<u64>,
    /// Bytes of them that are taken outside of the reserve.
    common: Cell<u64>,
    has_reserve: Cell<bool>,
}

impl Share {
    /// Takes `bytes` more. Waits for them if others have them.
    ///
    /// # Errors
    /// It would be more than one file may take. Nothing is taken then.
    pub fn take(&self, bytes: u64) -> Result<(), TooMuch> {
        let (wanted, most) = (self.used.get().saturating_add(bytes), self.budget.most());
        if wanted > most {
            return Err(TooMuch { wanted, most });
        }
        let granted = self.granted.get();
        if wanted > granted && !self.has_reserve.get() {
            let more = (wanted - granted).max(STEP.min(most - granted));
            self.wait_for(more);
            self.granted.set(granted + more);
        }
        self.used.set(wanted);
        Ok(())
    }

    /// Does `work`. What that takes can be taken again when it is done.
    pub fn returning<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.used.get();
        let done = work();
        self.used.set(before);
        done
    }

    /// Takes `bytes` more outside of the reserve, or the reserve, when it is this
    /// share's turn.
    fn wait_for(&self, bytes: u64) {
        let moved = &self.budget.0.moved;
        let mut state = self.budget.lock();
        let number = state.next;
        state.next += 1;
        state.line.push_back(number);
        // Whoever finds room goes on, though others wait for the reserve: who has that may
        // read from a source that does not answer.
        let has_turn = |state: &State| {
            state.left >= bytes || state.line.front() == Some(&number) && !state.is_reserved
        };
        while !has_turn(&state) {
            state = moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.line.retain(|other| *other != number);
        match state.left.checked_sub(bytes) {
            Some(left) => {
                state.left = left;
                self.common.set(self.common.get() + bytes);
            }
            None => {
                state.is_reserved = true;
                self.has_reserve.set(true);
            }
        }
        moved.notify_all();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let (common, has_reserve) = (self.common.get(), self.has_reserve.get());
        if common == 0 && !has_reserve {
            return;
        }
        let mut state = self.budget.lock();
        state.left += common;
        state.returned = state.returned.wrapping_add(self.granted.get());
        state.is_reserved &= !has_reserve;
        self.budget.0.moved.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;
    use std::thread;

    const MIB: u64 = 1 << 20;

    /// How many wait.
    fn waiting(budget: &Budget) -> usize {
        budget.lock().line.len()
    }

    /// Returns once so many wait.
    fn wait_until(budget: &Budget, waiters: usize) {
        while waiting(budget) != waiters {
            thread::yield_now();
        }
    }

    /// Everything is free.
    fn is_whole(budget: &Budget) -> bool {
        let state = budget.lock();
        state.left == budget.total() / 4 && !state.is_reserved && state.line.is_empty()
    }

    #[test]
    fn what_one_file_may_take_is_half() {
        let budget = Budget::new(64 * MIB);
        let share = budget.share();
        assert_eq!(share.take(32 * MIB), Ok(()));
        let refused = share.take(1).unwrap_err();
        assert_eq!((refused.wanted, refused.most), (32 * MIB + 1, 32 * MIB));
        assert_eq!(
            refused.to_string(),
            "it takes at least 33 MiB of memory, and no file may take more than 32 MiB"
        );
        assert_eq!(share.take(u64::MAX).unwrap_err().wanted, u64::MAX);
        drop(share);
        assert!(is_whole(&budget));
    }

    #[test]
    fn what_does_not_fit_together_follows_each_other() {
        let budget = Budget::new(64 * MIB);
        let shares: Vec<Share> = (0..2).map(|_| budget.share()).collect();
        for share in &shares {
            share.take(16 * MIB).unwrap();
        }
        let (sender, receiver) = channel();
        thread::scope(|scope| {
            for number in 0..4 {
                let (sender, budget) = (sender.clone(), budget.clone());
                scope.spawn(move || {
                    let share = budget.share();
                    share.take(20 * MIB).unwrap();
                    sender.send(number).unwrap();
                });
                // They get in line one after the other.
                wait_until(&shares[0].budget, number + 1);
            }
            assert!(receiver.try_recv().is_err());
            drop(shares);
            let order: Vec<usize> = receiver.iter().take(4).collect();
            assert_eq!(order, [0, 1, 2, 3]);
        });
        assert!(is_whole(&budget));
    }

    #[test]
    fn who_finds_room_does_not_wait_behind_who_needs_the_reserve() {
        let budget = Budget::new(64 * MIB);
        let hangs = budget.share();
        hangs.take(32 * MIB).unwrap();
        thread::scope(|scope| {
            let large = scope.spawn(|| budget.share().take(30 * MIB));
            wait_until(&budget, 1);
            budget.share().take(8 * MIB).unwrap();
            assert!(!large.is_finished());
            drop(hangs);
            large.join().unwrap().unwrap();
        });
        assert!(is_whole(&budget));
    }

    #[test]
    fn small_files_never_wait() {
        let budget = Budget::new(64 * MIB);
        let large = [budget.share(), budget.share()];
        large[0].take(16 * MIB + FREE).unwrap();
        large[1].take(32 * MIB).unwrap();
        budget.share().take(FREE).unwrap();
        assert_eq!(waiting(&budget), 0);
    }

    #[test]
    fn whoever_has_a_part_and_wants_more_gets_it_in_the_end() {
        let budget = Budget::new(64 * MIB);
        let (most, held) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for thread in 0..16_u64 {
                let (budget, most, held) = (&budget, &most, &held);
                scope.spawn(move || {
                    for round in 0..200 {
                        let share = budget.share();
                        let mut taken = 0;
                        for step in 0..32 {
                            let bytes = ((thread * 7 + round * 3 + step) % 2048) << 10;
                            if share.take(bytes).is_ok() {
                                taken += bytes;
                                let now = held.fetch_add(bytes, Ordering::SeqCst) + bytes;
                                most.fetch_max(now, Ordering::SeqCst);
                            }
                        }
                        held.fetch_sub(taken, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(is_whole(&budget));
        let counted = 48 * MIB + 16 * FREE;
        assert!(most.load(Ordering::SeqCst) <= counted, "{most:?}");
    }

    #[test]
    fn what_was_returned_is_taken_again() {
        let budget = Budget::new(64 * MIB);
        let share = budget.share();
        for _ in 0..100 {
            share.returning(|| share.take(16 * MIB)).unwrap();
        }
        share.take(32 * MIB).unwrap();
        assert!(share.returning(|| share.take(1)).is_err());
        drop(share);
        assert!(is_whole(&budget));
    }

    #[test]
    fn a_panic_gives_back_what_was_taken() {
        let budget = Budget::new(64 * MIB);
        let broken = catch_unwind(AssertUnwindSafe(|| {
            let share = budget.share();
            share.take(30 * MIB).unwrap();
            panic!("in the middle");
        }));
        assert!(broken.is_err());
        assert!(is_whole(&budget));
    }

    #[test]
    fn the_machine_says_how_much_there_is() {
        assert_eq!(for_machine(None), 256 * MIB);
        assert_eq!(for_machine(Some(1 << 30)), 256 * MIB);
        assert_eq!(for_machine(Some(8 << 30)), 512 * MIB);
        assert_eq!(for_machine(Some(1 << 40)), 2048 * MIB);
        assert!(memory().is_some());
    }
}
