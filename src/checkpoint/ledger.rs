//! The ledger: what became of every stretch of tensor bytes that a checkpoint refers
//! to. It is served; or left out by a rule that has a name; or the file is refused.
//!
//! Whoever walks a file enters what he serves and what he leaves out. The audit then
//! goes through everything that can be reached, by any way, and knows nothing of what
//! the walk understood: what it finds that was not entered would be lost.

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::describe::describe;
use super::objects::{Storages, Torch};
use super::refusal::{Cause, Refusal, shown, too_large};
use crate::pickle::{CallKind, Marks, Object, ObjectId, Pickle};

/// Losses that a refusal names.
const NAMED: usize = 3;
/// Losses that are looked at for that.
const LOOKED_AT: usize = 64;
/// References to what is left out one by one.
const MAX_LEFT_OUT: usize = 4 << 20;

/// Why tensor bytes are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// What an optimizer keeps of each parameter.
    OptimizerState,
    /// The state of a generator of random numbers.
    RngState,
    /// A buffer of a module that is not to be saved.
    UnsavedBuffer,
    Gradient,
    /// Of a module; its `state_dict()` does not list it.
    Attribute,
    /// A constant of the code of a compiled module.
    Constant,
    /// The number of the token that an embedding stands for.
    Token,
    /// Another value with weights, which can be asked for by its path.
    OtherRoot,
}

impl Rule {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Rule::OptimizerState => "optimizer state",
            Rule::RngState => "RNG state",
            Rule::UnsavedBuffer => "non-persistent buffer",
            Rule::Gradient => "gradient",
            Rule::Attribute => "attribute of a module that is neither parameter nor buffer",
            Rule::Constant => "constant of a module's code",
            Rule::Token => "token of an embedding",
            Rule::OtherRoot => "another set of weights",
        }
    }

    /// Whether what is left out could never be weights, whatever else the file holds.
    pub fn is_no_weights(self) -> bool {
        matches!(self, Rule::OptimizerState | Rule::RngState)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Tensor bytes that are not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Dotted path of the value that holds them.
    pub path: String,
    pub rule: Rule,
    /// Bytes of its tensors, without those that are served too.
    pub bytes: u64,
}

/// What became of the objects of one pickle.
pub struct Ledger {
    /// Tensors that are served, and containers that were walked.
    accounted: Marks,
    /// Values that were left out, by what holds them.
    left_out: HashSet<(ObjectId, ObjectId)>,
    /// What holds any of them.
    holders: Marks,
    /// Values that are left out wherever they stand.
    closed: Marks,
    entries: Vec<(ObjectId, LeftOut)>,
    /// What was looked at to find the holders.
    work: usize,
}

impl Ledger {
    pub fn of(pickle: &Pickle) -> Ledger {
        Ledger {
            accounted: Marks::of(pickle),
            left_out: HashSet::new(),
            holders: Marks::of(pickle),
            closed: Marks::of(pickle),
            entries: Vec::new(),
            work: 0,
        }
    }

    /// Enters a tensor that is served, or a container whose values are walked.
    pub fn account(&mut self, id: ObjectId) {
        self.accounted.insert(id);
    }

    /// Enters that `value` is left out where `container` holds it; not where anything
    /// else does.
    ///
    /// # Errors
    /// There are more than a sound file has.
    pub fn leave_out(
        &mut self,
        pickle: &Pickle,
        container: ObjectId,
        value: ObjectId,
        path: &str,
        rule: Rule,
    ) -> Result<(), Refusal> {
        if self.left_out.contains(&(container, value)) {
            return Ok(());
        }
        let holders = holders(pickle, container, value, &mut self.work);
        for holder in holders {
            self.left_out.insert((holder, value));
            self.holders.insert(holder);
        }
        if self.left_out.len().max(self.work) > MAX_LEFT_OUT {
            return Err(too_large("it has too many values that are no weights"));
        }
        self.enter(value, path, rule);
        Ok(())
    }

    /// Enters that what is below `value` is left out wherever it stands: what it is does
    /// not depend on that.
    pub fn leave_out_everywhere(&mut self, value: ObjectId, path: &str, rule: Rule) {
        self.closed.insert(value);
        self.enter(value, path, rule);
    }

