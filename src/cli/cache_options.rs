//! The options that say where the cache is and how large it may grow.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::cache::{Directory, Limit, Store};
use crate::mount::options;

#[derive(Args, Clone, Debug)]
pub struct CacheOptions {
    /// The cache directory [default: $XDG_CACHE_HOME/stfs or ~/.cache/stfs]
    #[arg(long, value_name = "PATH")]
    pub cache_dir: Option<PathBuf>,
    /// How much converted files may take there, such as 20G [default: what leaves 5 % of the file system free, or 10 GiB where that is less]
    #[arg(long, value_name = "SIZE", value_parser = options::cache_size)]
    pub cache_size: Option<Limit>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("there is no home directory to keep a cache in. Name one with --cache-dir")]
    NoHome,
    #[error("{path}: {error}. Name a cache directory that this user may write to with --cache-dir", path = .0.display(), error = .1)]
    Unfit(PathBuf, std::io::Error),
}

impl CacheOptions {
    pub fn path(&self) -> Option<PathBuf> {
        self.cache_dir.clone().or_else(Directory::default_path)
    }

    pub fn limit(&self) -> Limit {
        self.cache_size.unwrap_or_default()
    }

    /// The store of converted files in the cache directory, which is made if need
    /// be, without what processes that were killed left in it. `path` comes before the
    /// default.
    pub fn store(&self, path: Option<&Path>) -> Result<Store, Failure> {
        let path = self.cache_dir.as_deref().or(path).map(Path::to_path_buf);
        let path = path.or_else(Directory::default_path).ok_or(Error::NoHome)?;
        let directory = Directory::open(&path).map_err(|error| Error::Unfit(path, error))?;
        let store = Store::new(directory, self.limit());
        // A cache that is not writable can still be looked at.
        if let Err(error) = store.collect() {
            log::debug!("{error}");
        }
        Ok(store)
    }
}
