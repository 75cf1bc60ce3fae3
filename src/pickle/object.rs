//! The objects a pickle describes, as inert data.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Names one object of a [`Pickle`](super::Pickle). Two places that share an
/// object in Python hold equal ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(NonZeroU32);

impl ObjectId {
    /// The id of the object at `index` of the arena; `None` beyond 2^32 - 2.
    pub(super) fn from_index(index: usize) -> Option<ObjectId> {
        let number = u32::try_from(index).ok()?.checked_add(1)?;
        NonZeroU32::new(number).map(ObjectId)
    }

    pub(super) fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Most of the memory of a pickle is objects.
const _: () = assert!(size_of::<Object>() <= 32);

/// One object. What it contains is named by id; cycles are possible.
#[derive(Debug, Clone)]
pub enum Object<'a> {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// An `int` that fits 64 bits.
    Int(i64),
    /// Any other `int`: little-endian two's complement, as short as possible,
    /// so 9 bytes at least.
    BigInt(Cow<'a, [u8]>),
    /// A `float`.
    Float(f64),
    /// A `str`.
    Str(Str<'a>),
    /// A Python-2 `str`: bytes in an encoding the reader has to know.
    String8(Payload<'a>),
    /// A `bytes`.
    Bytes(Payload<'a>),
    /// A `bytearray`.
    ByteArray(Payload<'a>),
    /// A `tuple`.
    Tuple(Box<[ObjectId]>),
    /// A `list`.
    List(Vec<ObjectId>),
    /// A `dict` as it was written: keys may repeat, see
    /// [`Pickle::entries`](super::Pickle::entries).
    Dict(Vec<(ObjectId, ObjectId)>),
    /// A `set` as it was written: members may repeat.
    Set(Vec<ObjectId>),
    /// A `frozenset` as it was written: members may repeat.
    FrozenSet(Box<[ObjectId]>),
    /// A name the pickle imports. There is one object for each pair.
    Global(Box<Global>),
    /// What a call would have made.
    Call(Box<Call>),
    /// An object that the reader has to supply.
    Persistent(PersistentId<'a>),
}

impl Object<'_> {
    /// Adds what the object holds to `pending`, callables included.
    pub fn push_children(&self, pending: &mut Vec<ObjectId>) {
        match self {
            Object::Tuple(items) | Object::FrozenSet(items) => pending.extend(items.iter()),
            Object::List(items) | Object::Set(items) => pending.extend(items),
            Object::Dict(entries) => {
                pending.extend(entries.iter().flat_map(|(key, value)| [*key, *value]));
            }
            Object::Call(call) => {
                pending.extend([call.callable, call.args]);
                pending.extend(call.kwargs);
                pending.extend(&call.state);
                pending.extend(&call.appended);
                pending.extend(call.items.iter().flat_map(|(key, value)| [*key, *value]));
            }
            _ => {}
        }
    }

    /// The type in the words of an error.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Object::None => "None",
            Object::Bool(_) => "a bool",
            Object::Int(_) | Object::BigInt(_) => "an int",
            Object::Float(_) => "a float",
            Object::Str(_) => "a str",
            Object::String8(_) => "a Python-2 str",
            Object::Bytes(_) => "bytes",
            Object::ByteArray(_) => "a bytearray",
            Object::Tuple(_) => "a tuple",
            Object::List(_) => "a list",
            Object::Dict(_) => "a dict",
            Object::Set(_) => "a set",
            Object::FrozenSet(_) => "a frozenset",
            Object::Global(_) => "a global",
            Object::Call(_) => "the result of a call",
            Object::Persistent(_) => "a persistent object",
        }
    }

    /// Bytes of memory besides those of the enum, about.
    pub(super) fn heap(&self) -> usize {
        /// What an allocator adds.
        const ALLOCATION: usize = 16;
        let bytes = match self {
            Object::BigInt(Cow::Owned(bytes)) => bytes.capacity(),
            Object::Str(Str::Utf8(Cow::Owned(text))) => text.capacity(),
            Object::Str(Str::Surrogates(Cow::Owned(bytes))) => bytes.capacity(),
            Object::String8(Payload::Here(Cow::Owned(bytes))) => bytes.capacity(),
            Object::Tuple(items) | Object::FrozenSet(items) => size_of_val::<[_]>(items),
            Object::List(items) | Object::Set(items) => items.capacity() * size_of::<ObjectId>(),
            Object::Dict(items) => items.capacity() * size_of::<(ObjectId, ObjectId)>(),
            Object::Call(_) => size_of::<Call>(),
            _ => 0,
        };
        match bytes {
            0 => 0,
            bytes => bytes + ALLOCATION,
        }
    }
}

/// A name in a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// The module, as written: no Python-2 name is translated.
    pub module: Arc<str>,
    /// The name in that module; may be dotted.
    pub name: Arc<str>,
}

/// A run of bytes in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// In memory.
    Here(Cow<'a, [u8]>),
    /// Not read: longer than [`Limits::apart`](super::Limits::apart) in a pickle
    /// read through a [`Window`](super::Window).
    Apart(ByteRange),
}

impl Payload<'_> {
    /// Bytes.
    pub fn len(&self) -> u64 {
        match self {
            Payload::Here(bytes) => bytes.len() as u64,
            Payload::Apart(span) => span.len,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes; `None` when they were left apart.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Payload::Here(bytes) => Some(bytes),
            Payload::Apart(_) => None,
        }
    }
}

/// A Python `str`, which may hold lone surrogates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Str<'a> {
    /// Unicode text.
    Utf8(Cow<'a, str>),
    /// Text with surrogates, each as the three bytes that Python's
    /// `surrogatepass` writes; pairs are not joined, as in Python.
    Surrogates(Cow<'a, [u8]>),
    /// Text that was not read, see [`Payload::Apart`]. Whether these bytes are
    /// UTF-8 has not been looked at.
    Apart(ByteRange),
}

impl<'a> Str<'a> {
    /// Text in UTF-8 with `surrogatepass`; `None` for other bytes.
    pub(super) fn from_utf8(bytes: &'a [u8]) -> Option<Str<'a>> {
        if let Ok(text) = str::from_utf8(bytes) {
            return Some(Str::Utf8(Cow::Borrowed(text)));
        }
        let mut rest = bytes;
        while let Err(error) = str::from_utf8(rest) {
            rest = match &rest[error.valid_up_to()..] {
                [0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..] => rest,
                _ => return None,
            };
        }
        Some(Str::Surrogates(Cow::Borrowed(bytes)))
    }

    /// The text; `None` when it holds surrogates or was left apart.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Str::Utf8(text) => Some(text),
            Str::Surrogates(_) | Str::Apart(_) => None,
        }
    }

    /// The text in UTF-8, surrogates as `surrogatepass` writes them; `None`
    /// when it was left apart.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Str::Utf8(text) => Some(text.as_bytes()),
            Str::Surrogates(bytes) => Some(bytes),
            Str::Apart(_) => None,
        }
    }
}

