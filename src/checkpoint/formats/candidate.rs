//! A file that is held against the table of containers, and one that is read by
//! one of them.

use std::cell::OnceCell;

use serde::{Deserialize, Serialize};

use super::zip::{self, Archive};
use crate::checkpoint::error::{Error, Result};
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
    zip_names: OnceCell<ZipNames>,
}

/// The names in a zip archive.
pub enum ZipNames {
    /// There is none.
    NoZip,
    /// It cannot be read in one way only.
    Broken,
    Names(Vec<String>),
}

impl<'a> Candidate<'a> {
    pub fn new(source: &'a Source, promised: bool) -> Result<Candidate<'a>> {
        Ok(Candidate {
            source,
            head: source.read_at(0, source.size().min(HEAD))?,
            promised,
            zip_names: OnceCell::new(),
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
        matches!(*self.head, [0x80, 0..=5, opcode, ..] if pickle::is_opcode(opcode))
    }

    /// Whether it begins as zip archives do.
    pub fn is_zip(&self) -> bool {
        self.starts_with(&zip::LOCAL)
    }

    pub fn zip_names(&self) -> Result<&ZipNames> {
        if let Some(names) = self.zip_names.get() {
            return Ok(names);
        }
        let names = match self.is_zip() {
            false => ZipNames::NoZip,
            true => match Archive::names(self.source.span()) {
                Ok(names) => ZipNames::Names(names),
                Err(Error::Refused(_)) => ZipNames::Broken,
                Err(error) => return Err(error),
            },
        };
        Ok(self.zip_names.get_or_init(|| names))
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
    /// The dotted path below which tensors are wanted, if not all are.
    pub root: Option<&'a str>,
}
