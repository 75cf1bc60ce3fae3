//! From the value of a pickle that holds the weights to named tensors.
//!
//! Dictionaries, lists, tuples, sets, objects and modules are walked. Names are the
//! dotted paths, lists give indices, modules name their tensors as their
//! `state_dict()` does. A file that is one tensor has it under the name `tensor`.
//! Where the weights are, [`weights`](super::weights) says; what is no weights,
//! [`training`](super::training); that nothing is lost, [`ledger`](super::ledger).

use std::borrow::Cow;
use std::collections::HashSet;
use std::iter::Enumerate;
use std::vec;

use super::contents::{Contents, Other};
use super::describe::{describe, scalar};
use super::formats::safetensors::MAX_HEADER;
use super::layout::Layout;
use super::ledger::{Ledger, Rule};
use super::objects::{Composed, Entries, GRADIENT, Kind, Label, Map, Meaning, Storages, Torch};
use super::refusal::{Cause, Refusal, shown, too_large};
use super::training;
use super::weights::{self, Entry, Picked, Values, Wanted};
use crate::pickle::{Marks, Object, ObjectId, Pickle, Str};

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
/// Dictionaries inside each other.
const MAX_DEPTH: usize = 1000;

/// Finds the tensors of the pickle in `torch` that are wanted.
pub fn read<S: Storages>(torch: &mut Torch<S>, wanted: Wanted) -> Result<Contents, Refusal> {
    let pickle = torch.pickle();
    let top = pickle.root();
    let mut walk = Walk {
        ledger: Ledger::of(pickle),
        ancestors: Marks::of(pickle),
        inert: Marks::of(pickle),
        most_looks: FREE_LOOKS.saturating_add(pickle.count().saturating_mul(LOOKS_EACH)),
        torch,
        contents: Contents::default(),
        path: String::new(),
        peeked: None,
        may_be_empty: false,
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
        Meaning::Map(map) if walk.is_optimizer(&map) => {
            return Err(Refusal::new(
                Cause::OptimizerState,
                "it is an optimizer's state, which holds no weights",
            ));
        }
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
            let (container, at_top) = (frame.container, !nested && self.path.is_empty());
            if !self.step_into(&label, child, !at_top)? {
                continue;
            }
            let is_tensor = self.torch.makes_tensor(container);
            if let Some(rule) = self.rule_for(&label, child, (!nested, is_tensor))? {
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
            Meaning::Map(map) if self.is_optimizer(&map) => {
                self.leave_out_here(id, Rule::OptimizerState)?;
                None
            }
            Meaning::Map(map) if self.is_rng_states(id, &map)? => {
                self.leave_out_here(id, Rule::RngState)?;
                None
            }
            Meaning::Map(map) => self.children(id, map, top)?,
            Meaning::Sequence(_) if training::is_numpy_rng(self.torch.pickle(), id) => {
                self.leave_out_here(id, Rule::RngState)?;
                None
            }
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
        let mut entries = match map.kind {
            Kind::Object => self.with_bytes(map.entries)?,
            Kind::Dictionary | Kind::Module => map.entries,
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
                        self.at(&label, |walk| walk.leave_out(id, value, rule))?;
                    }
                }
            }
            Kind::Dictionary | Kind::Object => entries.extend(self.with_bytes(map.attributes)?),
        }
        Ok(Some((map.kind, Remaining::Entries(entries.into_iter()))))
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

    /// Appends `label` to the path. False when the key has no textual form and
    /// nothing that matters lies behind it.
    fn step_into(&mut self, label: &Label, child: ObjectId, nested: bool) -> Result<bool, Refusal> {
        let Some(text) = self.text_of(label) else {
            let pickle = self.torch.pickle();
            let Label::Key(key) = label else {
                return Ok(false);
            };
            if matches!(pickle.get(*key), Object::Str(Str::Apart(_))) {
                return Err(too_large("one of its names is longer than any file name"));
            }
            if self.reaches_bytes(child)? || self.reaches_bytes(*key)? {
                let (kind, repr) = (describe(pickle, *key).0, key_text(pickle, *key));
                let place = match self.path.is_empty() {
                    true => String::new(),
                    false => format!(" below `{}`", shown(&self.path)),
                };
                return Err(Refusal::new(
                    Cause::Names,
                    format!(
                        "a tensor{place} has the key {repr}, of type {kind}, which is neither \
                         Unicode text nor a whole number"
                    ),
                ));
            }
            return Ok(false);
        };
        if nested {
            self.path.push('.');
        }
        self.path.push_str(&text);
        Ok(true)
    }

    /// The text of a label; None when it has none.
    fn text_of(&self, label: &Label) -> Option<Cow<'p, str>> {
        let pickle = self.torch.pickle();
        Some(match label {
            Label::Index(index) => index.to_string().into(),
            Label::Name(name) => (*name).into(),
            Label::Key(key) => match (pickle.as_str(*key), pickle.as_int(*key)) {
                (Some(text), _) => text.into(),
                (None, Some(number)) => number.to_string().into(),
                (None, None) => return None,
            },
        })
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

    /// The rule by which the value behind `label` is left out, if one does. `top` when
    /// it stands beside weights, where trainers put theirs, and whether it is an
    /// attribute of a tensor.
    fn rule_for(
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
            key if top && training::is_optimizer_key(key) => Some(Rule::OptimizerState),
            key if training::is_rng_key(key) => self.is_rng(value)?.then_some(Rule::RngState),
            _ => None,
        })
    }

    fn is_optimizer(&self, map: &Map) -> bool {
        map.kind != Kind::Module && training::is_optimizer(self.keys_of(map))
    }

    fn is_rng_states(&mut self, id: ObjectId, map: &Map) -> Result<bool, Refusal> {
        let may_be = map.kind == Kind::Dictionary && training::is_rng_states(self.keys_of(map));
        Ok(may_be && self.is_rng(id)?)
    }

    fn keys_of<'m>(&self, map: &'m Map) -> impl ExactSizeIterator<Item = &'m str> + Clone
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
    fn is_rng(&mut self, id: ObjectId) -> Result<bool, Refusal> {
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
        self.text = self.text.saturating_add(bytes);
        match self.text > MAX_TEXT {
            true => Err(too_large("it has too much text that is no tensor")),
            false => Ok(()),
        }
    }

    fn add(&mut self, layout: Layout) -> Result<(), Refusal> {
        // Sizes and strides can be shared by tensors as names cannot.
        self.text += self.path.len() + size_of_val(&*layout.shape) + size_of_val(&*layout.strides);
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

    /// Reports the values that the way to the weights leads past.
    fn pass_by(&mut self, picked: &Picked<ObjectId>) -> Result<(), Refusal> {
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

    fn rule_beside(&mut self, key: &str, value: ObjectId) -> Result<Option<Rule>, Refusal> {
        let is_mapping = self.is_mapping(value)?;
        if is_mapping && training::is_optimizer_key(key) {
            return Ok(Some(Rule::OptimizerState));
        }
        if !self.reaches_bytes(value)? {
            return Ok(None);
        }
        if training::is_optimizer_key(key) {
            return Ok(Some(Rule::OptimizerState));
        }
        if training::is_rng_key(key) && self.is_rng(value)? {
            return Ok(Some(Rule::RngState));
        }
        Ok(Some(match self.could_be_weights(value)? {
            true => Rule::OtherRoot,
            false => Rule::OptimizerState,
        }))
    }

    /// Whether tensor bytes hang below the object `id` that are no state of an
    /// optimizer and of no generator.
    fn could_be_weights(&mut self, id: ObjectId) -> Result<bool, Refusal> {
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
            if training::is_optimizer(keys.clone()) {
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

    /// Refuses what DeepSpeed leaves of weights that are spread over the ranks: empty
    /// tensors, beside the shapes that they should have.
    fn refuse_placeholders(
        &mut self,
        top: ObjectId,
        picked: &Picked<ObjectId>,
    ) -> Result<(), Refusal> {
        let pickle = self.torch.pickle();
        let find = |torch: &Torch<'p, S>, id: ObjectId, name: &str| {
            let mut entries = torch.items(id).iter().rev();
            entries.find_map(|(key, value)| (pickle.as_str(*key) == Some(name)).then_some(*value))
        };
        let spread = Refusal::new(
            Cause::Part,
            "the weights of a model that DeepSpeed ZeRO-3 spread over the ranks lie here in part; its \
             zero_to_fp32.py puts those of all ranks together",
        );
        let state = find(self.torch, top, "optimizer_state_dict");
        if state.is_some_and(|state| find(self.torch, state, "fp32_flat_groups").is_some()) {
            return Err(spread);
        }
        let Some(shapes) = find(self.torch, top, "param_shapes") else {
            return Ok(());
        };
        let groups: &[ObjectId] = match pickle.get(shapes) {
            Object::List(groups) => groups,
            _ => &[shapes],
        };
        self.pay(groups.len())?;
        let mut groups = groups.iter();
        let Some((name, shape)) = groups.find_map(|group| self.torch.items(*group).first()) else {
            return Ok(());
        };
        let name = pickle.as_str(*name).unwrap_or_default();
        let Some(placeholder) = find(self.torch, picked.value, name) else {
            return Ok(());
        };
        let elements: u64 = self.torch.dimensions(*shape, "sizes")?.iter().product();
        let is_empty = match self.torch.meaning(placeholder)? {
            Meaning::Tensor(layout, _) => layout.shape.contains(&0),
            _ => false,
        };
        match is_empty && elements > 0 {
            false => Ok(()),
            true => Err(Refusal::new(
                Cause::Part,
                "DeepSpeed ZeRO-3 left empty placeholders of its weights here: the weights lie in \
                 parts in the `*_optim_states.pt` of all ranks, which its zero_to_fp32.py puts \
                 together",
            )),
        }
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
        if !picked.path.is_empty() && picked.path != "state_dict" && !picked.asked {
            contents.root = Some(picked.path);
        }
        Ok(self.contents)
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
            training::is_optimizer_key(key) || training::is_rng_key(key) && self.is_rng(*value)?;
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

/// A key that is no text, as Python would show it, about: the parts of a tuple, and
/// what an object of another class was made from.
fn key_text(pickle: &Pickle, key: ObjectId) -> String {
    const PARTS: usize = 4;
    let simple = |id: ObjectId| match pickle.get(id) {
        Object::Call(_) => "...".to_string(),
        _ => describe(pickle, id).1,
    };
    let several = |items: &[ObjectId]| {
        let shown = items.iter().take(PARTS).map(|item| simple(*item));
        let shown: Vec<String> = shown.collect();
        let more = if items.len() > PARTS { ", ..." } else { "" };
        format!("({}{more})", shown.join(", "))
    };
    match pickle.get(key) {
        Object::Tuple(items) => several(items),
        Object::Call(call) => {
            let (class, _) = describe(pickle, key);
            let args = pickle.as_tuple(call.args).unwrap_or_default();
            format!("{class}{}", several(args))
        }
        _ => simple(key),
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
