//! One place in the tree, as a plain value.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::forms::Form;
use crate::cache::Name;
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

/// A directory or file of the tree. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    key: NodeKey,
    attr: Attr,
    form: Arc<dyn Form>,
}

/// Equal keys: the same file with the same bytes. A source file that changes
/// gets another key for everything derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeKey {
    /// What it is.
    pub(super) form: &'static str,
    /// Where it stands, if it is another one under another name.
    pub(super) place: Option<Arc<Path>>,
    /// Which file, in which version, it is or is made from.
    pub(super) of: Id,
    /// Which part of that.
    pub(super) part: u64,
}

/// A hash of what tells a file from all others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Id(u128);

impl Id {
    /// `parts` with their lengths, so that no two lists of them are alike.
    pub fn of(parts: &[&[u8]]) -> Id {
        let name = Name::of(parts);
        let (half, _) = name
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 16], &[]));
        Id(u128::from_le_bytes(*half))
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Node {
    pub(super) fn new(key: NodeKey, attr: Attr, form: impl Form + 'static) -> Node {
        let form = Arc::new(form);
        Node { key, attr, form }
    }

    pub(super) fn form(&self) -> &dyn Form {
        &*self.form
    }

    pub fn kind(&self) -> Kind {
        self.attr.kind
    }

    /// The attributes at the time the node was made.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Whether this file only says why another one is not there.
    pub fn is_refusal(&self) -> bool {
        self.form.is_refusal()
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }
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
