//! The tree a mount shows: directories, files shown as they are, converted
//! checkpoints, and directories of raw tensors. Plain types, no FUSE.
//!
//! ```text
//! node      one place in the tree         listing   what a directory holds
//! forms     what a node can be: one file for each output
//! folder    what the names of a source directory are and become
//! scan      those names                   origin    the checkpoint behind a derived file
//! file      an open file                  reading   how it is read
//! promoter  what is kept as a whole       usage     what the mount has done
//! ```

mod file;
mod folder;
mod forms;
mod listing;
mod node;
mod origin;
mod promoter;
mod reading;
mod scan;
mod usage;

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use lru::LruCache;

pub use file::{OpenFile, Pages};
pub use forms::Xattr;
pub use listing::Listing;
pub use node::{Attr, Kind, Node, NodeKey};
pub use promoter::Promote;

use crate::cache::{
    Alive, Background, Catalog, Directory, Limit, Name, Promoted, Provenance, Store,
};
use crate::convert::Reader;
use crate::source::{Links, LocalTree, Space, Tree, Version};
use folder::Folder;
use forms::Merged;
use origin::{Origin, Sources};
use promoter::{Promoter, Wish};
use scan::Scan;
use usage::{Stock, Tier, Usage};

/// Directories whose names are remembered.
const SCANS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Bytes of plans and indexes whose making leaves much memory behind.
const LARGE: u64 = 4 << 20;
/// Sharded checkpoints whose tensors are kept in order: eight bytes for each.
const MERGED: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// What the names of all extended attributes begin with.
pub const XATTRS: &str = "user.stfs.";

/// Whether `X.tensors/` directories are part of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Tensors {
    /// Listed and reachable.
    #[default]
    Show,
    /// Reachable by path, left out of listings.
    Hide,
    /// Not there at all.
    Off,
}

/// What shapes the tree, and what it is made with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub tensors: Tensors,
    /// Show pickle checkpoints beside their converted form.
    pub show_pickles: bool,
    /// Where symbolic links of the source may lead.
    pub links: Links,
    /// Dotted path to the weights in each checkpoint, if not where the rule of
    /// the checkpoint layer finds them.
    pub weights: Option<String>,
    /// Where to keep what is found out, for whoever shows the same files next.
    pub cache: Option<Directory>,
    /// How much of it promoted files may take.
    pub cache_limit: Limit,
    pub promote: Promote,
}