    fn enter(&mut self, value: ObjectId, path: &str, rule: Rule) {
        let entry = LeftOut {
            path: path.to_string(),
            rule,
            bytes: 0,
        };
        self.entries.push((value, entry));
    }

    /// Checks that everything below `root` was entered, and sums up what was left out.
    ///
    /// # Errors
    /// What would be lost.
    pub fn close<S: Storages>(
        mut self,
        torch: &Torch<S>,
        root: ObjectId,
    ) -> Result<Vec<LeftOut>, Refusal> {
        // What a dict was written with is quickly gone through; what it holds takes more.
        let mut roots = vec![root];
        if root == torch.pickle().root() {
            // A call whose result is dropped gives what it has to something else.
            roots.extend(dropped(torch.pickle()));
        }
        if !self.lost(torch, &roots, Look::AsWritten).is_empty() {
            let lost = self.lost(torch, &roots, Look::AsLoaded);
            if !lost.is_empty() {
                return Err(self.refusal(torch.pickle(), &roots, &lost));
            }
        }
        let entries = std::mem::take(&mut self.entries);
        Ok(self.sum_up(torch, entries))
    }

    /// The stretches below `roots` that were not entered: the first one, or all.
    fn lost<S: Storages>(&self, torch: &Torch<S>, roots: &[ObjectId], look: Look) -> Vec<ObjectId> {
        let pickle = torch.pickle();
        let mut lost = Vec::new();
        // Part of an entered tensor is whatever that is made from: it is looked at
        // again where it stands by itself.
        let mut seen = [Marks::of(pickle), Marks::of(pickle)];
        let mut pending: Vec<_> = roots.iter().map(|root| (*root, false)).collect();
        let mut children = Vec::new();
        while let Some((id, is_part)) = pending.pop() {
            if is_scalar(pickle.get(id)) || self.closed.contains(id) {
                continue;
            }
            if !seen[usize::from(is_part)].insert(id) {
                continue;
            }
            let is_entered = is_part || self.accounted.contains(id);
            let makes_tensor = torch.makes_tensor(id);
            let is_tensor = |id| torch.makes_tensor(id) || torch.is_payload(id);
            // A function of unknown meaning may make anything of a tensor, or change it.
            let is_lost = match makes_tensor || torch.is_payload(id) {
                true => !is_entered && !torch.is_read_array(id),
                false => !is_entered && calls_with(pickle, id).iter().any(|arg| is_tensor(*arg)),
            };
            if is_lost {
                lost.push(id);
                match look {
                    Look::AsWritten => return lost,
                    Look::AsLoaded => continue,
                }
            }
            if makes_tensor {
                let parts = torch.parts_of(id);
                pending.extend(parts.of.into_iter().map(|part| (part, true)));
                pending.extend(parts.beside.into_iter().map(|held| (held, false)));
                continue;
            }
            children.clear();
            match look {
                Look::AsWritten => pickle.get(id).push_children(&mut children),
                Look::AsLoaded => push_loaded(pickle, id, &mut children, is_tensor),
            }
            let has_left_out = self.holders.contains(id);
            let wanted = children.iter().filter(|child| {
                let is_left_out = || self.left_out.contains(&(id, **child));
                !(has_left_out && is_left_out())
            });
            pending.extend(wanted.map(|child| (*child, false)));
        }
        lost
    }

