//! From the value of a pickle that holds the weights to named tensors.
//!
//! Dictionaries, lists, tuples, sets, objects and modules are walked. Names are the
//! dotted paths, lists give indices, modules name their tensors as their
//! `state_dict()` does. A file that is one tensor has it under the name `tensor`.
//! Where the weights are, [`weights`](super::weights) says; what is no weights,
//! [`training`](super::training); that nothing is lost, [`ledger`](super::ledger).

mod names;
mod rules;
mod spread;

use std::borrow::Cow;
use std::collections::HashSet;
use std::iter::Enumerate;
use std::vec;

use super::contents::{Contents, Other};
use super::describe::{describe, scalar};
use super::formats::safetensors::MAX_HEADER;
use super::layout::Layout;
use super::ledger::{Ledger, Rule};
use super::objects::{Composed, Entries, Kind, Label, Map, Meaning, Storages, Torch};
use super::refusal::{Cause, Refusal, shown, too_large};
use super::training::Optimizer;
use super::weights::{self, Picked, Wanted};
use crate::budget::Share;
use crate::pickle::{Marks, Object, ObjectId, Pickle};

/// Looks at the values of a file before it is taken for an attack: so many for
/// each of its values, and so many besides. Few values of a sound file are in
/// more than one place.
const LOOKS_EACH: usize = 8;
const FREE_LOOKS: usize = 100_000;
/// Tensors in one file.
const MAX_TENSORS: usize = 1_000_000;
/// Values beside them that are reported one by one; the others are counted.
const LISTED: usize = 10_000;
/// Bytes of names and reports, and bytes of the keys that are looked at: more
/// names fit no header.
const MAX_TEXT: usize = MAX_HEADER as usize;
/// Bytes of memory for a tensor, until it is planned, and how often its name, sizes and
/// strides are in memory.
const TENSOR: usize = 512;
const COPIES: usize = 5;
/// Dictionaries inside each other.
const MAX_DEPTH: usize = 1000;

/// Finds the tensors of the pickle in `torch` that are wanted.
pub fn read<S: Storages>(
    torch: &mut Torch<S>,
    wanted: Wanted,
    share: &Share,
) -> Result<Contents, Refusal> {
    let pickle = torch.pickle();
    let top = pickle.root();
    let mut walk = Walk {
        ledger: Ledger::of(pickle),
        ancestors: Marks::of(pickle),
        inert: Marks::of(pickle),
        most_looks: FREE_LOOKS.saturating_add(pickle.count().saturating_mul(LOOKS_EACH)),
        torch,
        share,
        top,
        contents: Contents::default(),
        path: String::new(),
        peeked: None,
        may_be_empty: false,
        unknown_states: Vec::new(),
        passed_roots: 0,
        looks: 0,
        keys: 0,
        text: 0,
    };
    let picked = weights::pick(&mut walk, top, wanted)?;
    walk.refuse_placeholders(top, &picked)?;
    walk.pass_by(&picked)?;
    let start = picked.value;
    match walk.look(start)? {
        Meaning::Tensor(..) | Meaning::Composed(_) => {
            let name = picked.name.as_deref().unwrap_or("tensor");
            walk.path.push_str(name);
        }
        meaning => {
            walk.may_be_empty = matches!(&meaning, Meaning::Map(map) if map.kind != Kind::Object);
            walk.peeked = Some((start, meaning));
        }
    }
    walk.run(start)?;
    walk.finish(top, picked)
}

/// The walk through the containers of one pickle.
struct Walk<'w, 'p, S> {
    torch: &'w mut Torch<'p, S>,
    share: &'w Share,
    /// The whole file.
    top: ObjectId,
    contents: Contents,
    ledger: Ledger,
    /// Dotted path of the value being looked at.
    path: String,
    /// The containers that the path leads through.
    ancestors: Marks,
    /// Objects known to reach no tensor bytes.
    inert: Marks,
    /// What was looked at last, if it is to be looked at again.
    peeked: Option<(ObjectId, Meaning<'p>)>,
    /// The weights are a state dict, even if there are none.
    may_be_empty: bool,
    /// What stands where trainers put optimizers' states and does not look like one.
    unknown_states: Vec<ObjectId>,
    /// How many values with weights the way to these led past.
    passed_roots: usize,
    looks: usize,
    most_looks: usize,
    /// What was spent of [`MAX_TEXT`] on keys.
    keys: usize,
    /// What was spent of [`MAX_TEXT`] on names and reports.
    text: usize,
}

/// A container half walked.
struct Frame<'p> {
    container: ObjectId,
    kind: Kind,
    /// Length of the path that leads to it.
    path: usize,
    /// How many tensors there were before it.
    tensors: usize,
    children: Remaining<'p>,
}

