//! Which values of a checkpoint are its tensors, and what they are called.
//!
//! The same for every file, the first that applies:
//!
//! 1. The value at the path that was asked for (`--root`), and no other.
//! 2. `state_dict` at the top, when it is a dictionary or a module: so does
//!    Hugging Face's convert.py.
//! 3. Everything.
//!
//! From there dictionaries, lists, tuples and modules are walked. Names are the
//! dotted paths, lists give indices, modules name their tensors as their
//! `state_dict()` does. A file that is one tensor has it under the name `tensor`.
//! Optimizers' states are no weights: dictionaries with `state` and
//! `param_groups`, and what a top-level key of [`OPTIMIZERS`] holds.

use std::collections::HashSet;
use std::iter::Enumerate;
use std::{slice, vec};

use super::contents::{Contents, Other};
use super::describe::{describe, scalar};
use super::formats::safetensors::MAX_HEADER;
use super::layout::Layout;
use super::objects::{Composed, Meaning, Storages, Torch};
use super::refusal::{Cause, Refusal, shown, too_large};
use crate::pickle::{Object, ObjectId, Pickle, Str};

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

/// Top-level keys that trainers keep optimizers' states under: torch's examples,
/// Lightning, fairseq, DeepSpeed, apex.
pub const OPTIMIZERS: &[&str] = &[
    "last_optimizer_state",
    "optim",
    "optim_state_dict",
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "optimizers",
];

/// Finds the tensors of the pickle in `torch`, below the dotted path `root` if
/// one is given.
pub fn read<S: Storages>(torch: &mut Torch<S>, root: Option<&str>) -> Result<Contents, Refusal> {
    let pickle = torch.pickle();
    let mut walk = Walk {
        torch,
        contents: Contents::default(),
        path: String::new(),
        ancestors: HashSet::new(),
        inert: HashSet::new(),
        looks: 0,
        most_looks: FREE_LOOKS.saturating_add(pickle.ids().count().saturating_mul(LOOKS_EACH)),
        keys: 0,
        text: 0,
    };
    let mut start = pickle.root();
    match root {
        Some(path) => start = walk.descend(start, path)?,
        None => {
            if let Meaning::Map(entries, _) = walk.look(start)?
                && let Some(inner) = walk.state_dict(&entries)?
            {
                walk.beside_state_dict(&entries)?;
                start = inner;
            }
        }
    }
    match walk.look(start)? {
        Meaning::Map(entries, _) if is_optimizer(pickle, &entries) => {
            return Err(Refusal::new(
                Cause::OptimizerState,
                "it is an optimizer's state, which holds no weights",
            ));
        }
        Meaning::Map(..) | Meaning::Sequence(_) => {}
        Meaning::Tensor(..) | Meaning::Composed(_) => walk.path.push_str("tensor"),
        Meaning::Other => return Err(no_container(pickle, start)),
    }
    walk.run(start)?;
    walk.finish()
}

/// The walk through the containers of one pickle.
struct Walk<'w, 'p, S> {
    torch: &'w mut Torch<'p, S>,
    contents: Contents,
    /// Dotted path of the value being looked at.
    path: String,
    /// The containers that the path leads through.
    ancestors: HashSet<ObjectId>,
    /// Objects known to reach no storage and no array.
    inert: HashSet<ObjectId>,
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
    /// Length of the path that leads to it.
    path: usize,
    children: Remaining<'p>,
}

/// What is left of a container.
enum Remaining<'p> {
    Items(Enumerate<slice::Iter<'p, ObjectId>>),
    Entries(vec::IntoIter<(ObjectId, ObjectId)>),
}

impl Iterator for Remaining<'_> {
    type Item = (Label, ObjectId);

    fn next(&mut self) -> Option<(Label, ObjectId)> {
        Some(match self {
            Remaining::Items(items) => {
                let (index, item) = items.next()?;
                (Label::Index(index), *item)
            }
            Remaining::Entries(entries) => {
                let (key, value) = entries.next()?;
                (Label::Key(key), value)
            }
        })
    }
}

/// How a child is named in its container.
enum Label {
    Key(ObjectId),
    Index(usize),
}

