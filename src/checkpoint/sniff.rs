//! What a file is, told by its content. The name only decides what a doubtful
//! content is worth: an error page is a broken download when it is called
//! `pytorch_model.bin`, and an error page when it is called `index.html`.

use super::content::{Content, Intruder};
use super::contents::Checkpoint;
use super::error::Result;
use super::formats::candidate::{Candidate, Holds, Request, Zip, ZipNames};
use super::formats::{Format, is_headless, shows_pickle};
use super::refusal::{Cause, Refusal};
use super::weights::Wanted;
use crate::budget::Share;
use crate::source::{Source, Tree};

/// What the name of a file promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NameHint {
    /// A checkpoint: `.bin`, `.pt` and the like.
    Checkpoint,
    /// A `.safetensors` file.
    Safetensors,
    Nothing,
}

/// How the pointers of Git LFS begin.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Heads of files that a loader of checkpoints cannot read, whatever follows.
const INTRUDERS: &[(&[u8], Intruder)] = &[
    (b"7z\xbc\xaf\x27\x1c", Intruder::SevenZip),
    (b"\x1f\x8b", Intruder::Compressed),
    (b"BZh", Intruder::Compressed),
    (b"\xfd7zXZ\0", Intruder::Compressed),
    (b"\x28\xb5\x2f\xfd", Intruder::Compressed),
    (b"\x04\x22\x4d\x18", Intruder::Compressed),
    (b"\x5d\0\0", Intruder::Compressed),
    (b"\x78\x01", Intruder::Compressed),
    (b"\x78\x5e", Intruder::Compressed),
    (b"\x78\x9c", Intruder::Compressed),
    (b"\x78\xda", Intruder::Compressed),
];

/// Heads of files of weights that are no pickles, and what they are called.
const STRANGERS: &[(&[u8], &str)] = &[
    (b"GGUF", "a GGUF model of llama.cpp"),
    (b"lmgg", "a GGML model of llama.cpp"),
    (b"tjgg", "a GGML model of llama.cpp"),
    (b"fmgg", "a GGML model of llama.cpp"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as TensorFlow and Keras write them",
    ),
    (b"PTMF", "a mobile TorchScript module"),
];

/// Tells what `source` holds. The memory for that, as for all below, is taken from
/// `share`.
pub fn sniff(source: &Source, hint: NameHint, share: &Share) -> Result<Content> {
    let file = Candidate::new(source, hint == NameHint::Checkpoint, share)?;
    if is_safetensors(&file, hint)? {
        return Ok(Content::Safetensors);
    }
    if let Some((format, holds)) = Format::of(&file)? {
        return Ok(Content::Checkpoint { format, holds });
    }
    if hint != NameHint::Nothing && file.starts_with(LFS_POINTER) {
        return Ok(Content::NotACheckpoint(Intruder::LfsPointer));
    }
    if !file.promised {
        return Ok(Content::Other);
    }
    if let Some(intruder) = intruder(&file)? {
        return Ok(Content::NotACheckpoint(intruder));
    }
    Ok(match Format::of_unmarked(&file)? {
        Some(format) => Content::Checkpoint {
            format,
            holds: Holds::Pickles,
        },
        None => Content::Other,
    })
}

/// Reads what is `wanted` of the checkpoint in `source`, whose content is `content`.
/// `directory` is the one that it lies in. Costs the pickle and the directory of the container, not the
/// weights.
pub fn read(
    source: &Source,
    content: Content,
    directory: &dyn Tree,
    wanted: Wanted,
    share: &Share,
) -> Result<Checkpoint> {
    match content {
        Content::Checkpoint { format, .. } => format.read(&Request {
            source,
            directory,
            wanted,
            share,
        }),
        Content::NotACheckpoint(intruder) => Err(intruder.refusal().into()),
        Content::Safetensors | Content::Other => {
            let what = match stranger(source, share)? {
                Some(kind) => format!("this is {kind}, not a pickle checkpoint"),
                None => "this is not a pickle checkpoint".to_string(),
            };
            Err(Refusal::new(Cause::OtherKind, what).into())
        }
    }
}

/// A hash that tells the contents of `source`, which holds `content`, from any other:
/// of its size and the parts of it that planning reads, among them checksums of all
/// the rest. None where that cannot be had without reading all of it.
pub fn fingerprint(source: &Source, content: Content, share: &Share) -> Result<Option<[u8; 32]>> {
    match content.format() {
        Some(format) => format.fingerprint(source, share),
        None => Ok(None),
    }
}

/// What a file that is no checkpoint is called, where its head tells.
fn stranger(source: &Source, share: &Share) -> Result<Option<&'static str>> {
    let file = Candidate::new(source, false, share)?;
    let known = STRANGERS.iter().find(|(magic, _)| file.starts_with(magic));
    // A map of one to fifteen entries, whose first key is a short text.
    let msgpack = matches!(*file.head, [0x81..=0x8f, 0xa1..=0xbf, ..]);
    Ok(match known {
        Some((_, kind)) => Some(kind),
        None if msgpack => Some("a msgpack file, as Flax writes them"),
        None => None,
    })
}

/// A length that fits the file, then the brace of a JSON object. torch takes a zip
/// archive for one all the same, and under another name a pickle.
fn is_safetensors(file: &Candidate, hint: NameHint) -> Result<bool> {
    let Some((length, rest)) = file.head.split_first_chunk() else {
        return Ok(false);
    };
    let end = u64::from_le_bytes(*length).checked_add(8);
    let fits = end.is_some_and(|end| end <= file.source.size());
    let is_one = fits && rest.first() == Some(&b'{') && !file.is_zip();
    Ok(is_one && (hint == NameHint::Safetensors || !shows_pickle(file)?))
}

/// What stands in place of a checkpoint, as far as it is known.
fn intruder(file: &Candidate) -> Result<Option<Intruder>> {
    if file.head.is_empty() {
        return Ok(Some(Intruder::Empty));
    }
    if let Zip::Names(names) = file.zip()? {
        return Ok(Some(match is_old_torchscript(names)? {
            true => Intruder::OldTorchScript,
            false => Intruder::ZipWithoutPickle,
        }));
    }
    if is_headless(file)? {
        return Ok(Some(Intruder::HeadlessZip));
    }
    if let Some((_, intruder)) = INTRUDERS.iter().find(|(magic, _)| file.starts_with(magic)) {
        return Ok(Some(*intruder));
    }
    Ok(if file.head.get(257..262) == Some(b"ustar".as_slice()) {
        Some(Intruder::Tar)
    } else {
        is_web_page(&file.head).then_some(Intruder::WebPage)
    })
}

/// Modules in one JSON text at the top, and their code or tensors beside it.
/// `torch.export` has a `models/model.json`.
fn is_old_torchscript(names: &ZipNames) -> Result<bool> {
    let has = |is_wanted: fn(&str) -> bool| {
        names.any(|name| {
            name.split_once('/')
                .is_some_and(|(_, rest)| is_wanted(rest))
        })
    };
    Ok(has(|name| name == "model.json")?
        && has(|name| name.starts_with("code/") || name.starts_with("tensors/"))?)
}

fn is_web_page(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    let starts = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    };
    starts(b"<!doctype html") || starts(b"<html") || starts(b"<?xml") || starts(b"<head")
}
