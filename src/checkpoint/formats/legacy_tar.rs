//! The tar archives of torch before 0.1.10: members `storages`, `tensors` and
//! `pickle`, whose persistent ids are the numbers of the first two
//! (torch/serialization.py, `legacy_load`).

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::candidate::{Candidate, Holds, Request};
use crate::checkpoint::contents::Checkpoint;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::layout::{Dense, Layout, StorageRef};
use crate::checkpoint::objects::{SavedStorage, Storages, Torch};
use crate::checkpoint::preamble::PlainPickle;
use crate::checkpoint::refusal::{Cause, Refusal, malformed};
use crate::checkpoint::storage::{Storage, StorageTable};
use crate::checkpoint::stream::{self, Pickles};
use crate::checkpoint::tensor::Lazy;
use crate::checkpoint::walk;
use crate::pickle::{ObjectId, Pickle};
use crate::source::Source;

/// Dimensions of one tensor.
const MAX_RANK: u64 = 64;
/// Members of the archive.
const MAX_MEMBERS: usize = 64;

/// Members, with the zeros that pad their names, that the archive begins with.
const FIRST_MEMBERS: [&[u8]; 4] = [
    b"sys_info\0\0",
    b"storages\0\0",
    b"tensors\0\0",
    b"pickle\0\0",
];

pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let is_one = FIRST_MEMBERS.iter().any(|name| file.starts_with(name));
    Ok(is_one.then_some(Holds::Pickles))
}

/// Reads the checkpoint in a tar archive.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    let members = members(source)?;
    let member = |name: &str| {
        let found = members.get(name).copied();
        found.ok_or_else(|| malformed(format!("the tar archive has no member `{name}`")))
    };
    let mut storages = TarStorages::default();
    storages.read_storages(request, member("storages")?)?;
    storages.read_tensors(request, member("tensors")?)?;
    let window = stream::window(source);
    let object = Pickles::new(source, &window, request.share, member("pickle")?).next()?;
    let mut torch = Torch::new(&object, storages);
    let contents = walk::read(&mut torch, request.wanted, request.share)?;
    Ok(contents.with(torch.into_storages()))
}

/// Where the data of each member begins, by name.
fn members(source: &Source) -> Result<HashMap<String, u64>> {
    let broken = |error: io::Error| malformed(format!("the tar archive is damaged: {error}"));
    let mut archive = tar::Archive::new(TarBytes { source, at: 0 });
    let mut members = HashMap::new();
    for entry in archive.entries_with_seek().map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let again = members.insert(name, entry.raw_file_position()).is_some();
        if again || members.len() > MAX_MEMBERS {
            return Err(Refusal::new(
                Cause::Ambiguous,
                "the tar archive has a member twice, or too many of them",
            )
            .into());
        }
    }
    Ok(members)
}

/// Storages and tensors by their numbers.
#[derive(Default)]
struct TarStorages {
    storages: HashMap<i64, TarStorage>,
    tensors: HashMap<i64, Shape>,
    /// Places in the table, by the byte a storage begins at.
    indices: HashMap<u64, u32>,
}

/// A storage or a part of one.
#[derive(Clone, Copy)]
struct TarStorage {
    element: ElementType,
    /// Bytes from the start of the file to the whole storage, and its bytes.
    whole: (u64, u64),
    /// Bytes from there, and bytes.
    part: (u64, u64),
}

struct Shape {
    storage: i64,
    offset: u64,
    sizes: Box<[u64]>,
    strides: Box<[u64]>,
}

impl TarStorages {
    fn read_storages(&mut self, request: &Request, offset: u64) -> Result<()> {
        let source = request.source;
        let window = stream::window(source);
        let mut pickles = Pickles::new(source, &window, request.share, offset);
        for _ in 0..count(&pickles.next_plain()?)? {
            let pickle = pickles.next()?;
            let [key, _location, class] = items(&pickle)?;
            let class = pickle.global(class).map(|(_, name)| name);
            let element = class.and_then(ElementType::of_storage_class);
            let element = element.ok_or_else(|| malformed("a storage has no known type"))?;
            let count = u64::from_le_bytes(field(&pickles.take(8)?)?);
            let start = pickles.offset();
            let len = count.checked_mul(element.size());
            let len = len.filter(|len| {
                start
                    .checked_add(*len)
                    .is_some_and(|end| end <= source.size())
            });
            let len = len.ok_or_else(|| malformed("a storage reaches past the end of the file"))?;
            let storage = TarStorage {
                element,
                whole: (start, len),
                part: (0, len),
            };
            if self.storages.insert(int(&pickle, key)?, storage).is_some() {
                return Err(malformed("two storages have the same number").into());
            }
            pickles.skip(len);
        }
        self.read_parts(&pickles.next_plain()?)
    }

