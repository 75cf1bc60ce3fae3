//! Which converted files are kept as a whole, and when they are made: behind the
//! back of those who read, from what they read.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, debug, info, log, warn};

use super::error::Error;
use super::origin::{Origin, Sources};
use super::usage::{Stock, Usage};
use crate::cache::{self, Background, Name, Promoted, Promotion, Stamp, Store};
use crate::workers::{self, Lane};

/// Whether converted files are kept as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Promote {
    /// Those that are read through a mapping or from their first byte to their last.
    Auto,
    /// All that are opened.
    Always,
    /// None. Those that are there are used.
    #[default]
    Never,
}

/// How long nobody may have read anything before a promotion goes on ...
const QUIET: Duration = Duration::from_millis(200);
/// ... unless it has waited this long for its next few megabytes.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the end waits for a promotion to tidy up.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a promotion that failed is not tried again.
const RETRY: Duration = Duration::from_secs(300);
/// How long the figures of the store are good for: they cost a walk through it.
const FIGURES: Duration = Duration::from_secs(5);

pub(super) struct Promoter {
    store: Store,
    sources: Arc<Sources>,
    usage: Arc<Usage>,
    policy: Promote,
    background: Background,
    pending: Mutex<Pending>,
    /// There is an end, or one pending file less.
    changed: Condvar,
    /// Files that could not be promoted, and when that was.
    failed: Mutex<HashMap<Name, Instant>>,
    started: Instant,
    /// Milliseconds from then to the last read that was answered here.
    last_read: AtomicU64,
    /// Something did not fit, and nothing has since: that has been said.
    short: AtomicBool,
    figures: Mutex<Option<(Instant, Stock)>>,
}

#[derive(Default)]
struct Pending {
    /// Files that are being promoted or wait for it.
    names: HashSet<Name>,
    ended: bool,
}

impl Promoter {
    pub fn new(
        store: Store,
        sources: Arc<Sources>,
        usage: Arc<Usage>,
        policy: Promote,
        background: Background,
    ) -> Promoter {
        let mut promoter = Promoter {
            store,
            sources,
            usage,
            policy,
            background,
            pending: Mutex::default(),
            changed: Condvar::new(),
            failed: Mutex::default(),
            started: Instant::now(),
            last_read: AtomicU64::new(0),
            short: AtomicBool::new(false),
            figures: Mutex::default(),
        };
        // Whoever asks for the view is told.
        *promoter.short.get_mut() = promoter.shortage().is_some();
        promoter
    }

    pub fn policy(&self) -> Promote {
        self.policy
    }

    /// The promoted file that `origin` turns into, as far as can be told without
    /// opening it.
    pub fn peek(&self, origin: &Origin) -> Option<Stamp> {
        let found = self.store.peek(&self.sources.promoted_name(origin));
        found.filter(|stamp| stamp.size() == origin.attr.size)
    }

    /// The same, open.
    pub fn find(&self, origin: &Origin) -> Option<Promoted> {
        let found = self.store.find(&self.sources.promoted_name(origin));
        found.filter(|promoted| promoted.source().size() == origin.attr.size)
    }

    /// Somebody reads from a source.
    pub fn note_read(&self) {
        self.last_read.store(self.now(), Ordering::Relaxed);
    }

    /// Has `origin` promoted when there is time.
    pub fn want(self: &Arc<Self>, origin: &Arc<Origin>) {
        // What is written while its stamps say nothing could not be told from what is
        // written next.
        if !origin.key.is_settled() {
            return;
        }
        let name = self.sources.promoted_name(origin);
        let lately = |at: &Instant| at.elapsed() < RETRY;
        if lock(&self.failed).get(&name).is_some_and(lately) {
            return;
        }
        let Some(turn) = Turn::take(self, name) else {
            return;
        };
        let origin = origin.clone();
        // What waits for one file system goes one after the other.
        let lane = Lane {
            system: workers::number(&origin.key.file.version.file.system),
            ..Lane::default()
        };
        self.background
            .add(lane, move || turn.promoter.promote(&turn.name, &origin));
    }

    /// Gives up what is under way, and waits a moment for it to tidy up.
    pub fn end(&self) {
        let mut pending = lock(&self.pending);
        pending.ended = true;
        self.changed.notify_all();
        let still = |pending: &mut Pending| !pending.names.is_empty();
        drop(self.changed.wait_timeout_while(pending, FAREWELL, still));
    }

