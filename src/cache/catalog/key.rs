//! What the catalog knows things by: a file, a plan, and what either is called when
//! it outlives the process.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cache::Name;
use crate::checkpoint::{Companion, Content, NameHint};
use crate::convert;
use crate::source::{Metadata, Tree, Version};

/// A file of the source as it was found just now.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub directory: &'a dyn Tree,
    pub name: &'a OsStr,
    pub version: &'a Version,
    /// The dotted path of the only value of it that is meant, if not the whole file is.
    pub root: Option<&'a Arc<str>>,
}

impl<'a> Subject<'a> {
    pub fn new(directory: &'a dyn Tree, name: &'a OsStr, metadata: &'a Metadata) -> Subject<'a> {
        Subject {
            directory,
            name,
            version: &metadata.version,
            root: None,
        }
    }

    /// The value at a dotted path in it.
    pub fn at(self, root: Option<&'a Arc<str>>) -> Subject<'a> {
        Subject { root, ..self }
    }

    pub fn key(&self) -> FileKey {
        FileKey {
            version: *self.version,
            hint: convert::hint(self.name),
            root: self.root.cloned(),
        }
    }
}

/// A file with certain bytes, under a certain kind of name, or one value of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileKey {
    pub version: Version,
    pub hint: NameHint,
    /// The dotted path of that value.
    pub root: Option<Arc<str>>,
}

/// What a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanKey {
    pub file: FileKey,
    pub content: Content,
    /// The class of model that decides which names of tied tensors stay.
    pub architecture: Option<Arc<str>>,
    /// Other files that the plan may need, in the order of their names.
    pub companions: Arc<[(OsString, Version)]>,
}

impl PlanKey {
    /// Whether `file` is one of the companions, as it was when they were looked at.
    pub fn has(&self, file: &Companion) -> bool {
        let name = |known: &(OsString, Version)| known.0.as_os_str().cmp(file.name.as_ref());
        let found = self.companions.binary_search_by(name);
        let found = found.ok().and_then(|at| self.companions.get(at));
        found.is_some_and(|(_, version)| version.same_stamps(&file.version))
    }

    /// Whether whatever is done to one of the files that the plan may depend on gives
    /// it another version.
    pub fn is_settled(&self) -> bool {
        let mut companions = self.companions.iter();
        self.file.version.settled && companions.all(|(_, version)| version.settled)
    }

    /// Whether the versions of all of them hold beyond this mount.
    pub fn is_lasting(&self) -> bool {
        let mut companions = self.companions.iter();
        self.file.version.is_lasting() && companions.all(|(_, version)| version.is_lasting())
    }

    /// What the plan depends on besides the file itself.
    pub fn circumstances(&self) -> Circumstances {
        let architecture = match &self.architecture {
            Some(name) => [&[1], name.as_bytes()].concat(),
            None => Vec::new(),
        };
        let versions: Vec<_> = self
            .companions
            .iter()
            .map(|file| file.1.to_bytes())
            .collect();
        let mut parts = vec![architecture.as_slice()];
        for ((name, _), version) in self.companions.iter().zip(&versions) {
            parts.extend([name.as_bytes(), version]);
        }
        Circumstances(Name::of(&parts))
    }
}

/// What a plan depends on besides the file itself, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances(Name);

impl Circumstances {
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// What tells the bytes of a file from all others, beyond the life of this mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    /// Its version holds.
    Stamps(Version),
    /// Where it lies, and what is in it: a hash of both.
    Content(Name),
    /// Nothing does. The version holds for the mount with this number alone.
    Mount(u64, Version),
}

impl Identity {
    /// Whether it means something after this mount.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Identity::Mount(..))
    }

    pub fn to_bytes(self) -> Vec<u8> {
        match self {
            Identity::Stamps(version) => [&[0][..], &version.to_bytes()].concat(),
            Identity::Content(name) => [&[1][..], name.as_bytes()].concat(),
            Identity::Mount(mount, version) => {
                [&[2][..], &mount.to_le_bytes(), &version.to_bytes()].concat()
            }
        }
    }
}
