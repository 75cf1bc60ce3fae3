//! What of a pickle could be weights, and by which rule the rest is left out.

use std::borrow::Cow;
use std::collections::HashSet;

use super::Walk;
use crate::checkpoint::ledger::Rule;
use crate::checkpoint::objects::{GRADIENT, Kind, Label, Map, Meaning, Storages};
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::training;
use crate::checkpoint::weights::{Entry, Picked, Values};
use crate::pickle::{Object, ObjectId, Pickle};

impl<'p, S: Storages> Walk<'_, 'p, S> {
    /// Reports the values that the way to the weights leads past.
    pub(super) fn pass_by(&mut self, picked: &Picked<ObjectId>) -> Result<(), Refusal> {
        if picked.asked {
            return Ok(());
        }
        for beside in &picked.beside {
            self.path.clone_from(&beside.path);
            let key = beside.path.rsplit('.').next().unwrap_or_default();
            let rule = match picked.name.is_some() && key == "string_to_token" {
                true => self.reaches_bytes(beside.value)?.then_some(Rule::Token),
                false => self.rule_beside(key, beside.value)?,
            };
            match rule {
                Some(rule) => self.leave_out(beside.holder, beside.value, rule)?,
                None => self.report_value(beside.value, true)?,
            }
            if rule == Some(Rule::OtherRoot) {
                self.contents.roots.push(beside.path.clone());
            }
        }
        self.path.clear();
        self.passed_roots = self.contents.roots.len();
        Ok(())
    }

    pub(super) fn rule_beside(
        &mut self,
        key: &str,
        value: ObjectId,
    ) -> Result<Option<Rule>, Refusal> {
        if self.is_trainers(key, value)? {
            return Ok(Some(Rule::OptimizerState));
        }
        if !self.reaches_bytes(value)? {
            return Ok(None);
        }
        if training::is_rng_key(key) && self.is_rng(value)? {
            return Ok(Some(Rule::RngState));
        }
        Ok(Some(match self.could_be_weights(value)? {
            true => Rule::OtherRoot,
            false => Rule::OptimizerState,
        }))
    }

    /// Whether the value under `key`, which stands beside weights, is where trainers put
    /// an optimizer's state, whatever that looks like. A module is none.
    fn is_trainers(&mut self, key: &str, value: ObjectId) -> Result<bool, Refusal> {
        if !training::is_optimizer_key(key) {
            return Ok(false);
        }
        let peeked = self.peeked.take();
        let is_one = match self.torch.makes_tensor(value) || self.torch.is_payload(value) {
            true => true,
            false => match self.look(value) {
                Ok(Meaning::Map(map)) => map.kind != Kind::Module,
                Ok(Meaning::Sequence(_)) => true,
                _ => self.reaches_bytes(value)?,
            },
        };
        self.peeked = peeked;
        if is_one && self.could_be_weights(value)? {
            self.unknown_states.push(value);
        }
        Ok(is_one)
    }

    /// Whether tensor bytes hang below the object `id` that are no state of an
    /// optimizer and of no generator.
    pub(super) fn could_be_weights(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        let mut seen = HashSet::new();
        while let Some(id) = pending.pop() {
            if self.inert.contains(id) || !seen.insert(id) {
                continue;
            }
            self.pay(1)?;
            if self.torch.is_payload(id) {
                return Ok(true);
            }
            if training::is_numpy_rng(pickle, id) {
                continue;
            }
            let items = self.torch.items(id);
            let keys = items.iter();
            let keys = keys.map(|(key, _)| pickle.as_str(*key).unwrap_or_default());
            let is_list = |name: &str| {
                let mut entries = items.iter().rev();
                let found = entries.find(|(key, _)| pickle.as_str(*key) == Some(name));
                found.is_some_and(|(_, value)| is_list(pickle, *value))
            };
            if training::is_optimizer(keys.clone(), is_list) {
                continue;
            }
            if training::is_rng_states(keys) && self.is_rng(id)? {
                continue;
            }
            for (key, value) in items {
                let key = pickle.as_str(*key).unwrap_or_default();
                if training::is_rng_key(key) && self.is_rng(*value)? {
                    seen.insert(*value);
                }
            }
            pickle.get(id).push_children(&mut pending);
        }
        Ok(false)
    }

    /// The rule by which the value behind `label` is left out, if one does. `top` when
    /// it stands beside weights, where trainers put theirs, and whether it is an
    /// attribute of a tensor.
    pub(super) fn rule_for(
        &mut self,
        label: &Label,
        value: ObjectId,
        (top, is_tensor): (bool, bool),
    ) -> Result<Option<Rule>, Refusal> {
        let Some(text) = self.text_of(label) else {
            return Ok(None);
        };
        Ok(match &*text {
            GRADIENT | "_grad" if is_tensor => Some(Rule::Gradient),
            key if top && self.is_trainers(key, value)? => Some(Rule::OptimizerState),
            key if training::is_rng_key(key) => self.is_rng(value)?.then_some(Rule::RngState),
            _ => None,
        })
    }

    pub(super) fn is_optimizer(&self, map: &Map) -> bool {
        let pickle = self.torch.pickle();
        let is_list = |name: &str| {
            let mut entries = map.entries.iter();
            let found = entries.find(|(label, _)| match label {
                Label::Key(key) => pickle.as_str(*key) == Some(name),
                Label::Index(_) | Label::Name(_) => false,
            });
            found.is_some_and(|(_, value)| is_list(pickle, *value))
        };
        map.kind != Kind::Module && training::is_optimizer(self.keys_of(map), is_list)
    }

    pub(super) fn is_rng_states(&mut self, id: ObjectId, map: &Map) -> Result<bool, Refusal> {
        let may_be = map.kind == Kind::Dictionary && training::is_rng_states(self.keys_of(map));
        Ok(may_be && self.is_rng(id)?)
    }

    pub(super) fn keys_of<'m>(&self, map: &'m Map) -> impl ExactSizeIterator<Item = &'m str> + Clone
    where
        'p: 'm,
    {
        let pickle = self.torch.pickle();
        map.entries.iter().map(move |(label, _)| match label {
            Label::Key(key) => pickle.as_str(*key).unwrap_or_default(),
            Label::Index(_) | Label::Name(_) => "",
        })
    }

    /// Whether all tensor bytes below `id` are states of generators of random numbers,
    /// and there are some.
    pub(super) fn is_rng(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        let mut found = false;
        let mut seen = HashSet::new();
        while let Some(id) = pending.pop() {
            if !seen.insert(id) {
                continue;
            }
            self.pay(1)?;
            if training::is_numpy_rng(pickle, id) {
                found = true;
            } else if self.torch.is_payload(id) {
                match self.torch.byte_storage(id) {
                    Some(len) if training::is_rng_size(&[len]) => found = true,
                    _ => return Ok(false),
                }
            } else {
                pickle.get(id).push_children(&mut pending);
            }
        }
        Ok(found)
    }
}

