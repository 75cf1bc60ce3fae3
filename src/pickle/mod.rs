//! Pickle bytes become inert objects.
//!
//! [`parse`] runs the stack machine of pickle protocols 0 to 5 and keeps what
//! it makes in an arena, where objects name each other by [`ObjectId`]. An
//! import stays a pair of names and a call stays a [`Call`]: nothing is
//! resolved, imported or called. This layer knows nothing of torch.
//!
//! The input may be hostile. Every length is compared with the bytes left
//! before it is used, payloads are borrowed from the input, an object is never
//! copied, and [`Limits`] bounds the rest. Cycles are legal in a pickle: a
//! reader of the arena has to expect them, and any depth of nesting.
//!
//! # Which pickles are accepted
//!
//! Those that `pickle.loads` of CPython accepts, when every import and every
//! call in them succeeds, except for the following, which no pickler writes:
//!
//! * FRAME is enforced: its length fits the input, it ends where an opcode
//!   ends, the next frame does not begin before, and STOP is the last opcode
//!   in it. CPython's three readers (C from bytes, C from a file, Python) each
//!   check another part of this, and so see different pickles in one input.
//! * EXT1, EXT2 and EXT4 (the extension registry is state of a process) and
//!   NEXT_BUFFER and READONLY_BUFFER (the buffers are not in the file) are
//!   refused.
//! * An opcode that changes an object wants an object made for it: APPEND and
//!   APPENDS a list, ADDITEMS a set, SETITEM and SETITEMS a dict, each of them
//!   and BUILD the result of a call, even where there is nothing to add.
//!   CPython would also set items of a list or append to a bytearray.
//! * Text integers are those that both of CPython's unpicklers read alike: no
//!   C octals (`010`), no NUL in the line. Imports are valid Unicode, and
//!   valid UTF-8 where Python-2 strings name them.
//! * The bounds of [`Limits`].
//!
//! The other way round, what the stack holds at STOP besides the root is
//! ignored, marks included, as in CPython; Python-2 strings
//! ([`Object::String8`]) are kept in whatever encoding they are; and what an
//! unknown call makes is taken to be callable, hashable and of any container's
//! interface.

mod error;
mod integer;
mod limits;
mod machine;
mod memo;
mod object;
mod opcode;
mod reader;
mod text;

use std::collections::HashMap;
use std::ops::Range;

pub use error::{Error, ErrorKind};
pub use limits::Limits;
pub use object::{Call, CallKind, Import, Object, ObjectId, PersistentId, Str};

/// Reads the first pickle in `input` and stops after its STOP.
///
/// # Errors
///
/// The first opcode that cannot be executed, see [`Error`].
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Pickle<'a>, Error> {
    machine::Machine::new(input, limits).run()
}

/// Whether `byte` is an opcode of protocols 0 to 5.
pub fn is_opcode(byte: u8) -> bool {
    opcode::Opcode::from_byte(byte).is_some()
}

/// The objects of one pickle.
#[derive(Debug, Clone)]
pub struct Pickle<'a> {
    objects: Vec<Object<'a>>,
    root: ObjectId,
    imports: Vec<Import>,
    calls: u64,
    end: usize,
}

impl<'a> Pickle<'a> {
    /// The object the pickle is of.
    pub fn root(&self) -> ObjectId {
        self.root
    }

    /// The object with this id, which has to come from this pickle.
    pub fn get(&self, id: ObjectId) -> &Object<'a> {
        &self.objects[id.index()]
    }

    /// Every object, in the order they were made.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> {
        (0..self.objects.len()).filter_map(ObjectId::from_index)
    }

    /// Bytes read, STOP included: the offset of what follows.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Every distinct import, used or not, in the order of the stream.
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// How many calls the pickle makes when it is loaded, used or not.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The text of a `str` without surrogates, or of a Python-2 `str` in UTF-8.
    pub fn as_str(&self, id: ObjectId) -> Option<&str> {
        match self.get(id) {
            Object::Str(text) => text.as_str(),
            Object::String8(bytes) => str::from_utf8(bytes).ok(),
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
            Object::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// The items of a dict, or those set in the result of a call, as a Python
    /// dict would hold them: a repeated key keeps its place and takes the last
    /// value. Keys that are scalars are compared by value, others by identity.
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
    /// other, as [`Pickle::entries`] has it.
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

    fn key(&self, id: ObjectId) -> Key<'_> {
        /// The floats that an `i64` can hold: from -2^63 to below 2^63.
        const INT: Range<f64> = i64::MIN as f64..-(i64::MIN as f64);
        match self.get(id) {
            Object::Bool(value) => Key::Int(i64::from(*value)),
            Object::Int(value) => Key::Int(*value),
            Object::BigInt(bytes) => Key::BigInt(bytes),
            Object::Float(value) if INT.contains(value) && value.fract() == 0.0 => {
                Key::Int(*value as i64)
            }
            Object::Float(value) if !value.is_nan() => Key::Float(value.to_bits()),
            Object::Str(text) => Key::Text(text.as_bytes()),
            Object::String8(bytes) => Key::Text(bytes),
            Object::Bytes(bytes) => Key::Bytes(bytes),
            _ => Key::Identity(id),
        }
    }
}

/// What makes two dict keys the same key.
#[derive(PartialEq, Eq, Hash)]
enum Key<'p> {
    /// An integer, a bool or a float without a fraction: `1 == True == 1.0`.
    Int(i64),
    BigInt(&'p [u8]),
    Float(u64),
    Text(&'p [u8]),
    Bytes(&'p [u8]),
    Identity(ObjectId),
}
