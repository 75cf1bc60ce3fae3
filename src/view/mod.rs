//! The tree a mount shows: directories, files shown as they are, converted
//! checkpoints, and directories of raw tensors. Plain types, no FUSE.

mod behind;
mod control;
mod directory;
mod facts;
mod file;
mod node;
mod promoter;
mod reading;
mod refused;
mod scan;
mod shards;
mod sources;
mod tensor_names;
mod tensors;
mod usage;

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use crate::source::Bytes;
pub use file::OpenFile;
pub use node::{Attr, Kind, Node, NodeKey};
pub use promoter::Promote;

use crate::cache::{Background, Directory, Kept, Limit, Name, Recent, Store};
use crate::convert::Reader;
use crate::source::{self, Identity, Metadata, Source};
use behind::Behind;
use file::{Open, Promotion, Tensor};
use node::{Origin, Place, TensorSet};
use promoter::Promoter;
use scan::Scan;
use sources::Sources;
use tensors::TensorListing;
use usage::{Opened, Tier, Usage};

/// Directories whose names are remembered.
const SCANS: NonZeroUsize = NonZeroUsize::new(128).unwrap();
/// Bytes of plans whose making leaves much memory behind.
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
    /// Follow only symbolic links that stay inside the source.
    pub links_inside_only: bool,
    /// Dotted path to the weights in each checkpoint, if not where the rule of
    /// the checkpoint layer finds them.
    pub weights: Option<String>,
    /// Where to keep what is found out, for whoever shows the same files next.
    pub cache: Option<Directory>,
    /// How much of it converted files may take.
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

impl From<source::Error> for Error {
    fn from(error: source::Error) -> Error {
        match error {
            source::Error::Io(error) => Error::Io(error),
            source::Error::Changed => Error::Stale,
            source::Error::PastEnd { .. } => Error::Io(io::Error::other(error)),
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// The figures of the source's file system, as `statvfs` gives them.
#[derive(Clone, Copy, Debug, Default)]
pub struct FsStats {
    pub blocks: u64,
    pub blocks_free: u64,
    pub blocks_available: u64,
    pub files: u64,
    pub files_free: u64,
    pub block_size: u32,
    pub fragment_size: u32,
    pub name_max: u32,
}

/// The tree over one source directory. Shared by all threads of a mount.
pub struct View {
    sources: Arc<Sources>,
    usage: Arc<Usage>,
    behind: Arc<Behind>,
    /// None without a cache directory.
    promoter: Option<Arc<Promoter>>,
    options: Options,
    scans: Recent<PathBuf, Arc<Scan>>,
    /// Directories of the tensors of all shards, with the index of each.
    merged: Recent<PathBuf, (Identity, Arc<TensorSet>)>,
}

impl View {
    /// Opens `source`, which must be a directory that can be read.
    pub fn new(source: &Path, options: Options) -> Result<View> {
        let root = source.canonicalize()?;
        std::fs::read_dir(&root)?;
        let usage = Arc::new(Usage::default());
        let sources = Arc::new(Sources::new(root, &options, usage.clone()));
        let promoter = options.cache.clone().map(|directory| {
            let store = Store::new(directory, options.cache_limit);
            let background = Background::start();
            let (sources, usage) = (sources.clone(), usage.clone());
            let promoter = Promoter::new(store, sources, usage, options.promote, background);
            promoter.tidy();
            Arc::new(promoter)
        });
        Ok(View {
            sources,
            usage,
            behind: Arc::default(),
            promoter,
            options,
            scans: Recent::new(SCANS),
            merged: Recent::new(MERGED),
        })
    }

    /// The absolute path of the source directory.
    pub fn source(&self) -> &Path {
        self.sources.root()
    }

    pub fn root(&self) -> Result<Node> {
        let metadata = Metadata::from(std::fs::metadata(self.source())?);
        Ok(directory::real_directory(self.source(), &metadata))
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
        match &dir.key.0 {
            Place::Directory(real) => match self.trimming(|| self.child(real, name)) {
                Err(Error::NotFound) if name == control::NAME && *real.path == *self.source() => {
                    self.control()
                }
                found => found,
            },
            Place::Control => self.control_file(name),
            Place::Tensors(set) => {
                let name = name.to_str().ok_or(Error::NotFound)?;
                TensorListing::open(&self.sources, set)?.find(name)
            }
            _ => Err(Error::NotADirectory),
        }
    }

    /// All children of `dir`, as of now, by name, without `.` and `..`.
    pub fn list(&self, dir: &Node) -> Result<Listing> {
        match &dir.key.0 {
            Place::Directory(real) => {
                let children = self.trimming(|| self.children(real))?;
                Ok(Listing(Children::Source(children)))
            }
            Place::Control => Ok(Listing(Children::Source(self.control_files()?))),
            Place::Tensors(set) => Ok(Listing(Children::Tensors(TensorListing::open(
                &self.sources,
                set,
            )?))),
            _ => Err(Error::NotADirectory),
        }
    }

    /// For `mount::watch`: the directory of the source that `dir` shows; None when it
    /// shows something else.
    pub fn source_directory<'a>(&self, dir: &'a Node) -> Option<&'a Path> {
        match &dir.key.0 {
            Place::Directory(real) => Some(&real.path),
            _ => None,
        }
    }

    /// For `mount::watch`: whether what is shown in `dir`, a directory of the source,
    /// changes only when that directory or a file in it does. No symbolic link leads
    /// elsewhere, no file is written under another name, no index speaks of what lies
    /// further down.
    pub fn is_self_contained(&self, dir: &Node) -> bool {
        let look = |path: &Path| -> io::Result<bool> {
            let (mut has_directory, mut has_index) = (false, false);
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_symlink() || metadata.is_file() && metadata.nlink() > 1 {
                    return Ok(false);
                }
                has_directory |= metadata.is_dir();
                has_index |= entry
                    .path()
                    .extension()
                    .is_some_and(|ending| ending == "json")
                    && entry.file_name().to_string_lossy().contains(".index.");
            }
            Ok(!(has_directory && has_index))
        };
        self.source_directory(dir)
            .is_some_and(|path| look(path).unwrap_or(false))
    }

