//! Dictionaries of several kinds.

use super::map::{Kind, Map, keyed};
use super::torch::{Storages, Torch};
use crate::checkpoint::refusal::{Refusal, malformed};
use crate::pickle::{Call, CallKind, Object, ObjectId};

type Pairs = Vec<(ObjectId, ObjectId)>;

impl<S: Storages> Torch<'_, S> {
    /// An `OrderedDict` or its like.
    pub(super) fn ordered_dict(&self, id: ObjectId, call: &Call) -> Result<Option<Map>, Refusal> {
        let Some(entries) = self.ordered_entries(id, call)? else {
            return Ok(None);
        };
        let attributes = self.attributes(&call.state);
        Ok(Some(Map {
            attributes,
            ..Map::of(Kind::Dictionary, keyed(entries))
        }))
    }

    /// The entries of an `OrderedDict` or its like. Python 2 wrote them as
    /// argument, as a list of two-element lists; Python 3 sets them afterwards.
    fn ordered_entries(&self, id: ObjectId, call: &Call) -> Result<Option<Pairs>, Refusal> {
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

    fn initial_entries(&self, id: ObjectId) -> Result<Pairs, Refusal> {
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

    /// The entries of a plain or ordered dict.
    pub(super) fn group(&self, id: ObjectId) -> Option<Pairs> {
        match self.pickle.get(id) {
            Object::Dict(_) => Some(self.pickle.entries(id)),
            Object::Call(call) => self.ordered_entries(id, call).ok()?,
            _ => None,
        }
    }
}
