//! What the inode of a source file says.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// A file whose last change is older than this cannot change again under the same
/// time stamps on any file system.
const SETTLED: Duration = Duration::from_secs(2);

/// Which bytes a file holds, as far as its inode can tell: equal identities are
/// taken to mean equal contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Seconds and nanoseconds of the last inode change, which no program can set.
    pub changed: (i64, i64),
}

impl Identity {
    /// Whether a file with identity `now` that is still held open has kept its
    /// bytes. The inode change time is left out: it moves when the name is
    /// removed or replaced, which leaves the bytes of an open file alone.
    pub(super) fn same_bytes(&self, now: &Identity) -> bool {
        self.size == now.size && self.modified == now.modified
    }

    /// Whether whatever is done to the file from now on gives it another identity:
    /// its last change, which no program can set, is long enough ago by the clock of
    /// this machine. What is to be kept for long under an identity is read only after
    /// this.
    pub fn is_settled(&self) -> bool {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let age = i64::try_from(now.as_secs()).map(|now| now.checked_sub(self.changed.0));
        matches!(age, Ok(Some(age)) if age > SETTLED.as_secs() as i64)
    }

    /// All of it, for a hash.
    pub fn to_bytes(&self) -> [u8; 56] {
        let numbers = [
            self.device.to_le_bytes(),
            self.inode.to_le_bytes(),
            self.size.to_le_bytes(),
            self.modified.0.to_le_bytes(),
            self.modified.1.to_le_bytes(),
            self.changed.0.to_le_bytes(),
            self.changed.1.to_le_bytes(),
        ];
        let mut bytes = [0; 56];
        bytes.copy_from_slice(numbers.as_flattened());
        bytes
    }
}

/// The parts of `stat` that are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    pub identity: Identity,
    pub is_file: bool,
    pub is_directory: bool,
    /// Permission bits.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub accessed: (i64, i64),
}

impl From<std::fs::Metadata> for Metadata {
    fn from(metadata: std::fs::Metadata) -> Metadata {
        Metadata {
            identity: Identity {
                device: metadata.dev(),
                inode: metadata.ino(),
                size: metadata.size(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                changed: (metadata.ctime(), metadata.ctime_nsec()),
            },
            is_file: metadata.is_file(),
            is_directory: metadata.is_dir(),
            mode: (metadata.mode() & 0o777) as u16,
            uid: metadata.uid(),
            gid: metadata.gid(),
            accessed: (metadata.atime(), metadata.atime_nsec()),
        }
    }
}

/// Whether a path could not be followed because its links lead in a circle. The
/// standard library has no stable name for this.
pub fn is_circle(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}
