//! The arena: all objects of a pickle, and what to ask them.

use std::collections::HashMap;
use std::ops::Range;

use super::object::{ByteRange, Call, Object, ObjectId};

/// The objects made so far, each under its [`ObjectId`].
#[derive(Debug, Clone, Default)]
pub struct Objects<'a> {
    arena: Vec<Object<'a>>,
    /// Raw bytes in the stream that belong to the result of a call.
    raw: HashMap<ObjectId, ByteRange>,
}

/// For the machine.
impl<'a> Objects<'a> {
    /// `None` where no id is left.
    pub(super) fn push(&mut self, object: Object<'a>) -> Option<ObjectId> {
        let id = ObjectId::from_index(self.arena.len())?;
        if self.arena.len() == self.arena.capacity() {
            // By less than double: this is most of the memory of a pickle.
            let more = (self.arena.len() / 4).max(64);
            self.arena.reserve_exact(more);
        }
        self.arena.push(object);
        Some(id)
    }

    pub(super) fn get_mut(&mut self, id: ObjectId) -> &mut Object<'a> {
        &mut self.arena[id.index()]
    }

    pub(super) fn set_raw(&mut self, id: ObjectId, span: ByteRange) {
        self.raw.insert(id, span);
    }

    /// Bytes of memory without what the objects hold, about.
    pub(super) fn memory(&self) -> usize {
        self.arena.capacity() * size_of::<Object>()
            + self.raw.capacity() * (size_of::<(ObjectId, ByteRange)>() + 1)
    }
}

impl<'a> Objects<'a> {
    /// The object with this id, which has to come from the same pickle.
    pub fn get(&self, id: ObjectId) -> &Object<'a> {
        &self.arena[id.index()]
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.arena.len()
    }

    /// Every object, in the order they were made.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> {
        (0..self.arena.len()).filter_map(ObjectId::from_index)
    }

    /// The raw bytes that follow the BUILD of this object in the stream, see
    /// [`Parser::claim`](super::Parser::claim).
    pub fn raw(&self, id: ObjectId) -> Option<ByteRange> {
        self.raw.get(&id).copied()
    }

    /// The text of a `str` without surrogates, or of a Python-2 `str` in UTF-8;
    /// not of one that was left apart.
    pub fn as_str(&self, id: ObjectId) -> Option<&str> {
        match self.get(id) {
            Object::Str(text) => text.as_str(),
            Object::String8(bytes) => str::from_utf8(bytes.as_bytes()?).ok(),
            _ => None,
        }
    }

    /// The value of an `int` that fits 64 bits; a `bool` is none.
    pub fn as_int(&self, id: ObjectId) -> Option<i64> {
        match *self.get(id) {
            Object::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The items of a `tuple`.
    pub fn as_tuple(&self, id: ObjectId) -> Option<&[ObjectId]> {
        match self.get(id) {
            Object::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// The call that would have made the object.
    pub fn as_call(&self, id: ObjectId) -> Option<&Call> {
        match self.get(id) {
            Object::Call(call) => Some(call),
            _ => None,
        }
    }

    /// Module and name of an import.
    pub fn global(&self, id: ObjectId) -> Option<(&str, &str)> {
        match self.get(id) {
            Object::Global(global) => Some((&global.module, &global.name)),
            _ => None,
        }
    }

    /// The items of a dict, or those set in the result of a call, as a Python
    /// dict would hold them: a repeated key keeps its place and takes the last
    /// value. Keys that are scalars are compared by value, others and those left
    /// apart by identity.
    ///
    /// Empty for any other object.
    pub fn entries(&self, id: ObjectId) -> Vec<(ObjectId, ObjectId)> {
        let written = match self.get(id) {
            Object::Dict(items) => items,
            Object::Call(call) => &call.items,
            _ => return Vec::new(),
        };
        self.last_of_each_key(written)
    }

    /// What a Python dict would hold after these items were set one after the
    /// other, as [`Objects::entries`] has it.
    pub fn last_of_each_key(&self, written: &[(ObjectId, ObjectId)]) -> Vec<(ObjectId, ObjectId)> {
        let mut places = HashMap::with_capacity(written.len());
        let mut entries: Vec<(ObjectId, ObjectId)> = Vec::with_capacity(written.len());
        for &(key, value) in written {
            let place = *places.entry(self.key(key)).or_insert(entries.len());
            match entries.get_mut(place) {
                Some(entry) => entry.1 = value,
                None => entries.push((key, value)),
            }
        }
        entries
    }

    fn key(&self, id: ObjectId) -> DictKey<'_> {
        /// The floats that an `i64` can hold: from -2^63 to below 2^63.
        const INT: Range<f64> = i64::MIN as f64..-(i64::MIN as f64);
        match self.get(id) {
            Object::Bool(value) => DictKey::Int(i64::from(*value)),
            Object::Int(value) => DictKey::Int(*value),
            Object::BigInt(bytes) => DictKey::BigInt(bytes),
            Object::Float(value) if INT.contains(value) && value.fract() == 0.0 => {
                DictKey::Int(*value as i64)
            }
            Object::Float(value) if !value.is_nan() => DictKey::Float(value.to_bits()),
            Object::Str(text) => text.as_bytes().map_or(DictKey::Identity(id), DictKey::Text),
            Object::String8(bytes) => bytes
                .as_bytes()
                .map_or(DictKey::Identity(id), DictKey::Text),
            Object::Bytes(bytes) => bytes
                .as_bytes()
                .map_or(DictKey::Identity(id), DictKey::Bytes),
            _ => DictKey::Identity(id),
        }
    }
}

/// What makes two dict keys the same key.
#[derive(PartialEq, Eq, Hash)]
enum DictKey<'p> {
    /// An integer, a bool or a float without a fraction: `1 == True == 1.0`.
    Int(i64),
    BigInt(&'p [u8]),
    Float(u64),
    Text(&'p [u8]),
    Bytes(&'p [u8]),
    Identity(ObjectId),
}
