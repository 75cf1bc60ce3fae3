//! The tar archives of torch before 0.1.10: members `storages`, `tensors` and
//! `pickle`, whose persistent ids are the numbers of the first two
//! (torch/serialization.py, `legacy_load`).

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use super::dtype::ElementType;
use super::refusal::{Cause, Refusal};
use super::storage::{Storage, Table};
use super::stream::{self, Failure, with_pickles};
use super::torch::{Dense, SavedStorage, StorageRef, Storages, Torch, View};
use super::{Checkpoint, Lazy, Result, danger, state_dict};
use crate::pickle::{Object, ObjectId, Pickle};
use crate::source::Source;

/// Dimensions of one tensor.
const MAX_RANK: usize = 64;
/// Members of the archive.
const MAX_MEMBERS: usize = 64;

/// Reads the checkpoint in the tar archive `source`, from `root_path` on.
pub fn read(source: &Source, root_path: Option<&str>) -> Result<Checkpoint> {
    let members = members(source)?;
    let member = |name: &str| {
        let found = members.get(name).copied();
        found.ok_or_else(|| malformed(format!("the tar archive has no member `{name}`")))
    };
    let mut records = Records::default();
    records.read_storages(source, member("storages")?)?;
    records.read_tensors(source, member("tensors")?)?;
    with_pickles(source, member("pickle")?, |mut pickles| {
        let object = pickles.next()?;
        if let Some(attack) = danger::find(object.imports()) {
            return Err(attack.into());
        }
        let mut torch = Torch::new(&object, records.clone());
        let contents = state_dict::read(&mut torch, root_path)?;
        Ok(contents.with(torch.into_storages()))
    })
}

