//! What each file of the source is, and the plans made from them. Everything is
//! kept under the identity of the file it was found out from, so that a changed
//! file is looked at anew.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use super::node::{Attr, Origin};
use crate::cache::{Key, Outcome, Plans};
use crate::checkpoint::{self, Cause, Content, Promise, Refusal, sniff};
use crate::convert::{self, Plan};
use crate::source::{self, Identity, Metadata, Source};

/// Bytes of plans kept beside those in use.
const PLANS: usize = 64 << 20;
/// Files whose kind is remembered.
const CONTENTS: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

pub(super) struct Sources {
    root: PathBuf,
    links_inside_only: bool,
    plans: Plans,
    contents: Mutex<LruCache<(Identity, Promise), Content>>,
}

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
    pub fn new(root: PathBuf, links_inside_only: bool) -> Sources {
        Sources {
            root,
            links_inside_only,
            plans: Plans::new(PLANS),
            contents: Mutex::new(LruCache::new(CONTENTS)),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Looks at `name` in `directory`. Symbolic links are followed.
    pub fn find(&self, directory: &Path, name: &OsStr) -> io::Result<Found> {
        let path = directory.join(name);
        let link = match std::fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Missing),
            Err(error) => return Err(error),
        };
        let metadata = if link.is_symlink() {
            match self.follow(directory, &path)? {
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
            Err(source::Error::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Found::Missing)
            }
            Err(error) if promise == Promise::Checkpoint => {
                Ok(Found::Refused(metadata, refuse_unreadable(&error)))
            }
            Err(_) => Ok(Found::File(metadata, Content::Other)),
        }
    }

    /// What the symbolic link at `path` leads to.
    fn follow(&self, directory: &Path, path: &Path) -> io::Result<Result<Metadata, Refusal>> {
        let refuse = |cause, what: &str| Ok(Err(Refusal::new(cause, what)));
        let metadata: Metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata.into(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return refuse(
                    Cause::NotDownloaded,
                    "this symbolic link leads nowhere: the file it names does not exist",
                );
            }
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return refuse(Cause::Malformed, "this symbolic link leads in a circle");
            }
            Err(error) => {
                return Ok(Err(refuse_unreadable(&error.into())));
            }
        };
        if !self.links_inside_only && !metadata.is_directory {
            return Ok(Ok(metadata));
        }
        let target = path.canonicalize()?;
        if self.links_inside_only && !target.starts_with(&self.root) {
            return refuse(
                Cause::Unsupported,
                "this symbolic link leads out of the mounted directory, which is not followed when \
                 other users may read the mount",
            );
        }
        if metadata.is_directory && directory.canonicalize()?.starts_with(&target) {
            return refuse(
                Cause::Unsupported,
                "this symbolic link leads back to a directory that it lies in",
            );
        }
        Ok(Ok(metadata))
    }

    fn content(
        &self,
        path: &Path,
        metadata: &Metadata,
        promise: Promise,
    ) -> Result<Content, source::Error> {
        let key = (metadata.identity, promise);
        let contents = || self.contents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = contents().get(&key) {
            return Ok(*content);
        }
        let source = Source::open(path)?;
        let content = match sniff(&source, promise) {
            Ok(content) => content,
            Err(checkpoint::Error::Source(error)) => return Err(error),
            // Whether a file is a checkpoint is never refused.
            Err(checkpoint::Error::Refused(_)) => Content::Other,
        };
        if *source.identity() == metadata.identity && source.check_identity().is_ok() {
            contents().put(key, content);
        }
        Ok(content)
    }

    /// The plan of the file at `path`, whose metadata and content were found just
    /// now, and the origin that derived nodes carry.
    pub fn plan(
        &self,
        path: &Path,
        metadata: &Metadata,
        content: Content,
    ) -> Result<(Arc<Origin>, Arc<Plan>), Arc<Refusal>> {
        let key = Key {
            identity: metadata.identity,
            architecture: content
                .is_checkpoint()
                .then(|| convert::architecture(path))
                .flatten(),
        };
        let outcome = self
            .outcome(path, content, &key)
            .unwrap_or_else(|error| Err(Arc::new(refuse_unreadable(&error))));
        let plan = outcome?;
        let origin = Origin {
            path: path.into(),
            content,
            key,
            attr: Attr::of(metadata).sized(plan.size()),
        };
        Ok((Arc::new(origin), plan))
    }

    /// The plan that a derived node was made with, made again if it was
    /// forgotten.
    pub fn plan_again(&self, origin: &Origin) -> super::Result<Arc<Plan>> {
        match self.outcome(&origin.path, origin.content, &origin.key)? {
            Ok(plan) => Ok(plan),
            Err(_) => Err(super::Error::Stale),
        }
    }

    fn outcome(&self, path: &Path, content: Content, key: &Key) -> source::Result<Outcome> {
        self.plans.get(key, || {
            let source = Source::open(path).map_err(source::Error::Io)?;
            if *source.identity() != key.identity {
                return Err(source::Error::Changed.into());
            }
            convert::plan(&source, content, key.architecture.as_deref())
        })
    }
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
