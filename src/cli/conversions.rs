//! Which converted files a path on the command line stands for: that of a
//! checkpoint, of a directory of them, or of either in a mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Failure, status};
use crate::cache::Name;
use crate::mount::mount_of;
use crate::view::{self, Kind, Node, Options, Tensors, View};

/// A checkpoint that can be converted.
pub struct Conversion {
    pub view: Arc<View>,
    pub node: Node,
    /// What the converted file is called in the cache.
    pub name: Name,
    /// The checkpoint.
    pub source: PathBuf,
    /// Bytes of the converted file.
    pub size: u64,
}

/// What was found at a path.
pub struct Found {
    pub conversions: Vec<Conversion>,
    /// The cache directory of the mount that the path lies in.
    pub cache_dir: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Io(PathBuf, std::io::Error),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    View(PathBuf, view::Error),
    #[error("{}: there is no checkpoint that could be converted", .0.display())]
    Nothing(PathBuf),
}

/// Finds them all. `root` is the dotted path of the weights, where `path` does not
/// lie in a mount, which knows it.
pub fn find(path: &Path, root: Option<&str>) -> Result<Found, Failure> {
    let failed = |error| Error::Io(path.to_path_buf(), error);
    let mut wanted = path.canonicalize().map_err(failed)?;
    let mut root = root.map(str::to_string);
    let mut cache_dir = None;
    if let Some(mount) = mount_of(&wanted).map_err(failed)? {
        let status = status::read(&mount)?;
        let text = |key: &str| status.get(key).and_then(|value| value.as_str());
        let below = wanted.strip_prefix(&mount).unwrap_or(Path::new(""));
        wanted = match status::source_of(&wanted) {
            Some(source) => source,
            None => Path::new(text("source").unwrap_or_default()).join(below),
        };
        root = root.or_else(|| text("root").map(str::to_string));
        cache_dir = text("cache_dir").map(PathBuf::from);
    }
    let directory = match wanted.is_dir() {
        true => wanted.as_path(),
        false => wanted.parent().unwrap_or(Path::new("/")),
    };
    let options = Options {
        tensors: Tensors::Off,
        weights: root,
        ..Options::default()
    };
    let failed = |error| Error::View(path.to_path_buf(), error);
    let view = Arc::new(View::new(directory, options).map_err(failed)?);
    let mut conversions = Vec::new();
    let mut pending = vec![view.root().map_err(failed)?];
    while let Some(directory) = pending.pop() {
        let listing = view.list(&directory).map_err(failed)?;
        for (_, node) in (0..listing.len()).filter_map(|index| listing.entry(index)) {
            if node.kind() == Kind::Directory && wanted.is_dir() {
                pending.push(node);
            } else if let (Some(name), Some(source)) = (view.kept_name(&node), node.checkpoint())
                && (wanted.is_dir() || source == wanted || is_link_to(source, &wanted))
            {
                conversions.push(Conversion {
                    name,
                    source: source.to_path_buf(),
                    size: node.attr().size,
                    view: view.clone(),
                    node,
                });
            }
        }
    }
    match conversions.is_empty() {
        true => Err(Error::Nothing(path.to_path_buf()).into()),
        false => Ok(Found {
            conversions,
            cache_dir,
        }),
    }
}

fn is_link_to(source: &Path, wanted: &Path) -> bool {
    source.canonicalize().is_ok_and(|source| source == wanted)
}
