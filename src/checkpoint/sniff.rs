//! What a file is, told by its content. The name only decides what a doubtful
//! content is worth: an error page is a broken download when it is called
//! `pytorch_model.bin`, and an error page when it is called `index.html`.

use serde::{Deserialize, Serialize};

use super::refusal::{Cause, Refusal};
use super::zip::Archive;
use super::{Error, Result, npy, npz, plain};
use crate::source::Source;

/// What the name of a file promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// A checkpoint: `.bin`, `.pt` and the like.
    Checkpoint,
    /// A `.safetensors` file.
    Safetensors,
    Nothing,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A zip archive with a pickle in it that torch would load, if perhaps a broken one.
    TorchZip,
    /// A pickle without a container, or one at the head of a stream.
    Pickle(Stream),
    /// The `.metadata` of a torch.distributed.checkpoint directory.
    Distributed,
    /// Something else under the name of a checkpoint.
    NotACheckpoint(Intruder),
    Safetensors,
    /// An array that numpy saved, or a zip archive of several: of numbers alone,
    /// unless some of it may be `objects`, which numpy pickles.
    Npy {
        objects: bool,
    },
    Npz {
        objects: bool,
    },
    /// Anything else. Nothing in it is run by a loader of pickles.
    Other,
}

/// Streams that begin with a pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// torch.save before 1.6.
    Legacy,
    /// torch.save before 0.1.10: a tar of pickles.
    Tar,
    /// `pickle.dump`.
    Plain,
}

/// What is found in place of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intruder {
    Empty,
    LfsPointer,
    WebPage,
    SevenZip,
    Tar,
    Compressed,
    /// TorchScript before torch 1.4, which kept its modules in JSON.
    OldTorchScript,
    ZipWithoutPickle,
}

impl Content {
    /// Whether the file is to be looked at as a checkpoint: converted or refused.
    pub fn is_checkpoint(self) -> bool {
        !matches!(self, Content::Safetensors | Content::Other)
    }

    /// Whether the file itself is kept out of sight, as checkpoints are in which
    /// code may be hidden.
    pub fn is_hidden(self) -> bool {
        let numbers = matches!(
            self,
            Content::Npy { objects: false } | Content::Npz { objects: false }
        );
        self.is_checkpoint() && !numbers
    }
}

impl Intruder {
    pub fn refusal(self) -> Refusal {
        let (cause, what) = match self {
            Intruder::Empty => (Cause::NotDownloaded, "the file is empty"),
            Intruder::LfsPointer => (
                Cause::LfsPointer,
                "this is a Git LFS pointer, not the file it points to",
            ),
            Intruder::WebPage => (
                Cause::NotDownloaded,
                "this is a web page (HTML), not a checkpoint: the download went wrong",
            ),
            Intruder::SevenZip => (
                Cause::Unsupported,
                "this is a 7z archive, which torch cannot load either",
            ),
            Intruder::Tar => (
                Cause::Unsupported,
                "this is a tar archive; unpack it to get at the checkpoints in it",
            ),
            Intruder::Compressed => (
                Cause::Unsupported,
                "this is a compressed stream, which torch cannot load either",
            ),
            Intruder::OldTorchScript => (
                Cause::Unsupported,
                "this is a TorchScript archive from before torch 1.4, with its modules in a model.json",
            ),
            Intruder::ZipWithoutPickle => (
                Cause::Unsupported,
                "this zip archive holds no checkpoint: there is no data.pkl in it",
            ),
        };
        Refusal::new(cause, what)
    }
}

/// How many bytes at the head of a file are looked at first.
const HEAD: u64 = 512;

/// The first object of a legacy file: the number 0x1950A86A20F9469CFC6C as LONG1
/// (torch/serialization.py, `MAGIC_NUMBER`). Protocol and frame stand before it.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";

/// The module of the root of a distributed checkpoint's metadata, which is the
/// first thing that its pickle imports.
const DISTRIBUTED: &[u8] = b"torch.distributed.checkpoint.metadata";

/// Members, with the zeros that pad their names, that begin the tar of a torch checkpoint.
const TAR_MEMBERS: [&[u8]; 4] = [
    b"sys_info\0\0",
    b"storages\0\0",
    b"tensors\0\0",
    b"pickle\0\0",
];

/// Heads of files that a loader of checkpoints cannot read, whatever follows.
const INTRUDERS: &[(&[u8], Intruder)] = &[
    (b"version https://git-lfs", Intruder::LfsPointer),
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

/// What a file that is no checkpoint is called, where its head tells.
pub fn stranger(source: &Source) -> Result<Option<&'static str>> {
    let head = source.read_at(0, source.size().min(HEAD))?;
    let known = STRANGERS.iter().find(|(magic, _)| head.starts_with(magic));
    // A map of one to fifteen entries, whose first key is a short text.
    let msgpack = matches!(*head, [0x81..=0x8f, 0xa1..=0xbf, ..]);
    Ok(match known {
        Some((_, kind)) => Some(kind),
        None if msgpack => Some("a msgpack file, as Flax writes them"),
        None => None,
    })
}

