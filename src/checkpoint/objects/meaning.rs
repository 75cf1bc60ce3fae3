//! What an object of a pickle is: a tensor, something that holds others under
//! names, or neither.

use std::borrow::Cow;

use super::array::maker;
use super::map::{Entries, Kind, Map, keyed};
use super::paddle;
use super::torch::{Composed, Storages, Torch};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::refusal::Refusal;
use crate::pickle::{Call, Object, ObjectId};

/// What an object is.
pub enum Meaning<'p> {
    /// A tensor, and the attributes that its object is given besides.
    Tensor(Layout, Entries),
    /// Something that safetensors says with several tensors, or in another type.
    Composed(Composed),
    /// Values by name.
    Map(Map),
    /// A list, tuple or set.
    Sequence(Cow<'p, [ObjectId]>),
    /// Anything else.
    Other,
}

impl<'p, S: Storages> Torch<'p, S> {
    /// What the object `id` is. An error when it is a tensor that cannot be
    /// read.
    pub fn meaning(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        Ok(match self.pickle.get(id) {
            Object::Dict(_) => match self.whole_parameter(id) {
                Some(layout) => Meaning::Tensor(layout, Vec::new()),
                None => {
                    let entries = self.pickle.entries(id);
                    let entries = keyed(self.with_whole_parameters(entries)?);
                    Meaning::Map(Map::of(Kind::Dictionary, entries))
                }
            },
            Object::List(items) | Object::Set(items) => Meaning::Sequence(items.as_slice().into()),
            Object::Tuple(items) | Object::FrozenSet(items) => Meaning::Sequence((&**items).into()),
            Object::Call(call) => self.made(id, call)?,
            Object::Persistent(persistent) => match self.persistent_tensor(persistent)? {
                Some(layout) => Meaning::Tensor(layout, Vec::new()),
                None => Meaning::Other,
            },
            _ => Meaning::Other,
        })
    }

    /// What `call` makes, which is the object `id`.
    fn made(&mut self, id: ObjectId, call: &'p Call) -> Result<Meaning<'p>, Refusal> {
        if let Some(map) = self.ordered_dict(id, call)? {
            return Ok(Meaning::Map(map));
        }
        if let Some(map) = self.module(call)? {
            return Ok(Meaning::Map(map));
        }
        if let Some(array) = self.array(id, call)? {
            return Ok(array);
        }
        match self.tensor(call)? {
            Meaning::Other => match self.script_object(call)? {
                Some(packed) => Ok(packed),
                None => Ok(self.instance(call)),
            },
            tensor => Ok(tensor),
        }
    }

    /// The array that `id`, a call, makes, or that is wrapped by it.
    fn array(&mut self, id: ObjectId, call: &'p Call) -> Result<Option<Meaning<'p>>, Refusal> {
        let Some(array) = self.array_of(id, call) else {
            return Ok(None);
        };
        Ok(Some(match self.array_layout(array)? {
            Some(layout) => Meaning::Tensor(layout, Vec::new()),
            None => Meaning::Other,
        }))
    }

    /// The object that is the array which `id`, a call, makes or wraps.
    pub(super) fn array_of(&self, id: ObjectId, call: &Call) -> Option<ObjectId> {
        let pickle = self.pickle;
        match pickle.global(call.callable) {
            _ if maker(pickle, call).is_some() => Some(id),
            Some(("builtins" | "__builtin__", "eval")) => paddle::evaluated(pickle, call),
            Some(("builtins" | "__builtin__", "tuple")) => self.named(call),
            _ => None,
        }
    }

    /// What [`Torch::meaning`] costs: the values that the object `id` is written
    /// with, and the bytes of text among its keys.
    pub fn cost(&self, id: ObjectId) -> (usize, usize) {
        let keys =
            |items: &[(ObjectId, ObjectId)]| items.iter().map(|(key, _)| self.text_len(*key)).sum();
        let (values, text): (usize, usize) = match self.pickle.get(id) {
            Object::Dict(items) => (items.len(), keys(items)),
            Object::List(items) | Object::Set(items) => (items.len(), 0),
            Object::Tuple(items) | Object::FrozenSet(items) => (items.len(), 0),
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
                    Some(Object::Tuple(items)) => (items.len(), 0),
                    _ => (0, 0),
                };
                // Slots come in the halves of a pair, and a module's groups are among
                // its attributes.
                let states = call.state.iter().flat_map(|state| self.halves(*state));
                let states = states.map(|half| {
                    let items = self.items(half);
                    let groups = items.iter().map(|(_, value)| 1 + self.items(*value).len());
                    let sequence = match self.pickle.get(half) {
                        Object::List(items) => items.len(),
                        Object::Tuple(items) => items.len(),
                        _ => 0,
                    };
                    (groups.sum::<usize>() + sequence, keys(items))
                });
                let (of_states, text_of_states) = states.fold((0, 0), |sum: (usize, usize), of| {
                    (sum.0 + of.0, sum.1 + of.1)
                });
                let values = values + of_states + args.len() + call.appended.len();
                (
                    values + call.items.len(),
                    text + text_of_states + keys(&call.items),
                )
            }
            _ => (0, 0),
        };
        (values + 1, text)
    }
}
