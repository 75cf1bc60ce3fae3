//! The checkpoints that derived files are made from, and how to get at them again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attr::Attr;
use super::error::{Error, Result, gone};
use super::key::Id;
use super::node::Home;
use crate::cache::{Catalog, Identity, Name, PlanKey, Provenance, Store, Subject};
use crate::convert::{Plan, Reader};
use crate::source::{Found, Tree};

/// The file that a derived node is made from.
#[derive(Debug)]
pub(super) struct Origin {
    /// The directory that it lies in, from the root of the source.
    pub directory: Arc<Path>,
    pub name: OsString,
    /// For people.
    pub location: Arc<Path>,
    pub key: PlanKey,
    pub identity: Identity,
    /// Those of the converted file or, for a native one, of the file itself; with the
    /// rights that all files it is made of have in common.
    pub attr: Attr,
    pub id: Id,
}

impl Origin {
    pub fn new(
        tree: &dyn Tree,
        name: OsString,
        key: PlanKey,
        identity: Identity,
        attr: Attr,
    ) -> Origin {
        let id = Id::of(&[
            &key.file.version.to_bytes(),
            key.circumstances().as_bytes(),
            format!("{:?}{:?}", key.content, key.file.hint).as_bytes(),
            &[u8::from(key.file.root.is_some())],
            key.file.root.as_deref().unwrap_or_default().as_bytes(),
        ]);
        Origin {
            directory: tree.path().into(),
            location: tree.location().join(&name).into(),
            name,
            key,
            identity,
            attr,
            id,
        }
    }

    pub fn home(&self) -> Home {
        Home {
            id: self.id,
            system: self.key.file.version.file.system,
        }
    }

    /// The same, as the cache remembers it.
    pub fn provenance(&self) -> Provenance {
        Provenance {
            source: PathBuf::from(&*self.location),
            identity: self.identity,
            root: self.key.file.root.as_deref().map(str::to_string),
        }
    }
}

/// The source, and what is known of it.
#[derive(Debug)]
pub(super) struct Sources {
    pub tree: Arc<dyn Tree>,
    pub catalog: Catalog,
    /// None without a cache directory.
    pub store: Option<Store>,
}

impl Sources {
    /// Reads the file behind `origin` as its converted form, for whoever reads it once
    /// from its first byte to its last.
    ///
    /// # Errors
    /// [`Error::Stale`] when it is another file now.
    pub fn reader(&self, origin: &Origin) -> Result<Reader> {
        let directory = self.enter(origin)?;
        let reader = self
            .catalog
            .reader(&subject(&*directory, origin), &origin.key)?;
        match reader.plan().size() == origin.attr.size {
            true => Ok(reader),
            // It changed without its stamps moving.
            false => Err(Error::Stale),
        }
    }

    /// As [`Sources::reader`], for whoever reads it as he likes: what has to be decoded
    /// is kept in the cache directory meanwhile.
    pub fn ranges(&self, origin: &Origin) -> Result<Reader> {
        let reader = self.reader(origin)?;
        if let Some(store) = &self.store {
            reader.lend(Box::new(store.scratch()));
        }
        Ok(reader)
    }

    /// The plan that derived nodes are made with, made again if it was forgotten.
    pub fn plan(&self, origin: &Origin) -> Result<Arc<Plan>> {
        let directory = self.enter(origin)?;
        let outcome = self
            .catalog
            .plan(&subject(&*directory, origin), &origin.key)?;
        outcome.map_err(|_| Error::Stale)
    }

    /// Whether the file behind `origin` and its companions are what they were.
    pub fn is_current(&self, origin: &Origin) -> bool {
        let Ok(directory) = self.enter(origin) else {
            return false;
        };
        let companions = origin.key.companions.iter();
        let files = companions.map(|(name, version)| (name, version));
        files
            .chain([(&origin.name, &origin.key.file.version)])
            .all(|(name, version)| {
                let found = directory.stat(name);
                matches!(found, Ok(Found::File(now)) if now.version.same_stamps(version))
            })
    }

    /// What the converted form of `origin` is called where it is kept.
    pub fn promoted_name(&self, origin: &Origin) -> Name {
        self.catalog.converted_name(&origin.key, &origin.identity)
    }

    fn enter(&self, origin: &Origin) -> Result<Arc<dyn Tree>> {
        self.tree.enter(&origin.directory).map_err(gone)
    }
}

fn subject<'a>(directory: &'a dyn Tree, origin: &'a Origin) -> Subject<'a> {
    Subject {
        directory,
        name: &origin.name,
        version: &origin.key.file.version,
        root: origin.key.file.root.as_ref(),
    }
}
