//! Objects of any class, by what their pickle gives them: the containers of the
//! standard library, and instances with attributes, items and slots (copyreg.py,
//! object.__reduce_ex__). Their classes are not needed, and never asked.

use super::map::{Entries, Kind, Label, Map, keyed};
use super::meaning::Meaning;
use super::torch::{Storages, Torch};
use crate::pickle::{Call, CallKind, Object, ObjectId};

impl<'p, S: Storages> Torch<'p, S> {
    /// What `call` makes, which is neither a tensor nor a module.
    pub(super) fn instance(&self, call: &'p Call) -> Meaning<'p> {
        let args = self.pickle.as_tuple(call.args).unwrap_or_default();
        let reduced = call.kind == CallKind::Reduce;
        match (self.pickle.global(call.callable), args) {
            (Some(("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple")), args)
            | (Some(("collections", "deque")), args) => self.sequence(call, args),
            (Some(("builtins" | "__builtin__", "dict")), [items]) if reduced => {
                let entries = keyed(self.pickle.entries(*items));
                Meaning::Map(Map::of(Kind::Dictionary, entries))
            }
            // Their `__new__` puts nothing in.
            (Some(("collections", "OrderedDict" | "Counter" | "defaultdict")), _) => Meaning::Other,
            (Some(("functools", "partial")), _) => self.partial(call),
            (Some(("copyreg" | "copy_reg", "_reconstructor")), [_class, _base, base_state]) => {
                self.attributed(call, self.contents(*base_state))
            }
            (Some(("copyreg" | "copy_reg", "__newobj__")), [_class, new @ ..]) => {
                self.attributed(call, self.positional(new))
            }
            (_, new) if call.kind == CallKind::NewObj => {
                self.attributed(call, self.positional(new))
            }
            (_, new) if call.kind == CallKind::NewObjEx => {
                let named = call.kwargs.map(|named| keyed(self.pickle.entries(named)));
                let mut entries = self.positional(new);
                entries.extend(named.unwrap_or_default());
                self.attributed(call, entries)
            }
            // What a function of unknown meaning does to its arguments is not known.
            _ => self.attributed(call, Vec::new()),
        }
    }

    /// `set([...])`, `deque([...], maxlen)`, and what is added later.
    fn sequence(&self, call: &'p Call, args: &[ObjectId]) -> Meaning<'p> {
        let mut items = match (args, call.kind) {
            ([first, ..], CallKind::Reduce) => match self.pickle.get(*first) {
                Object::List(items) => items.clone(),
                Object::Tuple(items) => items.to_vec(),
                _ => return Meaning::Other,
            },
            _ => Vec::new(),
        };
        items.extend(&call.appended);
        let attributes = self.attributes(&call.state);
        if attributes.is_empty() {
            return Meaning::Sequence(items.into());
        }
        let mut entries = indexed(&items);
        entries.extend(attributes);
        Meaning::Map(Map::of(Kind::Object, entries))
    }

    /// `partial(function)`, and the state `(function, arguments, named, attributes)`.
    fn partial(&self, call: &Call) -> Meaning<'p> {
        let [state] = *call.state else {
            return Meaning::Other;
        };
        let Some([function, args, named, attributes]) = self.pickle.as_tuple(state) else {
            return Meaning::Other;
        };
        let mut entries = vec![
            (Label::Name("func"), *function),
            (Label::Name("args"), *args),
            (Label::Name("keywords"), *named),
        ];
        entries.extend(keyed(self.pickle.entries(*attributes)));
        Meaning::Map(Map::of(Kind::Object, entries))
    }

    /// An object with what it was made from, `entries`, and what it was given later.
    fn attributed(&self, call: &Call, mut entries: Entries) -> Meaning<'p> {
        let attributes = self.attributes(&call.state);
        let items = keyed(self.pickle.last_of_each_key(&call.items));
        if entries.is_empty() && call.appended.is_empty() && !items.is_empty() {
            return Meaning::Map(Map {
                attributes,
                ..Map::of(Kind::Dictionary, items)
            });
        }
        entries.extend(indexed(&call.appended));
        entries.extend(items);
        entries.extend(attributes);
        match entries.is_empty() {
            true => Meaning::Other,
            false => Meaning::Map(Map::of(Kind::Object, entries)),
        }
    }

    /// What `__new__` is given: the items of a named tuple, or of a tuple.
    fn positional(&self, args: &[ObjectId]) -> Entries {
        match args {
            [only] => match self.pickle.as_tuple(*only) {
                Some(items) => indexed(items),
                None => indexed(args),
            },
            _ => indexed(args),
        }
    }

    /// The contents of the builtin container that an object of an old pickle is also.
    fn contents(&self, id: ObjectId) -> Entries {
        match self.pickle.get(id) {
            Object::Dict(_) => keyed(self.pickle.entries(id)),
            Object::List(items) | Object::Set(items) => indexed(items),
            Object::Tuple(items) | Object::FrozenSet(items) => indexed(items),
            _ => Vec::new(),
        }
    }

    /// The attributes that an object is given with its states: a dict, slots in the
    /// second half of a pair, or values without names.
    pub(super) fn attributes(&self, states: &[ObjectId]) -> Entries {
        let mut entries = Entries::new();
        for state in states {
            let halves = self.halves(*state);
            match self.pickle.get(*state) {
                Object::None => {}
                _ if halves.iter().all(|half| self.is_attributes(*half)) => {
                    let halves = halves.into_iter();
                    entries.extend(halves.flat_map(|half| keyed(self.pickle.entries(half))));
                }
                Object::Tuple(items) => entries.extend(indexed(items)),
                Object::List(items) => entries.extend(indexed(items)),
                _ => entries.push((Label::Name("state"), *state)),
            }
        }
        entries
    }

    fn is_attributes(&self, half: ObjectId) -> bool {
        matches!(self.pickle.get(half), Object::Dict(_) | Object::None)
    }

    /// The two halves of a state with slots; any other state itself.
    pub(super) fn halves(&self, state: ObjectId) -> Vec<ObjectId> {
        match self.pickle.get(state) {
            Object::Tuple(halves)
                if halves.len() == 2 && halves.iter().all(|half| self.is_attributes(*half)) =>
            {
                halves.to_vec()
            }
            _ => vec![state],
        }
    }
}

fn indexed(items: &[ObjectId]) -> Entries {
    let items = items.iter().enumerate();
    items.map(|(at, item)| (Label::Index(at), *item)).collect()
}
