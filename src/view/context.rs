//! What all nodes work with: the source and what is known of it, what the user asked
//! for, what is promoted, and what the mount has done.

use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use lru::LruCache;

use super::options::Options;
use super::origin::{Origin, Sources};
use super::promoter::{Promoter, Wish};
use super::scan::Scan;
use super::tensor_set::TensorSet;
use super::usage::{Stock, Usage};
use crate::cache::{Alive, Background, Catalog, Promoted, Store};
use crate::source::{Tree, Version};

/// Directories whose names are remembered.
const SCANS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Sharded checkpoints whose tensors are kept in order: eight bytes for each.
const MERGED: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// How long after large work all is as small again as it can be.
const REST: Duration = Duration::from_secs(20);

pub struct Context {
    sources: Arc<Sources>,
    usage: Arc<Usage>,
    /// None without a cache directory.
    promoter: Option<Arc<Promoter>>,
    background: Background,
    options: Options,
    since: SystemTime,
    scans: Mutex<LruCache<PathBuf, Arc<Scan>>>,
    /// Directories of the tensors of all shards, with the version of the index of each.
    merged: Mutex<LruCache<PathBuf, (Version, Arc<TensorSet>)>>,
    /// Tells other processes that what was promoted for this mount alone is wanted.
    _alive: Option<Alive>,
}

impl Context {
    /// Of the source whose root is `tree`.
    pub fn new(tree: Arc<dyn Tree>, options: Options) -> Context {
        let background = Background::start();
        let cache = options.cache.clone();
        let cache = cache.map(|directory| (directory, background.clone()));
        let catalog = Catalog::new(options.weights.clone(), cache, options.memory.clone());
        let store = options.cache.clone();
        let store = store.map(|directory| Store::new(directory, options.cache_limit));
        let sources = Arc::new(Sources {
            tree,
            catalog,
            store: store.clone(),
        });
        let usage = Arc::new(Usage::default());
        let alive = options.cache.as_ref().and_then(|directory| {
            // Without it, what is promoted for this mount alone may be evicted early.
            directory.announce(sources.catalog.mount()).ok()
        });
        let promoter = store.map(|store| {
            let (sources, usage) = (sources.clone(), usage.clone());
            let background = background.clone();
            let promoter = Promoter::new(store, sources, usage, options.promote, background);
            promoter.tidy();
            Arc::new(promoter)
        });
        Context {
            sources,
            usage,
            promoter,
            background,
            options,
            since: SystemTime::now(),
            scans: Mutex::new(LruCache::new(SCANS)),
            merged: Mutex::new(LruCache::new(MERGED)),
            _alive: alive,
        }
    }

    /// Where the source is, for people.
    pub fn location(&self) -> PathBuf {
        self.tree().location()
    }

    /// Has memory that work left behind given back, and, once there is no more of such
    /// work, what it found out that is large.
    pub fn trim(&self) {
        self.background.trim();
        let (sources, background) = (Arc::downgrade(&self.sources), self.background.clone());
        self.background.put_off(REST, move || {
            if let Some(sources) = sources.upgrade() {
                sources.catalog.settle();
                background.trim();
            }
        });
    }

    pub fn tree(&self) -> &Arc<dyn Tree> {
        &self.sources.tree
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    pub fn catalog(&self) -> &Catalog {
        &self.sources.catalog
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    pub fn promoter(&self) -> Option<&Promoter> {
        self.promoter.as_deref()
    }

    /// How `origin` comes to be promoted.
    pub fn wish(&self, origin: &Arc<Origin>) -> Wish {
        Wish::new(origin, self.promoter.as_ref())
    }

    /// The file that `origin` was promoted to, open, while its source is what it was.
    pub fn promoted(&self, origin: &Origin) -> Option<Promoted> {
        let promoted = self.promoter()?.find(origin)?;
        self.sources.is_current(origin).then_some(promoted)
    }

    /// The promoted files in figures.
    pub fn stock(&self) -> Option<Stock> {
        self.promoter()?.figures()
    }

    /// Why nothing that is converted is kept, if that is so; for people.
    pub fn cache_problem(&self) -> Option<String> {
        match self.promoter() {
            Some(promoter) => promoter.shortage(),
            None => self.options.no_cache.clone(),
        }
    }

    /// When the view was made.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// The names in a directory that was entered just now.
    pub fn scan(&self, directory: &dyn Tree) -> io::Result<Arc<Scan>> {
        let key = directory.path().to_path_buf();
        let known = lock(&self.scans).get(&key).cloned();
        if let Some(scan) = known.filter(|scan| scan.holds(&directory.metadata().version)) {
            return Ok(scan);
        }
        let scan = Arc::new(Scan::read(directory)?);
        lock(&self.scans).put(key, scan.clone());
        Ok(scan)
    }

    /// The tensors at `path` as they were put together last, of an index with this
    /// version.
    pub fn merged(&self, path: &Path, index: &Version) -> Option<Arc<TensorSet>> {
        let known = lock(&self.merged).get(path).cloned();
        known.and_then(|(version, set)| (version == *index).then_some(set))
    }

    pub fn keep_merged(&self, path: PathBuf, index: Version, set: &Arc<TensorSet>) {
        lock(&self.merged).put(path, (index, set.clone()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