/// Why an operation on the tree failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no such file or directory")]
    NotFound,
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    /// The source file behind the node is no longer the one the node was made from.
    #[error("the source changed")]
    Stale,
    #[error(transparent)]
    Io(#[from] io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

/// The tree over one source. Shared by all threads of a mount.
pub struct View {
    sources: Arc<Sources>,
    usage: Arc<Usage>,
    /// None without a cache directory.
    promoter: Option<Arc<Promoter>>,
    background: Background,
    options: Options,
    since: SystemTime,
    scans: Mutex<LruCache<PathBuf, Arc<Scan>>>,
    /// Directories of the tensors of all shards, with the version of the index of each.
    merged: Mutex<LruCache<PathBuf, (Version, Merged)>>,
    /// Tells other processes that what was promoted for this mount alone is wanted.
    _alive: Option<Alive>,
}

impl View {
    /// Shows the directory `source` of this machine, which must be one that can be
    /// read.
    pub fn new(source: &Path, options: Options) -> Result<View> {
        let tree = LocalTree::open(source, options.links)?;
        Ok(View::over(Arc::new(tree), options))
    }

    /// Shows the source whose root is `tree`.
    pub fn over(tree: Arc<dyn Tree>, options: Options) -> View {
        let background = Background::start();
        let cache = options.cache.clone();
        let cache = cache.map(|directory| (directory, background.clone()));
        let catalog = Catalog::new(options.weights.clone(), cache.clone());
        let sources = Arc::new(Sources { tree, catalog });
        let usage = Arc::new(Usage::default());
        let alive = options.cache.as_ref().and_then(|directory| {
            // Without it, what is promoted for this mount alone may be evicted early.
            directory.announce(sources.catalog.mount()).ok()
        });
        let promoter = cache.map(|(directory, background)| {
            let store = Store::new(directory, options.cache_limit);
            let (sources, usage) = (sources.clone(), usage.clone());
            let promoter = Promoter::new(store, sources, usage, options.promote, background);
            promoter.tidy();
            Arc::new(promoter)
        });
        View {
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

    pub fn root(&self) -> Result<Node> {
        let root = self.tree().enter(Path::new(""))?;
        Ok(forms::real::directory(PathBuf::new(), root.metadata()))
    }

    /// The child `name` of the directory `dir`. The node is made from what the
    /// source holds now: when a file behind a name is replaced, the next lookup
    /// gives a node with another key.
    pub fn lookup(&self, dir: &Node, name: &OsStr) -> Result<Node> {
        let plain_name =
            !name.is_empty() && name != "." && name != ".." && !name.as_bytes().contains(&b'/');
        if !plain_name {
            return Err(Error::NotFound);
        }
        self.trimming(|| dir.form().lookup(self, name))
    }

    /// All children of `dir`, as of now, by name, without `.` and `..`.
    pub fn list(&self, dir: &Node) -> Result<Listing> {
        self.trimming(|| dir.form().list(self))
    }

    /// Does `work`, which may make plans, and cleans up behind large ones.
    fn trimming<T>(&self, work: impl FnOnce() -> T) -> T {
        let worked = || self.catalog().figures().worked.load(Ordering::Relaxed);
        let before = worked();
        let done = work();
        if worked() - before > LARGE {
            self.background.trim();
        }
        done
    }

    /// Attributes as of now for directories and files shown as they are; as of
    /// the node's making for derived files.
    pub fn attr(&self, node: &Node) -> Result<Attr> {
        node.form().attr(self, node.attr())
    }

    /// Opens a file for reading. [`Error::Stale`] when the source behind it
    /// changed.
    pub fn open(&self, node: &Node) -> Result<OpenFile> {
        self.trimming(|| node.form().open(self, node.attr()))
    }

    /// The directory of the source that `node` shows, from the root of the source; None
    /// when it shows something else.
    pub fn source_directory<'n>(&self, node: &'n Node) -> Option<&'n Path> {
        node.form().source_directory()
    }

    /// The same, held, if it is still there.
    pub fn enter(&self, node: &Node) -> Option<Arc<dyn Tree>> {
        self.tree().enter(self.source_directory(node)?).ok()
    }

    /// Whether what is shown in a directory of the source changes only when that
    /// directory or a file in it does.
    pub fn stands_alone(&self, node: &Node) -> bool {
        let entered = self.enter(node);
        entered.is_some_and(|directory| directory.stands_alone())
    }

    /// Extended attributes: names with values, in a stable order.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        node.form().xattrs(self)
    }

    pub fn space(&self) -> Result<Space> {
        Ok(self.tree().space()?)
    }

    /// What the checkpoint `name` in `directory`, which is given from the root of the
    /// source, turns into: a converted file, or the refusal of one. Nothing beside it
    /// is planned.
    pub fn derived(&self, directory: &Path, name: &OsStr) -> Result<Option<Node>> {
        let folder = Folder::new(self, self.tree().enter(directory)?);
        forms::derived(&folder, name)
    }

    /// The node of the checkpoint behind a converted file as it is now.
    pub fn again(&self, node: &Node) -> Result<Option<Node>> {
        match node.form().origin() {
            Some(origin) => self.derived(&origin.directory, &origin.name),
            None => Ok(None),
        }
    }

    /// What a converted file is called in the cache directory, and what it is made
    /// from; None for all else.
    pub fn promotion(&self, node: &Node) -> Option<(Name, Provenance)> {
        let origin = node.form().origin()?;
        Some((self.sources.promoted_name(origin), origin.provenance()))
    }

    /// Whether the checkpoint behind a converted file has been as it is for long enough
    /// that no change of it could go unseen.
    pub fn is_settled(&self, node: &Node) -> bool {
        let origin = node.form().origin();
        origin.is_none_or(|origin| origin.key.is_settled())
    }

    /// Converts the checkpoint behind `node` anew, whether it is promoted or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub fn reader(&self, node: &Node) -> Result<Reader> {
        self.sources
            .reader(node.form().origin().ok_or(Error::NotFound)?)
    }

    /// Gives up what goes on in the background, so that the process can end.
    pub fn end(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.end();
        }
    }

    fn tree(&self) -> &Arc<dyn Tree> {
        &self.sources.tree
    }

    fn sources(&self) -> &Sources {
        &self.sources
    }

    fn catalog(&self) -> &Catalog {
        &self.sources.catalog
    }

    fn options(&self) -> &Options {
        &self.options
    }

    fn usage(&self) -> &Arc<Usage> {
        &self.usage
    }

    fn promoter(&self) -> Option<&Promoter> {
        self.promoter.as_deref()
    }

    /// How `origin` comes to be promoted.
    fn wish(&self, origin: &Arc<Origin>) -> Wish {
        Wish::new(origin, self.promoter.as_ref())
    }

    /// The file that `origin` was promoted to, open, while its source is what it was.
    fn promoted(&self, origin: &Origin) -> Option<Promoted> {
        let promoted = self.promoter()?.find(origin)?;
        self.sources.is_current(origin).then_some(promoted)
    }

    /// The promoted files in figures.
    fn stock(&self) -> Option<Stock> {
        self.promoter()?.figures()
    }

    /// When the view was made.
    fn since(&self) -> SystemTime {
        self.since
    }

    /// The names in a directory that was entered just now.
    fn scan(&self, directory: &dyn Tree) -> io::Result<Arc<Scan>> {
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
    fn merged(&self, path: &Path, index: &Version) -> Option<Merged> {
        let known = lock(&self.merged).get(path).cloned();
        known.and_then(|(version, set)| (version == *index).then_some(set))
    }

    fn keep_merged(&self, path: PathBuf, index: Version, set: &Merged) {
        lock(&self.merged).put(path, (index, set.clone()));
    }
}

/// The pages of the checkpoint that `reader` reads.
fn source_pages(view: &View, origin: &Arc<Origin>, reader: &Arc<Reader>) -> Arc<dyn Pages> {
    Arc::new(SourcePages {
        tree: view.tree().clone(),
        origin: origin.clone(),
        reader: Arc::downgrade(reader),
    })
}

struct SourcePages {
    tree: Arc<dyn Tree>,
    origin: Arc<Origin>,
    /// As long as it is open: it has its own mapping of the source.
    reader: Weak<Reader>,
}

impl Pages for SourcePages {
    fn drop_pages(&self, extent: Range<u64>) {
        if let Some(reader) = self.reader.upgrade() {
            return reader.source().drop_pages(extent);
        }
        // If it is another file by now, that one is read again: no harm is done.
        let directory = self.tree.enter(&self.origin.directory);
        if let Ok(source) = directory.and_then(|directory| directory.open(&self.origin.name)) {
            source.drop_pages(extent);
        }
    }
}

/// Where the bytes of a file come from.
fn tier_xattr(tier: Tier) -> Xattr {
    ("user.stfs.tier", tier.name().as_bytes().to_vec())
}

/// The checkpoint that a file is made from.
fn source_xattr(location: &Path) -> Xattr {
    ("user.stfs.source", location.as_os_str().as_bytes().to_vec())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
