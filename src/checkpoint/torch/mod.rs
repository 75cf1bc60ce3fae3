//! torch's objects in a pickle: storages, the functions that rebuild tensors, and
//! the containers around them. Nothing is called; each known name is given the
//! meaning it has in torch (torch/_utils.py, torch/_tensor.py).

mod array;
mod composed;
mod containers;
mod embedded;
mod joblib;
mod paddle;
mod rebuild;
mod saved;
mod strided;
mod tensor;
mod wrapper;

use std::collections::HashMap;

use super::dtype::ElementType;
use super::refusal::{Cause, Refusal};
use super::storage::{Storage, Table};
use super::torchscript::Classes;
use crate::pickle::{Object, ObjectId, PersistentId, Pickle};
use crate::source::Source;

pub use composed::{Note, Parts};
pub use joblib::{Follows, follows};
pub use paddle::evaluated;
pub use saved::{SavedStorage, saved_storage};
pub use strided::{Dense, MAX_RANK, View};

/// The storages of a container, found by the key in a persistent id.
pub trait Storages {
    /// How many parts the persistent id of a storage has.
    const PARTS: usize;

    /// The bytes of a storage that the pickle refers to; they are added to
    /// `table`. An error unless the container holds exactly those bytes.
    fn resolve(&mut self, table: &mut Table, saved: &SavedStorage) -> Result<StorageRef, Refusal>;

    /// The file that payloads of the pickle were left in, if they were.
    fn source(&self) -> Option<&Source> {
        None
    }

    /// The tensor that a persistent id names by itself, in containers where one
    /// does.
    fn tensor(&mut self, table: &mut Table, id: i64) -> Result<Option<View>, Refusal> {
        let _ = (table, id);
        Ok(None)
    }
}

/// A storage that was resolved.
#[derive(Clone, Copy, Debug)]
pub struct StorageRef {
    /// Which one, for [`super::Tensor::storage`].
    pub index: u32,
    /// Bytes from the start of that one.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its numbers are big-endian.
    pub swap: bool,
}

/// A storage as a persistent id names it.
#[derive(Clone, Copy)]
struct TypedStorage {
    storage: StorageRef,
    element: ElementType,
}

/// Reads torch's objects out of one pickle.
pub struct Torch<'p, S> {
    pickle: &'p Pickle<'p>,
    storages: S,
    table: Table,
    resolved: HashMap<ObjectId, TypedStorage>,
    arrays: array::Arrays,
    /// The classes of compiled modules.
    classes: Classes,
}

