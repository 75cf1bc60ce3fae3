//! Which converted files a path on the command line stands for: that of a
//! checkpoint, of a directory of them, or of either in a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{CHUNK, Failure, status};
use crate::cache::{Name, Provenance};
use crate::mount::mount_of;
use crate::source::Bytes;
use crate::view::{self, Kind, Node, Options, Tensors, View};

/// A checkpoint that can be converted.
pub struct Conversion {
    pub view: Arc<View>,
    pub node: Node,
    /// What the converted file is called in the cache.
    pub name: Name,
    pub provenance: Provenance,
    /// Bytes of the converted file.
    pub size: u64,
}

/// What was found at a path.
pub struct Targets {
    pub conversions: Vec<Conversion>,
    /// The cache directory of the mount that the path lies in.
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Io(PathBuf, std::io::Error),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    View(PathBuf, view::Error),
    #[error("{}: there is no checkpoint that could be converted", .0.display())]
    Nothing(PathBuf),
    #[error("{0}")]
    Refused(String),
}

/// Finds them all. `root` is the dotted path of the weights, where `path` does not
/// lie in a mount, which knows it.
pub fn find(path: &Path, root: Option<&str>) -> Result<Targets, Failure> {
    let failed = |error| Error::Io(path.to_path_buf(), error);
    let mut wanted = std::path::absolute(path).map_err(failed)?;
    let mut root = root.map(str::to_string);
    let mut cache_dir = None;
    let physical = path.canonicalize().map_err(failed)?;
    if let Some(mount) = mount_of(&physical).map_err(failed)? {
        let status = status::read(&mount)?;
        let text = |key: &str| status.get(key).and_then(|value| value.as_str());
        let below = physical.strip_prefix(&mount).unwrap_or(Path::new(""));
        wanted = match status::source_of(&physical) {
            Some(source) => source,
            None => Path::new(text("source").unwrap_or_default()).join(below),
        };
        root = root.or_else(|| text("root").map(str::to_string));
        cache_dir = text("cache_dir").map(PathBuf::from);
    }
    let conversions = match wanted.is_dir() {
        true => below(&wanted, root)?,
        false => vec![one(&wanted, root)?],
    };
    match conversions.is_empty() {
        true => Err(Error::Nothing(path.to_path_buf()).into()),
        false => Ok(Targets {
            conversions,
            cache_dir,
        }),
    }
}

/// A view of a directory that shows nothing but converted files.
pub fn view_of(directory: &Path, root: Option<String>) -> Result<Arc<View>, Error> {
    let options = Options {
        tensors: Tensors::Off,
        weights: root,
        ..Options::default()
    };
    let view = View::new(directory, options);
    let view = view.map_err(|error| Error::View(directory.to_path_buf(), error))?;
    Ok(Arc::new(view))
}

/// The checkpoint `file`. Nothing beside it is planned.
fn one(file: &Path, root: Option<String>) -> Result<Conversion, Error> {
    let nothing = || Error::Nothing(file.to_path_buf());
    let directory = file.parent().ok_or_else(nothing)?;
    conversion(&view_of(directory, root)?, file, None)
}

/// What becomes of the checkpoint `file` in the directory that `view` shows, or of the
/// value at the dotted path `root` in it.
pub fn conversion(view: &Arc<View>, file: &Path, root: Option<&str>) -> Result<Conversion, Error> {
    let nothing = || Error::Nothing(file.to_path_buf());
    let failed = |error| Error::View(file.to_path_buf(), error);
    let name = file.file_name().ok_or_else(nothing)?;
    let root = root.map(Arc::from);
    let derived = view.derived(Path::new(""), name, root.as_ref());
    let derived = derived.map_err(failed)?;
    let node = derived.ok_or_else(nothing)?;
    if node.is_refusal() {
        let text = view.open(&node).map_err(failed)?;
        if let Bytes::Owned(text) = text.read(0, CHUNK).map_err(failed)? {
            let text = String::from_utf8_lossy(&text).trim_end().to_string();
            return Err(Error::Refused(text));
        }
    }
    Conversion::new(view, node).ok_or_else(nothing)
}

/// Those of a directory and of all below it.
fn below(directory: &Path, root: Option<String>) -> Result<Vec<Conversion>, Error> {
    let failed = |error| Error::View(directory.to_path_buf(), error);
    let view = view_of(directory, root)?;
    let mut conversions = Vec::new();
    let mut pending = vec![view.root().map_err(failed)?];
    while let Some(directory) = pending.pop() {
        let listing = view.list(&directory).map_err(failed)?;
        for (_, node) in (0..listing.len()).filter_map(|index| listing.entry(index)) {
            match node.kind() {
                Kind::Directory => pending.push(node),
                Kind::File => conversions.extend(Conversion::new(&view, node)),
            }
        }
    }
    Ok(conversions)
}

impl Conversion {
    /// None for a file that nothing is converted to.
    fn new(view: &Arc<View>, node: Node) -> Option<Conversion> {
        let (name, provenance) = view.cache_entry(&node)?;
        Some(Conversion {
            name,
            provenance,
            size: node.attr().size,
            view: view.clone(),
            node,
        })
    }

    /// The same checkpoint as it is now.
    pub fn again(&self) -> Option<Conversion> {
        let node = self.view.again(&self.node).ok()??;
        Conversion::new(&self.view, node)
    }

    /// The checkpoint, for people.
    pub fn source(&self) -> &Path {
        &self.provenance.source
    }
}
