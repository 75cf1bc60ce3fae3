//! What each file of the source is, and the plans made from them. Everything is
//! kept under the identity of the file it was found out from, so that a changed
//! file is looked at anew.

use std::ffi::{OsStr, OsString};
use std::hash::Hash;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Options;
use super::facts::Facts;
use super::node::{Attr, Origin};
use super::usage::Usage;
use crate::cache::{Body, Key, Name, Outcome, Plans, Recent, Records, Subject};
use crate::checkpoint::{self, Cause, Content, Promise, Refusal, open_companions, sniff};
use crate::convert::index::Index;
use crate::convert::names;
use crate::convert::{self, Files, Parsed, Plan, Reader, SameDirectory};
use crate::source::{self, Identity, Metadata, Source};

/// Bytes of plans kept beside those in use.
const PLANS: usize = 64 << 20;
/// `config.json` files whose architecture is remembered.
const CONFIGS: NonZeroUsize = NonZeroUsize::new(1 << 10).unwrap();
/// Index files kept parsed.
const INDEXES: NonZeroUsize = NonZeroUsize::new(4).unwrap();
/// A longer file is no index: huggingface_hub reads none of more than 10 MiB.
const MAX_INDEX: u64 = 16 << 20;

pub(super) struct Sources {
    root: PathBuf,
    links_inside_only: bool,
    /// Where in each checkpoint the weights are, if not where the rule finds them.
    weights: Option<String>,
    plans: Plans,
    facts: Facts,
    usage: Arc<Usage>,
    architectures: Recent<Identity, Option<Arc<str>>>,
    indexes: Recent<Identity, Option<Arc<Index>>>,
}

/// Files by name, in order, as they were.
type Beside = Arc<[(OsString, Identity)]>;

/// What stands at a path of the source.
pub(super) enum Found {
    Missing,
    Directory(Metadata),
    File(Metadata, Content),
    /// Something that cannot be shown. The metadata are those of the link or file.
    Refused(Metadata, Refusal),
    /// A pipe, socket or device, which a model directory has no use for.
    Special,
}

