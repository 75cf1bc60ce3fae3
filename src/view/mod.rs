//! The tree a mount shows: directories, files shown as they are, converted
//! checkpoints, and directories of raw tensors. Plain types, no FUSE.
//!
//! ```text
//! forms     what a node can be: one file for each output
//! folder    what the names of a source directory are and become
//! below     the directories that names in an index lead to
//! node      one place in the tree       attr, key, xattrs  what is told of it
//! file      an open file                reading            how it is read
//! context   what all nodes work with    options            what the user asked for
//! origin    the checkpoint behind a derived file
//! scan      the names in a directory    tensor_set         tensors of one or more files
//! promoter  what is kept as a whole     usage              what the mount has done
//! ```

mod attr;
mod below;
mod context;
mod error;
mod file;
mod folder;
mod forms;
mod key;
mod node;
mod options;
mod origin;
mod promoter;
mod reading;
mod scan;
mod tensor_set;
mod usage;
mod xattrs;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use attr::{Attr, Kind};
pub use error::{Error, Result};
pub use file::{Contents, OpenFile, Pages};
pub use forms::control::NAME as CONTROL;
pub use key::NodeKey;
pub use node::{Listing, Node};
pub use options::{Options, Tensors};
pub use promoter::Promote;
pub use xattrs::{XATTRS, Xattr};

use crate::cache::{Name, Provenance};
use crate::convert::Reader;
use crate::source::{LocalTree, Space, Tree};
use crate::workers::{self, Lane};
use context::Context;
use folder::Folder;

/// Work on files that takes so much leaves much memory behind, in bytes.
const LARGE: u64 = 4 << 20;
/// So many files that are listed, in one directory or many, leave as much behind, each of
/// them a little.
const MANY: usize = 1000;

/// The tree over one source. Shared by all threads of a mount.
pub struct View {
    context: Context,
    /// Names that were listed since memory was given back.
    listed: AtomicUsize,
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
        View {
            context: Context::new(tree, options),
            listed: AtomicUsize::new(0),
        }
    }

    /// Where the source is, for people.
    pub fn location(&self) -> PathBuf {
        self.context.tree().location()
    }

    pub fn root(&self) -> Result<Node> {
        let root = self.context.tree().enter(Path::new(""))?;
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
        self.trimming(|| dir.form().lookup(&self.context, name))
    }

    /// All children of `dir`, as of now, by name, without `.` and `..`.
    pub fn list(&self, dir: &Node) -> Result<Listing> {
        let listing = self.trimming(|| dir.form().list(&self.context))?;
        let listed = self.listed.fetch_add(listing.len(), Ordering::Relaxed);
        if listed.saturating_add(listing.len()) > MANY {
            self.listed.store(0, Ordering::Relaxed);
            self.context.trim();
        }
        Ok(listing)
    }

    /// Does `work`, which may make plans, and cleans up behind large ones, whatever became
    /// of them.
    fn trimming<T>(&self, work: impl FnOnce() -> T) -> T {
        let returned = || self.context.options().memory.returned();
        let before = returned();
        let done = work();
        if returned().wrapping_sub(before) > LARGE {
            self.context.trim();
        }
        done
    }

    /// Attributes as of now for directories and files shown as they are; as of
    /// the node's making for derived files.
    pub fn attr(&self, node: &Node) -> Result<Attr> {
        node.form().attr(&self.context, node.attr())
    }

    /// Opens a file for reading. [`Error::Stale`] when the source behind it
    /// changed.
    pub fn open(&self, node: &Node) -> Result<OpenFile> {
        self.trimming(|| node.form().open(&self.context, node.attr()))
    }

    /// What has to be waited for to find out about `node`, or to read it.
    pub fn lane(&self, node: &Node) -> Lane {
        let home = node.form().home();
        home.map_or_else(Lane::default, |home| Lane {
            file: home.id.number(),
            directory: 0,
            system: workers::number(&home.system),
        })
    }

    /// Whether [`View::attr`] answers at once: nothing is looked at, or it lies on this
    /// machine, and so does the root, from which it is looked for.
    pub fn knows_attr(&self, node: &Node) -> bool {
        let root = self.context.tree().metadata().version.file.system;
        !node.form().is_real() || node.is_near() && root.is_near()
    }

    /// The directory in which the mount tells of itself, if no real file of that name
    /// is in its place.
    pub fn control(&self) -> Result<Node> {
        forms::control::directory(&self.context)
    }

    /// The directory of the source that `node` shows, from the root of the source; None
    /// when it shows something else.
    pub fn source_directory<'n>(&self, node: &'n Node) -> Option<&'n Path> {
        node.form().source_directory()
    }

    /// The same, held, if it is still there.
    pub fn enter(&self, node: &Node) -> Option<Arc<dyn Tree>> {
        self.context.tree().enter(self.source_directory(node)?).ok()
    }

    /// Whether what is shown in a directory of the source changes only when that
    /// directory or a file in it does.
    pub fn stands_alone(&self, node: &Node) -> bool {
        let Some(directory) = self.enter(node) else {
            return false;
        };
        directory.stands_alone()
            && forms::index::stands_alone(&Folder::new(&self.context, directory))
    }

    /// Extended attributes: names with values, in a stable order.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        node.form().xattrs(&self.context)
    }

    pub fn space(&self) -> Result<Space> {
        Ok(self.context.tree().space()?)
    }

    /// What the checkpoint `name` in `directory`, which is given from the root of the
    /// source, turns into: a converted file, or the refusal of one; or, below the
    /// dotted path `root`, the converted form of one value. Nothing beside it is planned.
    pub fn derived(
        &self,
        directory: &Path,
        name: &OsStr,
        root: Option<&Arc<str>>,
    ) -> Result<Option<Node>> {
        let folder = Folder::new(&self.context, self.context.tree().enter(directory)?);
        forms::table::derived(&folder, name, root)
    }

    /// The node of the checkpoint behind a converted file as it is now.
    pub fn again(&self, node: &Node) -> Result<Option<Node>> {
        match node.form().origin() {
            Some(origin) => {
                let root = origin.key.file.root.as_ref();
                self.derived(&origin.directory, &origin.name, root)
            }
            None => Ok(None),
        }
    }

    /// What a converted file is called in the cache directory, and what it is made
    /// from; None for all else.
    pub fn cache_entry(&self, node: &Node) -> Option<(Name, Provenance)> {
        let origin = node.form().origin()?;
        Some((
            self.context.sources().promoted_name(origin),
            origin.provenance(),
        ))
    }

    /// Whether the checkpoint behind a converted file has been as it is for long enough
    /// that no change of it could go unseen, and a refusal is of what a file holds.
    pub fn is_settled(&self, node: &Node) -> bool {
        let origin = node.form().origin();
        !node.form().is_passing() && origin.is_none_or(|origin| origin.key.is_settled())
    }

    /// Converts the checkpoint behind `node` anew, whether it is promoted or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub fn reader(&self, node: &Node) -> Result<Reader> {
        self.context
            .sources()
            .reader(node.form().origin().ok_or(Error::NotFound)?)
    }

    /// Why nothing that is converted is kept, if that is so; for people. It is to be said
    /// when the view is made: it is not logged for each file.
    pub fn cache_problem(&self) -> Option<String> {
        self.context.cache_problem()
    }

    /// Gives up what goes on in the background, so that the process can end.
    pub fn end(&self) {
        if let Some(promoter) = self.context.promoter() {
            promoter.end();
        }
    }
}