    /// Parts of storages that have numbers of their own: each is that number, the
    /// storage's, and the first element and the elements of it.
    fn read_parts(&mut self, list: &PlainPickle) -> Result<()> {
        let parts: Option<Vec<(i64, i64, u64, u64)>> = list.list();
        let parts = parts.ok_or_else(|| malformed("its list of storage views is no such list"))?;
        for (target, root, offset, len) in parts {
            let outside = || malformed("a storage view reaches out of its storage");
            let root = self.storages.get(&root).copied().ok_or_else(outside)?;
            let bytes = |elements: u64| elements.checked_mul(root.element.size());
            let (start, len) = bytes(offset).zip(bytes(len)).ok_or_else(outside)?;
            if start.checked_add(len).is_none_or(|end| end > root.part.1) {
                return Err(outside().into());
            }
            let storage = TarStorage {
                part: (root.part.0 + start, len),
                ..root
            };
            if self.storages.insert(target, storage).is_some() {
                return Err(malformed("two storages have the same number").into());
            }
        }
        Ok(())
    }

    fn read_tensors(&mut self, request: &Request, offset: u64) -> Result<()> {
        let source = request.source;
        let window = stream::window(source);
        let mut pickles = Pickles::new(source, &window, request.share, offset);
        for _ in 0..count(&pickles.next_plain()?)? {
            let pickle = pickles.next()?;
            let [key, storage, _type] = items(&pickle)?;
            // Four bytes follow the number of dimensions that mean nothing.
            let rank = u64::from(u32::from_le_bytes(field(&pickles.take(8)?)?));
            if rank > MAX_RANK {
                return Err(malformed("a tensor has too many dimensions").into());
            }
            let mut numbers = |count: u64| {
                let bytes = pickles.take(count * 8)?;
                let numbers = bytes.chunks_exact(8).map(|bytes| {
                    u64::try_from(i64::from_le_bytes(field(bytes)?))
                        .map_err(|_| malformed("a tensor has a negative size or stride"))
                });
                Ok::<_, Error>(numbers.collect::<std::result::Result<Box<[u64]>, Refusal>>()?)
            };
            let shape = Shape {
                storage: int(&pickle, storage)?,
                sizes: numbers(rank)?,
                strides: numbers(rank)?,
                offset: numbers(1)?.first().copied().unwrap_or_default(),
            };
            if self.tensors.insert(int(&pickle, key)?, shape).is_some() {
                return Err(malformed("two tensors have the same number").into());
            }
        }
        Ok(())
    }
}

impl Storages for TarStorages {
    /// Storages are never named by a tuple here.
    const PARTS: usize = 5;

    fn resolve(
        &mut self,
        _: &mut StorageTable,
        _: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        Err(malformed(
            "a tensor is rebuilt from something that is no storage",
        ))
    }

    fn tensor(
        &mut self,
        table: &mut StorageTable,
        id: i64,
    ) -> std::result::Result<Option<Layout>, Refusal> {
        let Some(shape) = self.tensors.get(&id) else {
            return match self.storages.contains_key(&id) {
                true => Err(Refusal::new(
                    Cause::Unsupported,
                    "it is a storage without a shape",
                )),
                false => Err(malformed("it has the number of no tensor")),
            };
        };
        let saved = self.storages.get(&shape.storage);
        let saved = saved.ok_or_else(|| malformed("its storage is missing"))?;
        let (start, len) = saved.whole;
        let index = match self.indices.get(&start) {
            Some(index) => *index,
            None => table.add(Storage::in_file(start, len))?,
        };
        self.indices.insert(start, index);
        let storage = StorageRef {
            index,
            start: saved.part.0,
            len: saved.part.1,
            swap: false,
        };
        let dense = Dense {
            storage,
            element: saved.element,
            offset: shape.offset,
            sizes: shape.sizes.clone(),
            strides: shape.strides.clone(),
            lazy: Lazy::default(),
        };
        dense.layout().map(Some)
    }
}

/// The number of records that follow.
fn count(pickle: &PlainPickle) -> std::result::Result<u64, Refusal> {
    let count = pickle.value();
    count.ok_or_else(|| malformed("one of its counts is no number from 0"))
}

fn items(pickle: &Pickle) -> std::result::Result<[ObjectId; 3], Refusal> {
    let items = pickle
        .as_tuple(pickle.root())
        .and_then(|items| items.try_into().ok());
    items.ok_or_else(|| malformed("a record is no tuple of three"))
}

fn int(pickle: &Pickle, id: ObjectId) -> std::result::Result<i64, Refusal> {
    pickle
        .as_int(id)
        .ok_or_else(|| malformed("one of its records has something else in place of a number"))
}

/// The first bytes of a field of fixed size.
fn field<const N: usize>(bytes: &[u8]) -> std::result::Result<[u8; N], Refusal> {
    let field = bytes.first_chunk().copied();
    field.ok_or_else(|| malformed("a record is cut off"))
}

/// The source as the tar reader wants it.
struct TarBytes<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for TarBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.source.size().saturating_sub(self.at);
        let len = left.min(buffer.len() as u64) as usize;
        self.source
            .read_exact_at(&mut buffer[..len], self.at)
            .map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for TarBytes<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.source.size().checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