/// Tells what `source` holds.
pub fn sniff(source: &Source, promise: Promise) -> Result<Content> {
    let promised = promise == Promise::Checkpoint;
    let head = source.read_at(0, source.size().min(HEAD))?;
    if head.is_empty() {
        return Ok(intruder_if(promised, Intruder::Empty));
    }
    if head.starts_with(b"PK\x03\x04") {
        return sniff_zip(source, promised, &head);
    }
    if head.starts_with(npy::MAGIC) {
        let objects = npy::may_hold_objects(source)?;
        return Ok(Content::Npy { objects });
    }
    let pickle = head.starts_with(&[0x80]) && plain::starts_like_pickle(&head);
    if looks_like_safetensors(&head, source.size()) && (promise == Promise::Safetensors || !pickle)
    {
        return Ok(Content::Safetensors);
    }
    if pickle
        && head
            .windows(DISTRIBUTED.len())
            .any(|bytes| bytes == DISTRIBUTED)
    {
        return Ok(Content::Distributed);
    }
    if pickle {
        let legacy = head.windows(LEGACY_MAGIC.len()).take(16);
        return Ok(Content::Pickle(
            match legacy.into_iter().any(|bytes| bytes == LEGACY_MAGIC) {
                true => Stream::Legacy,
                false => Stream::Plain,
            },
        ));
    }
    if TAR_MEMBERS.iter().any(|name| head.starts_with(name)) {
        return Ok(Content::Pickle(Stream::Tar));
    }
    if !promised {
        return Ok(Content::Other);
    }
    if let Some((_, intruder)) = INTRUDERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Ok(Content::NotACheckpoint(*intruder));
    }
    if head.get(257..262) == Some(b"ustar".as_slice()) {
        return Ok(Content::NotACheckpoint(Intruder::Tar));
    }
    if is_web_page(&head) {
        return Ok(Content::NotACheckpoint(Intruder::WebPage));
    }
    // Protocols 0 and 1 have no mark of their own: only a reading tells.
    match plain::is_unmarked_pickle(source)? {
        true => Ok(Content::Pickle(Stream::Plain)),
        false => Ok(Content::Other),
    }
}

fn intruder_if(promised: bool, intruder: Intruder) -> Content {
    match promised {
        true => Content::NotACheckpoint(intruder),
        false => Content::Other,
    }
}

/// A zip archive is a checkpoint when it has a `data.pkl`, and arrays when it has
/// nothing else. One that cannot be
/// read in one way only is judged by its name, and by the entry that torch
/// writes first.
fn sniff_zip(source: &Source, promised: bool, head: &[u8]) -> Result<Content> {
    let names = match Archive::names(source.span()) {
        Ok(names) => names,
        Err(Error::Refused(_)) => {
            let names_pickle = head
                .windows(b"data.pkl".len())
                .any(|bytes| bytes.eq_ignore_ascii_case(b"data.pkl"));
            return Ok(match promised || names_pickle {
                true => Content::TorchZip,
                false => Content::Other,
            });
        }
        Err(error) => return Err(error),
    };
    let is_pickle = |name: &str| {
        name.rsplit(['/', '\\'])
            .next()
            .is_some_and(|last| last.eq_ignore_ascii_case("data.pkl"))
    };
    let arrays = !names.is_empty() && names.iter().all(|name| name.ends_with(".npy"));
    if names.iter().any(|name| is_pickle(name)) {
        Ok(Content::TorchZip)
    } else if arrays {
        let objects = npz::may_hold_objects(source)?;
        Ok(Content::Npz { objects })
    } else {
        let old = names.iter().any(|name| name.ends_with("/model.json"));
        let intruder = match old {
            true => Intruder::OldTorchScript,
            false => Intruder::ZipWithoutPickle,
        };
        Ok(intruder_if(promised, intruder))
    }
}

/// A length that fits the file, then the brace of a JSON object.
fn looks_like_safetensors(head: &[u8], size: u64) -> bool {
    let Some((length, rest)) = head.split_first_chunk() else {
        return false;
    };
    let fits = u64::from_le_bytes(*length)
        .checked_add(8)
        .is_some_and(|end| end <= size);
    fits && rest.first() == Some(&b'{')
}

fn is_web_page(head: &[u8]) -> bool {
    let text = head.trim_ascii_start();
    let starts = |tag: &[u8]| {
        text.get(..tag.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(tag))
    };
    starts(b"<!doctype html") || starts(b"<html") || starts(b"<?xml") || starts(b"<head")
}
