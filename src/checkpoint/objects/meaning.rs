//! What an object of a pickle is to torch: a tensor, something that holds
//! tensors, or neither.

use super::array::maker;
use super::paddle;
use super::torch::{Meaning, Storages, Torch};
use crate::checkpoint::refusal::Refusal;
use crate::pickle::{Call, Object, ObjectId};

impl<'p, S: Storages> Torch<'p, S> {
    /// What the object `id` is. An error when it is a tensor that cannot be
    /// read.
    pub fn meaning(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        Ok(match self.pickle.get(id) {
            Object::Dict(_) => match self.whole_parameter(id) {
                Some(layout) => Meaning::Tensor(layout, Vec::new()),
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
                Some(layout) => Meaning::Tensor(layout, Vec::new()),
                None => Meaning::Other,
            },
            _ => Meaning::Other,
        })
    }

    /// The array that `id`, a call, makes, or that is wrapped by it.
    fn array(&mut self, id: ObjectId, call: &'p Call) -> Result<Option<Meaning<'p>>, Refusal> {
        let pickle = self.pickle;
        let array = match pickle.global(call.callable) {
            _ if maker(pickle, call).is_some() => Some(id),
            Some(("builtins" | "__builtin__", "eval")) => paddle::evaluated(pickle, call),
            Some(("builtins" | "__builtin__", "tuple")) => self.named(call),
            _ => None,
        };
        let Some(array) = array else { return Ok(None) };
        Ok(Some(match self.array_layout(array)? {
            Some(layout) => Meaning::Tensor(layout, Vec::new()),
            None => Meaning::Other,
        }))
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
}
