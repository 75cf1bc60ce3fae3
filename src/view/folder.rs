//! A directory of the source at one moment: what each name in it is, and what a
//! checkpoint among them turns into. Each is found out once.
//!
//! A real file wins over a derived one of the same name. A name that two
//! checkpoints would both turn into goes to neither: they keep their endings.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::attr::{Attr, Kind};
use super::context::Context;
use super::error::{Error, Result, gone};
use super::origin::Origin;
use super::scan::{Scan, stem};
use crate::cache::{PlanKey, Subject};
use crate::checkpoint::{Cause, Content, NameHint, Refusal};
use crate::convert::index::Index;
use crate::convert::{self, names};
use crate::source::{self, Metadata, Obstacle, Rights, Tree, Version};

pub(super) struct Folder<'c> {
    pub context: &'c Context,
    pub tree: Arc<dyn Tree>,
    scan: OnceLock<Arc<Scan>>,
    /// What is known of the names of the scan, by their positions.
    entries: Mutex<HashMap<usize, Arc<Entry>>>,
    architecture: Arc<OnceLock<Option<Arc<str>>>>,
}

#[derive(Default)]
struct Entry {
    found: OnceLock<SourceEntry>,
    outcome: OnceLock<Outcome>,
    derived: OnceLock<Derived>,
}

/// A file by name, as it was.
type File = (OsString, Version);

/// What stands under a name of the source.
#[derive(Clone)]
pub(super) enum SourceEntry {
    Missing,
    Directory(Metadata),
    File(Metadata, Content),
    /// Something that cannot be shown. The metadata are those of the link or file.
    Refused(Metadata, Arc<Refusal>),
    /// A pipe, socket or device, which a model directory has no use for.
    Special,
}

/// What becomes of a checkpoint.
#[derive(Clone)]
pub(super) enum Derived {
    Nothing,
    /// A converted file that is called this, and `.safetensors`.
    Converted(OsString, Arc<Origin>),
    Refused(Metadata, Arc<Refusal>),
}

/// The same, whatever it would be called.
#[derive(Clone)]
pub(super) enum Outcome {
    Nothing,
    Converted(Arc<Origin>),
    Refused(Metadata, Arc<Refusal>),
}

impl<'c> Folder<'c> {
    pub fn new(context: &'c Context, tree: Arc<dyn Tree>) -> Folder<'c> {
        Folder {
            context,
            tree,
            scan: OnceLock::new(),
            entries: Mutex::default(),
            architecture: Arc::default(),
        }
    }

    /// The same at the same moment, where nothing is known of any name yet: what is found
    /// out there goes with it.
    pub fn afresh(&self) -> Folder<'c> {
        Folder {
            context: self.context,
            tree: self.tree.clone(),
            scan: self.scan.clone(),
            entries: Mutex::default(),
            architecture: self.architecture.clone(),
        }
    }

