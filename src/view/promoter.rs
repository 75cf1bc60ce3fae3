//! Which converted files are kept as a whole, and when they are made: behind the
//! back of those who read, from what they read.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::error::Error;
use super::origin::{Origin, Sources};
use super::usage::{Stock, Usage};
use crate::cache::{self, Background, Name, Promoted, Promotion, Stamp, Store};

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
    /// Files that are being promoted or wait for it.
    pending: Mutex<HashSet<Name>>,
    /// Files that could not be promoted, and when that was.
    failed: Mutex<HashMap<Name, Instant>>,
    started: Instant,
    /// Milliseconds from then to the last read that was answered here.
    last_read: AtomicU64,
    ended: AtomicBool,
    figures: Mutex<Option<(Instant, Stock)>>,
}

impl Promoter {
    pub fn new(
        store: Store,
        sources: Arc<Sources>,
        usage: Arc<Usage>,
        policy: Promote,
        background: Background,
    ) -> Promoter {
        Promoter {
            store,
            sources,
            usage,
            policy,
            background,
            pending: Mutex::default(),
            failed: Mutex::default(),
            started: Instant::now(),
            last_read: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            figures: Mutex::default(),
        }
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
        if lock(&self.failed).get(&name).is_some_and(lately) || !lock(&self.pending).insert(name) {
            return;
        }
        let (promoter, origin) = (self.clone(), origin.clone());
        self.background
            .add(move || promoter.promote(&name, &origin));
    }

    /// Gives up what is under way, and waits a moment for it to tidy up.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        let from = Instant::now();
        while !lock(&self.pending).is_empty() && from.elapsed() < FAREWELL {
            thread::sleep(QUIET / 20);
        }
    }

    fn promote(&self, name: &Name, origin: &Origin) {
        if self.ended.load(Ordering::Relaxed) {
            lock(&self.pending).remove(name);
            return;
        }
        let source = origin.location.display();
        let result = self.try_promote(name, origin);
        lock(&self.pending).remove(name);
        match result {
            Ok(Promotion::Already) => return,
            Ok(promotion) => {
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
                warn!("{source}: is converted anew whenever it is read: {error}");
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
        let waited = Instant::now();
        while !self.ended.load(Ordering::Relaxed)
            && self.policy != Promote::Always
            && self.is_busy()
            && waited.elapsed() < PATIENCE
        {
            thread::sleep(QUIET / 4);
        }
        match self.ended.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn is_busy(&self) -> bool {
        let last = self.last_read.load(Ordering::Relaxed);
        u128::from(self.now().saturating_sub(last)) < QUIET.as_millis()
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

    /// Where the cache is.
    pub fn directory(&self) -> &std::path::Path {
        self.store.directory().root()
    }

    /// Takes away, when there is time, what earlier processes left behind, and what
    /// has grown too large.
    pub fn tidy(&self) {
        let store = self.store.clone();
        self.background.add(move || {
            if let Err(error) = store.collect() {
                debug!("{}: {error}", store.directory().root().display());
            }
        });
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
