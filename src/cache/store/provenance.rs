//! The record of a promoted file: what it was made from, and what its inode said
//! when it was finished. Whoever writes to the file afterwards moves the time of
//! its last inode change, which no program can set back.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::catalog::Identity;
use crate::cache::directory::{Directory, Name};
use crate::cache::record::{self, Doubt, Record};
use crate::source::{Found, LocalTree, System, Tree};

/// What a promoted file was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Where the checkpoint was. For whoever looks at the cache, and to find out
    /// whether it is still there.
    pub source: PathBuf,
    /// What tells its bytes from all others.
    pub identity: Identity,
    /// The dotted path of the value of it that was converted, where it was asked for
    /// by name.
    pub root: Option<String>,
}

/// What the inode of a promoted file said, without the device: its number may be
/// another one after a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    /// Bytes.
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&fs::Metadata> for Stamp {
    fn from(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Stamp {
    /// All of it, for a hash.
    pub fn to_bytes(&self) -> [u8; 48] {
        let numbers = [
            self.inode.to_le_bytes(),
            self.size.to_le_bytes(),
            self.modified.0.to_le_bytes(),
            self.modified.1.to_le_bytes(),
            self.changed.0.to_le_bytes(),
            self.changed.1.to_le_bytes(),
        ];
        let mut bytes = [0; 48];
        bytes.copy_from_slice(numbers.as_flattened());
        bytes
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub provenance: Provenance,
    pub stamp: Stamp,
    /// The version of stfs that made it: no other finds it.
    program: String,
}

/// What keeps a file of the store from being used.
#[derive(Debug)]
pub enum Flaw {
    /// Which may be over in a moment.
    Unreadable(io::Error),
    Damaged(&'static str),
}

impl Entry {
    pub fn new(provenance: Provenance, stamp: Stamp) -> Entry {
        Entry {
            provenance,
            stamp,
            program: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// None when there is none.
    pub fn load(directory: &Directory, name: &Name) -> Result<Option<Entry>, Flaw> {
        match Record::open(&directory.record(name), name) {
            Ok(record) => Ok(Some(record.summary)),
            Err(Doubt::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(Doubt::Unreadable(error)) => Err(Flaw::Unreadable(error)),
            Err(_) => Err(Flaw::Damaged("its record is damaged or of another version")),
        }
    }

    /// None when it would be too long.
    pub fn encode(&self, name: &Name) -> Option<Vec<u8>> {
        record::encode(name, self, &[])
    }

    /// Whether some mount could still ask for the file, as far as can be told.
    pub fn is_reachable(&self, directory: &Directory) -> bool {
        if self.program != env!("CARGO_PKG_VERSION") {
            return false;
        }
        match self.provenance.identity {
            Identity::Stamps(version) => {
                let there = stat(&self.provenance.source);
                match there {
                    Ok(Found::File(now)) => now.version.same_stamps(&version),
                    // It may be on a file system that is not mounted just now.
                    Ok(_) => !lies_on(&self.provenance.source, version.file.system),
                    Err(_) => true,
                }
            }
            Identity::Content(_) => true,
            Identity::Mount(mount, _) => directory.is_alive(mount),
        }
    }
}

fn stat(path: &Path) -> io::Result<Found> {
    let (directory, name) = match LocalTree::around(path) {
        Ok(around) => around,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
        Err(error) => return Err(error),
    };
    directory.stat(&name)
}

/// Whether the part of `path` that is there lies on the file system `system`.
fn lies_on(path: &Path, system: System) -> bool {
    let there = path.ancestors().skip(1).find(|path| path.is_dir());
    let tree = there.and_then(|path| LocalTree::open(path, Default::default()).ok());
    tree.is_some_and(|tree| tree.metadata().version.file.system == system)
}