    /// Does `work`, which may make plans, and cleans up behind large ones.
    fn trimming<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.usage.planned.get();
        let done = work();
        if let Some(promoter) = &self.promoter
            && self.usage.planned.get() - before > LARGE
        {
            promoter.trim();
        }
        done
    }

    /// Attributes as of now for directories and files shown as they are; as of
    /// the node's making for derived files.
    pub fn attr(&self, node: &Node) -> Result<Attr> {
        let real = match &node.key.0 {
            Place::Directory(real) | Place::Plain(real) => real,
            _ => return Ok(node.attr),
        };
        // A file that is gone or replaced is still what it was to whoever holds it.
        Ok(match std::fs::metadata(&real.path).map(Metadata::from) {
            Ok(metadata) if real.is(&metadata) => Attr::of(&metadata),
            _ => node.attr,
        })
    }

    /// Opens a file for reading. [`Error::Stale`] when the source behind it
    /// changed.
    pub fn open(&self, node: &Node) -> Result<OpenFile> {
        self.trimming(|| self.open_now(node))
    }

    fn open_now(&self, node: &Node) -> Result<OpenFile> {
        let open = match &node.key.0 {
            Place::Directory(_) | Place::Tensors(_) | Place::Control => {
                return Err(Error::IsADirectory);
            }
            Place::Plain(real) => {
                let source = open_source(&real.path)?;
                let identity = source.identity();
                if (identity.device, identity.inode) != (real.device, real.inode) {
                    return Err(Error::Stale);
                }
                Open::Plain(source, self.opened(&real.path, Tier::Native))
            }
            Place::Converted(origin) => {
                return Ok(OpenFile::converted(
                    self.sources.reader(origin)?,
                    origin,
                    &self.usage,
                    &self.behind,
                    self.promoter.as_ref(),
                ));
            }
            Place::Kept(origin, identity) => {
                // Whoever looks the name up again finds what there is now.
                let kept = self.kept(origin);
                let kept = kept.filter(|kept| kept.identity() == identity);
                Open::Kept(
                    kept.ok_or(Error::Stale)?,
                    self.opened(&origin.path, Tier::Promoted),
                )
            }
            Place::Tensor(origin, index) => self.open_tensor(origin, *index as usize)?,
            Place::Text(text) => Open::Text(text.clone()),
        };
        Ok(OpenFile::new(open))
    }

    /// A tensor is read from the file that is kept, where there is one: what had
    /// to be computed has been computed then.
    fn open_tensor(&self, origin: &Arc<Origin>, index: usize) -> Result<Open> {
        if let Some(kept) = self.kept(origin) {
            let plan = self.sources.plan(origin)?;
            let tensor = plan.tensors().get(index).ok_or(Error::Stale)?;
            let opened = self.opened(&origin.path, Tier::Promoted);
            return Ok(Open::KeptTensor(kept, tensor.start, tensor.len, opened));
        }
        let opened = self.opened(&origin.path, Tier::Stream);
        let promotion = Promotion::new(origin, self.promoter.as_ref());
        let reader = self.sources.reader(origin)?;
        let tensor = Tensor::new(reader, index, opened, promotion);
        Ok(Open::Tensor(Box::new(tensor)))
    }

    /// The kept file that `origin` turns into, open, while its source is what it was.
    fn kept(&self, origin: &Origin) -> Option<Kept> {
        let kept = self.promoter.as_ref()?.find(origin)?;
        promoter::is_current(origin).then_some(kept)
    }

    fn opened(&self, path: &Arc<Path>, tier: Tier) -> Opened {
        self.usage.opened(path.clone(), tier)
    }

    /// What a converted file is called in the cache directory; None for all else.
    pub fn kept_name(&self, node: &Node) -> Option<Name> {
        Some(self.sources.kept_name(node.origin()?))
    }

    /// Whether the checkpoint behind a converted file has been as it is for long enough
    /// that no change of it could go unseen.
    pub fn is_settled(&self, node: &Node) -> bool {
        node.origin().is_none_or(|origin| origin.key.is_settled())
    }

    /// Converts the checkpoint behind `node` anew, whether it is kept or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub fn reader(&self, node: &Node) -> Result<Reader> {
        self.sources.reader(node.origin().ok_or(Error::NotFound)?)
    }

    /// Gives up what goes on in the background, so that the process can end.
    pub fn end(&self) {
        if let Some(promoter) = &self.promoter {
            promoter.end();
        }
    }

    /// Extended attributes: names with values, in a stable order.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let tier = |tier: Tier| ("user.stfs.tier", tier.name().as_bytes().to_vec());
        let source = |path: &Path| ("user.stfs.source", path.as_os_str().as_bytes().to_vec());
        Ok(match &node.key.0 {
            Place::Directory(_) | Place::Plain(_) | Place::Tensors(_) | Place::Control => {
                Vec::new()
            }
            Place::Converted(origin) => vec![source(&origin.path), tier(Tier::Stream)],
            Place::Kept(origin, _) => vec![source(&origin.path), tier(Tier::Promoted)],
            Place::Text(text) => vec![source(&text.about)],
            Place::Tensor(origin, index) => {
                let plan = self.sources.plan(origin)?;
                let tensor = plan.tensors().get(*index as usize).ok_or(Error::Stale)?;
                let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
                vec![
                    ("user.stfs.dtype", tensor.dtype.to_string().into_bytes()),
                    ("user.stfs.name", tensor.name.as_bytes().to_vec()),
                    (
                        "user.stfs.shape",
                        format!("[{}]", shape.join(", ")).into_bytes(),
                    ),
                    source(&origin.path),
                ]
            }
        })
    }

    pub fn stats(&self) -> Result<FsStats> {
        let stats = nix::sys::statvfs::statvfs(self.source()).map_err(io::Error::from)?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(FsStats {
            blocks: stats.blocks(),
            blocks_free: stats.blocks_free(),
            blocks_available: stats.blocks_available(),
            files: stats.files(),
            files_free: stats.files_free(),
            block_size: narrow(stats.block_size()),
            fragment_size: narrow(stats.fragment_size()),
            name_max: narrow(stats.name_max()),
        })
    }
}

/// A source that is gone is a source that changed: the name is to be looked up
/// again.
fn open_source(path: &Path) -> Result<Source> {
    Source::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::Stale,
        _ => Error::Io(error),
    })
}

/// A directory's children at one moment. Cheap to hold for a directory of
/// many tensors: nodes are made when asked for.
pub struct Listing(Children);

enum Children {
    Source(Vec<(OsString, Node)>),
    Tensors(TensorListing),
}

impl Listing {
    pub fn len(&self) -> usize {
        match &self.0 {
            Children::Source(children) => children.len(),
            Children::Tensors(tensors) => tensors.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Child `index` in listing order.
    pub fn entry(&self, index: usize) -> Option<(Cow<'_, OsStr>, Node)> {
        match &self.0 {
            Children::Source(children) => {
                let (name, node) = children.get(index)?;
                Some((Cow::Borrowed(name), node.clone()))
            }
            Children::Tensors(tensors) => {
                let (name, node) = tensors.entry(index)?;
                Some((Cow::Owned(name.into()), node))
            }
        }
    }
}
