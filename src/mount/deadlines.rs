//! Answers that are given at a certain time unless they were given before. One thread
//! waits for the next of them, and for nothing where there is none.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::error;

/// How late an answer may be: so often the thread wakes at most.
const SLACK: Duration = Duration::from_millis(5);

/// A reply that is given once, by whoever comes first.
pub struct Pending<R>(Mutex<Option<R>>);

impl<R> Pending<R> {
    pub fn new(reply: R) -> Arc<Pending<R>> {
        Arc::new(Pending(Mutex::new(Some(reply))))
    }

    /// None if the reply was given.
    pub fn take(&self) -> Option<R> {
        self.lock().take()
    }

    pub fn is_given(&self) -> bool {
        self.lock().is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Option<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that may still have to be done.
trait Wait: Send {
    fn is_over(&self) -> bool;
    fn end(self: Box<Self>);
}

struct Unless<R, F> {
    pending: Arc<Pending<R>>,
    end: F,
}

impl<R: Send, F: FnOnce(&Pending<R>) + Send> Wait for Unless<R, F> {
    fn is_over(&self) -> bool {
        self.pending.is_given()
    }

    fn end(self: Box<Self>) {
        (self.end)(&self.pending);
    }
}

#[derive(Default)]
pub struct Deadlines(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waits: Vec<(Instant, Box<dyn Wait>)>,
    /// When the thread looks again; None while there is no thread or it waits for more.
    next: Option<Instant>,
    has_thread: bool,
    ended: bool,
}

impl Deadlines {
    /// Calls `end` in so much time, unless the reply was given by then.
    pub fn add<R: Send + 'static>(
        &self,
        pending: &Arc<Pending<R>>,
        after: Duration,
        end: impl FnOnce(&Pending<R>) + Send + 'static,
    ) {
        let due = Instant::now() + after;
        let pending = pending.clone();
        let mut state = self.0.lock();
        state.waits.push((due, Box::new(Unless { pending, end })));
        if !state.has_thread {
            let shared = self.0.clone();
            let thread = thread::Builder::new().name("deadlines".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => state.has_thread = true,
                // Whoever waits then waits for the real answer.
                Err(why) => error!("there is no thread for answers in time: {why}"),
            }
        } else if state.next.is_none_or(|next| due + SLACK < next) {
            self.0.wake.notify_one();
        }
    }
}

impl Drop for Deadlines {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.wake.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            state.waits.retain(|(_, wait)| !wait.is_over());
            let waits = std::mem::take(&mut state.waits);
            let (due, waits) = waits.into_iter().partition(|(due, _)| *due <= now);
            state.waits = waits;
            let due: Vec<(Instant, Box<dyn Wait>)> = due;
            if !due.is_empty() {
                drop(state);
                for (_, wait) in due {
                    // A defect in one answer is no reason to leave out the others.
                    if catch_unwind(AssertUnwindSafe(|| wait.end())).is_err() {
                        error!("a defect in stfs ended an answer in time");
                    }
                }
                state = self.lock();
                continue;
            }
            let next = state.waits.iter().map(|(due, _)| *due + SLACK).min();
            state.next = next;
            state = match next {
                Some(next) => {
                    let wait = next.saturating_duration_since(now);
                    let waited = self.wake.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .wake
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_reply_is_given_once_by_whoever_comes_first() {
        let deadlines = Deadlines::default();
        let (said, heard) = channel();
        let (late, early) = (Pending::new("late"), Pending::new("early"));
        for (pending, after) in [(&late, 20), (&early, 600_000)] {
            let said = said.clone();
            let after = Duration::from_millis(after);
            deadlines.add(pending, after, move |pending| {
                said.send(pending.take()).unwrap();
            });
        }
        assert_eq!(early.take(), Some("early"));
        assert_eq!(heard.recv().unwrap(), Some("late"));
        assert_eq!(late.take(), None);
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn a_sooner_one_is_not_kept_waiting() {
        let deadlines = Deadlines::default();
        let (said, heard) = channel();
        for after in [600_000, 60_000, 20] {
            let said = said.clone();
            deadlines.add(&Pending::new(()), Duration::from_millis(after), move |_| {
                said.send(after).unwrap();
            });
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(heard.recv().unwrap(), 20);
    }
}
