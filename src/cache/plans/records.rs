//! What was found out about source files, kept for the next process: a record for
//! each in the cache directory.
//!
//! The cache may fail in any way without anybody noticing but in the log: what it
//! does not say is found out from the source again. A record that is believed has
//! to be right, for nothing compares it with the source: it is written only of a
//! file that had one settled identity all the while.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use log::warn;

use super::record::{self, Doubt, Record};
use super::{Body, Summary};
use crate::cache::{Directory, Name};
use crate::checkpoint::{Checkpoint, Promise};
use crate::source::{self, Identity};

/// What a record is about: a file with certain bytes, under a certain kind of name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub identity: Identity,
    pub promise: Promise,
}

/// The records of one cache directory, as far as they are of use to one mount.
#[derive(Debug)]
pub struct Records {
    directory: Directory,
    /// The dotted path below which tensors are taken, if not what the rule finds.
    root: Option<String>,
    /// Whether the cache has been complained about.
    unfit: AtomicBool,
}

impl Records {
    pub fn new(directory: Directory, root: Option<String>) -> Records {
        Records {
            directory,
            root,
            unfit: AtomicBool::new(false),
        }
    }

    /// What the record about `subject` is called. Another version of stfs may find
    /// something else in the same file, and calls its record something else.
    pub fn name(&self, subject: &Subject) -> Name {
        let promise = match subject.promise {
            Promise::Checkpoint => 0,
            Promise::Safetensors => 1,
            Promise::Nothing => 2,
        };
        Name::of(&[
            b"plan",
            &record::FORMAT.to_le_bytes(),
            env!("CARGO_PKG_VERSION").as_bytes(),
            &subject.identity.to_bytes(),
            &[promise, u8::from(self.root.is_some())],
            self.root.as_deref().unwrap_or_default().as_bytes(),
        ])
    }

    /// What a listing needs to know of `subject`. Costs one small read.
    pub fn summary(&self, subject: &Subject) -> Option<Summary> {
        self.read(subject, |record| Ok(Some(record.summary)))
    }

    /// The checkpoint in `subject`, and the same encoded.
    pub fn checkpoint(&self, subject: &Subject) -> Option<(Checkpoint, Body)> {
        self.read(subject, |record| record.checkpoint())
    }

    /// Writes the record about `subject`, in place of the one that may be there.
    /// Tells whether that went well.
    pub fn write(&self, subject: &Subject, summary: &Summary, body: &Body) -> bool {
        let name = self.name(subject);
        let Some(head) = record::encode(&name, summary, body) else {
            return false;
        };
        let path = self.directory.plan(&name);
        let written = self.directory.write(&path, &[&head, body.as_bytes()]);
        if let Err(error) = &written {
            self.complain(&path, error);
        }
        written.is_ok()
    }

    fn read<T>(
        &self,
        subject: &Subject,
        of: impl FnOnce(Record) -> Result<Option<T>, Doubt>,
    ) -> Option<T> {
        let name = self.name(subject);
        let path = self.directory.plan(&name);
        match Record::open(&path, &name).and_then(of) {
            Ok(value) => value,
            Err(Doubt::Unreadable(source::Error::Io(error))) => {
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
