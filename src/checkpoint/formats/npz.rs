//! `.npz`: a zip archive of `.npy` files, each the array of its name.

use std::collections::HashSet;
use std::io::Read;

use flate2::read::DeflateDecoder;

use super::candidate::{Candidate, Holds, Request, Zip};
use super::npy::NpyHead;
use super::zip::{self, ZipEntry};
use crate::checkpoint::contents::{Checkpoint, Contents};
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::refusal::{Cause, Refusal, shown};
use crate::checkpoint::storage::{Backing, Storage, StorageTable};
use crate::checkpoint::weights::Wanted;
use crate::source::Source;

/// A zip archive is one of arrays when it has nothing else.
pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let Zip::Names(names) = file.zip()? else {
        return Ok(None);
    };
    match names.all(|name| name.ends_with(".npy")) {
        Ok(true) => Ok(Some(match may_hold_objects(file)? {
            true => Holds::Pickles,
            false => Holds::Numbers,
        })),
        // A name that cannot be read is none of an array.
        Ok(false) | Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the arrays in an archive, or only the one that is the root, which is
/// called `tensor` then.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    let entries = zip::list(source.span(), request.share)?;
    let root = match request.wanted {
        Wanted::Rule => None,
        Wanted::Exactly(root) => Some(root),
        Wanted::Preferred(root) => {
            let mut arrays = entries.iter();
            let has = arrays.any(|entry| entry.name.strip_suffix(".npy") == Some(root));
            has.then_some(root)
        }
    };
    let mut names = HashSet::with_capacity(entries.len());
    let mut contents = Contents::default();
    let mut table = StorageTable::default();
    for entry in &entries {
        let name = entry.name.strip_suffix(".npy").unwrap_or(&entry.name);
        if !names.insert(name) {
            let what = format!("the zip archive has two arrays `{}`", shown(name));
            return Err(Refusal::new(Cause::Ambiguous, what).into());
        }
        let added = match root {
            None => add(source, entry, name, &mut contents, &mut table),
            Some(root) if root == name => add(source, entry, "tensor", &mut contents, &mut table),
            Some(_) => continue,
        };
        added.map_err(|error| match error {
            Error::Refused(refusal) => refusal.of_tensor(name).into(),
            error => error,
        })?;
    }
    if let Some(root) = root
        && contents.tensors.is_empty()
    {
        let what = format!("it has nothing at `{}`, which was asked for", shown(root));
        return Err(Refusal::new(Cause::NoSuchRoot, what).into());
    }
    Ok(contents.with(table.into()))
}

/// Whether some of the arrays in `file` may be of Python objects.
fn may_hold_objects(file: &Candidate) -> Result<bool> {
    let source = file.source;
    let any = || {
        for entry in zip::list(source.span(), file.share)? {
            if NpyHead::read(first_of(source, &entry))?.may_hold_objects() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    match file.share.returning(any) {
        Err(Error::Refused(_)) => Ok(true),
        known => known,
    }
}

/// Adds the array in `entry`.
fn add(
    source: &Source,
    entry: &ZipEntry,
    name: &str,
    contents: &mut Contents,
    table: &mut StorageTable,
) -> Result<()> {
    let head = NpyHead::read(first_of(source, entry))?;
    let array = head.array()?;
    let len = array.check(entry.size.saturating_sub(head.data))?;
    // What is deflated is inflated as a whole, header and all.
    let (storage, start) = match entry.storage()? {
        Storage {
            backing: Backing::File(offset),
            ..
        } => (Storage::in_file(offset.saturating_add(head.data), len), 0),
        whole => (whole, head.data),
    };
    let len = storage.len;
    let layout = array.layout((table.add(storage)?, start, len))?;
    Ok(contents.add(name, layout)?)
}

/// Gives the first bytes of an entry.
fn first_of(source: &Source, entry: &ZipEntry) -> impl Fn(u64) -> Result<Vec<u8>> {
    /// Bytes that deflating a few may add to them.
    const SLACK: u64 = 1 << 10;
    move |len| {
        let len = len.min(entry.size);
        let Backing::Decoded(encoded) = entry.storage()?.backing else {
            return Ok(source.read_at(entry.data, len)?);
        };
        let deflated = source.read_at(encoded.offset, encoded.len.min(len + SLACK))?;
        let mut first = Vec::new();
        let inflated = DeflateDecoder::new(deflated.as_slice())
            .take(len)
            .read_to_end(&mut first);
        match inflated {
            Ok(read) if read as u64 == len => Ok(first),
            _ => Err(
                Refusal::new(Cause::Malformed, "its entry of the zip archive is damaged").into(),
            ),
        }
    }
}