/// Where the data of each member begins, by name.
fn members(source: &Source) -> Result<HashMap<String, u64>> {
    let broken = |error: io::Error| malformed(format!("the tar archive is damaged: {error}"));
    let mut archive = tar::Archive::new(Cursor { source, at: 0 });
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
#[derive(Clone, Default)]
struct Records {
    storages: HashMap<i64, Record>,
    tensors: HashMap<i64, Shape>,
    /// Places in the table, by the byte a storage begins at.
    indices: HashMap<u64, u32>,
}

/// A storage or a part of one.
#[derive(Clone, Copy)]
struct Record {
    element: ElementType,
    /// Bytes from the start of the file to the whole storage, and its bytes.
    whole: (u64, u64),
    /// Bytes from there, and bytes.
    part: (u64, u64),
}

#[derive(Clone)]
struct Shape {
    storage: i64,
    offset: u64,
    sizes: Box<[u64]>,
    strides: Box<[u64]>,
}

impl Records {
    fn read_storages(&mut self, source: &Source, offset: u64) -> Result<()> {
        let (count, mut at) = number(source, offset)?;
        for _ in 0..count {
            let (key, element, after) = with_pickles(source, at, |mut pickles| {
                let pickle = pickles.next()?;
                let [key, _location, class] = items(&pickle)?;
                let key = int(&pickle, key)?;
                let class = pickle.global(class).map(|(_, name)| name);
                let element = class.and_then(ElementType::of_storage_class);
                let element = element.ok_or_else(|| malformed("a storage has no known type"))?;
                Ok((key, element, pickles.offset()))
            })?;
            let mut len = [0; 8];
            source
                .read_exact_at(&mut len, after)
                .map_err(|error| stream::cut_off(error, "before the last of its storages"))?;
            let start = after + 8;
            let len = u64::from_le_bytes(len).checked_mul(element.size());
            let end = len.and_then(|len| len.checked_add(start));
            let (Some(len), Some(end)) = (len, end.filter(|end| *end <= source.size())) else {
                return Err(malformed("a storage reaches past the end of the file").into());
            };
            let record = Record {
                element,
                whole: (start, len),
                part: (0, len),
            };
            if self.storages.insert(key, record).is_some() {
                return Err(malformed("two storages have the same number").into());
            }
            at = end;
        }
        self.read_parts(source, at)
    }

    /// Parts of storages that have numbers of their own.
    fn read_parts(&mut self, source: &Source, offset: u64) -> Result<()> {
        let parts = with_pickles(source, offset, |mut pickles| {
            let pickle = pickles.next()?;
            let Object::List(list) = pickle.get(pickle.root()) else {
                return Err(malformed("its list of storage views is no list").into());
            };
            let part = |id: &ObjectId| -> std::result::Result<[i64; 4], Failure> {
                let parts = pickle.as_tuple(*id).and_then(|items| items.try_into().ok());
                let [target, root, offset, len]: [ObjectId; 4] =
                    parts.ok_or_else(|| malformed("a storage view is no view"))?;
                Ok([
                    int(&pickle, target)?,
                    int(&pickle, root)?,
                    int(&pickle, offset)?,
                    int(&pickle, len)?,
                ])
            };
            list.iter()
                .map(part)
                .collect::<std::result::Result<Vec<_>, _>>()
        })?;
        for [target, root, offset, len] in parts {
            let outside = || malformed("a storage view reaches out of its storage");
            let root = self.storages.get(&root).copied().ok_or_else(outside)?;
            let bytes = |elements: i64| {
                u64::try_from(elements)
                    .ok()?
                    .checked_mul(root.element.size())
            };
            let (start, len) = bytes(offset).zip(bytes(len)).ok_or_else(outside)?;
            let fits = start.checked_add(len).is_some_and(|end| end <= root.part.1);
            if !fits {
                return Err(outside().into());
            }
            let record = Record {
                part: (root.part.0 + start, len),
                ..root
            };
            if self.storages.insert(target, record).is_some() {
                return Err(malformed("two storages have the same number").into());
            }
        }
        Ok(())
    }

    fn read_tensors(&mut self, source: &Source, offset: u64) -> Result<()> {
        let (count, mut at) = number(source, offset)?;
        for _ in 0..count {
            let (key, shape, after) = with_pickles(source, at, |mut pickles| {
                let pickle = pickles.next()?;
                let [key, storage, _type] = items(&pickle)?;
                let (key, storage) = (int(&pickle, key)?, int(&pickle, storage)?);
                // Four bytes follow the number of dimensions that mean nothing.
                let rank = u32::from_le_bytes(field(pickles.take(8)?)?);
                let rank = usize::try_from(rank).ok().filter(|rank| *rank <= MAX_RANK);
                let rank = rank.ok_or_else(|| malformed("a tensor has too many dimensions"))?;
                let mut numbers = |count: usize| {
                    let bytes = pickles.take(count * 8)?.chunks_exact(8);
                    let numbers = bytes.map(|bytes| {
                        let number = i64::from_le_bytes(field(bytes)?);
                        u64::try_from(number)
                            .map_err(|_| malformed("a tensor has a negative size or stride").into())
                    });
                    numbers.collect::<std::result::Result<Box<[u64]>, Failure>>()
                };
                let shape = Shape {
                    storage,
                    sizes: numbers(rank)?,
                    strides: numbers(rank)?,
                    offset: numbers(1)?.first().copied().unwrap_or_default(),
                };
                Ok((key, shape, pickles.offset()))
            })?;
            if self.tensors.insert(key, shape).is_some() {
                return Err(malformed("two tensors have the same number").into());
            }
            at = after;
        }
        Ok(())
    }
}

impl Storages for Records {
    /// Storages are never named by a tuple here.
    const PARTS: usize = 5;

    fn resolve(
        &mut self,
        _: &mut Table,
        _: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        Err(malformed(
            "a tensor is rebuilt from something that is no storage",
        ))
    }

    fn tensor(&mut self, table: &mut Table, id: i64) -> std::result::Result<Option<View>, Refusal> {
        let Some(shape) = self.tensors.get(&id) else {
            return match self.storages.contains_key(&id) {
                true => Err(Refusal::new(
                    Cause::Unsupported,
                    "it is a storage without a shape",
                )),
                false => Err(malformed("it has the number of no tensor")),
            };
        };
        let record = self.storages.get(&shape.storage);
        let record = record.ok_or_else(|| malformed("its storage is missing"))?;
        let (start, len) = record.whole;
        let index = match self.indices.get(&start) {
            Some(index) => *index,
            None => table.add(Storage::in_file(start, len))?,
        };
        self.indices.insert(start, index);
        let storage = StorageRef {
            index,
            start: record.part.0,
            len: record.part.1,
            swap: false,
        };
        let dense = Dense {
            storage,
            element: record.element,
            offset: shape.offset,
            sizes: shape.sizes.clone(),
            strides: shape.strides.clone(),
            lazy: Lazy::default(),
        };
        dense.view().map(Some)
    }
}

/// The number that a pickle at `offset` is of, and the offset after it.
fn number(source: &Source, offset: u64) -> Result<(i64, u64)> {
    with_pickles(source, offset, |mut pickles| {
        let pickle = pickles.next()?;
        Ok((int(&pickle, pickle.root())?, pickles.offset()))
    })
}

fn items(pickle: &Pickle) -> std::result::Result<[ObjectId; 3], Failure> {
    let items = pickle
        .as_tuple(pickle.root())
        .and_then(|items| items.try_into().ok());
    Ok(items.ok_or_else(|| malformed("a record is no tuple of three"))?)
}

fn int(pickle: &Pickle, id: ObjectId) -> std::result::Result<i64, Failure> {
    Ok(pickle
        .as_int(id)
        .ok_or_else(|| malformed("a number is no number"))?)
}

/// The first bytes of a field of fixed size.
fn field<const N: usize>(bytes: &[u8]) -> std::result::Result<[u8; N], Failure> {
    let field = bytes.first_chunk().copied();
    Ok(field.ok_or_else(|| malformed("a record is cut off"))?)
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}

/// The source as the tar reader wants it.
struct Cursor<'a> {
    source: &'a Source,
    at: u64,
}

impl Read for Cursor<'_> {
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

impl Seek for Cursor<'_> {
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