    /// Says what would be lost: the objects that hold it, which were not walked.
    fn refusal(&self, pickle: &Pickle, roots: &[ObjectId], lost: &[ObjectId]) -> Refusal {
        let parents = self.parents(pickle, roots);
        let mut named: Vec<(String, String)> = Vec::new();
        for id in lost.iter().take(LOOKED_AT) {
            let mut way = vec![*id];
            while let Some(parent) = parents.get(way.last().unwrap_or(id)) {
                way.push(*parent);
            }
            way.reverse();
            let at = way.iter().position(|id| self.is_opaque(pickle, *id));
            let way = way.get(..=at.unwrap_or(way.len() - 1)).unwrap_or(&way);
            let (kind, _) = describe(pickle, *way.last().unwrap_or(id));
            let name = (dotted(pickle, way), kind);
            if !named.contains(&name) {
                named.push(name);
            }
        }
        let more = named.len().saturating_sub(NAMED);
        let named = named.iter().take(NAMED);
        let named = named.map(|(path, kind)| match path.is_empty() {
            true => format!("there is an object of class {kind}"),
            false => format!("`{}` is an object of class {kind}", shown(path)),
        });
        let named: Vec<String> = named.collect();
        let more = match more {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        Refusal::new(
            Cause::Unsupported,
            format!(
                "{}{more}, with tensors inside that would be lost",
                named.join(", ")
            ),
        )
    }

    /// Whether the walk did not go into this object.
    fn is_opaque(&self, pickle: &Pickle, id: ObjectId) -> bool {
        let is_made = matches!(pickle.get(id), Object::Call(_) | Object::Persistent(_));
        is_made && !self.accounted.contains(id)
    }

    /// By which object each was reached from `roots` first.
    fn parents(&self, pickle: &Pickle, roots: &[ObjectId]) -> HashMap<ObjectId, ObjectId> {
        let mut parents = HashMap::new();
        let mut level = roots.to_vec();
        let mut seen = Marks::of(pickle);
        for root in roots {
            seen.insert(*root);
        }
        while !level.is_empty() {
            let mut next = Vec::new();
            for id in level {
                let mut children = Vec::new();
                push_loaded(pickle, id, &mut children, |_| true);
                let has_left_out = self.holders.contains(id);
                for child in children {
                    if has_left_out && self.left_out.contains(&(id, child)) {
                        continue;
                    }
                    if !is_scalar(pickle.get(child)) && seen.insert(child) {
                        parents.insert(child, id);
                        next.push(child);
                    }
                }
            }
            level = next;
        }
        parents
    }
}

/// How dicts are gone through.
#[derive(Clone, Copy)]
enum Look {
    /// Everything that was ever set in them.
    AsWritten,
    /// The last value of each key.
    AsLoaded,
}

/// As [`Object::push_children`], without the values of dicts that others replaced. What a
/// call among those did stays done, unless it `is_harmless`.
fn push_loaded(
    pickle: &Pickle,
    id: ObjectId,
    children: &mut Vec<ObjectId>,
    is_harmless: impl Fn(ObjectId) -> bool,
) {
    let written = match pickle.get(id) {
        Object::Dict(items) => items,
        Object::Call(call) => {
            children.extend([call.callable, call.args]);
            children.extend(call.kwargs);
            children.extend(&call.state);
            children.extend(&call.appended);
            &call.items
        }
        object => return object.push_children(children),
    };
    let entries = pickle.entries(id);
    if entries.len() < written.len() {
        let calls = written.iter().map(|(_, value)| *value);
        children.extend(calls.filter(|id| pickle.as_call(*id).is_some() && !is_harmless(*id)));
    }
    children.extend(entries.into_iter().flat_map(|(key, value)| [key, value]));
}

/// What a function is called with, whatever it is.
fn calls_with<'p>(pickle: &'p Pickle, id: ObjectId) -> &'p [ObjectId] {
    let call = pickle.as_call(id);
    let call = call.filter(|call| call.kind == CallKind::Reduce);
    call.and_then(|call| pickle.as_tuple(call.args))
        .unwrap_or_default()
}

/// The objects that the stream dropped and that are no part of its object.
fn dropped(pickle: &Pickle) -> Vec<ObjectId> {
    let mut dropped = pickle.discarded().to_vec();
    if dropped.is_empty() {
        return dropped;
    }
    let mut seen = Marks::of(pickle);
    let mut pending = vec![pickle.root()];
    while let Some(id) = pending.pop() {
        if !is_scalar(pickle.get(id)) && seen.insert(id) {
            pickle.get(id).push_children(&mut pending);
        }
    }
    dropped.retain(|id| !seen.contains(*id));
    dropped
}