    fn promote(&self, name: &Name, origin: &Origin) {
        if lock(&self.pending).ended {
            return;
        }
        let source = origin.location.display();
        match self.try_promote(name, origin) {
            Ok(Promotion::Already) => return,
            Ok(promotion) => {
                self.short.store(false, Ordering::Relaxed);
                self.usage.promotions.add(1);
                info!("{source}: promoted");
                if let Some(warning) = promotion.warning() {
                    self.usage.damaged.add(1);
                    warn!("{source}: {warning}");
                }
                return;
            }
            Err(Failure::Cache(cache::Error::Aborted)) => return,
            // Another process does it.
            Err(Failure::Cache(error @ cache::Error::Busy { .. })) => debug!("{source}: {error}"),
            Err(Failure::Cache(error)) => {
                self.usage.promotions_failed.add(1);
                let short = error.is_shortage();
                let level = match short && self.short.swap(true, Ordering::Relaxed) {
                    true => Level::Debug,
                    false => Level::Warn,
                };
                let others = match short {
                    true => ". So are others that do not fit, until one does",
                    false => "",
                };
                log!(
                    level,
                    "{source}: is converted anew whenever it is read: {error}{others}"
                );
            }
            Err(Failure::View(error)) => debug!("{source}: not promoted: {error}"),
        }
        let mut failed = lock(&self.failed);
        failed.retain(|_, at| at.elapsed() < RETRY);
        failed.insert(*name, Instant::now());
    }

    fn try_promote(&self, name: &Name, origin: &Origin) -> Result<Promotion, Failure> {
        let reader = self.sources.reader(origin).map_err(Failure::View)?;
        let mut step = |_: u64| self.pace();
        self.store
            .promote(name, &origin.provenance(), &reader, &mut step)
            .map_err(Failure::Cache)
    }

    /// Waits while others read, though not for ever.
    fn pace(&self) -> ControlFlow<()> {
        let patience = Instant::now() + PATIENCE;
        let mut pending = lock(&self.pending);
        while !pending.ended && self.policy != Promote::Always {
            let now = Instant::now();
            let last = Duration::from_millis(self.last_read.load(Ordering::Relaxed));
            let quiet = self.started + last + QUIET;
            let wait = quiet.min(patience).saturating_duration_since(now);
            if wait.is_zero() {
                break;
            }
            let waited = self.changed.wait_timeout(pending, wait);
            (pending, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        match pending.ended {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is kept, as of lately; None when the cache cannot be read.
    pub fn figures(&self) -> Option<Stock> {
        let mut figures = lock(&self.figures);
        if let Some((at, known)) = &*figures
            && at.elapsed() < FIGURES
        {
            return Some(*known);
        }
        let usage = self.store.occupancy().ok()?;
        let now = Stock {
            files: usage.files as u64,
            bytes: usage.bytes,
            limit: usage.limit,
        };
        *figures = Some((Instant::now(), now));
        Some(now)
    }

    /// Why no file whatever would be kept, if that is so; for people.
    pub fn shortage(&self) -> Option<String> {
        if self.policy == Promote::Never {
            return None;
        }
        let shortage = self.store.shortage()?;
        Some(format!("nothing that is converted can be kept: {shortage}"))
    }

    /// Where the cache is.
    pub fn directory(&self) -> &std::path::Path {
        self.store.directory().root()
    }

    /// Takes away, when there is time, what earlier processes left behind, and what
    /// has grown too large.
    pub fn tidy(&self) {
        let store = self.store.clone();
        self.background.add(Lane::default(), move || {
            if let Err(error) = store.collect() {
                debug!("{}: {error}", store.directory().root().display());
            }
        });
    }
}

/// A file that is being promoted or waits for it, until this goes.
struct Turn {
    promoter: Arc<Promoter>,
    name: Name,
}

impl Turn {
    /// None if it has one already, or none has any more.
    fn take(promoter: &Arc<Promoter>, name: Name) -> Option<Turn> {
        let mut pending = lock(&promoter.pending);
        (!pending.ended && pending.names.insert(name)).then(|| Turn {
            promoter: promoter.clone(),
            name,
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.promoter.pending).names.remove(&self.name);
        self.promoter.changed.notify_all();
    }
}

/// How an open file comes to be promoted, if it does.
pub(super) struct Wish {
    origin: Arc<Origin>,
    /// None when nothing is.
    promoter: Option<Arc<Promoter>>,
}

impl Wish {
    pub fn new(origin: &Arc<Origin>, promoter: Option<&Arc<Promoter>>) -> Wish {
        let promoter = promoter.filter(|promoter| promoter.policy() != Promote::Never);
        Wish {
            origin: origin.clone(),
            promoter: promoter.cloned(),
        }
    }

    /// What is promoted; None when nothing is.
    pub fn policy(&self) -> Option<Promote> {
        Some(self.promoter.as_ref()?.policy())
    }

    pub fn make(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.want(&self.origin);
        }
    }

    pub fn note_read(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.note_read();
        }
    }
}

enum Failure {
    Cache(cache::Error),
    View(Error),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
