//! Keeps the records of source files from piling up: those of files that are gone
//! or changed are never asked for again.

use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::directory::is_abandoned;
use crate::cache::{Directory, Name};

/// What a small file takes on most file systems.
const BLOCK: u64 = 4096;

/// A record on disk. The one that was not used for longest comes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    used: SystemTime,
    path: PathBuf,
    /// Bytes.
    size: u64,
}

/// Takes the records away that were not used for longest, until the others take no
/// more than `limit` bytes, and what killed processes left behind. Gives the bytes
/// of records that are left. What is no record stays, and so does what cannot be
/// removed.
///
/// # Errors
/// The directory of records cannot be read. One that is not there is empty.
pub fn prune_records(directory: &Directory, limit: u64) -> io::Result<u64> {
    let mut entries = Vec::new();
    for group in children(&directory.plans())? {
        if !group.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        for file in children(&group.path())? {
            let metadata = match file.metadata() {
                Ok(metadata) if metadata.is_file() => metadata,
                _ => continue,
            };
            if is_record(&group, &file) {
                entries.push(Entry {
                    used: used(&metadata),
                    path: file.path(),
                    size: size_on_disk(metadata.len()),
                });
            } else if is_abandoned(&file.file_name(), &metadata) {
                // Somebody else may have been faster.
                let _ = fs::remove_file(file.path());
            }
        }
    }
    let mut left = entries.iter().map(|entry| entry.size).sum();
    entries.sort_unstable();
    for entry in entries {
        if left <= limit {
            break;
        }
        match fs::remove_file(&entry.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => left -= entry.size,
        }
    }
    Ok(left)
}

/// Bytes that a file of `len` bytes takes on most file systems.
pub fn size_on_disk(len: u64) -> u64 {
    len.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn children(directory: &Path) -> io::Result<Vec<DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_record(group: &DirEntry, file: &DirEntry) -> bool {
    let mut name = group.file_name();
    name.push(file.file_name());
    name.to_str().and_then(Name::from_hex).is_some()
}

/// When it was last read, as far as the file system notes that, or written.
fn used(metadata: &Metadata) -> SystemTime {
    let times = [metadata.accessed(), metadata.modified()];
    let last = times.into_iter().filter_map(Result::ok).max();
    last.unwrap_or(SystemTime::UNIX_EPOCH)
}
