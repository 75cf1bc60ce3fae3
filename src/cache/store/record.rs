//! The record of a converted file: what it was made from, and what its inode said
//! when it was finished. Whoever writes to the file afterwards moves the time of
//! its last inode change, which no program can set back.
//!
//! ```text
//! magic and version, 16 bytes
//! name, 32 bytes
//! inode, size, time of modification and of change (seconds, nanoseconds), 8 bytes each
//! path of the source, as long as there is something left
//! SHA-256 of all that
//! ```

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::cache::directory::{Directory, Name};
use crate::source::Identity;

/// The version is the last digit.
const MAGIC: &[u8; 16] = b"stfs converted 1";
/// No path is longer than 4096 bytes.
const MAX: u64 = 8192;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: Name,
    /// For whoever looks at the cache. Nothing is read there.
    pub source: PathBuf,
    pub stamp: Stamp,
}

/// An identity without the device, whose number may be another one after a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    /// Bytes.
    pub size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Identity> for Stamp {
    fn from(identity: &Identity) -> Stamp {
        Stamp {
            inode: identity.inode,
            size: identity.size,
            modified: identity.modified,
            changed: identity.changed,
        }
    }
}

/// What keeps a file of the store from being used.
#[derive(Debug)]
pub enum Flaw {
    /// Which may be over in a moment.
    Unreadable(io::Error),
    Damaged(&'static str),
}

impl Record {
    /// None when there is none.
    pub fn load(directory: &Directory, name: &Name) -> Result<Option<Record>, Flaw> {
        let bytes = match read(&directory.record(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Flaw::Unreadable(error)),
        };
        match Record::decode(&bytes) {
            Some(record) if record.name == *name => Ok(Some(record)),
            _ => Err(Flaw::Damaged("its record is damaged or of another version")),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let stamp = &self.stamp;
        let mut out = MAGIC.to_vec();
        out.extend(self.name.as_bytes());
        out.extend(stamp.inode.to_le_bytes());
        out.extend(stamp.size.to_le_bytes());
        for (seconds, nanoseconds) in [stamp.modified, stamp.changed] {
            out.extend(seconds.to_le_bytes());
            out.extend(nanoseconds.to_le_bytes());
        }
        out.extend(self.source.as_os_str().as_bytes());
        let hash = Sha256::digest(&out);
        out.extend(hash);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Record> {
        let (content, hash) = bytes.split_last_chunk::<32>()?;
        if Sha256::digest(content)[..] != *hash {
            return None;
        }
        let content = content.strip_prefix(MAGIC)?;
        let (name, content) = content.split_first_chunk::<32>()?;
        let mut rest = content;
        let mut number = || {
            let (number, tail) = rest.split_first_chunk::<8>()?;
            rest = tail;
            Some(*number)
        };
        let stamp = Stamp {
            inode: u64::from_le_bytes(number()?),
            size: u64::from_le_bytes(number()?),
            modified: (i64::from_le_bytes(number()?), i64::from_le_bytes(number()?)),
            changed: (i64::from_le_bytes(number()?), i64::from_le_bytes(number()?)),
        };
        Some(Record {
            name: Name::from_bytes(*name),
            source: PathBuf::from(OsStr::from_bytes(rest)),
            stamp,
        })
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
