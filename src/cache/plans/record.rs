//! One record: what was found out about a source file, as it lies in the cache
//! directory.
//!
//! ```text
//! head      magic, format, name, two lengths, the hash of the body, and the hash
//!           of the head up to here and the summary
//! summary   what a listing needs
//! body      what a plan is made from, which may be nothing
//! ```
//!
//! Numbers are little-endian, hashes are SHA-256. Nothing is decoded before its
//! hash is found right, so that only what [`encode`] wrote is ever decoded.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Circumstances;
use crate::cache::Name;
use crate::checkpoint::{Checkpoint, Content, Refusal};
use crate::source::{self, Source};

const MAGIC: &[u8; 8] = b"stfsplan";
/// To be counted up whenever equal bytes would mean something else, in here or in
/// the types that are written.
pub const FORMAT: u32 = 3;

/// Bytes of the head, less its own hash and with it.
const FIELDS: usize = 8 + 4 + 32 + 8 + 8 + 32;
const HEAD: usize = FIELDS + 32;
/// Bytes read at first: the whole of a listing's part, almost always.
const FIRST: u64 = 4096;
/// Longer summaries and bodies are not written: reading the checkpoint again is
/// no dearer then.
const MAX_SUMMARY: u64 = 64 << 10;
const MAX_BODY: usize = 32 << 20;

/// Bytes of the converted file, or why there is none.
pub type Size = Result<u64, Arc<Refusal>>;

/// What is known of a file without its tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub content: Content,
    /// What becomes of it, and under which circumstances.
    pub outcome: Option<(Circumstances, Size)>,
}

impl Summary {
    /// What becomes of the file under these circumstances, if that is known.
    pub fn size(&self, circumstances: &Circumstances) -> Option<&Size> {
        let (known, size) = self.outcome.as_ref()?;
        (known == circumstances).then_some(size)
    }
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

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn decode(&self) -> Result<Checkpoint, Doubt> {
        decode(&self.0)
    }
}

/// Takes as many bytes as a body may have.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.len().checked_add(bytes.len()) {
            Some(..=MAX_BODY) => self.0.write(bytes),
            _ => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a record is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    #[error(transparent)]
    Unreadable(#[from] source::Error),
    #[error("it is damaged")]
    Damaged,
    #[error("it is not of this version of stfs, or of another file")]
    Foreign,
}

/// A record whose summary has been found sound.
#[derive(Debug)]
pub struct Record {
    file: Source,
    pub summary: Summary,
    /// Bytes from the start of the record to the body.
    start: u64,
    /// Bytes of the body.
    len: u64,
    hash: [u8; 32],
}

impl Record {
    /// Opens the record at `path`, which has to be that of `name`.
    pub fn open(path: &Path, name: &Name) -> Result<Record, Doubt> {
        let file = Source::open(path).map_err(source::Error::Io)?;
        let first = file.read_at(0, file.size().min(FIRST))?;
        let fields = first.get(..FIELDS).ok_or(Doubt::Damaged)?;
        let mut rest = fields;
        let (magic, format, of) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
        if magic != *MAGIC || u32::from_le_bytes(format) != FORMAT || of != *name.as_bytes() {
            return Err(Doubt::Foreign);
        }
        let summary_len = u64::from_le_bytes(take(&mut rest)?);
        let len = u64::from_le_bytes(take(&mut rest)?);
        let hash = take(&mut rest)?;
        let start = (HEAD as u64).checked_add(summary_len);
        let end = start.and_then(|start| start.checked_add(len));
        let (Some(start), true) = (start, end == Some(file.size())) else {
            return Err(Doubt::Damaged);
        };
        if summary_len > MAX_SUMMARY {
            return Err(Doubt::Damaged);
        }
        let head = match first.get(..start as usize) {
            Some(head) => head,
            None => &file.read_at(0, start)?,
        };
        let (Some(sum), Some(summary)) = (head.get(FIELDS..HEAD), head.get(HEAD..)) else {
            return Err(Doubt::Damaged);
        };
        if head.get(..FIELDS) != Some(fields) || sum != head_hash(fields, summary) {
            return Err(Doubt::Damaged);
        }
        Ok(Record {
            summary: decode(summary)?,
            file,
            start,
            len,
            hash,
        })
    }

    /// The checkpoint in the record, and the same encoded; None if there is none.
    pub fn checkpoint(&self) -> Result<Option<(Checkpoint, Body)>, Doubt> {
        if self.len == 0 {
            return Ok(None);
        }
        // The length was compared with that of the file when it was opened.
        let body = Body(self.file.read_at(self.start, self.len)?);
        if *Sha256::digest(&body.0) != self.hash {
            return Err(Doubt::Damaged);
        }
        Ok(Some((body.decode()?, body)))
    }
}

/// What goes before the body in the record of `name`; None if it would be too long.
pub fn encode(name: &Name, summary: &Summary, body: &Body) -> Option<Vec<u8>> {
    let summary = postcard::to_stdvec(summary).ok()?;
    if summary.len() as u64 > MAX_SUMMARY {
        return None;
    }
    let mut head = Vec::with_capacity(HEAD + summary.len());
    head.extend(MAGIC);
    head.extend(FORMAT.to_le_bytes());
    head.extend(name.as_bytes());
    head.extend((summary.len() as u64).to_le_bytes());
    head.extend((body.0.len() as u64).to_le_bytes());
    head.extend(Sha256::digest(&body.0));
    let hash = head_hash(&head, &summary);
    head.extend(hash);
    head.extend(summary);
    Some(head)
}

fn head_hash(fields: &[u8], summary: &[u8]) -> [u8; 32] {
    let hash = Sha256::new().chain_update(fields).chain_update(summary);
    hash.finalize().into()
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Doubt> {
    let (taken, left) = rest.split_first_chunk().ok_or(Doubt::Damaged)?;
    *rest = left;
    Ok(*taken)
}

/// What the whole of `bytes` says.
fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Doubt> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Doubt::Damaged),
    }
}
