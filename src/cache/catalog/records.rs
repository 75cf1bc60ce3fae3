//! What was found out about source files, kept for the next process: a record for
//! each in the cache directory.
//!
//! The cache may fail in any way without anybody noticing but in the log: what it
//! does not say is found out from the source again. A record that is believed has
//! to be right, for nothing compares it with the source: it is written only of a
//! file that had one settled version all the while.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use log::{debug, warn};
use serde::{Deserialize, Serialize};

use super::key::{Circumstances, Identity, Subject};
use super::prune;
use crate::budget::{Share, TooMuch};
use crate::cache::record::{self, Doubt, MAX_BODY, Record};
use crate::cache::{Background, Directory, Name};
use crate::checkpoint::{Checkpoint, Content, NameHint, Refusal};
use crate::convert;
use crate::workers::Lane;

/// Bytes of records that are kept, unless the user says otherwise.
pub const BUDGET: u64 = 256 << 20;
/// Bytes of memory for each byte of a checkpoint in a record, until it is planned.
const DECODED: u64 = 10;

/// Bytes of the converted file, or why there is none.
pub type Size = Result<u64, Arc<Refusal>>;

/// What is known of a file without its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub content: Content,
    /// What becomes of it, and under which circumstances.
    pub outcome: Option<(Circumstances, Size)>,
}

/// A checkpoint, encoded; without bytes when there is none or it is too long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn of(checkpoint: &Checkpoint) -> Body {
        let written = postcard::to_io(checkpoint, Bounded(Vec::new()));
        Body(written.map_or_else(|_| Vec::new(), |Bounded(bytes)| bytes))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Takes as many bytes as a body may have.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.len().checked_add(bytes.len()) {
            Some(..=MAX_BODY) => self.0.write(bytes),
            _ => Err(ErrorKind::StorageFull.into()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The records of one cache directory, as far as they are of use to one mount.
#[derive(Debug)]
pub struct Records {
    directory: Directory,
    /// The dotted path below which tensors are taken, if not what the rule finds.
    root: Option<String>,
    /// Whether the cache has been complained about.
    unfit: AtomicBool,
    stock: Arc<Stock>,
    background: Background,
}

/// How much there is.
#[derive(Debug, Default)]
struct Stock {
    /// Bytes, as far as is known.
    bytes: AtomicU64,
    /// Somebody is about to take some away.
    pruning: AtomicBool,
}

impl Records {
    pub fn new(directory: Directory, root: Option<String>, background: Background) -> Records {
        let records = Records {
            directory,
            root,
            unfit: AtomicBool::new(false),
            stock: Arc::default(),
            background,
        };
        records.prune();
        records
    }

    /// What the record about a file is called. Another version of stfs may find
    /// something else in the same file, and calls its record something else.
    pub fn name(&self, identity: &Identity, subject: &Subject) -> Name {
        let hint = match convert::hint(subject.name) {
            NameHint::Checkpoint => 0,
            NameHint::Safetensors => 1,
            NameHint::Nothing => 2,
        };
        Name::of(&[
            b"plan",
            &record::FORMAT.to_le_bytes(),
            env!("CARGO_PKG_VERSION").as_bytes(),
            &identity.to_bytes(),
            &[hint, u8::from(self.root.is_some())],
            self.root.as_deref().unwrap_or_default().as_bytes(),
            &[u8::from(subject.root.is_some())],
            subject.root.map_or("", |root| root).as_bytes(),
        ])
    }

    /// What a listing needs to know. Costs one small read.
    pub fn summary(&self, name: &Name) -> Option<Summary> {
        self.read(name, |record| Ok(Some(record.summary)))
    }

    /// The checkpoint in the file, and the same encoded. The memory for it, and for the
    /// plan that is made from it, is taken from `share`.
    ///
    /// # Errors
    /// There is not enough.
    pub fn checkpoint(
        &self,
        name: &Name,
        share: &Share,
    ) -> Result<Option<(Checkpoint, Body)>, TooMuch> {
        let found = self.read(name, |record| {
            if let Err(much) = share.take(record.body_len().saturating_mul(DECODED)) {
                return Ok(Some(Err(much)));
            }
            let body = record.body()?.map(Body);
            let body = body.map(|body| Ok(Ok((record::decode(&body.0)?, body))));
            body.transpose()
        });
        found.transpose()
    }

    /// Writes the record called `name`, in place of the one that may be there. Tells
    /// whether that went well.
    pub fn write(&self, name: &Name, summary: &Summary, body: &Body) -> bool {
        // The pruner may be behind: the budget holds all the same.
        if self.stock.bytes.load(Ordering::Relaxed) > BUDGET {
            self.prune();
            return false;
        }
        let Some(head) = record::encode(name, summary, &body.0) else {
            return false;
        };
        let path = self.directory.plan(name);
        let written = self.directory.write(&path, &[&head, &body.0]);
        if let Err(error) = &written {
            self.complain(&path, error);
        }
        let size = prune::size_on_disk((head.len() + body.0.len()) as u64);
        self.stock.bytes.fetch_add(size, Ordering::Relaxed);
        written.is_ok()
    }

    /// Has the records pruned that were not used for longest, when there is time.
    fn prune(&self) {
        if self.stock.pruning.swap(true, Ordering::Relaxed) {
            return;
        }
        let (directory, stock) = (self.directory.clone(), self.stock.clone());
        self.background.add(Lane::default(), move || {
            // Whatever becomes of it, what is written meanwhile has its turn later.
            stock.pruning.store(false, Ordering::Relaxed);
            // Room for more than the next one.
            match prune::prune_records(&directory, BUDGET / 4 * 3) {
                Ok(left) => stock.bytes.store(left, Ordering::Relaxed),
                Err(error) => debug!("{}: {error}", directory.plans().display()),
            }
        });
    }

    fn read<T>(
        &self,
        name: &Name,
        of: impl FnOnce(Record<Summary>) -> Result<Option<T>, Doubt>,
    ) -> Option<T> {
        let path = self.directory.plan(name);
        match Record::open(&path, name).and_then(of) {
            Ok(value) => value,
            Err(Doubt::Unreadable(error)) => {
                if error.kind() != ErrorKind::NotFound {
                    self.complain(&path, &error);
                }
                None
            }
            Err(doubt) => {
                warn!(
                    "{}: this cache entry is not used: {doubt}. It is made again",
                    path.display()
                );
                None
            }
        }
    }

    /// Once: what keeps one record from being read or written mostly keeps all.
    fn complain(&self, path: &Path, error: &std::io::Error) {
        if !self.unfit.swap(true, Ordering::Relaxed) {
            warn!(
                "{}: the cache cannot be used, and checkpoints are read again by every mount: {error}",
                path.display()
            );
        }
    }
}
