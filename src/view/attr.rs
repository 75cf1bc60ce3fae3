//! What `stat` shows of a node.

use std::time::{Duration, SystemTime};

use crate::source::{Metadata, Rights};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
}

/// What `stat` shows, less the inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, none of them write.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub atime: SystemTime,
    pub mtime: SystemTime,
    pub ctime: SystemTime,
}

impl Attr {
    /// The source's own attributes, without write bits.
    pub(super) fn of(kind: Kind, metadata: &Metadata) -> Attr {
        let Rights { uid, gid, mode } = metadata.rights;
        Attr {
            kind,
            size: metadata.version.size,
            mode,
            uid,
            gid,
            atime: time(metadata.accessed),
            mtime: time(metadata.version.modified),
            ctime: time(metadata.version.changed),
        }
    }

    pub(super) fn sized(self, size: u64) -> Attr {
        Attr { size, ..self }
    }

    pub(super) fn rights(&self) -> Rights {
        Rights::new(self.uid, self.gid, self.mode)
    }

    pub(super) fn with_rights(self, rights: Rights) -> Attr {
        let Rights { uid, gid, mode } = rights;
        Attr {
            uid,
            gid,
            mode,
            ..self
        }
    }

    /// A directory that whoever may read the file may enter.
    pub(super) fn directory(self) -> Attr {
        Attr {
            kind: Kind::Directory,
            size: 0,
            mode: self.mode & 0o444 | (self.mode & 0o444) >> 2,
            ..self
        }
    }
}

/// Seconds, which may be negative, and nanoseconds since 1970.
fn time((seconds, nanoseconds): (i64, i64)) -> SystemTime {
    let fraction = Duration::from_nanos(nanoseconds.unsigned_abs());
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole),
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole),
    };
    time.and_then(|time| time.checked_add(fraction))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
