//! Dictionaries of several kinds, and modules, which are dictionaries to
//! whoever saves their state.

use super::torch::{Storages, Torch};
use crate::checkpoint::refusal::{Refusal, malformed};
use crate::pickle::{Call, CallKind, Object, ObjectId};

type Pairs = Vec<(ObjectId, ObjectId)>;

impl<S: Storages> Torch<'_, S> {
    /// The entries of an `OrderedDict` or its like. Python 2 wrote them as
    /// argument, as a list of two-element lists; Python 3 sets them afterwards.
    pub(super) fn ordered_dict(
        &self,
        id: ObjectId,
        call: &Call,
    ) -> Result<Option<Vec<(ObjectId, ObjectId)>>, Refusal> {
        let Some(("collections", name)) = self.pickle.global(call.callable) else {
            return Ok(None);
        };
        let args = self.pickle.as_tuple(call.args).unwrap_or_default();
        // `__new__` takes arguments, but puts nothing in.
        let new = matches!(call.kind, CallKind::NewObj | CallKind::NewObjEx);
        let mut entries = match (name, args) {
            _ if !call.appended.is_empty() => return Ok(None),
            ("OrderedDict" | "Counter" | "defaultdict", []) => Vec::new(),
            ("defaultdict", [_factory]) => Vec::new(),
            ("OrderedDict" | "Counter", [initial]) if !new => self.initial_entries(*initial)?,
            _ => return Ok(None),
        };
        entries.extend(self.pickle.entries(id));
        Ok(Some(self.pickle.last_of_each_key(&entries)))
    }

    fn initial_entries(&self, id: ObjectId) -> Result<Vec<(ObjectId, ObjectId)>, Refusal> {
        match self.pickle.get(id) {
            Object::Dict(_) => Ok(self.pickle.entries(id)),
            Object::List(items) => items
                .iter()
                .map(|item| self.pair(*item))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    malformed("an OrderedDict is made from something that is no list of pairs")
                }),
            _ => Err(malformed(
                "an OrderedDict is made from something that is no list of pairs",
            )),
        }
    }

    /// The two objects of a tuple or list of two.
    pub(super) fn pair(&self, id: ObjectId) -> Option<(ObjectId, ObjectId)> {
        let items: &[ObjectId] = match self.pickle.get(id) {
            Object::List(items) => items,
            Object::Tuple(items) => items,
            _ => return None,
        };
        match items {
            [first, second] => Some((*first, *second)),
            _ => None,
        }
    }

    /// What `state_dict()` of a module would be, compiled or pickled.
    pub(super) fn module(&mut self, call: &Call) -> Result<Option<Pairs>, Refusal> {
        Ok(match self.classes.state(self.pickle, call)? {
            Some(entries) => Some(entries),
            None => self.pickled_module(call),
        })
    }

    /// What `state_dict()` of a pickled module would be: its parameters, its
    /// buffers but for those that are not to be saved, then its submodules
    /// (torch/nn/modules/module.py, `_save_to_state_dict`). A module is known by
    /// its attributes: its class may be anybody's.
    fn pickled_module(&self, call: &Call) -> Option<Pairs> {
        // Attributes by name; slots come as the second half of a pair.
        let mut attributes = Pairs::new();
        for state in &call.state {
            match self.pickle.get(*state) {
                Object::Dict(items) => attributes.extend(items),
                Object::Tuple(halves) => {
                    for half in halves {
                        attributes.extend(self.pickle.entries(*half));
                    }
                }
                _ => return None,
            }
        }
        let attribute = |name| {
            let mut found = attributes.iter().rev();
            found.find_map(|(key, value)| self.is_text(*key, name).then_some(*value))
        };
        let group = |name| self.group(attribute(name)?);
        let parameters = group("_parameters")?;
        let submodules = group("_modules")?;
        let mut buffers = group("_buffers").unwrap_or_default();
        if let Some(unsaved) = attribute("_non_persistent_buffers_set") {
            let unsaved = self.members(unsaved);
            let is_saved = |key: ObjectId| {
                let text = self.pickle.as_str(key);
                !unsaved.iter().any(|name| self.pickle.as_str(*name) == text)
            };
            buffers.retain(|(key, _)| is_saved(*key));
        }
        let mut entries = parameters;
        entries.extend(buffers);
        entries.extend(submodules);
        entries.retain(|(_, value)| !matches!(self.pickle.get(*value), Object::None));
        Some(entries)
    }

    /// The entries of a plain or ordered dict.
    fn group(&self, id: ObjectId) -> Option<Pairs> {
        match self.pickle.get(id) {
            Object::Dict(_) => Some(self.pickle.entries(id)),
            Object::Call(call) => self.ordered_dict(id, call).ok()?,
            _ => None,
        }
    }

    /// The members of a set, in whatever way it was written.
    fn members(&self, id: ObjectId) -> Vec<ObjectId> {
        match self.pickle.get(id) {
            Object::Set(items) | Object::List(items) => items.clone(),
            Object::FrozenSet(items) | Object::Tuple(items) => items.to_vec(),
            // `set([...])`, which protocols before 4 write.
            Object::Call(call) => {
                let mut members = call.appended.clone();
                for argument in self.pickle.as_tuple(call.args).unwrap_or_default() {
                    if let Object::List(items) = self.pickle.get(*argument) {
                        members.extend(items);
                    }
                }
                members
            }
            _ => Vec::new(),
        }
    }
}