    /// Where `name` stands in the tree.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.tree.path().join(name)
    }

    /// For people.
    pub fn location(&self, name: &OsStr) -> PathBuf {
        self.tree.location().join(name)
    }

    /// What stands under `name` in the source.
    pub fn find(&self, name: &OsStr) -> Result<SourceEntry> {
        let Some(entry) = self.entry(name) else {
            return Ok(self.look(name)?);
        };
        if let Some(found) = entry.found.get() {
            return Ok(found.clone());
        }
        let found = self.look(name)?;
        Ok(entry.found.get_or_init(|| found).clone())
    }

    fn look(&self, name: &OsStr) -> io::Result<SourceEntry> {
        let metadata = match self.tree.stat(name)? {
            source::Found::Missing => return Ok(SourceEntry::Missing),
            source::Found::Special => return Ok(SourceEntry::Special),
            source::Found::Directory(metadata) => return Ok(SourceEntry::Directory(metadata)),
            source::Found::Blocked(metadata, obstacle) => {
                return Ok(SourceEntry::Refused(metadata, Arc::new(blocked(obstacle))));
            }
            source::Found::File(metadata) => metadata,
        };
        let subject = Subject::new(&*self.tree, name, &metadata);
        match self.context.catalog().content(&subject) {
            Ok(content) => Ok(SourceEntry::File(metadata, content)),
            Err(source::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok(SourceEntry::Missing)
            }
            // Then nothing here can be looked at.
            Err(source::Error::Io(error)) if error.kind() == io::ErrorKind::NotConnected => {
                Err(error)
            }
            Err(error) if convert::hint(name) == NameHint::Checkpoint => {
                Ok(SourceEntry::Refused(metadata, Arc::new(unreadable(&error))))
            }
            // One that must not be read is shown for what its inode says; one that could
            // not be looked at may be a pickle, and is not shown.
            Err(source::Error::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                Ok(SourceEntry::File(metadata, Content::Other))
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The index in the file `name`. None when it is none, or must not be read.
    pub fn index(&self, name: &OsStr, metadata: &Metadata) -> io::Result<Option<Arc<Index>>> {
        let subject = Subject::new(&*self.tree, name, metadata);
        as_none(self.context.catalog().index(&subject))
    }

    /// What the checkpoint `name` becomes.
    pub fn derived(&self, name: &OsStr) -> Result<Derived> {
        let Some(entry) = self.entry(name) else {
            return self.derive(name);
        };
        if let Some(derived) = entry.derived.get() {
            return Ok(derived.clone());
        }
        let derived = self.derive(name)?;
        Ok(entry.derived.get_or_init(|| derived).clone())
    }

    fn derive(&self, name: &OsStr) -> Result<Derived> {
        let metadata = match self.find(name)? {
            SourceEntry::File(metadata, content) if content.is_checkpoint() => {
                if is_part(name) && !self.scan()?.contains(names::METADATA.as_ref()) {
                    return Ok(Derived::Refused(metadata, Arc::new(convert::lone_part())));
                }
                metadata
            }
            SourceEntry::Refused(metadata, refusal) if !is_part(name) => {
                return Ok(Derived::Refused(metadata, refusal));
            }
            _ => return Ok(Derived::Nothing),
        };
        let base = match is_part(name) {
            true => OsString::new(),
            false => self.base_of(name)?,
        };
        if base.is_empty() || self.is_taken(&with(&base, names::SAFETENSORS))? {
            let subject = Subject::new(&*self.tree, name, &metadata);
            self.context.catalog().pass_over(&subject);
            return Ok(Derived::Nothing);
        }
        Ok(match self.outcome(name)? {
            Outcome::Nothing => Derived::Nothing,
            Outcome::Converted(origin) => Derived::Converted(base, origin),
            Outcome::Refused(metadata, refusal) => Derived::Refused(metadata, refusal),
        })
    }

    /// What a checkpoint would become if its name were free.
    fn outcome(&self, name: &OsStr) -> Result<Outcome> {
        let Some(entry) = self.entry(name) else {
            return self.find_outcome(name);
        };
        if let Some(outcome) = entry.outcome.get() {
            return Ok(outcome.clone());
        }
        let outcome = self.find_outcome(name)?;
        Ok(entry.outcome.get_or_init(|| outcome).clone())
    }

    fn find_outcome(&self, name: &OsStr) -> Result<Outcome> {
        let (metadata, content) = match self.find(name)? {
            SourceEntry::File(metadata, content) => (metadata, content),
            SourceEntry::Refused(metadata, refusal) => {
                return Ok(Outcome::Refused(metadata, refusal));
            }
            _ => return Ok(Outcome::Nothing),
        };
        Ok(match self.origin(name, &metadata, content, None) {
            Ok(origin) => Outcome::Converted(origin),
            // Nobody misses what holds no weights, whatever it is called.
            Err(refusal) if refusal.cause().is_no_weights() => Outcome::Nothing,
            Err(refusal) => Outcome::Refused(metadata, refusal),
        })
    }

    /// What derived nodes carry of the file `name`, or of the value at the dotted path
    /// `root` in it, or why there are none.
    pub fn origin(
        &self,
        name: &OsStr,
        metadata: &Metadata,
        content: Content,
        root: Option<&Arc<str>>,
    ) -> std::result::Result<Arc<Origin>, Arc<Refusal>> {
        let (companions, rights) = match content.has_companions() {
            true => self.companions(metadata.rights)?,
            false => (Vec::new(), metadata.rights),
        };
        let subject = Subject::new(&*self.tree, name, metadata).at(root);
        let key = PlanKey {
            file: subject.key(),
            content,
            architecture: match content.is_checkpoint() {
                true => self.architecture()?,
                false => None,
            },
            companions: companions.into(),
        };
        let converted = self.context.catalog().converted(&subject, &key);
        let converted = converted.map_err(|error| Arc::new(unreadable(&error)))??;
        let attr = Attr::of(Kind::File, metadata)
            .sized(converted.size)
            .with_rights(rights);
        let name = name.to_os_string();
        let origin = Origin::new(&*self.tree, name, key, converted.identity, attr);
        Ok(Arc::new(origin))
    }

    /// The class of model that the files here belong to, as far as may be read.
    fn architecture(&self) -> std::result::Result<Option<Arc<str>>, Arc<Refusal>> {
        if let Some(known) = self.architecture.get() {
            return Ok(known.clone());
        }
        let name = OsStr::new(convert::CONFIG);
        let found = match self.tree.stat(name) {
            Ok(source::Found::File(metadata)) => {
                let subject = Subject::new(&*self.tree, name, &metadata);
                self.context.catalog().architecture(&subject)
            }
            Ok(_) => Ok(None),
            Err(error) => Err(error.into()),
        };
        let found = as_none(found).map_err(|error| {
            let what = "config.json, which decides what tied tensors are called, cannot be read";
            Arc::new(Refusal::new(Cause::Unreadable, format!("{what}: {error}")))
        })?;
        Ok(self.architecture.get_or_init(|| found).clone())
    }

    /// The other files that a checkpoint with the rights `rights` may be made of, by
    /// name, and the rights that all have in common.
    fn companions(
        &self,
        mut rights: Rights,
    ) -> std::result::Result<(Vec<File>, Rights), Arc<Refusal>> {
        let failed = |error: Error| match error {
            Error::Io(error) => Arc::new(unreadable(&error.into())),
            _ => Arc::new(unreadable(&source::Error::Changed)),
        };
        let mut companions = Vec::new();
        let scan = self.scan().map_err(failed)?;
        let parts = scan.names().iter();
        for name in parts.filter(|name| name.to_str().is_some_and(names::is_part)) {
            match self.find(name).map_err(failed)? {
                SourceEntry::File(metadata, _) => {
                    rights = rights.common(metadata.rights);
                    companions.push((name.to_os_string(), metadata.version));
                }
                SourceEntry::Refused(_, refusal) => return Err(refusal),
                SourceEntry::Missing | SourceEntry::Directory(_) | SourceEntry::Special => {}
            }
        }
        Ok((companions, rights))
    }

    /// The checkpoint that `base.safetensors` is derived from. None when there is
    /// none, or when it is refused.
    pub fn converted(&self, base: &OsStr) -> Result<Option<Arc<Origin>>> {
        for name in self.scan()?.with_stem(base).chain([base]) {
            if let Derived::Converted(found, origin) = self.derived(name)?
                && found == base
            {
                return Ok(Some(origin));
            }
        }
        Ok(None)
    }

    /// What the value at the dotted path `root` in the checkpoint `name` would become.
    pub fn outcome_at(&self, name: &OsStr, root: &Arc<str>) -> Result<Outcome> {
        Ok(match self.find(name)? {
            SourceEntry::File(metadata, content) if content.is_checkpoint() && !is_part(name) => {
                match self.origin(name, &metadata, content, Some(root)) {
                    Ok(origin) => Outcome::Converted(origin),
                    Err(refusal) if refusal.cause() == Cause::NoSuchRoot => Outcome::Nothing,
                    Err(refusal) if refusal.cause().is_no_weights() => Outcome::Nothing,
                    Err(refusal) => Outcome::Refused(metadata, refusal),
                }
            }
            _ => Outcome::Nothing,
        })
    }

    /// The name without ending that a checkpoint's converted form has: its stem,
    /// or its whole name when another checkpoint would be called the same.
    pub fn base_of(&self, name: &OsStr) -> Result<OsString> {
        self.base_among(name, |other| self.holds_weights(other))
    }

    /// The same of a file among those that `counts`.
    pub fn base_among(
        &self,
        name: &OsStr,
        counts: impl Fn(&OsStr) -> Result<bool>,
    ) -> Result<OsString> {
        let scan = self.scan()?;
        let base = stem(name);
        let mut rival = base.clone();
        loop {
            let mut same_stem = 0;
            for other in scan.with_stem(&rival) {
                // One that stands alone need not be looked at again.
                let counts = other == name || counts(other)?;
                same_stem += usize::from(counts);
            }
            if same_stem > 1 {
                return Ok(name.to_os_string());
            }
            // `m.pt.bin` has the stem `m.pt`, and so a rival in a checkpoint `m.pt`
            // that has to go by its whole name.
            let shorter = stem(&rival);
            if shorter == rival || !counts(&rival)? {
                return Ok(base);
            }
            rival = shorter;
        }
    }

    /// Whether something would be shown of the checkpoint `name`, if it is one.
    pub fn holds_weights(&self, name: &OsStr) -> Result<bool> {
        let is_one = self.scan()?.contains(name)
            && !is_part(name)
            && match self.find(name)? {
                // What stands in the place of a safetensors file would be called as it is.
                SourceEntry::File(_, Content::NotACheckpoint(_)) => {
                    convert::hint(name) != NameHint::Safetensors
                }
                SourceEntry::File(_, content) => content.is_checkpoint(),
                _ => false,
            };
        Ok(is_one && !matches!(self.outcome(name)?, Outcome::Nothing))
    }

    /// Whether a file of the source is in the tree under its own name.
    pub fn is_shown(&self, name: &OsStr, metadata: &Metadata, content: Content) -> Result<bool> {
        if self.context.options().show_pickles {
            return Ok(true);
        }
        if content.is_hidden() {
            return Ok(false);
        }
        let may_be_index = name.to_str().and_then(names::index_name).is_some();
        Ok(!may_be_index || self.index(name, metadata)?.is_none())
    }

    /// Whether a real file keeps a derived one from being called `name`.
    pub fn is_taken(&self, name: &OsStr) -> Result<bool> {
        if !self.scan()?.contains(name) {
            return Ok(false);
        }
        Ok(match self.find(name)? {
            SourceEntry::Directory(_) => true,
            SourceEntry::File(metadata, content) => self.is_shown(name, &metadata, content)?,
            _ => false,
        })
    }

    /// The names in the directory.
    pub fn scan(&self) -> Result<&Arc<Scan>> {
        if let Some(scan) = self.scan.get() {
            return Ok(scan);
        }
        let scan = self.context.scan(&*self.tree).map_err(gone)?;
        Ok(self.scan.get_or_init(|| scan))
    }

    /// What is known of `name`, once the names are.
    fn entry(&self, name: &OsStr) -> Option<Arc<Entry>> {
        let position = self.scan.get()?.position(name)?;
        let entries = self.entries.lock();
        let mut entries = entries.unwrap_or_else(PoisonError::into_inner);
        Some(entries.entry(position).or_default().clone())
    }
}

/// Whether a file of this name is read as a part of another.
fn is_part(name: &OsStr) -> bool {
    name.to_str().is_some_and(names::is_part)
}

pub(super) fn with(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_os_string();
    name.push(suffix);
    name
}

/// `name` without `suffix`, unless nothing would be left.
pub(super) fn strip_suffix<'n>(name: &'n OsStr, suffix: &str) -> Option<&'n OsStr> {
    let stem = name.as_bytes().strip_suffix(suffix.as_bytes())?;
    (!stem.is_empty()).then(|| OsStr::from_bytes(stem))
}