impl Sources {
    /// `root` is canonical.
    pub fn new(root: PathBuf, options: &Options, usage: Arc<Usage>) -> Sources {
        let records = |cache| Records::new(cache, options.weights.clone());
        Sources {
            root,
            links_inside_only: options.links_inside_only,
            weights: options.weights.clone(),
            usage,
            plans: Plans::new(PLANS),
            facts: Facts::new(options.cache.clone().map(records)),
            architectures: Recent::new(CONFIGS),
            indexes: Recent::new(INDEXES),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at `name` in `directory`. Symbolic links are followed.
    pub fn find(&self, directory: &Path, name: &OsStr) -> io::Result<Found> {
        use io::ErrorKind::{InvalidFilename, NotFound};
        let path = directory.join(name);
        let link = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            // A derived name may be longer than the source's file system allows.
            Err(error) if matches!(error.kind(), NotFound | InvalidFilename) => {
                return Ok(Found::Missing);
            }
            Err(error) => return Err(error),
        };
        let metadata = if link.is_symlink() {
            match self.follow(directory, &path) {
                Ok(metadata) => metadata,
                Err(refusal) => return Ok(Found::Refused(link.into(), refusal)),
            }
        } else {
            link.into()
        };
        if metadata.is_directory {
            return Ok(Found::Directory(metadata));
        }
        if !metadata.is_file {
            return Ok(Found::Special);
        }
        let promise = convert::promise(&path);
        match self.content(&path, &metadata, promise) {
            Ok(content) => Ok(Found::File(metadata, content)),
            Err(source::Error::Io(error)) if error.kind() == NotFound => Ok(Found::Missing),
            Err(error) if promise == Promise::Checkpoint => {
                Ok(Found::Refused(metadata, refuse_unreadable(&error)))
            }
            Err(_) => Ok(Found::File(metadata, Content::Other)),
        }
    }

    /// What the symbolic link at `path` leads to.
    fn follow(&self, directory: &Path, path: &Path) -> Result<Metadata, Refusal> {
        let refuse = |cause, what: &str| Err(Refusal::new(cause, what));
        let target = match self.links_inside_only {
            true => path.canonicalize(),
            false => Ok(path.to_path_buf()),
        };
        // Of the target itself: the link may lead elsewhere by now.
        let found = target.and_then(|target| Ok((std::fs::metadata(&target)?, target)));
        let (metadata, target) = match found {
            Ok((metadata, target)) => (Metadata::from(metadata), target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return refuse(
                    Cause::NotDownloaded,
                    "this symbolic link leads nowhere: the file it names does not exist",
                );
            }
            Err(error) if source::is_circle(&error) => {
                return refuse(Cause::Malformed, "this symbolic link leads in a circle");
            }
            Err(error) => return Err(refuse_unreadable(&error.into())),
        };
        if self.links_inside_only && !target.starts_with(&self.root) {
            return refuse(
                Cause::Unsupported,
                "this symbolic link leads out of the mounted directory, which is not followed when \
                 other users may read the mount",
            );
        }
        if metadata.is_directory && lies_in(directory, &metadata) {
            return refuse(
                Cause::Unsupported,
                "this symbolic link leads back to a directory that it lies in",
            );
        }
        Ok(metadata)
    }

    fn content(
        &self,
        path: &Path,
        metadata: &Metadata,
        promise: Promise,
    ) -> Result<Content, source::Error> {
        let identity = metadata.identity;
        let subject = Subject { identity, promise };
        if let Some(content) = self.facts.content(&subject) {
            return Ok(content);
        }
        let settled = identity.is_settled();
        let (content, kept) = look(path, &identity, |source| match sniff(source, promise) {
            Ok(content) => Ok(content),
            Err(checkpoint::Error::Source(error)) => Err(error),
            // Whether a file is a checkpoint is never refused.
            Err(checkpoint::Error::Refused(_)) => Ok(Content::Other),
        })?;
        if kept {
            self.facts.learn_content(subject, content, settled);
        }
        Ok(content)
    }

    /// Takes note that nothing is made of the checkpoint at `path`, which was found
    /// just now.
    pub fn pass_over(&self, path: &Path, metadata: &Metadata) {
        self.facts
            .record_content(&subject(path, &metadata.identity));
    }

    /// The index in the file at `path`, whose metadata were found just now; None
    /// when it is none.
    pub fn index(&self, path: &Path, metadata: &Metadata) -> Option<Arc<Index>> {
        let identity = metadata.identity;
        if identity.size > MAX_INDEX {
            return None;
        }
        learn(&self.indexes, identity, path, &identity, |source| {
            let json = source.read_at(0, source.size().min(MAX_INDEX))?;
            Ok(Index::parse(&json).map(Arc::new))
        })
        .ok()
        .flatten()
    }

    /// The class of model that the checkpoint at `path` belongs to.
    fn architecture(&self, path: &Path) -> Option<Arc<str>> {
        let config = path.with_file_name("config.json");
        let identity = Metadata::from(std::fs::metadata(&config).ok()?).identity;
        learn(
            &self.architectures,
            identity,
            &config,
            &identity,
            |config| Ok(convert::architecture_in(config)),
        )
        .ok()
        .flatten()
    }

    /// What derived nodes carry of the file at `path`, whose metadata and content
    /// were found just now, or why there are none.
    pub fn origin(
        &self,
        path: &Path,
        metadata: &Metadata,
        content: Content,
    ) -> Result<Arc<Origin>, Arc<Refusal>> {
        let architecture = match content.is_checkpoint() {
            true => self.architecture(path),
            false => None,
        };
        let key = Key {
            identity: metadata.identity,
            architecture,
            beside: self.beside(path, content)?,
        };
        let subject = subject(path, &metadata.identity);
        let size = match self.facts.size(&subject, &key) {
            Some(size) => size,
            None => {
                let outcome = self.outcome(path, content, &key);
                let outcome = outcome.map_err(|error| Arc::new(refuse_unreadable(&error)))?;
                let size = outcome.map(|plan| plan.size());
                self.facts.learn_size(&key, size.clone());
                size
            }
        };
        Ok(Arc::new(Origin {
            path: path.into(),
            content,
            key,
            attr: Attr::of(metadata).sized(size?),
        }))
    }

    /// The other files that the checkpoint at `path` may be made of.
    fn beside(&self, path: &Path, content: Content) -> Result<Beside, Arc<Refusal>> {
        let (Content::Distributed, Some(directory)) = (content, path.parent()) else {
            return Ok(Beside::default());
        };
        let unreadable = |error: io::Error| Arc::new(refuse_unreadable(&error.into()));
        let mut beside = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            if !name.to_str().is_some_and(names::is_part) {
                continue;
            }
            match self.find(directory, &name).map_err(unreadable)? {
                Found::File(metadata, _) => beside.push((name, metadata.identity)),
                Found::Refused(_, refusal) => return Err(Arc::new(refusal)),
                Found::Missing | Found::Directory(_) | Found::Special => {}
            }
        }
        beside.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(beside.into())
    }

    /// What the converted form of `origin` is called where it is kept.
    pub fn kept_name(&self, origin: &Origin) -> Name {
        let content = format!("{:?}", origin.content);
        let root = self.weights.as_deref();
        origin.key.converted_name(&[
            content.as_bytes(),
            &[u8::from(root.is_some())],
            root.unwrap_or_default().as_bytes(),
        ])
    }

