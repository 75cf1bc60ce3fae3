//! A thread for work that nobody waits for. It gets the processor and the disk
//! when others leave them to it.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use log::debug;

type Job = Box<dyn FnOnce() + Send>;

/// Hands jobs to the thread, which does them one after the other and ends, after
/// the last one, with the last copy of this.
#[derive(Clone, Debug)]
pub struct Background(Sender<Job>);

impl Background {
    /// Starts the thread.
    pub fn start() -> Background {
        let (sender, jobs) = channel::<Job>();
        let run = move || {
            stand_back();
            for job in jobs {
                // A defect in one job is no reason to leave out the others.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    log::error!("a defect in stfs ended some work in the background");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("background".into()).spawn(run) {
            debug!("no thread for work in the background: {error}");
        }
        Background(sender)
    }

    /// Has memory that was freed, and that the allocator keeps, given back to the
    /// system.
    pub fn trim(&self) {
        self.add(|| {
            // SAFETY: no preconditions; it is glibc's own, which other C libraries
            // neither have nor need.
            #[cfg(target_env = "gnu")]
            unsafe {
                libc::malloc_trim(0);
            }
        });
    }

    /// Whether `job` will be done.
    pub fn add(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.0.send(Box::new(job)).is_ok()
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
