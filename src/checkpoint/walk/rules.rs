//! What of a pickle could be weights, and by which rule the rest is left out.

use std::borrow::Cow;
use std::collections::HashSet;

use super::Walk;
use crate::checkpoint::ledger::Rule;
use crate::checkpoint::objects::{GRADIENT, Kind, Label, Map, Meaning, Storages};
use crate::checkpoint::refusal::Refusal;
use crate::checkpoint::training::{self, Behind, Optimizer};
use crate::checkpoint::weights::{Entry, Picked, Values};
use crate::pickle::{Object, ObjectId};

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
                false => self.rule_beside(beside.holder, key, beside.value)?,
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
        holder: ObjectId,
        key: &str,
        value: ObjectId,
    ) -> Result<Option<Rule>, Refusal> {
        if holder == self.top && self.is_trainers(key, value)? {
            return Ok(Some(Rule::OptimizerState));
        }
        if !self.reaches_bytes(value)? {
            return Ok(None);
        }
        if training::is_rng_key(key) && self.is_rng(value)? {
            return Ok(Some(Rule::RngState));
        }
        Ok(Some(if self.could_be_weights(value)? {
            Rule::OtherRoot
        } else if self.is_rng(value)? {
            Rule::RngState
        } else {
            Rule::OptimizerState
        }))
    }

    /// Whether the value under `key`, which stands at the top of the file, is where
    /// trainers put an optimizer's state, whatever that looks like. A module is none.
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
            let items = self.torch.items(id);
            self.pay(1 + items.len())?;
            if self.torch.is_payload(id) {
                return Ok(true);
            }
            if self.is_generator(id)? {
                continue;
            }
            let keys = items.iter();
            let keys = keys.map(|(key, _)| pickle.as_str(*key).unwrap_or_default());
            if training::is_rng_states(keys.clone())
                && self.has_cpu_state(items)?
                && self.is_rng(id)?
            {
                continue;
            }
            let form = Optimizer::of(keys, |name| {
                let mut entries = items.iter().rev();
                let found = entries.find(|(key, _)| pickle.as_str(*key) == Some(name));
                found.map_or(Behind::Nothing, |(_, value)| self.behind(*value))
            });
            for (key, value) in items {
                let key = pickle.as_str(*key).unwrap_or_default();
                let is_slot = form.is_some_and(|form| form.has(key));
                if is_slot || training::is_rng_key(key) && self.is_rng(*value)? {
                    seen.insert(*value);
                }
            }
            pickle.get(id).push_children(&mut pending);
        }
        Ok(false)
    }

    /// The rule by which the value behind `label` is left out, if one does. `top` when
    /// it stands at the top of the file, where trainers put theirs, and whether it is an
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

    /// The form of optimizer's state that a mapping is of, if it is one.
    pub(super) fn optimizer(&self, map: &Map) -> Option<Optimizer> {
        if map.kind == Kind::Module {
            return None;
        }
        let pickle = self.torch.pickle();
        Optimizer::of(self.keys_of(map), |name| {
            let mut entries = map.entries.iter();
            let found = entries.find(|(label, _)| match label {
                Label::Key(key) => pickle.as_str(*key) == Some(name),
                Label::Index(_) | Label::Name(_) => false,
            });
            found.map_or(Behind::Nothing, |(_, value)| self.behind(*value))
        })
    }

    fn behind(&self, id: ObjectId) -> Behind {
        /// Values that stand for all.
        const SOME: usize = 8;
        let pickle = self.torch.pickle();
        let is_container = |id: ObjectId| {
            let is_tensor = self.torch.makes_tensor(id) || self.torch.is_payload(id);
            let may_be = matches!(pickle.get(id), Object::Dict(_) | Object::Call(_));
            may_be && !is_tensor
        };
        let are_containers =
            |items: &[ObjectId]| items.iter().take(SOME).all(|id| is_container(*id));
        match pickle.get(id) {
            Object::List(items) if are_containers(items) => Behind::List,
            Object::Tuple(items) if are_containers(items) => Behind::List,
            Object::Dict(_) | Object::Call(_) if is_container(id) => {
                let mut items = self.torch.items(id).iter().take(SOME);
                match items.all(|(_, value)| is_container(*value)) {
                    true => Behind::Mapping,
                    false => Behind::Other,
                }
            }
            _ => Behind::Other,
        }
    }

    pub(super) fn is_rng_states(&mut self, id: ObjectId, map: &Map) -> Result<bool, Refusal> {
        let may_be = map.kind == Kind::Dictionary && training::is_rng_states(self.keys_of(map));
        let items = self.torch.items(id);
        Ok(may_be && self.has_cpu_state(items)? && self.is_rng(id)?)
    }

    /// Whether the state of torch's own generator is among the values.
    fn has_cpu_state(&mut self, items: &[(ObjectId, ObjectId)]) -> Result<bool, Refusal> {
        const LEN: u64 = 5056;
        let pickle = self.torch.pickle();
        let mut items = items.iter().rev();
        let cpu = items.find(|(key, _)| pickle.as_str(*key) == Some("cpu"));
        Ok(cpu.is_some_and(|(_, value)| self.torch.byte_vector(*value) == Some(LEN)))
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
            self.pay(1 + self.torch.items(id).len())?;
            if self.is_generator(id)? {
                found = true;
            } else if self.torch.makes_tensor(id) || self.torch.is_payload(id) {
                match self.torch.byte_vector(id) {
                    Some(len) if training::is_rng_size(len) => found = true,
                    _ => return Ok(false),
                }
            } else {
                pickle.get(id).push_children(&mut pending);
            }
        }
        Ok(found)
    }

    /// Whether the object is the state of one of numpy's generators,
    /// `("MT19937", keys, position, ...)` or `{"bit_generator": ..., "state": ...}`, or
    /// a generator itself, torch's or numpy's.
    pub(super) fn is_generator(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let is_name = |id: ObjectId| {
            let name = pickle.as_str(id);
            name.is_some_and(training::is_numpy_generator)
        };
        let items: &[ObjectId] = match pickle.get(id) {
            Object::Tuple(items) => items,
            Object::List(items) => items,
            Object::Dict(items) => {
                let is_named = |(key, value): &(ObjectId, ObjectId)| {
                    pickle.as_str(*key) == Some("bit_generator") && is_name(*value)
                };
                let may_be = items.len() <= 8 && items.iter().any(is_named);
                return Ok(may_be && self.has_only_words(id)?);
            }
            Object::Call(call) => {
                return Ok(matches!(
                    pickle.global(call.callable),
                    Some(("numpy.random._pickle", _) | ("torch" | "torch._C", "Generator"))
                ));
            }
            _ => return Ok(false),
        };
        let may_be = matches!(items, [name, _, _, ..] if items.len() <= 8 && is_name(*name));
        Ok(may_be && self.has_only_words(id)?)
    }

    /// Whether there is no tensor below the object, and no array that is longer than
    /// the numbers of a generator.
    fn has_only_words(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            self.pay(1 + self.torch.items(id).len())?;
            if self.torch.is_payload(id) {
                let len = self.torch.payload_len(id);
                if pickle.as_call(id).is_none() || len > training::MT19937_LEN {
                    return Ok(false);
                }
            } else if self.torch.makes_tensor(id) {
                return Ok(false);
            } else {
                pickle.get(id).push_children(&mut pending);
            }
        }
        Ok(true)
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
                    && self.optimizer(map).is_none()
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

    fn holds_weights(
        &mut self,
        (key, value): &Entry<'p, ObjectId>,
        at_top: bool,
    ) -> Result<bool, Refusal> {
        let key = key.as_deref().unwrap_or_default();
        let is_training = at_top && self.is_trainers(key, *value)?
            || training::is_rng_key(key) && self.is_rng(*value)?;
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