    /// Reads the file behind `origin` as its converted form.
    ///
    /// # Errors
    /// [`super::Error::Stale`] when it is another file now.
    pub fn reader(&self, origin: &Origin) -> super::Result<Reader> {
        let source = super::open_source(&origin.path)?;
        if *source.identity() != origin.key.identity {
            return Err(super::Error::Stale);
        }
        let plan = self.plan(origin)?;
        let companions = open_companions(plan.companions(), &SameDirectory(&origin.path))?;
        Ok(Reader::new(Files::new(source, companions), plan))
    }

    /// The plan that derived nodes are made with, made again if it was forgotten.
    pub fn plan(&self, origin: &Origin) -> super::Result<Arc<Plan>> {
        match self.outcome(&origin.path, origin.content, &origin.key)? {
            Ok(plan) => Ok(plan),
            Err(_) => Err(super::Error::Stale),
        }
    }

    fn outcome(&self, path: &Path, content: Content, key: &Key) -> source::Result<Outcome> {
        let mut from = &self.usage.plans_from_memory;
        let outcome = self.plans.get(key, || {
            let known = self.facts.plan(&subject(path, &key.identity), key);
            from = match known {
                Some(_) => &self.usage.plans_from_records,
                None => &self.usage.plans_made,
            };
            match known {
                Some(known) => Ok(known?),
                None => self.make(path, content, key),
            }
        });
        from.add(1);
        if let Ok(Ok(plan)) = &outcome
            && !std::ptr::eq(from, &self.usage.plans_from_memory)
        {
            self.usage.planned.add(plan.weight() as u64);
        }
        outcome
    }

    /// Makes a plan from the file itself.
    fn make(&self, path: &Path, content: Content, key: &Key) -> Result<Plan, checkpoint::Error> {
        // Before anything is read.
        let lasting = self.facts.last() && key.is_settled();
        let source = Source::open(path).map_err(source::Error::Io)?;
        if *source.identity() != key.identity {
            return Err(source::Error::Changed.into());
        }
        let mut body = Body::default();
        let directory = SameDirectory(path);
        let outcome = match convert::read(&source, content, &directory, self.weights.as_deref()) {
            Ok(parsed) => {
                if let Parsed::Checkpoint(checkpoint) = &parsed {
                    if !checkpoint.companions.iter().all(|file| key.has(file)) {
                        return Err(source::Error::Changed.into());
                    }
                    if lasting {
                        body = Body::of(checkpoint);
                    }
                }
                parsed.plan(source.size(), key.architecture.as_deref())
            }
            Err(checkpoint::Error::Refused(refusal)) => Err(refusal),
            Err(error) => return Err(error),
        };
        if lasting {
            let subject = subject(path, &key.identity);
            self.facts.record(&subject, key, content, &outcome, &body);
        }
        Ok(outcome?)
    }
}

/// The file at `path`, as records know it.
fn subject(path: &Path, identity: &Identity) -> Subject {
    Subject {
        identity: *identity,
        promise: convert::promise(path),
    }
}

/// What is known under `key` of the file at `path`, found out from the file if
/// need be. It is kept when the file had `identity` all the while.
fn learn<K: Hash + Eq, V: Clone>(
    known: &Recent<K, V>,
    key: K,
    path: &Path,
    identity: &Identity,
    find_out: impl FnOnce(&Source) -> source::Result<V>,
) -> source::Result<V> {
    if let Some(value) = known.get(&key) {
        return Ok(value);
    }
    let (value, kept) = look(path, identity, find_out)?;
    if kept {
        known.put(key, value.clone());
    }
    Ok(value)
}

/// What the file at `path` says, and whether it had `identity` all the while.
fn look<V>(
    path: &Path,
    identity: &Identity,
    find_out: impl FnOnce(&Source) -> source::Result<V>,
) -> source::Result<(V, bool)> {
    let source = Source::open(path)?;
    let value = find_out(&source)?;
    let kept = source.identity() == identity && source.check_identity().is_ok();
    Ok((value, kept))
}

/// Whether `path` is the directory with these metadata or leads through it, as it
/// is written or by way of the links in it.
fn lies_in(path: &Path, directory: &Metadata) -> bool {
    let is = |path: &Path| {
        std::fs::metadata(path).map(Metadata::from).is_ok_and(|it| {
            let (it, directory) = (it.identity, directory.identity);
            (it.device, it.inode) == (directory.device, directory.inode)
        })
    };
    let physical = path.canonicalize();
    path.ancestors().any(is) || physical.is_ok_and(|path| path.ancestors().any(is))
}

fn refuse_unreadable(error: &source::Error) -> Refusal {
    match error {
        source::Error::Io(error) => Refusal::new(
            Cause::Unreadable,
            format!("the file cannot be read: {error}"),
        ),
        source::Error::Changed | source::Error::PastEnd { .. } => Refusal::new(
            Cause::Changing,
            "the file changed while it was looked at: it is still being written",
        ),
    }
}
