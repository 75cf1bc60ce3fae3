//! What lies in the cache directory of the store's. What does not look as if stfs
//! had put it there is left alone.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::Error;
use crate::cache::directory::{Directory, Name};

#[derive(Debug, Default)]
pub struct Inventory {
    /// Bytes of the converted files.
    pub data: BTreeMap<Name, u64>,
    /// When they were last used.
    pub records: BTreeMap<Name, SystemTime>,
    /// Bytes of the files that are being written, or were.
    pub incoming: BTreeMap<Name, u64>,
    /// Bytes of those for which no space has been taken from the file system yet.
    pub unwritten: u64,
}

/// What [`MetadataExt::blocks`] counts in, whatever the file system.
const SECTOR: u64 = 512;

impl Inventory {
    pub fn take(directory: &Directory) -> Result<Inventory, Error> {
        let mut inventory = Inventory::default();
        entries(&directory.incoming(), |entry, metadata| {
            let name = text(entry).and_then(|name| Name::from_hex(&name));
            let name = name.filter(|name| directory.incoming_file(name) == entry.path());
            if let Some(name) = name.filter(|_| metadata.is_file()) {
                let taken = metadata.blocks().saturating_mul(SECTOR);
                let unwritten = metadata.len().saturating_sub(taken);
                inventory.incoming.insert(name, metadata.len());
                inventory.unwritten = inventory.unwritten.saturating_add(unwritten);
            }
        })?;
        for folder in folders(&directory.files())? {
            let Some(first) = folder.file_name().and_then(|first| first.to_str()) else {
                continue;
            };
            entries(&folder, |entry, metadata| {
                inventory.keep(directory, first, entry, metadata);
            })?;
        }
        Ok(inventory)
    }

    fn keep(&mut self, directory: &Directory, first: &str, entry: &DirEntry, metadata: &Metadata) {
        let path = entry.path();
        let rest = path.file_stem().and_then(|rest| rest.to_str());
        let name = rest.and_then(|rest| Name::from_hex(&format!("{first}{rest}")));
        let Some(name) = name.filter(|_| metadata.is_file()) else {
            return;
        };
        if path == directory.file(&name) {
            self.data.insert(name, metadata.len());
        } else if path == directory.record(&name) {
            self.records.insert(name, modified(metadata));
        }
    }

    /// Bytes of all converted files, finished or not.
    pub fn bytes(&self) -> u64 {
        let sizes = self.data.values().chain(self.incoming.values());
        sizes.fold(0, |sum, size| sum.saturating_add(*size))
    }

    /// Converted files with a record, least recently used first.
    pub fn by_use(&self) -> Vec<(Name, u64)> {
        let mut items: Vec<(SystemTime, Name, u64)> = self
            .records
            .iter()
            .filter_map(|(name, used)| Some((*used, *name, *self.data.get(name)?)))
            .collect();
        items.sort_unstable();
        items
            .into_iter()
            .map(|(_, name, size)| (name, size))
            .collect()
    }
}

/// The directories in a directory that need not be there.
pub fn folders(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut folders = Vec::new();
    entries(path, |entry, metadata| {
        folders.extend(metadata.is_dir().then(|| entry.path()));
    })?;
    Ok(folders)
}

/// Calls `each` for what is in a directory that need not be there.
pub fn entries(path: &Path, mut each: impl FnMut(&DirEntry, &Metadata)) -> Result<(), Error> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let entries = match fs::read_dir(path) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries.map_err(|error| Error::at(path, error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| Error::at(path, error))?;
        match entry.metadata() {
            Ok(metadata) => each(&entry, &metadata),
            Err(error) if gone(&error) => {}
            Err(error) => return Err(Error::at(&entry.path(), error)),
        }
    }
    Ok(())
}

fn text(entry: &DirEntry) -> Option<String> {
    entry.file_name().into_string().ok()
}

fn modified(metadata: &Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}
