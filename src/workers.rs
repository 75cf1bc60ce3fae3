//! Threads for work that may block. They come when there is work and go when there is
//! none, and there are never more than a bound.
//!
//! What blocks takes its own kind along, and nothing else: of the work that waits for
//! one file, one directory or one file system no more is done at once than a share of
//! all, so that there is always a thread for the rest.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{error, warn};

/// How long a thread without work stays, beyond those that are always there.
const REST: Duration = Duration::from_secs(10);
/// Work that takes longer is taken to wait for something that does not come.
const STALLED: Duration = Duration::from_secs(1);

/// What a piece of work may have to wait for, by number. Zero is nothing in particular.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lane {
    pub file: u64,
    pub directory: u64,
    /// The file system.
    pub system: u64,
}

/// A number for what is like `thing` alone, to be put into a [`Lane`].
pub fn number(thing: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    hasher.finish().max(1)
}

type Work = Box<dyn FnOnce() + Send>;

/// Work that waits for a thread.
struct Job {
    lane: Lane,
    is_over: Box<dyn Fn() -> bool + Send>,
    work: Work,
}

/// So many pieces of work wait before those are looked for that need not be done.
const MANY: usize = 256;

/// Threads, and the work that waits for one.
pub struct Workers(Arc<Shared>);

struct Shared {
    name: &'static str,
    /// Done by each thread before its first work.
    prepare: fn(),
    /// Threads at most, and those that are always there.
    most: usize,
    kept: usize,
    state: Mutex<State>,
    /// There is work, or an end.
    wake: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// What is being done, and since when.
    running: Vec<(Lane, Instant)>,
    threads: usize,
    /// Threads that wait for work.
    idle: usize,
    ended: bool,
}

impl Workers {
    /// No more than `most` threads, which are called `name`, of which `kept` are never
    /// let go.
    pub fn new(name: &'static str, most: usize, kept: usize, prepare: fn()) -> Workers {
        Workers(Arc::new(Shared {
            name,
            prepare,
            most: most.max(1),
            kept: kept.min(most),
            state: Mutex::default(),
            wake: Condvar::new(),
        }))
    }

    /// Has `work` done when there is a thread for it, in turn with all that waits for
    /// the same.
    pub fn add(&self, lane: Lane, work: impl FnOnce() + Send + 'static) {
        self.add_unless(lane, || false, work);
    }

    /// The same, unless it `is_over` before it is begun.
    pub fn add_unless(
        &self,
        lane: Lane,
        is_over: impl Fn() -> bool + Send + 'static,
        work: impl FnOnce() + Send + 'static,
    ) {
        let mut state = self.0.lock();
        if state.waiting.len() % MANY == MANY - 1 {
            state.waiting.retain(|job| !(job.is_over)());
        }
        state.waiting.push_back(Job {
            lane,
            is_over: Box::new(is_over),
            work: Box::new(work),
        });
        self.0.call(&mut state);
    }

    /// Whether something that waits for the same file system has been under way for
    /// long.
    pub fn is_stalled(&self, lane: Lane) -> bool {
        let state = self.0.lock();
        let mut same = state.running.iter();
        same.any(|(other, since)| other.system == lane.system && since.elapsed() > STALLED)
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Workers({})", self.0.name)
    }
}