/// What a persistent object is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistentId<'a> {
    /// A line of ASCII (PERSID).
    Text(&'a str),
    /// An object, in torch a tuple (BINPERSID).
    Object(ObjectId),
}

/// A call that was written down and not made, and what was then done to its
/// result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The opcode.
    pub kind: CallKind,
    /// What would be called: a global, a persistent object or another call.
    pub callable: ObjectId,
    /// Positional arguments, always a tuple.
    pub args: ObjectId,
    /// Named arguments, always a dict (NEWOBJ_EX only).
    pub kwargs: Option<ObjectId>,
    /// States given to it (BUILD), first to last.
    pub state: Vec<ObjectId>,
    /// Objects appended or added to it (APPEND, APPENDS, ADDITEMS).
    pub appended: Vec<ObjectId>,
    /// Items set in it (SETITEM, SETITEMS).
    pub items: Vec<(ObjectId, ObjectId)>,
}

/// How a [`Call`] was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallKind {
    /// REDUCE: `callable(*args)`.
    Reduce,
    /// NEWOBJ: `callable.__new__(callable, *args)`.
    NewObj,
    /// NEWOBJ_EX: `callable.__new__(callable, *args, **kwargs)`.
    NewObjEx,
    /// INST: an instance of a class named in a line.
    Inst,
    /// OBJ: an instance of a class on the stack.
    Obj,
}

/// A name the pickle imports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Import {
    /// Byte offset of the first opcode that imports it, from the start of the
    /// file.
    pub offset: u64,
    /// The module, as written.
    pub module: Arc<str>,
    /// The name in that module; may be dotted.
    pub name: Arc<str>,
}
