//! One record: what was found out about something, as it lies in the cache
//! directory.
//!
//! ```text
//! head      magic, format, name, two lengths, the hash of the body, and the hash
//!           of the head up to here and the summary
//! summary   what is asked for often
//! body      the rest, which may be nothing
//! ```
//!
//! Numbers are little-endian, hashes are SHA-256. Nothing is decoded before its
//! hash is found right, so that only what [`encode`] wrote is ever decoded.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::directory::Name;

const MAGIC: &[u8; 8] = b"stfsrcrd";
/// To be counted up whenever equal bytes would mean something else, in here or in
/// the types that are written.
pub const FORMAT: u32 = 4;

/// Bytes of the head, less its own hash and with it.
const FIELDS: usize = 8 + 4 + 32 + 8 + 8 + 32;
const HEAD: usize = FIELDS + 32;
/// Bytes read at first: the whole of a summary, almost always.
const FIRST: u64 = 4096;
/// Longer summaries and bodies are not written: what they say is found out again at
/// no greater cost then.
const MAX_SUMMARY: u64 = 64 << 10;
pub const MAX_BODY: usize = 32 << 20;

/// Why a record is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Doubt {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("it is damaged")]
    Damaged,
    #[error("it is not of this version of stfs, or of another file")]
    Foreign,
}

/// A record whose summary has been found sound.
#[derive(Debug)]
pub struct Record<S> {
    file: File,
    pub summary: S,
    /// Bytes from the start of the record to the body.
    start: u64,
    /// Bytes of the body.
    len: u64,
    hash: [u8; 32],
}

impl<S: for<'de> Deserialize<'de>> Record<S> {
    /// Opens the record at `path`, which has to be that of `name`.
    pub fn open(path: &Path, name: &Name) -> Result<Record<S>, Doubt> {
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let size = file.metadata()?.len();
        let read = |len: u64| {
            let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        let first = read(size.min(FIRST))?;
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
        let (Some(start), true) = (start, end == Some(size)) else {
            return Err(Doubt::Damaged);
        };
        if summary_len > MAX_SUMMARY || len > MAX_BODY as u64 {
            return Err(Doubt::Damaged);
        }
        let head = match first.get(..start as usize) {
            Some(head) => head,
            None => &read(start)?,
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

    /// Bytes of the body.
    pub fn body_len(&self) -> u64 {
        self.len
    }

    /// The body; None if there is none.
    pub fn body(&self) -> Result<Option<Vec<u8>>, Doubt> {
        if self.len == 0 {
            return Ok(None);
        }
        // The length was bounded, and compared with that of the file.
        let mut body = vec![0; self.len as usize];
        self.file.read_exact_at(&mut body, self.start)?;
        match *Sha256::digest(&body) == self.hash {
            true => Ok(Some(body)),
            false => Err(Doubt::Damaged),
        }
    }
}

/// What goes before the body in the record of `name`; None if it would be too long.
pub fn encode<S: Serialize>(name: &Name, summary: &S, body: &[u8]) -> Option<Vec<u8>> {
    let summary = postcard::to_stdvec(summary).ok()?;
    if summary.len() as u64 > MAX_SUMMARY {
        return None;
    }
    let mut head = Vec::with_capacity(HEAD + summary.len());
    head.extend(MAGIC);
    head.extend(FORMAT.to_le_bytes());
    head.extend(name.as_bytes());
    head.extend((summary.len() as u64).to_le_bytes());
    head.extend((body.len() as u64).to_le_bytes());
    head.extend(Sha256::digest(body));
    let hash = head_hash(&head, &summary);
    head.extend(hash);
    head.extend(summary);
    Some(head)
}

/// What the whole of `bytes` says.
pub fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Doubt> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(Doubt::Damaged),
    }
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
