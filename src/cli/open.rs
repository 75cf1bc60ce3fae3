//! Opens one checkpoint for a command that reads it once.

use std::path::Path;

use super::FileError;
use crate::cache::{Directory, Limit, Store};
use crate::convert::{self, Reader};

/// The file at `path`, below the dotted path `root` of it. What would have to be decoded
/// over and over has room in the cache directory of this user, if there is one.
pub fn open(path: &Path, root: Option<&str>) -> Result<Reader, FileError> {
    let reader = convert::open_at(path, root).map_err(|error| FileError::new(path, error))?;
    if reader.plan().gathers_decoded()
        && let Some(root) = Directory::default_path()
    {
        match Directory::open(&root) {
            Ok(directory) => Store::new(directory, Limit::default()).lend(&reader),
            Err(error) => log::debug!("{}: {error}", root.display()),
        }
    }
    Ok(reader)
}