/// Why a link is not shown as what it leads to, or a mount as what is in it.
fn blocked(obstacle: Obstacle) -> Refusal {
    let cause = match obstacle {
        Obstacle::Nowhere => Cause::NotDownloaded,
        Obstacle::Circle | Obstacle::Upwards => Cause::Circular,
        Obstacle::Forbidden => Cause::Unreadable,
        Obstacle::Outside | Obstacle::Private => Cause::Blocked,
        Obstacle::Younger => Cause::Younger,
    };
    Refusal::new(cause, obstacle.to_string())
}

pub(super) fn unreadable(error: &source::Error) -> Refusal {
    match error {
        source::Error::Io(error) if error.kind() != io::ErrorKind::StaleNetworkFileHandle => {
            Refusal::new(
                Cause::Unreadable,
                format!("the file cannot be read: {error}"),
            )
        }
        _ => Refusal::new(
            Cause::Changing,
            "the file changed while it was looked at: it is still being written",
        ),
    }
}

/// The same for whoever asks by name: of what changed under way he may ask again.
fn failed(error: source::Error) -> io::Error {
    match error {
        source::Error::Io(error) => error,
        source::Error::Changed | source::Error::PastEnd { .. } => {
            io::ErrorKind::StaleNetworkFileHandle.into()
        }
    }
}

/// What a file says that decides about others: nothing if it is gone or must not be read.
fn as_none<T>(found: source::Result<Option<T>>) -> io::Result<Option<T>> {
    use io::ErrorKind::{NotFound, PermissionDenied};
    match found.map_err(failed) {
        Err(error) if matches!(error.kind(), NotFound | PermissionDenied) => Ok(None),
        found => found,
    }
}
