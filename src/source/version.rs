//! Which bytes a file holds, and how far its stamps can be trusted to tell.
//!
//! On a few local file systems an inode and the time of its last change, which no
//! program can set, are enough for ever. On all others (network, FUSE, images)
//! equal stamps may stand for other bytes after the next mount, or for another
//! file: there they count for the life of one mount, together with the path.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A file whose last change is older than this cannot change again under the same
/// time stamps, by the clock that sets them: some keep whole or even seconds.
const TICK: Duration = Duration::from_secs(2);
/// How far the clock of another machine may be off.
const SKEW: Duration = Duration::from_secs(30);

/// A file system, as far as it tells files apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum System {
    /// Inodes and change times hold. Named by its type and its own identifier,
    /// which stay what they are when it is mounted again.
    Lasting { kind: u64, id: u64 },
    /// Nothing is known beyond this one mount of it.
    Mounted { mount: u64, device: u64 },
}

impl System {
    /// Whether it is a disk of this machine, or its memory: what is there is read at
    /// once.
    pub fn is_near(&self) -> bool {
        matches!(self, System::Lasting { .. })
    }
}

/// One file or directory, whatever it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    pub system: System,
    pub inode: u64,
    /// A hash of its path in the tree where inode numbers alone may be those of
    /// several files; else zero.
    pub path: u128,
}

/// Which bytes a file holds: equal versions are taken to mean equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Version {
    pub file: FileId,
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Seconds and nanoseconds of the last inode change, which no program can set.
    pub changed: (i64, i64),
    /// Whether whatever is done to the file from now on gives it another version.
    /// Until then its stamps say nothing about its bytes: a settled version never
    /// equals one that is not.
    pub settled: bool,
}

impl FileId {
    /// Of the inode `inode` at `path` from the root of a tree.
    pub fn new(system: System, inode: u64, path: &std::path::Path) -> FileId {
        let path = match system {
            System::Lasting { .. } => 0,
            System::Mounted { .. } => hash_of(path),
        };
        FileId {
            system,
            inode,
            path,
        }
    }
}

impl Version {
    /// `now` is the clock of this machine.
    pub fn new(
        file: FileId,
        size: u64,
        modified: (i64, i64),
        changed: (i64, i64),
        now: SystemTime,
    ) -> Version {
        let version = Version {
            file,
            size,
            modified,
            changed,
            settled: false,
        };
        let settled = version.settles_by(now);
        Version { settled, ..version }
    }

    /// Whether a file with these stamps is settled at the time `now`.
    pub fn settles_by(&self, now: SystemTime) -> bool {
        let (last, rest) = match self.file.system {
            System::Lasting { .. } => (self.changed.0, TICK),
            // Some of these keep no time of change, or one without a meaning.
            System::Mounted { .. } => (self.changed.0.max(self.modified.0), TICK + SKEW),
        };
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let age = now.checked_sub(last);
        age.is_some_and(|age| age > rest.as_secs() as i64)
    }

    /// Whether equal versions mean equal contents over remounts and reboots.
    pub fn is_lasting(&self) -> bool {
        self.settled && matches!(self.file.system, System::Lasting { .. })
    }

    /// Whether every stamp of `now` is the same. It may have settled since.
    pub fn same_stamps(&self, now: &Version) -> bool {
        let settled = self.settled;
        *self == Version { settled, ..*now }
    }

    /// Whether a file with version `now` that is still held open has kept its
    /// bytes. The time of change is left out: it moves when the name is removed or
    /// replaced, which leaves the bytes of an open file alone.
    pub fn same_bytes(&self, now: &Version) -> bool {
        self.size == now.size && self.modified == now.modified
    }

    /// All stamps, for a hash.
    pub fn to_bytes(&self) -> [u8; 82] {
        let (kind, first, second) = match self.file.system {
            System::Lasting { kind, id } => (0, kind, id),
            System::Mounted { mount, device } => (1, mount, device),
        };
        let numbers = [
            first.to_le_bytes(),
            second.to_le_bytes(),
            self.file.inode.to_le_bytes(),
            self.size.to_le_bytes(),
            self.modified.0.to_le_bytes(),
            self.modified.1.to_le_bytes(),
            self.changed.0.to_le_bytes(),
            self.changed.1.to_le_bytes(),
        ];
        let mut bytes = [0; 82];
        bytes[..64].copy_from_slice(numbers.as_flattened());
        bytes[64..80].copy_from_slice(&self.file.path.to_le_bytes());
        bytes[80] = kind;
        bytes[81] = self.settled.into();
        bytes
    }
}

/// Who may do what with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    pub uid: u32,
    pub gid: u32,
    /// Permission bits, none of them write.
    pub mode: u16,
}

impl Rights {
    pub fn new(uid: u32, gid: u32, mode: u16) -> Rights {
        let mode = mode & 0o555;
        Rights { uid, gid, mode }
    }

    /// What whoever may read both may do. Files of different owners or groups have
    /// in common what one of them gives to everybody, and else nothing: who belongs
    /// to which group is not known here.
    pub fn common(self, other: Rights) -> Rights {
        const ALL: u16 = 0o444;
        if (self.uid, self.gid) == (other.uid, other.gid) {
            let mode = self.mode & other.mode;
            Rights { mode, ..self }
        } else if other.mode & ALL == ALL {
            self
        } else if self.mode & ALL == ALL {
            other
        } else {
            Rights { mode: 0, ..self }
        }
    }
}

/// The parts of `stat` that are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub version: Version,
    pub rights: Rights,
    /// Seconds and nanoseconds.
    pub accessed: (i64, i64),
}

/// For a place in a key: no two paths share it.
fn hash_of(path: &std::path::Path) -> u128 {
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(path.as_os_str().as_bytes());
    let (half, _) = digest.split_first_chunk().unwrap_or((&[0; 16], &[]));
    u128::from_le_bytes(*half)
}