impl<'p, S: Storages> Values<'p> for Walk<'_, 'p, S> {
    type Id = ObjectId;

    fn entries(&mut self, id: ObjectId) -> Result<Option<Vec<Entry<'p, ObjectId>>>, Refusal> {
        // What cannot be read is told of when the walk comes to it.
        if self.torch.makes_tensor(id) || self.torch.is_payload(id) {
            return Ok(None);
        }
        let Ok(meaning) = self.look(id) else {
            return Ok(None);
        };
        let entries = match &meaning {
            Meaning::Map(map)
                if map.kind == Kind::Dictionary
                    && !self.is_optimizer(map)
                    && !self.any_reaches_bytes(&map.attributes)? =>
            {
                let entries = map.entries.iter();
                let entries = entries.map(|(label, value)| (self.text_of(label), *value));
                Some(entries.collect())
            }
            _ => None,
        };
        self.peeked = Some((id, meaning));
        Ok(entries)
    }

    fn is_mapping(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let peeked = self.peeked.take();
        let is_mapping = match self.torch.makes_tensor(id) || self.torch.is_payload(id) {
            true => false,
            false => match self.look(id) {
                Ok(Meaning::Map(map)) => map.kind != Kind::Object,
                _ => false,
            },
        };
        self.peeked = peeked;
        Ok(is_mapping)
    }

    fn holds_weights(&mut self, (key, value): &Entry<'p, ObjectId>) -> Result<bool, Refusal> {
        let key = key.as_deref().unwrap_or_default();
        let is_training =
            self.is_trainers(key, *value)? || training::is_rng_key(key) && self.is_rng(*value)?;
        Ok(!is_training && self.could_be_weights(*value)?)
    }

    /// Keys may have dots in them themselves: the longest that fits is taken.
    fn at(&mut self, id: ObjectId, path: &str) -> Result<Option<ObjectId>, Refusal> {
        let mut at = id;
        let mut rest = path;
        while !rest.is_empty() {
            if self.torch.makes_tensor(at) || self.torch.is_payload(at) {
                return Ok(None);
            }
            let tail = |key: &str| match rest.strip_prefix(key)? {
                "" => Some(""),
                tail => tail.strip_prefix('.'),
            };
            let found = match self.look(at)? {
                Meaning::Map(map) => map
                    .entries
                    .into_iter()
                    .chain(map.attributes)
                    .filter_map(|(label, value)| Some((value, tail(&self.text_of(&label)?)?)))
                    .min_by_key(|(_, tail)| tail.len()),
                Meaning::Sequence(items) => {
                    let (index, tail) = rest.split_once('.').unwrap_or((rest, ""));
                    let item = index.parse().ok().and_then(|index: usize| items.get(index));
                    item.map(|item| (*item, tail))
                }
                _ => None,
            };
            match found {
                Some(found) => (at, rest) = found,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn text(&self, id: ObjectId) -> Option<Cow<'p, str>> {
        self.torch.pickle().as_str(id).map(Cow::Borrowed)
    }

    fn only_tensor(&mut self, id: ObjectId) -> Result<Option<ObjectId>, Refusal> {
        let peeked = self.peeked.take();
        let found = match self.look(id) {
            Ok(Meaning::Map(map)) if map.kind != Kind::Object => match *map.entries {
                [(_, only)] if self.torch.makes_tensor(only) => Some(only),
                _ => None,
            },
            _ => None,
        };
        self.peeked = peeked;
        Ok(found)
    }
}

fn is_list(pickle: &Pickle, id: ObjectId) -> bool {
    matches!(pickle.get(id), Object::List(_) | Object::Tuple(_))
}
