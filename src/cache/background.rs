//! Work that nobody waits for. It gets the processor and the disk when others leave
//! them to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::workers::{Lane, Workers};

/// Threads at most: one for each file system that is worked on, and more than one, so
/// that one that hangs keeps nothing else from being done.
const MOST: usize = 3;

/// Threads of the lowest priority.
#[derive(Clone, Debug)]
pub struct Background(Arc<Threads>);

#[derive(Debug)]
struct Threads {
    workers: Workers,
    /// Memory is about to be given back.
    trimming: AtomicBool,
}

impl Background {
    /// There are threads once there is work.
    pub fn start() -> Background {
        Background(Arc::new(Threads {
            workers: Workers::new("background", MOST, 0, stand_back),
            trimming: AtomicBool::new(false),
        }))
    }

    /// Has memory that was freed, and that the allocator keeps, given back to the
    /// system.
    pub fn trim(&self) {
        if self.0.trimming.swap(true, Ordering::Relaxed) {
            return;
        }
        let threads = self.0.clone();
        self.add(Lane::default(), move || {
            threads.trimming.store(false, Ordering::Relaxed);
            // SAFETY: no preconditions; it is glibc's own, which other C libraries
            // neither have nor need.
            #[cfg(target_env = "gnu")]
            unsafe {
                libc::malloc_trim(0);
            }
        });
    }

    /// Has `work` done some time, in turn with what waits for the same.
    pub fn add(&self, lane: Lane, work: impl FnOnce() + Send + 'static) {
        self.0.workers.add(lane, work);
    }
}

/// Gives this thread the lowest priority that still makes progress: it may hold
/// what a reader waits for.
fn stand_back() {
    /// `IOPRIO_WHO_PROCESS`, and `IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 0)` of
    /// linux/ioprio.h.
    const THREAD: libc::c_int = 1;
    const IDLE: libc::c_int = 3 << 13;
    const LEAST_NICE: libc::c_int = 19;
    // SAFETY: both calls take integers alone. Zero is the calling thread.
    unsafe {
        libc::setpriority(libc::PRIO_PROCESS, 0, LEAST_NICE);
        libc::syscall(libc::SYS_ioprio_set, THREAD, 0, IDLE);
    }
}
