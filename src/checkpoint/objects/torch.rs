//! One pickle that is read as torch's objects, and what these can be. The other
//! files say what each kind of object means.

use std::collections::HashMap;
use std::sync::Arc;

use super::saved::SavedStorage;
use super::torchscript::Classes;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::layout::{Layout, Note, StorageRef};
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::storage::{Storage, StorageTable};
use crate::pickle::{Object, ObjectId, Pickle};
use crate::source::Source;

/// The storages of a container, found by the key in a persistent id.
pub trait Storages {
    /// How many parts the persistent id of a storage has.
    const PARTS: usize;

    /// The bytes of a storage that the pickle refers to; they are added to
    /// `table`. An error unless the container holds exactly those bytes.
    fn resolve(
        &mut self,
        table: &mut StorageTable,
        saved: &SavedStorage,
    ) -> Result<StorageRef, Refusal>;

    /// The file that payloads of the pickle were left in, if they were.
    fn source(&self) -> Option<&Source> {
        None
    }

    /// The tensor that a persistent id names by itself, in containers where one
    /// does.
    fn tensor(&mut self, table: &mut StorageTable, id: i64) -> Result<Option<Layout>, Refusal> {
        let _ = (table, id);
        Ok(None)
    }
}

/// A storage as a persistent id names it.
#[derive(Clone, Copy)]
pub(super) struct TypedStorage {
    pub(super) storage: StorageRef,
    pub(super) element: ElementType,
}

/// Reads torch's objects out of one pickle.
pub struct Torch<'p, S> {
    pub(super) pickle: &'p Pickle<'p>,
    pub(super) storages: S,
    pub(super) table: StorageTable,
    pub(super) resolved: HashMap<ObjectId, TypedStorage>,
    pub(super) arrays: Arrays,
    /// The classes of compiled modules.
    pub(super) classes: Classes,
}

/// A tensor in several parts.
pub struct Composed {
    /// What the parts' names have after the tensor's own, and the parts.
    pub tensors: Vec<(&'static str, Layout)>,
    pub note: Note,
}

/// The arrays read so far.
#[derive(Default)]
pub(super) struct Arrays {
    /// By what makes each: two names of one array are names of one tensor.
    pub(super) layouts: HashMap<ObjectId, Layout>,
    /// Any number of arrays may be made of the same bytes.
    pub(super) bytes: HashMap<ObjectId, Arc<[u8]>>,
}

impl<'p, S: Storages> Torch<'p, S> {
    pub fn new(pickle: &'p Pickle<'p>, storages: S) -> Torch<'p, S> {
        Torch {
            pickle,
            storages,
            table: StorageTable::default(),
            resolved: HashMap::new(),
            arrays: Arrays::default(),
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

    /// The storages that the tensors lie in, and those of the container.
    pub fn into_parts(self) -> (Vec<Storage>, S) {
        (self.table.into(), self.storages)
    }

    /// What a dict or its like was written with.
    pub fn items(&self, id: ObjectId) -> &'p [(ObjectId, ObjectId)] {
        match self.pickle.get(id) {
            Object::Dict(items) => items,
            Object::Call(call) => &call.items,
            _ => &[],
        }
    }

    /// Bytes of a text or of another scalar that is compared by its bytes.
    pub(super) fn text_len(&self, id: ObjectId) -> usize {
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
