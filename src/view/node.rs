//! One place in the tree, as a plain value.

use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::cache::Key;
use crate::checkpoint::Content;
use crate::source::{Identity, Metadata};

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
    pub(super) key: NodeKey,
    pub(super) attr: Attr,
}

/// Equal keys: the same file with the same bytes. A source file that changes
/// gets another key for everything derived from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeKey(pub(super) Place);

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// A directory of the source.
    Directory(Real),
    /// A file of the source, shown as it is.
    Plain(Real),
    /// A checkpoint as `.safetensors`.
    Converted(Arc<Origin>),
    /// The same, in a file that is kept.
    Kept(Arc<Origin>, Identity),
    /// Where the mount tells about itself.
    Control,
    /// `X.tensors`.
    Tensors(Arc<TensorSet>),
    /// One tensor of a file, by its index in the plan.
    Tensor(Arc<Origin>, u32),
    /// A small file made up here.
    Text(Arc<Text>),
}

/// A directory or file of the source.
#[derive(Clone, Debug)]
pub(super) struct Real {
    pub path: Arc<Path>,
    pub device: u64,
    pub inode: u64,
}

/// The file that a derived node is made from.
#[derive(Debug)]
pub(super) struct Origin {
    pub path: Arc<Path>,
    pub content: Content,
    pub key: Key,
    /// Those of the converted file or, for a native one, of the file itself.
    pub attr: Attr,
}

/// The tensors of a file, or of all files that an index names.
#[derive(Debug)]
pub(super) struct TensorSet {
    /// Where the directory stands in the tree.
    pub path: Arc<Path>,
    pub parts: Box<[Arc<Origin>]>,
    /// Part and index of each tensor, by name; None when there is one part,
    /// whose plan knows the order.
    pub merged: Option<Box<[(u32, u32)]>>,
}

/// A file made up here.
#[derive(Debug)]
pub(super) struct Text {
    /// Where it stands in the tree.
    pub path: Arc<Path>,
    /// The file that it speaks of.
    pub about: Arc<Path>,
    /// It is a `NAME.refused.txt`.
    pub refuses: bool,
    pub body: Box<[u8]>,
}

impl Real {
    /// Whether a file with these metadata is this one.
    pub fn is(&self, metadata: &Metadata) -> bool {
        (self.device, self.inode) == (metadata.identity.device, metadata.identity.inode)
    }
}

impl Node {
    pub(super) fn new(place: Place, attr: Attr) -> Node {
        Node {
            key: NodeKey(place),
            attr,
        }
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
        matches!(&self.key.0, Place::Text(text) if text.refuses)
    }

    /// The path of the checkpoint behind a converted file; None for all else.
    pub fn checkpoint(&self) -> Option<&Path> {
        Some(&self.origin()?.path)
    }

    /// The checkpoint that this is the converted form of.
    pub(super) fn origin(&self) -> Option<&Arc<Origin>> {
        match &self.key.0 {
            Place::Converted(origin) | Place::Kept(origin, _) => Some(origin),
            _ => None,
        }
    }

    pub fn key(&self) -> &NodeKey {
        &self.key
    }
}

impl Attr {
    /// The source's own attributes, without write bits.
    pub(super) fn of(metadata: &Metadata) -> Attr {
        Attr {
            kind: match metadata.is_directory {
                true => Kind::Directory,
                false => Kind::File,
            },
            size: metadata.identity.size,
            mode: metadata.mode & 0o555,
            uid: metadata.uid,
            gid: metadata.gid,
            atime: time(metadata.accessed),
            mtime: time(metadata.identity.modified),
            ctime: time(metadata.identity.changed),
        }
    }

    pub(super) fn sized(self, size: u64) -> Attr {
        Attr { size, ..self }
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

impl Place {
    /// What tells one place from another.
    fn identity(&self) -> PlaceIdentity<'_> {
        use PlaceIdentity as Id;
        match self {
            // A link to a directory is a directory of its own: the kernel knows
            // each directory under one name.
            Place::Directory(real) => Id::Directory(&real.path, real.device, real.inode),
            Place::Plain(real) => Id::Plain(real.device, real.inode),
            Place::Converted(origin) => Id::Converted(&origin.key),
            // Which file it is counts too: the kernel holds one for each node.
            Place::Kept(origin, kept) => Id::Kept(&origin.key, kept),
            Place::Control => Id::Control,
            Place::Tensors(set) => {
                Id::Tensors(&set.path, set.parts.iter().map(|part| &part.key).collect())
            }
            Place::Tensor(origin, index) => Id::Tensor(&origin.key, *index),
            Place::Text(text) => Id::Text(&text.path, &text.body),
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
enum PlaceIdentity<'a> {
    Directory(&'a Path, u64, u64),
    Plain(u64, u64),
    Converted(&'a Key),
    Kept(&'a Key, &'a Identity),
    Control,
    Tensors(&'a Path, Vec<&'a Key>),
    Tensor(&'a Key, u32),
    Text(&'a Path, &'a [u8]),
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Place {}

impl Hash for Place {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}