/// What was not begun is dropped.
impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        let dropped = std::mem::take(&mut state.waiting);
        drop(state);
        drop(dropped);
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a thread looks for work. Each that takes some calls the next, so
    /// that none is left lying because a call was lost.
    fn call(self: &Arc<Self>, state: &mut State) {
        if state.idle > 0 {
            self.wake.notify_one();
        } else if state.threads < self.most {
            let shared = self.clone();
            let thread = thread::Builder::new().name(self.name.into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => state.threads += 1,
                Err(why) if state.threads == 0 => {
                    error!("there is no thread for any work: {why}");
                    // Whoever waits for an answer hears of it.
                    state.waiting.clear();
                }
                Err(why) => warn!("work has to wait for a thread: {why}"),
            }
        }
    }

    fn run(self: Arc<Self>) {
        (self.prepare)();
        let mut state = self.lock();
        loop {
            if let Some((begun, work)) = self.take(&mut state) {
                if self.has_work(&state) {
                    self.call(&mut state);
                }
                drop(state);
                // A defect in one piece of work is no reason to leave out the others.
                if catch_unwind(AssertUnwindSafe(work)).is_err() {
                    error!("{}: a defect in stfs ended a piece of work", self.name);
                }
                state = self.lock();
                let done = state.running.iter().position(|other| *other == begun);
                done.map(|done| state.running.swap_remove(done));
                continue;
            }
            let is_spare = state.threads > self.kept;
            if state.ended {
                break;
            }
            state.idle += 1;
            let (next, is_over) = match is_spare {
                true => {
                    let waited = self.wake.wait_timeout(state, REST);
                    let (next, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                    (next, waited.timed_out())
                }
                false => {
                    let next = self.wake.wait(state);
                    (next.unwrap_or_else(PoisonError::into_inner), false)
                }
            };
            state = next;
            state.idle -= 1;
            if is_over && !self.has_work(&state) && state.threads > self.kept {
                break;
            }
        }
        state.threads -= 1;
    }

    fn has_work(&self, state: &State) -> bool {
        let mut waiting = state.waiting.iter();
        waiting.any(|job| self.is_free(state, &job.lane))
    }

    /// The oldest work whose share is not used up, and what is running with it.
    fn take(&self, state: &mut State) -> Option<((Lane, Instant), Work)> {
        loop {
            let mut waiting = state.waiting.iter();
            let found = waiting.position(|job| self.is_free(state, &job.lane))?;
            let job = state.waiting.remove(found)?;
            if !(job.is_over)() {
                let begun = (job.lane, Instant::now());
                state.running.push(begun);
                return Some((begun, job.work));
            }
        }
    }

    /// Whether one more piece of work may wait for what is in `lane`.
    fn is_free(&self, state: &State, lane: &Lane) -> bool {
        let share = |part: usize| (self.most / part).max(1);
        let within = |number: fn(&Lane) -> u64, most: usize| {
            let (wanted, running) = (number(lane), &state.running);
            wanted == 0
                || running
                    .iter()
                    .filter(|(it, _)| number(it) == wanted)
                    .count()
                    < most
        };
        within(|lane| lane.file, share(8))
            && within(|lane| lane.directory, share(4))
            && within(|lane| lane.system, share(2))
    }
}

