//! A file that is held against the table of containers, and one that is read by
//! one of them.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use super::zip::local::LOCAL;
use super::zip::{CentralDirectory, Tail};
use crate::budget::Share;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::weights::Wanted;
use crate::pickle;
use crate::source::{Source, Tree};

/// Bytes at the head of a file that are looked at first.
const HEAD: u64 = 512;

/// A file of unknown content.
pub struct Candidate<'a> {
    pub source: &'a Source,
    /// The first bytes.
    pub head: Vec<u8>,
    /// Whether its name promises a checkpoint.
    pub promised: bool,
    /// What the memory to look at it is taken from.
    pub share: &'a Share,
    zip: OnceCell<Zip<'a>>,
}

/// What a file is as a zip archive.
pub enum Zip<'a> {
    /// None.
    No,
    /// One that cannot be read in one way only.
    Broken,
    Names(ZipNames<'a>),
}

/// The names in a zip archive.
pub struct ZipNames<'a> {
    tail: Tail<'a>,
    directory: CentralDirectory,
    share: &'a Share,
}

impl ZipNames<'_> {
    /// Whether any of them is one that `is_wanted`.
    pub fn any(&self, is_wanted: impl Fn(&str) -> bool) -> Result<bool> {
        self.share.returning(|| {
            self.share.take(self.directory.size)?;
            self.directory.any_name(&self.tail, is_wanted)
        })
    }

    /// Whether there is a name, and each is one that `is_wanted`.
    pub fn all(&self, is_wanted: impl Fn(&str) -> bool) -> Result<bool> {
        Ok(self.directory.count > 0 && !self.any(|name| !is_wanted(name))?)
    }
}

impl<'a> Candidate<'a> {
    pub fn new(source: &'a Source, promised: bool, share: &'a Share) -> Result<Candidate<'a>> {
        Ok(Candidate {
            source,
            head: source.read_at(0, source.size().min(HEAD))?,
            promised,
            share,
            zip: OnceCell::new(),
        })
    }

    pub fn starts_with(&self, magic: &[u8]) -> bool {
        self.head.starts_with(magic)
    }

    /// Whether `text` stands anywhere in the head.
    pub fn shows(&self, text: &[u8]) -> bool {
        self.head.windows(text.len()).any(|bytes| bytes == text)
    }

    /// Whether it begins as pickles do since protocol 2.
    pub fn is_marked_pickle(&self) -> bool {
        matches!(*self.head, [0x80, 2..=5, opcode, ..] if pickle::is_opcode(opcode))
    }

    /// Whether it begins with the mark of protocol 0 or 1. Python reads it and never
    /// writes it: most such files are something else.
    pub fn is_doubtfully_marked(&self) -> bool {
        matches!(*self.head, [0x80, 0..=1, opcode, ..] if pickle::is_opcode(opcode))
    }

    /// Whether it begins as zip archives do.
    pub fn is_zip(&self) -> bool {
        self.starts_with(&LOCAL)
    }

    pub fn zip(&self) -> Result<&Zip<'a>> {
        if let Some(zip) = self.zip.get() {
            return Ok(zip);
        }
        let zip = match self.is_zip() {
            false => Zip::No,
            true => match self.zip_names() {
                Ok(names) => Zip::Names(names),
                Err(Error::Refused(_)) => Zip::Broken,
                Err(error) => return Err(error),
            },
        };
        Ok(self.zip.get_or_init(|| zip))
    }

    /// What it is as a zip archive whose first two bytes were replaced.
    pub fn headless_zip(&self) -> Result<Zip<'a>> {
        let rest = LOCAL.get(2..).unwrap_or_default();
        let shows = !self.is_zip() && self.head.get(2..).is_some_and(|it| it.starts_with(rest));
        match shows.then(|| self.zip_names()) {
            Some(Ok(names)) => Ok(Zip::Names(names)),
            None | Some(Err(Error::Refused(_))) => Ok(Zip::No),
            Some(Err(error)) => Err(error),
        }
    }

    fn zip_names(&self) -> Result<ZipNames<'a>> {
        let tail = Tail::read(self.source.span())?;
        let directory = CentralDirectory::find(&tail)?;
        let share = self.share;
        Ok(ZipNames {
            tail,
            directory,
            share,
        })
    }
}

/// What a checkpoint may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holds {
    /// Numbers alone.
    Numbers,
    /// Pickles, in which code may be hidden.
    Pickles,
}

/// What a container is read from.
pub struct Request<'a> {
    pub source: &'a Source,
    /// The directory that it lies in.
    pub directory: &'a dyn Tree,
    /// Which of its values.
    pub wanted: Wanted<'a>,
    /// What the memory for it is taken from.
    pub share: &'a Share,
}