/// What an object is to torch.
pub enum Meaning<'p> {
    /// A tensor, and the attributes that its object is given besides.
    Tensor(View, Vec<ObjectId>),
    /// Something that safetensors says with several tensors, or in another type.
    Parts(Parts),
    /// A dict: entries in order, each key once; and the same of its object.
    Map(Vec<(ObjectId, ObjectId)>, &'p [ObjectId]),
    /// A list or tuple.
    Sequence(&'p [ObjectId]),
    /// Anything else.
    Other,
}

impl<'p, S: Storages> Torch<'p, S> {
    pub fn new(pickle: &'p Pickle<'p>, storages: S) -> Torch<'p, S> {
        Torch {
            pickle,
            storages,
            table: Table::default(),
            resolved: HashMap::new(),
            arrays: array::Arrays::default(),
            classes: Classes::default(),
        }
    }

    /// Reads objects of `classes` as modules.
    pub fn scripted(&mut self, classes: Classes) {
        self.classes = classes;
    }

    pub fn pickle(&self) -> &'p Pickle<'p> {
        self.pickle
    }

    /// The storages that the tensors lie in.
    pub fn into_storages(self) -> Vec<Storage> {
        self.table.into()
    }

    /// The storages that the tensors lie in, and the classes that were given.
    pub fn into_parts(self) -> (Vec<Storage>, Classes) {
        (self.table.into(), self.classes)
    }

    /// What the object `id` is. An error when it is a tensor that cannot be
    /// read.
    pub fn meaning(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        Ok(match self.pickle.get(id) {
            Object::Dict(_) => match self.whole_parameter(id) {
                Some(view) => Meaning::Tensor(view, Vec::new()),
                None => {
                    let entries = self.pickle.entries(id);
                    Meaning::Map(self.with_whole_parameters(entries)?, &[])
                }
            },
            Object::List(items) => Meaning::Sequence(items),
            Object::Tuple(items) => Meaning::Sequence(items),
            Object::Call(call) => match self.ordered_dict(id, call)? {
                Some(entries) => Meaning::Map(entries, &call.state),
                None => match (self.module(call)?, self.array(id, call)?) {
                    (Some(entries), _) => Meaning::Map(entries, &[]),
                    (None, Some(array)) => array,
                    (None, None) => self.tensor(call)?,
                },
            },
            Object::Persistent(persistent) => match self.persistent_tensor(persistent)? {
                Some(view) => Meaning::Tensor(view, Vec::new()),
                None => Meaning::Other,
            },
            _ => Meaning::Other,
        })
    }

    /// The tensor that a persistent id names by itself.
    fn persistent_tensor(&mut self, id: &PersistentId) -> Result<Option<View>, Refusal> {
        let number = match id {
            PersistentId::Text(text) => text.parse().ok(),
            // A number, or its decimal digits.
            PersistentId::Object(id) if self.text_len(*id) < 20 => {
                let text = self.pickle.as_str(*id);
                self.pickle.as_int(*id).or_else(|| text?.parse().ok())
            }
            PersistentId::Object(_) => None,
        };
        match number {
            Some(number) => self.storages.tensor(&mut self.table, number),
            None => Ok(None),
        }
    }

    /// What [`Torch::meaning`] costs: the values that the object `id` is written
    /// with, and the bytes of text among its keys.
    pub fn cost(&self, id: ObjectId) -> (usize, usize) {
        let keys =
            |items: &[(ObjectId, ObjectId)]| items.iter().map(|(key, _)| self.text_len(*key)).sum();
        let (values, text): (usize, usize) = match self.pickle.get(id) {
            Object::Dict(items) => (items.len(), keys(items)),
            Object::List(items) => (items.len(), 0),
            Object::Tuple(items) => (items.len(), 0),
            Object::Call(call) => {
                let args = self.pickle.as_tuple(call.args).unwrap_or_default();
                let (values, text) = match args.first().map(|first| self.pickle.get(*first)) {
                    Some(Object::Dict(items)) => (items.len(), keys(items)),
                    Some(Object::List(items)) => {
                        let text = items
                            .iter()
                            .filter_map(|item| Some(self.text_len(self.pair(*item)?.0)))
                            .sum();
                        (items.len(), text)
                    }
                    _ => (0, 0),
                };
                // A module's groups are among its attributes.
                let states = call.state.iter().map(|state| self.items(*state));
                let groups = states
                    .flatten()
                    .map(|(_, value)| 1 + self.items(*value).len());
                let values = values + groups.sum::<usize>();
                (values + call.items.len(), text + keys(&call.items))
            }
            _ => (0, 0),
        };
        (values + 1, text)
    }

    /// What a dict or its like was written with.
    fn items(&self, id: ObjectId) -> &'p [(ObjectId, ObjectId)] {
        match self.pickle.get(id) {
            Object::Dict(items) => items,
            Object::Call(call) => &call.items,
            _ => &[],
        }
    }

    /// Bytes of a text or of another scalar that is compared by its bytes.
    fn text_len(&self, id: ObjectId) -> usize {
        match self.pickle.get(id) {
            Object::Str(text) => text.as_bytes().map_or(0, <[u8]>::len),
            Object::String8(bytes) | Object::Bytes(bytes) => {
                bytes.as_bytes().map_or(0, <[u8]>::len)
            }
            Object::BigInt(bytes) => bytes.len(),
            _ => 0,
        }
    }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}

fn unsupported(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}