/// Does `work` with each of the `items`, by so many threads of its own at most, and gives
/// what comes of it in their order.
///
/// # Errors
/// One that `work` gave.
pub fn at_once<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return Ok(done);
            };
            let result = work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed));
            done.push((at, result?));
        }
    };
    let done = thread::scope(|scope| {
        let others = (1..threads.min(items.len()))
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, worker).ok());
        let others: Vec<_> = others.collect();
        let own = worker();
        let joined = others.into_iter().map(|other| match other.join() {
            Ok(done) => done,
            Err(panic) => resume_unwind(panic),
        });
        joined.fold(own, |all: Result<Vec<_>, E>, more| {
            let mut all = all?;
            all.append(&mut more?);
            Ok(all)
        })
    });
    let mut done = done?;
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn workers(most: usize) -> Workers {
        Workers::new("test", most, 0, || {})
    }

    fn lane(file: u64, directory: u64, system: u64) -> Lane {
        Lane {
            file,
            directory,
            system,
        }
    }

    /// Adds work that says it has begun, and goes on when told.
    fn hang(workers: &Workers, lane: Lane) -> (Receiver<()>, Sender<()>) {
        let (begun, has_begun) = channel();
        let (go_on, may_go_on) = channel();
        workers.add(lane, move || {
            let _ = begun.send(());
            let _ = may_go_on.recv_timeout(PATIENCE);
        });
        (has_begun, go_on)
    }

    #[test]
    fn what_hangs_leaves_threads_to_the_rest() {
        let workers = workers(16);
        let hanging: Vec<_> = (0..100)
            .map(|n| hang(&workers, lane(n % 50 + 1, n % 5 + 1, 1)))
            .collect();
        let others = [lane(0, 0, 0), lane(7, 7, 2), lane(1, 1, 2)];
        for lane in others {
            let (begun, _go_on) = hang(&workers, lane);
            begun.recv_timeout(PATIENCE).unwrap();
        }
        let begun = hanging.iter().filter(|(begun, _)| begun.try_recv().is_ok());
        assert!(begun.count() <= 8, "half of the threads");
    }

    #[test]
    fn a_file_and_a_directory_have_their_shares() {
        for (same, share) in [(lane(1, 2, 3), 2), (lane(0, 2, 3), 4), (lane(0, 0, 3), 8)] {
            let workers = workers(16);
            let hanging: Vec<_> = (0..16).map(|_| hang(&workers, same)).collect();
            for (begun, _) in &hanging[..share] {
                begun.recv_timeout(PATIENCE).unwrap();
            }
            // Once one is through, the next one is let in.
            assert!(hanging[share].0.try_recv().is_err());
            hanging[0].1.send(()).unwrap();
            hanging[share].0.recv_timeout(PATIENCE).unwrap();
        }
    }

    #[test]
    fn all_is_done_whatever_the_shares() {
        for most in [1, 2, 3, 64] {
            let workers = workers(most);
            let (done, all) = channel();
            for n in 0..1000 {
                let done = done.clone();
                workers.add(lane(n % 7, n % 3, n % 2), move || done.send(n).unwrap());
            }
            let mut seen: Vec<u64> = (0..1000)
                .map(|_| all.recv_timeout(PATIENCE).unwrap())
                .collect();
            seen.sort_unstable();
            assert!(seen.into_iter().eq(0..1000), "{most}");
        }
    }

    #[test]
    fn what_is_over_is_not_begun_and_not_kept() {
        let workers = workers(1);
        let (begun, go_on) = hang(&workers, lane(1, 1, 1));
        begun.recv_timeout(PATIENCE).unwrap();
        let (done, all) = channel();
        for n in 0..10 * MANY {
            let done = done.clone();
            let work = move || done.send(n).unwrap();
            workers.add_unless(lane(1, 1, 1), move || n % 1000 != 0, work);
        }
        assert!(workers.0.lock().waiting.len() <= 2 * MANY);
        drop(done);
        go_on.send(()).unwrap();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [0, 1000, 2000]);
    }

    #[test]
    fn results_stand_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1000).collect();
        for threads in [0, 1, 7] {
            let doubled = at_once(&items, threads, |item| Ok::<u64, ()>(item * 2));
            assert!(doubled.unwrap().into_iter().eq((0..1000).map(|n| n * 2)));
        }
        assert_eq!(at_once(&[] as &[u8], 7, |_| Ok::<(), ()>(())), Ok(vec![]));
        let failed = at_once(
            &items,
            7,
            |item| if *item == 500 { Err(*item) } else { Ok(()) },
        );
        assert_eq!(failed, Err(500));
    }

    #[test]
    fn a_panic_takes_nothing_along() {
        let workers = workers(1);
        workers.add(lane(1, 1, 1), || panic!("on purpose"));
        let (begun, _go_on) = hang(&workers, lane(1, 1, 1));
        begun.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn what_was_not_begun_is_dropped_with_the_workers() {
        let workers = workers(1);
        let (begun, go_on) = hang(&workers, lane(1, 1, 1));
        begun.recv_timeout(PATIENCE).unwrap();
        let (late, _stays) = hang(&workers, lane(1, 1, 1));
        drop(workers);
        assert!(late.recv_timeout(PATIENCE).is_err());
        go_on.send(()).unwrap();
    }
}
