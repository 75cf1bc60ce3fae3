//! Work that nobody waits for. It gets the processor and the disk when others leave
//! them to it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::workers::{Lane, Workers};

/// Threads at most: one for each file system that is worked on, and more than one, so
/// that one that hangs keeps nothing else from being done.
const MOST: usize = 3;

/// Threads of the lowest priority.
#[derive(Clone, Debug)]
pub struct Background(Arc<Threads>);

struct Threads {
    workers: Workers,
    /// Memory is about to be given back.
    trimming: AtomicBool,
    later: Mutex<Later>,
}

/// What is done when its time has come.
#[derive(Default)]
struct Later {
    job: Option<(Instant, Job)>,
    /// There is a thread that waits for it.
    has_thread: bool,
}

type Job = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Threads {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.workers.fmt(f)
    }
}

impl Background {
    /// There are threads once there is work.
    pub fn start() -> Background {
        Background(Arc::new(Threads {
            workers: Workers::new("background", MOST, 0, stand_back),
            trimming: AtomicBool::new(false),
            later: Mutex::default(),
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

    /// Has `job` done once nothing else has been put off for as long as `wait`, in place
    /// of what was put off before.
    pub fn put_off(&self, wait: Duration, job: impl FnOnce() + Send + 'static) {
        let mut later = self.0.later();
        later.job = Some((Instant::now() + wait, Box::new(job)));
        if !later.has_thread {
            let threads = self.0.clone();
            let thread = thread::Builder::new().name("later".into());
            let started = thread.spawn(move || threads.wait_for_later());
            // Without a thread it is not done either.
            later.has_thread = started.is_ok();
        }
    }
}

impl Threads {
    /// Waits for the time of what was put off, and ends.
    fn wait_for_later(&self) {
        loop {
            let mut later = self.later();
            let now = Instant::now();
            match &later.job {
                Some((when, _)) if *when > now => {
                    let wait = *when - now;
                    drop(later);
                    thread::sleep(wait);
                }
                _ => {
                    later.has_thread = false;
                    let job = later.job.take();
                    drop(later);
                    if let Some((_, job)) = job {
                        self.workers.add(Lane::default(), job);
                    }
                    return;
                }
            }
        }
    }

    fn later(&self) -> MutexGuard<'_, Later> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
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
