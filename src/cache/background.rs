//! A thread for work that nobody waits for. It gets the processor and the disk
//! when others leave them to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::debug;

type Job = Box<dyn FnOnce() + Send>;

enum Message {
    Now(Job),
    /// In place of the one that waits for its time.
    Later(Instant, Job),
}

/// Hands jobs to the thread, which does them one after the other and ends, after
/// the last one, with the last copy of this.
#[derive(Clone, Debug)]
pub struct Background {
    sender: Sender<Message>,
    /// Memory is to be given back, and has not been yet.
    trims: Arc<AtomicBool>,
}

impl Background {
    /// Starts the thread.
    pub fn start() -> Background {
        let (sender, messages) = channel();
        let run = move || {
            stand_back();
            let mut later = None;
            while let Some(job) = next(&messages, &mut later) {
                // A defect in one job is no reason to leave out the others.
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    log::error!("a defect in stfs ended some work in the background");
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("background".into()).spawn(run) {
            debug!("no thread for work in the background: {error}");
        }
        let trims = Arc::default();
        Background { sender, trims }
    }

    /// Has memory that was freed, and that the allocator keeps, given back to the
    /// system.
    pub fn trim(&self) {
        if !self.trims.swap(true, Ordering::Relaxed) {
            let trims = self.trims.clone();
            self.add(move || {
                trims.store(false, Ordering::Relaxed);
                // SAFETY: no preconditions; it is glibc's own, which other C libraries
                // neither have nor need.
                #[cfg(target_env = "gnu")]
                unsafe {
                    libc::malloc_trim(0);
                }
            });
        }
    }

    /// Whether `job` will be done.
    pub fn add(&self, job: impl FnOnce() + Send + 'static) -> bool {
        self.sender.send(Message::Now(Box::new(job))).is_ok()
    }

    /// Has `job` done once nothing else has been put off for as long as `wait`, in place
    /// of what was put off before.
    pub fn put_off(&self, wait: Duration, job: impl FnOnce() + Send + 'static) {
        let when = Instant::now() + wait;
        // Without a thread it is not done either.
        let _ = self.sender.send(Message::Later(when, Box::new(job)));
    }
}

/// The next job; None when there will be none.
fn next(messages: &Receiver<Message>, later: &mut Option<(Instant, Job)>) -> Option<Job> {
    loop {
        let message = match later {
            None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some((when, _)) => {
                messages.recv_timeout(when.saturating_duration_since(Instant::now()))
            }
        };
        match message {
            Ok(Message::Now(job)) => return Some(job),
            Ok(Message::Later(when, job)) => *later = Some((when, job)),
            Err(RecvTimeoutError::Timeout) => return later.take().map(|(_, job)| job),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
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