impl Ledger {
    /// Counts the bytes of the tensors of each entry, without those that are served too
    /// and those of an entry before it.
    fn sum_up<S: Storages>(
        &self,
        torch: &Torch<S>,
        entries: Vec<(ObjectId, LeftOut)>,
    ) -> Vec<LeftOut> {
        if entries.is_empty() {
            return Vec::new();
        }
        let pickle = torch.pickle();
        let mut seen = Marks::of(pickle);
        let mut pending = Vec::new();
        let mut summed: Vec<LeftOut> = Vec::new();
        for (value, mut entry) in entries {
            // An attribute may be another name of what is served.
            let mut is_some = !matches!(entry.rule, Rule::Attribute | Rule::UnsavedBuffer);
            pending.push(value);
            while let Some(id) = pending.pop() {
                if is_scalar(pickle.get(id)) || !seen.insert(id) {
                    continue;
                }
                let is_tensor = torch.makes_tensor(id);
                if is_tensor && self.accounted.contains(id) || torch.is_read_array(id) {
                    continue;
                }
                let len = match torch.is_payload(id) {
                    true => Some(torch.payload_len(id)),
                    false => torch.tensor_len(id),
                };
                match len {
                    Some(len) => {
                        is_some = true;
                        entry.bytes = entry.bytes.saturating_add(len);
                    }
                    None => pickle.get(id).push_children(&mut pending),
                }
            }
            let same = |last: &&mut LeftOut| last.path == entry.path && last.rule == entry.rule;
            match summed.last_mut().filter(same) {
                Some(last) => last.bytes = last.bytes.saturating_add(entry.bytes),
                None => summed.extend(is_some.then_some(entry)),
            }
        }
        summed
    }
}

/// The objects that a container's value is written in: itself, its states and their
/// halves, its arguments, and the pair that a dict of Python 2 is made from. `work`
/// counts what was looked at.
fn holders(
    pickle: &Pickle,
    container: ObjectId,
    value: ObjectId,
    work: &mut usize,
) -> Vec<ObjectId> {
    /// More halves and arguments than anything has.
    const SOME: usize = 64;
    let mut holders = vec![container];
    let Object::Call(call) = pickle.get(container) else {
        return holders;
    };
    for state in call.state.iter().chain([&call.args]) {
        holders.push(*state);
        holders.extend(
            pickle
                .as_tuple(*state)
                .unwrap_or_default()
                .iter()
                .take(SOME),
        );
    }
    let args = pickle.as_tuple(call.args).unwrap_or_default();
    if let Some(Object::List(pairs)) = args.first().map(|first| pickle.get(*first)) {
        *work = work.saturating_add(pairs.len());
        let holds = |pair: &&ObjectId| match pickle.get(**pair) {
            Object::List(items) => items.contains(&value),
            Object::Tuple(items) => items.contains(&value),
            _ => false,
        };
        holders.extend(pairs.iter().find(holds));
    }
    holders
}

fn is_scalar(object: &Object) -> bool {
    !matches!(
        object,
        Object::Tuple(_)
            | Object::List(_)
            | Object::Dict(_)
            | Object::Set(_)
            | Object::FrozenSet(_)
            | Object::Call(_)
            | Object::Persistent(_)
    )
}

/// The dotted path along these objects, each of which is in the one before it. What
/// stands between an object and its values has no name.
fn dotted(pickle: &Pickle, way: &[ObjectId]) -> String {
    let mut path = String::new();
    for (holder, held) in way.iter().zip(way.iter().skip(1)) {
        let index = |items: &[ObjectId]| {
            let at = items.iter().position(|item| item == held);
            at.map(|at| at.to_string())
        };
        let key = |items: &[(ObjectId, ObjectId)]| {
            let found = items.iter().rev().find(|(_, value)| value == held)?;
            let key = pickle.as_str(found.0).map(str::to_string);
            key.or_else(|| Some(pickle.as_int(found.0)?.to_string()))
        };
        let step = match pickle.get(*holder) {
            Object::Dict(items) => key(items),
            Object::Call(call) => key(&call.items).or_else(|| index(&call.appended)),
            Object::List(items) => index(items),
            _ => None,
        };
        if let Some(step) = step {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(&step);
        }
    }
    path
}
