//! The directories that the names in an index lead to. They are entered name by name
//! from the index's own, as far as the tree shows them: nothing above it is ever
//! reached, and nothing behind a link that is not followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;

use super::error::{Error, Result, gone};
use super::folder::{Folder, SourceEntry};
use crate::source::{Metadata, Rights};

/// Directories that are entered for one index, at most.
const MOST: usize = 256;

pub(super) struct Below<'f, 'c> {
    folder: &'f Folder<'c>,
    /// By the path from there; None for what cannot be entered.
    entered: HashMap<Box<str>, Option<Entered<'c>>>,
}

struct Entered<'c> {
    folder: Folder<'c>,
    /// Of each directory on the way.
    rights: Vec<Rights>,
}

/// The directory that a name leads to, and the name that is left there.
pub(super) struct Place<'p, 'c> {
    pub folder: &'p Folder<'c>,
    pub name: &'p OsStr,
}

/// Whether a name leads to another directory than that of the index.
pub(super) fn leads_away(name: &str) -> bool {
    name.contains('/')
}

impl<'f, 'c> Below<'f, 'c> {
    pub fn new(folder: &'f Folder<'c>) -> Below<'f, 'c> {
        let entered = HashMap::new();
        Below { folder, entered }
    }

    /// Where the file `path` should lie; None when no directory of the tree is meant.
    pub fn place<'p>(&'p mut self, path: &'p str) -> Result<Option<Place<'p, 'c>>> {
        let Some((directory, name)) = path.rsplit_once('/') else {
            let (folder, name) = (self.folder, path.as_ref());
            return Ok(Some(Place { folder, name }));
        };
        if !self.entered.contains_key(directory) {
            let entered = match self.entered.len() < MOST {
                true => self.enter(directory)?,
                false => None,
            };
            self.entered.insert(directory.into(), entered);
        }
        let entered = self.entered.get(directory).and_then(Option::as_ref);
        Ok(entered.map(|entered| Place {
            folder: &entered.folder,
            name: name.as_ref(),
        }))
    }

    /// What whoever has `rights` and may enter all directories that were entered may do.
    pub fn common(&self, rights: Rights) -> Rights {
        let entered = self.entered.values().flatten();
        let passed = entered.flat_map(|entered| &entered.rights).copied();
        passed.fold(rights, Rights::common)
    }

    /// One that may not be looked at is none.
    fn enter(&self, directory: &str) -> Result<Option<Entered<'c>>> {
        match self.try_enter(directory) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            entered => entered,
        }
    }

    fn try_enter(&self, directory: &str) -> Result<Option<Entered<'c>>> {
        let mut entered: Option<Folder> = None;
        let mut rights = Vec::new();
        for name in directory.split('/') {
            let here = entered.as_ref().unwrap_or(self.folder);
            let Some((next, metadata)) = step(here, name)? else {
                return Ok(None);
            };
            rights.push(to_enter(&metadata));
            entered = Some(next);
        }
        let Some(folder) = entered else {
            return Ok(None);
        };
        folder.scan()?;
        Ok(Some(Entered { folder, rights }))
    }
}

/// The directory `name` in another one, where the tree shows it.
fn step<'c>(from: &Folder<'c>, name: &str) -> Result<Option<(Folder<'c>, Metadata)>> {
    if matches!(name, "" | "." | "..") {
        return Ok(None);
    }
    let name = OsStr::new(name);
    let SourceEntry::Directory(metadata) = from.find(name)? else {
        return Ok(None);
    };
    let tree = from.context.tree().enter(&from.path(name)).map_err(gone)?;
    Ok(Some((Folder::new(from.context, tree), metadata)))
}

/// The rights of a file that may be read by whom the directory may be entered by.
fn to_enter(directory: &Metadata) -> Rights {
    let Rights { uid, gid, mode } = directory.rights;
    Rights::new(uid, gid, (mode & 0o111) << 2)
}
