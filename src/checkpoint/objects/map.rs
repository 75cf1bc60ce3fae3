//! Objects that hold others under names: dictionaries, modules, and objects with
//! attributes.

use crate::pickle::ObjectId;

/// Values by name, in order, each name once.
pub type Entries = Vec<(Label, ObjectId)>;

/// What a value is called in the object that holds it.
#[derive(Clone, Copy, Debug)]
pub enum Label {
    /// What this object says.
    Key(ObjectId),
    Index(usize),
    Name(&'static str),
}

/// An object that holds values by name.
pub struct Map {
    pub kind: Kind,
    /// The keys of a dictionary, what the `state_dict()` of a module lists, the
    /// attributes of any other object.
    pub entries: Entries,
    /// The attributes that a dictionary or a module has besides.
    pub attributes: Entries,
    /// The buffers of a module that are not to be saved.
    pub unsaved: Entries,
    /// The dict that holds its buffers.
    pub buffers: Option<ObjectId>,
    /// Numbers that the `state_dict()` of a module lists as tensors.
    pub numbers: Entries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dictionary,
    Module,
    Object,
}

impl Map {
    pub(super) fn of(kind: Kind, entries: Entries) -> Map {
        Map {
            kind,
            entries,
            attributes: Vec::new(),
            unsaved: Vec::new(),
            buffers: None,
            numbers: Vec::new(),
        }
    }
}

/// Values by the keys of a dict.
pub(super) fn keyed(pairs: Vec<(ObjectId, ObjectId)>) -> Entries {
    let pairs = pairs.into_iter();
    pairs.map(|(key, value)| (Label::Key(key), value)).collect()
}