impl<'p, S: Storages> Walk<'_, 'p, S> {
    fn run(&mut self, root: ObjectId) -> Result<(), Refusal> {
        let mut frames = Vec::new();
        if let Some(children) = self.visit(root, false)? {
            frames.push(self.enter(root, children, 0)?);
        }
        while let Some(frame) = frames.last_mut() {
            let nested = frame.container != root;
            self.path.truncate(frame.path);
            let Some((label, child)) = frame.children.next() else {
                self.ancestors.remove(&frame.container);
                frames.pop();
                continue;
            };
            if !self.step_into(&label, child, nested)? {
                continue;
            }
            if !nested && self.is_optimizers(&label) {
                self.report_optimizer()?;
                continue;
            }
            if let Some(children) = self.visit(child, !nested)? {
                let depth = frames.len();
                frames.push(self.enter(child, children, depth)?);
            }
        }
        Ok(())
    }

    /// What the object `id` is. Anything may be shared by any number of
    /// containers, so every look is paid for before it is taken.
    fn look(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        let (values, key_bytes) = self.torch.cost(id);
        self.looks = self.looks.saturating_add(values);
        self.keys = self.keys.saturating_add(key_bytes);
        if self.looks > self.most_looks || self.keys > MAX_TEXT {
            return Err(too_large("it refers to the same values over and over"));
        }
        self.torch.meaning(id)
    }

    /// Looks at the value that the path leads to. Its children, when it is a
    /// container.
    fn visit(&mut self, id: ObjectId, top: bool) -> Result<Option<Remaining<'p>>, Refusal> {
        let meaning = match self.look(id) {
            Ok(meaning) => meaning,
            Err(refusal) if self.path.is_empty() => return Err(refusal),
            Err(refusal) => return Err(refusal.of_tensor(&self.path)),
        };
        match meaning {
            Meaning::Tensor(layout, attributes) => {
                self.refuse_hidden_tensors(id, &attributes)?;
                self.add(layout)?;
                Ok(None)
            }
            Meaning::Map(entries, _) if is_optimizer(self.torch.pickle(), &entries) => {
                self.report_optimizer()?;
                Ok(None)
            }
            Meaning::Composed(parts) => {
                self.add_parts(parts)?;
                Ok(None)
            }
            Meaning::Map(entries, attributes) => {
                self.refuse_hidden_tensors(id, attributes)?;
                Ok(Some(Remaining::Entries(entries.into_iter())))
            }
            Meaning::Sequence(items) => Ok(Some(Remaining::Items(items.iter().enumerate()))),
            Meaning::Other => {
                self.refuse_hidden_tensors(id, &[id])?;
                self.report_value(id, top)?;
                Ok(None)
            }
        }
    }

    fn enter(
        &mut self,
        container: ObjectId,
        children: Remaining<'p>,
        depth: usize,
    ) -> Result<Frame<'p>, Refusal> {
        if depth >= MAX_DEPTH {
            return Err(too_large("its values are nested too deeply"));
        }
        if !self.ancestors.insert(container) {
            return Err(Refusal::new(
                Cause::Malformed,
                format!("`{}` contains itself", shown(&self.path)),
            ));
        }
        Ok(Frame {
            container,
            path: self.path.len(),
            children,
        })
    }

    /// Appends `label` to the path. False when the key has no textual form and
    /// nothing that matters lies behind it.
    fn step_into(&mut self, label: &Label, child: ObjectId, nested: bool) -> Result<bool, Refusal> {
        let pickle = self.torch.pickle();
        let text = match label {
            Label::Index(index) => index.to_string(),
            Label::Key(key) => match (pickle.as_str(*key), pickle.as_int(*key)) {
                (Some(text), _) => text.to_string(),
                (None, Some(number)) => number.to_string(),
                (None, None) if matches!(pickle.get(*key), Object::Str(Str::Apart(_))) => {
                    return Err(too_large("one of its names is longer than any file name"));
                }
                (None, None) => {
                    if self.reaches_storage(child) || self.reaches_storage(*key) {
                        return Err(Refusal::new(
                            Cause::Inexpressible,
                            format!(
                                "a tensor below `{}` has a key that is neither Unicode text nor a number",
                                shown(&self.path)
                            ),
                        ));
                    }
                    return Ok(false);
                }
            },
        };
        if nested {
            self.path.push('.');
        }
        self.path.push_str(&text);
        Ok(true)
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

    fn is_optimizers(&self, label: &Label) -> bool {
        match label {
            Label::Key(key) => {
                let key = self.torch.pickle().as_str(*key);
                key.is_some_and(|key| OPTIMIZERS.contains(&key))
            }
            Label::Index(_) => false,
        }
    }

    fn report_optimizer(&mut self) -> Result<(), Refusal> {
        let what = "left out: an optimizer's state is no weight";
        self.report("optimizer state", what.into())
    }

    /// The value at a dotted path. Keys may have dots in them themselves: the
    /// longest that fits is taken.
    fn descend(&mut self, start: ObjectId, path: &str) -> Result<ObjectId, Refusal> {
        let mut at = start;
        let mut rest = path;
        while !rest.is_empty() {
            let pickle = self.torch.pickle();
            let tail = |key: &str| match rest.strip_prefix(key)? {
                "" => Some(""),
                tail => tail.strip_prefix('.'),
            };
            let found = match self.look(at)? {
                Meaning::Map(entries, _) => entries
                    .into_iter()
                    .filter_map(|(key, value)| Some((value, tail(pickle.as_str(key)?)?)))
                    .min_by_key(|(_, tail)| tail.len()),
                Meaning::Sequence(items) => {
                    let (index, tail) = rest.split_once('.').unwrap_or((rest, ""));
                    let item = index.parse().ok().and_then(|index: usize| items.get(index));
                    item.map(|item| (*item, tail))
                }
                _ => None,
            };
            let Some((value, tail)) = found else {
                return Err(Refusal::new(
                    Cause::NoTensors,
                    format!("it has nothing at `{}`, which was asked for", shown(path)),
                ));
            };
            (at, rest) = (value, tail);
        }
        Ok(at)
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

    fn report(&mut self, kind: &str, repr: String) -> Result<(), Refusal> {
        if self.contents.others.len() >= LISTED {
            self.contents.unlisted += 1;
            return Ok(());
        }
        self.text += self.path.len() + kind.len() + repr.len();
        if self.text > MAX_TEXT {
            return Err(too_large("it has too much text that is no tensor"));
        }
        self.contents.others.push(Other {
            path: self.path.clone(),
            kind: kind.to_string(),
            repr,
            value: None,
        });
        Ok(())
    }

    /// Reports a value, and at the top of the file keeps it whole.
    fn report_value(&mut self, id: ObjectId, top: bool) -> Result<(), Refusal> {
        let pickle = self.torch.pickle();
        let (kind, repr) = describe(pickle, id);
        let listed = self.contents.others.len();
        self.report(&kind, repr)?;
        if let Some(other) = self.contents.others.get_mut(listed).filter(|_| top)
            && let Some(value) = scalar(pickle, id)
        {
            self.text += value.as_str().map_or(8, str::len);
            other.value = Some(value);
        }
        Ok(())
    }

    /// What is left out of the object `id` must hold no tensor.
    fn refuse_hidden_tensors(
        &mut self,
        id: ObjectId,
        left_out: &[ObjectId],
    ) -> Result<(), Refusal> {
        if !left_out.iter().any(|part| self.reaches_storage(*part)) {
            return Ok(());
        }
        let (kind, _) = describe(self.torch.pickle(), id);
        Err(Refusal::new(
            Cause::Unsupported,
            format!(
                "`{}` is an object of class {kind} with tensors inside, which is not read",
                shown(&self.path)
            ),
        ))
    }

    /// Linear in the pickle for all calls together: the first true one is the end
    /// of the walk.
    fn reaches_storage(&mut self, id: ObjectId) -> bool {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            if !self.inert.insert(id) {
                continue;
            }
            if matches!(pickle.get(id), Object::Persistent(_)) || self.torch.is_array_of_numbers(id)
            {
                return true;
            }
            pickle.get(id).push_children(&mut pending);
        }
        false
    }

    /// The value of `state_dict` when there is one, which must be a mapping.
    fn state_dict(
        &mut self,
        entries: &[(ObjectId, ObjectId)],
    ) -> Result<Option<ObjectId>, Refusal> {
        let pickle = self.torch.pickle();
        let found = entries
            .iter()
            .find(|(key, _)| pickle.as_str(*key) == Some("state_dict"));
        let Some((_, inner)) = found else {
            return Ok(None);
        };
        // What cannot be read is told of when the walk comes to it.
        Ok(match self.look(*inner) {
            Ok(Meaning::Map(..)) => Some(*inner),
            _ => None,
        })
    }

    /// Reports what stands beside `state_dict`, without looking into it.
    fn beside_state_dict(&mut self, entries: &[(ObjectId, ObjectId)]) -> Result<(), Refusal> {
        let pickle = self.torch.pickle();
        for (key, value) in entries {
            let Some(path) = pickle.as_str(*key).filter(|key| *key != "state_dict") else {
                continue;
            };
            self.path.push_str(path);
            self.report_value(*value, true)?;
            self.path.clear();
        }
        Ok(())
    }

    fn finish(self) -> Result<Contents, Refusal> {
        let mut names = HashSet::with_capacity(self.contents.tensors.len());
        for tensor in &self.contents.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(Refusal::new(
                    Cause::Inexpressible,
                    format!(
                        "two tensors are called `{}` once their paths are written with dots",
                        shown(&tensor.name)
                    ),
                ));
            }
        }
        if self.contents.tensors.is_empty() && !self.contents.others.is_empty() {
            return Err(Refusal::new(Cause::NoTensors, "it holds no tensors"));
        }
        Ok(self.contents)
    }
}

/// `{"state": ..., "param_groups": ...}`, what every torch optimizer's
/// `state_dict` returns.
fn is_optimizer(pickle: &Pickle, entries: &[(ObjectId, ObjectId)]) -> bool {
    let has = |name| {
        entries
            .iter()
            .any(|(key, _)| pickle.as_str(*key) == Some(name))
    };
    entries.len() <= 8 && has("state") && has("param_groups")
}

fn no_container(pickle: &Pickle, id: ObjectId) -> Refusal {
    let (kind, _) = describe(pickle, id);
    match pickle.get(id) {
        Object::Call(_) => Refusal::new(
            Cause::Unsupported,
            format!("it is one pickled object of class {kind}, not a dictionary of tensors"),
        ),
        _ => Refusal::new(
            Cause::NoTensors,
            format!("it holds a value of type {kind} and no tensors"),
        ),
    }
}