/// What is left of a container.
enum Remaining<'p> {
    Items(Enumerate<Items<'p>>),
    Entries(vec::IntoIter<(Label, ObjectId)>),
}

/// The objects of a sequence.
struct Items<'p> {
    items: Cow<'p, [ObjectId]>,
    at: usize,
}

impl Iterator for Items<'_> {
    type Item = ObjectId;

    fn next(&mut self) -> Option<ObjectId> {
        let item = self.items.get(self.at).copied();
        self.at += 1;
        item
    }
}

impl Iterator for Remaining<'_> {
    type Item = (Label, ObjectId);

    fn next(&mut self) -> Option<(Label, ObjectId)> {
        match self {
            Remaining::Items(items) => {
                let (index, item) = items.next()?;
                Some((Label::Index(index), item))
            }
            Remaining::Entries(entries) => entries.next(),
        }
    }
}

impl<'p, S: Storages> Walk<'_, 'p, S> {
    fn run(&mut self, root: ObjectId) -> Result<(), Refusal> {
        let mut frames = Vec::new();
        if let Some((kind, children)) = self.visit(root, false)? {
            frames.extend(self.enter(root, kind, children, 0)?);
        }
        while let Some(frame) = frames.last_mut() {
            let nested = frame.container != root;
            self.path.truncate(frame.path);
            let Some((label, child)) = frame.children.next() else {
                self.ancestors.remove(frame.container);
                let left = frames.pop();
                if let (Some(left), [root]) = (left, &*frames) {
                    self.note_root(&left, root.kind);
                }
                continue;
            };
            let (container, kind) = (frame.container, frame.kind);
            let at_top = !nested && self.path.is_empty();
            if !self.step_into(&label, child, !at_top)? {
                continue;
            }
            let is_tensor = self.torch.makes_tensor(container);
            let beside = container == self.top && kind == Kind::Dictionary;
            if let Some(rule) = self.rule_for(&label, child, (beside, is_tensor))? {
                self.leave_out(container, child, rule)?;
                continue;
            }
            if let Some((kind, children)) = self.visit(child, !nested)? {
                let depth = frames.len();
                frames.extend(self.enter(child, kind, children, depth)?);
            }
        }
        Ok(())
    }

    /// What the object `id` is. Anything may be shared by any number of
    /// containers, so every look is paid for before it is taken.
    fn look(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        if let Some((known, meaning)) = self.peeked.take()
            && known == id
        {
            return Ok(meaning);
        }
        let (values, key_bytes) = self.torch.cost(id);
        self.keys = self.keys.saturating_add(key_bytes);
        if self.keys > MAX_TEXT {
            return Err(over_and_over());
        }
        self.pay(values)?;
        self.torch.meaning(id)
    }

    fn pay(&mut self, looks: usize) -> Result<(), Refusal> {
        self.looks = self.looks.saturating_add(looks);
        match self.looks > self.most_looks {
            true => Err(over_and_over()),
            false => Ok(()),
        }
    }

    /// Looks at the value that the path leads to. Its children, when it is a
    /// container.
    fn visit(&mut self, id: ObjectId, top: bool) -> Result<Option<(Kind, Remaining<'p>)>, Refusal> {
        let meaning = match self.look(id) {
            Ok(meaning) => meaning,
            Err(refusal) if self.path.is_empty() => return Err(refusal),
            Err(refusal) => return Err(refusal.of_tensor(&self.path)),
        };
        Ok(match meaning {
            Meaning::Tensor(layout, attributes) => {
                self.check_attributes(&attributes)?;
                self.add(layout)?;
                self.ledger.account(id);
                let attributes = self.with_bytes(attributes)?;
                let children = Remaining::Entries(attributes.into_iter());
                Some((Kind::Object, children))
            }
            Meaning::Composed(parts) => {
                self.add_parts(parts)?;
                self.ledger.account(id);
                None
            }
            _ if self.is_generator(id)? && self.reaches_bytes(id)? => {
                self.leave_out_here(id, Rule::RngState)?;
                None
            }
            Meaning::Map(map) if self.is_rng_states(id, &map)? => {
                self.leave_out_here(id, Rule::RngState)?;
                None
            }
            Meaning::Map(map) => self.children(id, map, top)?,
            Meaning::Sequence(items) => {
                self.ledger.account(id);
                let items = Items { items, at: 0 };
                Some((Kind::Object, Remaining::Items(items.enumerate())))
            }
            Meaning::Other => {
                self.report_value(id, top)?;
                None
            }
        })
    }

    /// The values of an object that are to be walked.
    fn children(
        &mut self,
        id: ObjectId,
        map: Map,
        top: bool,
    ) -> Result<Option<(Kind, Remaining<'p>)>, Refusal> {
        let mut entries = match (self.optimizer(&map), map.kind) {
            (Some(form), _) => return self.beside_state(id, map.entries, form, top),
            (None, Kind::Object) => self.with_bytes(map.entries)?,
            (None, Kind::Dictionary | Kind::Module) => map.entries,
        };
        if map.kind == Kind::Object && entries.is_empty() {
            self.report_value(id, top)?;
            return Ok(None);
        }
        self.ledger.account(id);
        let numbers = map.numbers.into_iter();
        for (label, value) in numbers {
            self.at(&label, |walk| {
                match walk.torch.number(value)? {
                    Some(layout) => walk.add(layout)?,
                    None => walk.report_value(value, false)?,
                }
                Ok(())
            })?;
        }
        match map.kind {
            Kind::Module => {
                for (rule, values) in [
                    (Rule::Attribute, map.attributes),
                    (Rule::UnsavedBuffer, map.unsaved),
                ] {
                    for (label, value) in self.with_bytes(values)? {
                        let holder = match rule {
                            Rule::UnsavedBuffer => map.buffers.unwrap_or(id),
                            _ => id,
                        };
                        self.at(&label, |walk| walk.leave_out(holder, value, rule))?;
                    }
                }
            }
            Kind::Dictionary | Kind::Object => entries.extend(self.with_bytes(map.attributes)?),
        }
        Ok(Some((map.kind, Remaining::Entries(entries.into_iter()))))
    }

    /// What there is in a mapping besides the state of an optimizer, which is left out.
    fn beside_state(
        &mut self,
        id: ObjectId,
        entries: Entries,
        form: Optimizer,
        top: bool,
    ) -> Result<Option<(Kind, Remaining<'p>)>, Refusal> {
        let is_slot = |walk: &Self, label: &Label| {
            let key = walk.text_of(label);
            key.is_some_and(|key| form.has(&key))
        };
        let mut others = Entries::new();
        for (label, value) in entries {
            match is_slot(self, &label) {
                true if self.path.is_empty() => {
                    self.at(&label, |walk| {
                        walk.leave_out(id, value, Rule::OptimizerState)
                    })?;
                }
                true => self.leave_out(id, value, Rule::OptimizerState)?,
                false => others.push((label, value)),
            }
        }
        self.ledger.account(id);
        // A state has numbers beside it that mean nothing to anybody else.
        if !top && !self.any_reaches_bytes(&others)? {
            return Ok(None);
        }
        Ok(Some((
            Kind::Dictionary,
            Remaining::Entries(others.into_iter()),
        )))
    }

    /// Refuses a tensor with attributes that are other data to torch.
    fn check_attributes(&self, attributes: &Entries) -> Result<(), Refusal> {
        let is_data = |label: &Label| {
            let text = self.text_of(label);
            text.is_some_and(|text| matches!(&*text, "data" | "real" | "imag"))
        };
        match attributes.iter().any(|(label, _)| is_data(label)) {
            true => Err(Refusal::new(
                Cause::Unsupported,
                "it is given other data after it was made",
            )
            .of_tensor(&self.path)),
            false => Ok(()),
        }
    }

    /// Does `work` with the path of a value of what the path leads to.
    fn at(
        &mut self,
        label: &Label,
        work: impl FnOnce(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let len = self.path.len();
        if len > 0 {
            self.path.push('.');
        }
        if let Some(text) = self.text_of(label) {
            self.path.push_str(&text);
        }
        let done = work(self);
        self.path.truncate(len);
        done
    }

    /// None when there is nothing in it that was not walked, or is walked already.
    fn enter(
        &mut self,
        container: ObjectId,
        kind: Kind,
        children: Remaining<'p>,
        depth: usize,
    ) -> Result<Option<Frame<'p>>, Refusal> {
        if depth >= MAX_DEPTH {
            return Err(too_large("its values are nested too deeply"));
        }
        if !self.ancestors.insert(container) {
            // Objects know each other in circles. What is in this one has its names.
            if kind != Kind::Dictionary && self.torch.pickle().as_call(container).is_some() {
                return Ok(None);
            }
            return Err(Refusal::new(
                Cause::Unsupported,
                format!(
                    "`{}` contains itself, so that its tensors have names without end",
                    shown(&self.path)
                ),
            ));
        }
        Ok(Some(Frame {
            container,
            kind,
            path: self.path.len(),
            tensors: self.contents.tensors.len(),
            children,
        }))
    }

    /// Takes note of a dictionary or module with tensors that was walked through beside
    /// others.
    fn note_root(&mut self, left: &Frame, parent: Kind) {
        let is_root = parent == Kind::Dictionary
            && matches!(left.kind, Kind::Dictionary | Kind::Module)
            && left.tensors < self.contents.tensors.len();
        if let Some(path) = self.path.get(..left.path).filter(|_| is_root)
            && self.contents.roots.len() < LISTED
        {
            self.contents.roots.push(path.to_string());
        }
    }

    /// Adds what a tensor is said with, under its name and those made from it.
    fn add_parts(&mut self, parts: Composed) -> Result<(), Refusal> {
        let name = self.path.len();
        for (suffix, layout) in parts.tensors {
            self.path.push_str(suffix);
            self.add(layout)?;
            self.path.truncate(name);
        }
        self.contents.notes.push((self.path.clone(), parts.note));
        Ok(())
    }

    /// Leaves `value` out, which the path leads to and `container` holds.
    fn leave_out(
        &mut self,
        container: ObjectId,
        value: ObjectId,
        rule: Rule,
    ) -> Result<(), Refusal> {
        self.write(self.path.len())?;
        let pickle = self.torch.pickle();
        self.ledger
            .leave_out(pickle, container, value, &self.path, rule)
    }

    /// Leaves out the object `id`, which the path leads to, wherever it stands.
    fn leave_out_here(&mut self, id: ObjectId, rule: Rule) -> Result<(), Refusal> {
        self.write(self.path.len())?;
        self.ledger.leave_out_everywhere(id, &self.path, rule);
        Ok(())
    }

    /// The values that lead to tensor bytes.
    fn with_bytes(&mut self, entries: Entries) -> Result<Entries, Refusal> {
        let mut kept = Entries::new();
        for (label, value) in entries {
            if self.reaches_bytes(value)? {
                kept.push((label, value));
            }
        }
        Ok(kept)
    }

    fn any_reaches_bytes(&mut self, entries: &Entries) -> Result<bool, Refusal> {
        for (_, value) in entries {
            if self.reaches_bytes(*value)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether tensor bytes hang anywhere below the object `id`.
    fn reaches_bytes(&mut self, id: ObjectId) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        let mut looked = Vec::new();
        while let Some(id) = pending.pop() {
            if !self.inert.insert(id) {
                continue;
            }
            looked.push(id);
            if self.torch.is_payload(id) {
                // Some of them lead there.
                for id in &looked {
                    self.inert.remove(*id);
                }
                self.pay(looked.len())?;
                return Ok(true);
            }
            pickle.get(id).push_children(&mut pending);
        }
        Ok(false)
    }

    /// Pays for text of what is told of the file.
    fn write(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.share.take(bytes as u64)?;
        self.text = self.text.saturating_add(bytes);
        match self.text > MAX_TEXT {
            true => Err(too_large("it has too much text that is no tensor")),
            false => Ok(()),
        }
    }

    fn add(&mut self, layout: Layout) -> Result<(), Refusal> {
        // Sizes and strides can be shared by tensors as names cannot.
        let text = self.path.len() + size_of_val(&*layout.shape) + size_of_val(&*layout.strides);
        self.text += text;
        self.share.take((TENSOR + text * COPIES) as u64)?;
        if self.contents.tensors.len() >= MAX_TENSORS || self.text > MAX_TEXT {
            return Err(too_large(
                "it has too many tensors for one safetensors header",
            ));
        }
        self.contents.add(&self.path, layout)
    }

    /// Reports a value, and at the top of the file keeps it whole.
    fn report_value(&mut self, id: ObjectId, top: bool) -> Result<(), Refusal> {
        let pickle = self.torch.pickle();
        if self.contents.others.len() >= LISTED {
            self.contents.unlisted += 1;
            return Ok(());
        }
        let (kind, repr) = describe(pickle, id);
        let value = scalar(pickle, id).filter(|_| top);
        let value_len = value
            .as_ref()
            .map_or(0, |value| value.as_str().map_or(8, str::len));
        self.write(self.path.len() + kind.len() + repr.len() + value_len)?;
        self.contents.others.push(Other {
            path: self.path.clone(),
            kind,
            repr,
            value,
        });
        Ok(())
    }

    fn finish(mut self, top: ObjectId, picked: Picked<ObjectId>) -> Result<Contents, Refusal> {
        let root = match picked.asked {
            true => picked.value,
            false => top,
        };
        self.contents.left_out = self.ledger.close(self.torch, root)?;
        let walked_roots = self.passed_roots;
        let contents = &mut self.contents;
        let mut names = HashSet::with_capacity(contents.tensors.len());
        for tensor in &contents.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(Refusal::new(
                    Cause::Names,
                    format!(
                        "two tensors are called `{}` once their paths are written with dots",
                        shown(&tensor.name)
                    ),
                ));
            }
        }
        if contents.tensors.is_empty() {
            let mut rules = contents.left_out.iter().map(|entry| entry.rule);
            if let Some(rule) = rules.clone().find(|rule| !rule.is_no_weights()) {
                return Err(Refusal::new(
                    Cause::Unsupported,
                    format!("all of its tensors would be left out: {rule}"),
                ));
            }
            if !self.unknown_states.is_empty() {
                return Err(Refusal::new(
                    Cause::Unsupported,
                    "all of its tensors stand where trainers put optimizers' states, but do not look \
                     like one",
                ));
            }
            if rules.next().is_some() {
                return Err(Refusal::new(
                    Cause::OptimizerState,
                    "it holds nothing but the states of optimizers and random numbers",
                ));
            }
            if !contents.others.is_empty() || !self.may_be_empty {
                return Err(no_tensors(self.torch.pickle(), picked.value));
            }
        }
        if !picked.path.is_empty() {
            // What stands side by side in there was noted by its path from there.
            for root in &mut contents.roots[walked_roots..] {
                *root = format!("{}.{root}", picked.path);
            }
        }
        // convert.py takes `state_dict` without a word.
        if !picked.path.is_empty() && (picked.path != "state_dict" || picked.asked) {
            contents.root = Some(picked.path);
        }
        Ok(self.contents)
    }
}

fn over_and_over() -> Refusal {
    too_large("it refers to the same values over and over")
}

fn no_tensors(pickle: &Pickle, id: ObjectId) -> Refusal {
    let (kind, _) = describe(pickle, id);
    let what = match pickle.get(id) {
        Object::Dict(_) | Object::List(_) | Object::Tuple(_) => "it holds no tensors".to_string(),
        _ => format!("it holds a value of type {kind} and no tensors"),
    };
    Refusal::new(Cause::NoTensors, what)
}
