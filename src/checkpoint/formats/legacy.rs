//! The stream of torch.save before 1.6, and of `_use_new_zipfile_serialization=
//! False` since: five pickles (a magic number, a version, the writer's machine,
//! the object, the keys of its storages), then for each key a count of elements
//! and the elements (torch/serialization.py, `_legacy_save`; torch/csrc/
//! serialization.cpp). Counts and elements are little-endian on every machine.

use std::collections::HashMap;
use std::ops::Range;

use super::candidate::{Candidate, Holds, Request};
use crate::checkpoint::contents::Checkpoint;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::Result;
use crate::checkpoint::layout::StorageRef;
use crate::checkpoint::objects::{SavedStorage, Storages, Torch, saved_storage};
use crate::checkpoint::preamble::{self, PlainPickle};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, shown};
use crate::checkpoint::storage::{Storage, StorageTable};
use crate::checkpoint::stream::{self, Pickles};
use crate::checkpoint::walk;
use crate::pickle::Pickle;
use crate::source::Source;

/// The magic number 0x1950A86A20F9469CFC6C as LONG1, behind protocol and frame.
const MARK: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e";

pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let mut starts = file.head.windows(MARK.len()).take(16);
    let is_one = file.is_marked_pickle() && starts.any(|bytes| bytes == MARK);
    Ok(is_one.then_some(Holds::Pickles))
}

/// Reads the checkpoint in a legacy stream.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    let window = stream::window(source);
    let mut pickles = Pickles::new(source, &window, request.share, 0);
    preamble::check_start(&pickles.next_plain()?, &pickles.next_plain()?)?;
    let _machine = pickles.next()?;
    let object = pickles.next()?;
    let keys = pickles.next_plain()?;
    let storages = StreamStorages::find(source, &object, &keys, pickles.offset())?;
    let mut torch = Torch::new(&object, storages);
    let contents = walk::read(&mut torch, request.wanted, request.share)?;
    Ok(contents.with(torch.into_storages()))
}

/// The storages of the stream, by key.
struct StreamStorages {
    by_key: HashMap<String, StreamStorage>,
    views: HashMap<String, SavedView>,
}

/// Elements of a storage that go by a key of their own. Only torch before 0.4
/// wrote any.
#[derive(Clone, PartialEq, Eq)]
struct SavedView {
    root: String,
    offset: u64,
    elements: u64,
}

struct StreamStorage {
    element: ElementType,
    elements: u64,
    /// Bytes from the start of the file, once known.
    data: Option<u64>,
    /// Its place in the table, once it is asked for.
    index: Option<u32>,
}

impl StreamStorages {
    /// Where each storage that `object` names lies: they follow each other from
    /// `offset` on, in the order of `keys`.
    fn find(
        source: &Source,
        object: &Pickle,
        keys: &PlainPickle,
        offset: u64,
    ) -> Result<StreamStorages> {
        let mut storages = StreamStorages {
            by_key: HashMap::new(),
            views: HashMap::new(),
        };
        for id in object.ids() {
            if let Some(saved) = saved_storage(object, id, 6)? {
                storages.add(saved)?;
            }
        }
        if let Some(key) = storages
            .views
            .keys()
            .find(|key| storages.by_key.contains_key(*key))
        {
            return Err(Refusal::new(
                Cause::Ambiguous,
                format!("`{}` is both a storage and a part of one", shown(key)),
            )
            .into());
        }
        let keys: Option<Vec<String>> = keys.list();
        let keys =
            keys.ok_or_else(|| malformed("the keys of its storages are no list of texts"))?;
        let counts = storages.place(&keys, source.size(), offset)?;
        // They are as far apart as the storages are long.
        let counts = source.read_ranges(&counts)?;
        for (key, count) in keys.iter().zip(counts) {
            let count = count.first_chunk().copied().map(u64::from_le_bytes);
            let elements = storages.by_key.get(key).map(|storage| storage.elements);
            if count != elements {
                return Err(malformed(format!(
                    "storage `{}` has {} elements, but should have {}",
                    shown(key),
                    count.unwrap_or_default(),
                    elements.unwrap_or_default()
                ))
                .into());
            }
        }
        Ok(storages)
    }

    /// Says of each storage where it lies in a file of `size` bytes, by what the
    /// object says of it, and gives the bytes before each, which are to say the same.
    fn place(
        &mut self,
        keys: &[String],
        size: u64,
        offset: u64,
    ) -> std::result::Result<Vec<Range<u64>>, Refusal> {
        let cut_off = |place: String| {
            Refusal::new(
                Cause::NotDownloaded,
                format!("the file ends {place}: it was cut off"),
            )
        };
        let mut counts = Vec::with_capacity(keys.len());
        let mut at = offset;
        for key in keys {
            let storage = self.by_key.get_mut(key);
            let storage = storage.filter(|storage| storage.data.is_none());
            let storage = storage.ok_or_else(|| {
                malformed(format!(
                    "its list of storages has `{}` once too often",
                    shown(key)
                ))
            })?;
            let data = at.checked_add(8).filter(|data| *data <= size);
            let data = data.ok_or_else(|| cut_off("before the last of its storages".into()))?;
            counts.push(at..data);
            storage.data = Some(data);
            at = storage
                .elements
                .checked_mul(storage.element.size())
                .and_then(|len| len.checked_add(data))
                .filter(|end| *end <= size)
                .ok_or_else(|| cut_off(format!("inside storage `{}`", shown(key))))?;
        }
        Ok(counts)
    }

    fn add(&mut self, saved: SavedStorage) -> std::result::Result<(), Refusal> {
        let ambiguous = |key: &str| {
            Refusal::new(
                Cause::Ambiguous,
                format!("storage `{}` is described in two ways", shown(key)),
            )
        };
        if let Some((key, offset, elements)) = saved.view {
            let view = SavedView {
                root: saved.key.to_string(),
                offset,
                elements,
            };
            let known = self.views.entry(key.to_string()).or_insert(view.clone());
            if *known != view {
                return Err(ambiguous(key));
            }
        }
        let known = self
            .by_key
            .entry(saved.key.to_string())
            .or_insert(StreamStorage {
                element: saved.element,
                elements: saved.elements,
                data: None,
                index: None,
            });
        match (known.element, known.elements) == (saved.element, saved.elements) {
            true => Ok(()),
            false => Err(ambiguous(saved.key)),
        }
    }
}

impl Storages for StreamStorages {
    const PARTS: usize = 6;

    fn resolve(
        &mut self,
        table: &mut StorageTable,
        saved: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        let storage = self.by_key.get_mut(saved.key);
        let missing = || {
            malformed(format!(
                "storage `{}` is missing in the file",
                shown(saved.key)
            ))
        };
        let storage = storage.ok_or_else(missing)?;
        let size = storage.element.size();
        let len = storage.elements * size;
        let index = match storage.index {
            Some(index) => index,
            None => table.add(Storage::in_file(storage.data.ok_or_else(missing)?, len))?,
        };
        storage.index = Some(index);
        let (start, len) = match saved.view {
            None => (0, len),
            Some((key, offset, elements)) => {
                let span = offset.checked_mul(size).zip(elements.checked_mul(size));
                span.filter(|(start, part)| start.checked_add(*part).is_some_and(|end| end <= len))
                    .ok_or_else(|| {
                        malformed(format!("part `{}` reaches out of its storage", shown(key)))
                    })?
            }
        };
        Ok(StorageRef {
            index,
            start,
            len,
            swap: false,
        })
    }
}
