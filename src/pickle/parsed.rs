//! What reading a pickle gives.

use std::ops::Deref;

use super::object::{Import, Object, ObjectId};
use super::objects::Objects;

/// How far a pickle has been read.
#[derive(Debug)]
pub enum Step<'a> {
    /// BUILD has given a state to this object, the result of a call.
    Built(ObjectId),
    /// The pickle has ended. There is nothing more to resume.
    Done(Pickle<'a>),
}

/// What the stream asked of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Effort {
    /// Opcodes executed.
    pub(super) opcodes: u64,
    /// The most marks that stood on the stack at once.
    pub(super) marks: usize,
    /// How often the top of the stack was put there again. Picklers never do.
    pub(super) copies: u64,
}

/// One pickle: its [`Objects`], which it dereferences to, and the facts of its
/// stream.
#[derive(Debug, Clone)]
pub struct Pickle<'a> {
    pub(super) objects: Objects<'a>,
    pub(super) root: ObjectId,
    pub(super) imports: Vec<Import>,
    pub(super) calls: u64,
    pub(super) discarded: Vec<ObjectId>,
    pub(super) effort: Effort,
    pub(super) end: u64,
}

impl<'a> Deref for Pickle<'a> {
    type Target = Objects<'a>;

    fn deref(&self) -> &Objects<'a> {
        &self.objects
    }
}

impl Pickle<'_> {
    /// The object the pickle is of.
    pub fn root(&self) -> ObjectId {
        self.root
    }

    /// Whether it refers to an object outside of it.
    pub fn has_persistent(&self) -> bool {
        let mut ids = self.objects.ids();
        ids.any(|id| matches!(self.objects.get(id), Object::Persistent(_)))
    }

    /// The offset of what follows its STOP, from the start of the slice or file.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Every distinct import, used or not, in the order of the stream.
    pub fn imports(&self) -> &[Import] {
        &self.imports
    }

    /// Objects that hold others and that the stream dropped. They may be part of its
    /// object all the same; if not, the calls among them were made for what they do.
    pub fn discarded(&self) -> &[ObjectId] {
        &self.discarded
    }

    /// How many calls the pickle makes when it is loaded, used or not.
    pub fn calls(&self) -> u64 {
        self.calls
    }
}
