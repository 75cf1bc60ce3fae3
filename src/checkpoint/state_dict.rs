//! Which values of a checkpoint are its tensors, and what they are called.
//!
//! `state_dict` at the top is unwrapped, as Hugging Face's convert.py does it.
//! Dictionaries, lists and tuples inside are walked: names are the dotted paths,
//! lists give indices. An optimizer's state is no weight.

use std::collections::HashSet;

use super::refusal::{Cause, Refusal};
use super::safetensors::MAX_HEADER;
use super::torch::{Meaning, Storages, Torch};
use super::{Other, Tensor};
use crate::pickle::{Call, Object, ObjectId, Pickle};

/// Values looked at before a file is taken for an attack.
const MAX_VISITS: usize = 10_000_000;
/// Tensors in one file.
const MAX_TENSORS: usize = 1_000_000;
/// Values beside them that are reported.
const MAX_OTHERS: usize = 1_000_000;
/// Dictionaries inside each other.
const MAX_DEPTH: usize = 1000;
/// Characters of a value that are shown.
const REPR: usize = 60;

/// What was found.
#[derive(Default)]
pub struct Contents {
    pub tensors: Vec<Tensor>,
    pub others: Vec<Other>,
}

/// Finds the tensors of the pickle in `torch`.
pub fn read<S: Storages>(torch: &mut Torch<S>) -> Result<Contents, Refusal> {
    let pickle = torch.pickle();
    let mut walk = Walk {
        torch,
        contents: Contents::default(),
        path: String::new(),
        ancestors: HashSet::new(),
        inert: HashSet::new(),
        visits: 0,
        name_bytes: 0,
    };
    let mut root = pickle.root();
    match walk.torch.meaning(root)? {
        Meaning::Map(entries) => {
            if let Some(inner) = walk.state_dict(&entries)? {
                walk.beside_state_dict(&entries);
                root = inner;
            }
        }
        Meaning::Tensor(view) => {
            walk.path.push_str("tensor");
            walk.add(view)?;
            return walk.finish();
        }
        Meaning::Sequence(_) => {}
        Meaning::Other => return Err(no_container(pickle, root)),
    }
    walk.run(root)?;
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
    /// Objects known to reach no storage.
    inert: HashSet<ObjectId>,
    visits: usize,
    name_bytes: u64,
}

/// A container half walked.
struct Frame {
    container: ObjectId,
    /// Length of the path that leads to it.
    path: usize,
    children: std::vec::IntoIter<(Label, ObjectId)>,
}

/// How a child is named in its container.
enum Label {
    Key(ObjectId),
    Index(usize),
}

impl<S: Storages> Walk<'_, '_, S> {
    fn run(&mut self, root: ObjectId) -> Result<(), Refusal> {
        let mut frames = Vec::new();
        if let Some(children) = self.visit(root)? {
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
            if let Some(children) = self.visit(child)? {
                let depth = frames.len();
                frames.push(self.enter(child, children, depth)?);
            }
        }
        Ok(())
    }

    /// Looks at the value that the path leads to. Its children, when it is a
    /// container.
    fn visit(&mut self, id: ObjectId) -> Result<Option<Vec<(Label, ObjectId)>>, Refusal> {
        self.visits += 1;
        if self.visits > MAX_VISITS {
            return Err(too_large("it refers to the same values over and over"));
        }
        let meaning = match self.torch.meaning(id) {
            Ok(meaning) => meaning,
            Err(refusal) => return Err(refusal.of_tensor(&self.path)),
        };
        match meaning {
            Meaning::Tensor(view) => {
                self.add(view)?;
                Ok(None)
            }
            Meaning::Map(entries) if is_optimizer(self.torch.pickle(), &entries) => {
                self.report(
                    "optimizer state",
                    "left out: an optimizer's state is no weight".into(),
                )?;
                Ok(None)
            }
            Meaning::Map(entries) => Ok(Some(
                entries
                    .into_iter()
                    .map(|(key, value)| (Label::Key(key), value))
                    .collect(),
            )),
            Meaning::Sequence(items) => Ok(Some(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| (Label::Index(index), item))
                    .collect(),
            )),
            Meaning::Other => {
                self.refuse_hidden_tensor(id)?;
                let (kind, repr) = describe(self.torch.pickle(), id);
                self.report(&kind, repr)?;
                Ok(None)
            }
        }
    }

    fn enter(
        &mut self,
        container: ObjectId,
        children: Vec<(Label, ObjectId)>,
        depth: usize,
    ) -> Result<Frame, Refusal> {
        if depth >= MAX_DEPTH {
            return Err(too_large("its values are nested too deeply"));
        }
        if !self.ancestors.insert(container) {
            return Err(Refusal::new(
                Cause::Malformed,
                format!("`{}` contains itself", self.path.escape_debug()),
            ));
        }
        Ok(Frame {
            container,
            path: self.path.len(),
            children: children.into_iter(),
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
                (None, None) => {
                    if self.reaches_storage(child) {
                        return Err(Refusal::new(
                            Cause::Inexpressible,
                            format!(
                                "a tensor below `{}` has a key that is neither Unicode text nor a number",
                                self.path.escape_debug()
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

    fn add(&mut self, view: super::torch::View) -> Result<(), Refusal> {
        if self.path == "__metadata__" {
            return Err(Refusal::new(
                Cause::Inexpressible,
                "a tensor is called `__metadata__`, which safetensors keeps for itself",
            ));
        }
        self.name_bytes += self.path.len() as u64;
        if self.contents.tensors.len() >= MAX_TENSORS || self.name_bytes > MAX_HEADER {
            return Err(too_large(
                "it has too many tensors for one safetensors header",
            ));
        }
        self.contents.tensors.push(Tensor {
            name: self.path.clone(),
            dtype: view.dtype,
            shape: view.shape,
            strides: view.strides,
            storage: view.storage,
            offset: view.offset,
            lazy: view.lazy,
        });
        Ok(())
    }

    fn report(&mut self, kind: &str, repr: String) -> Result<(), Refusal> {
        if self.contents.others.len() >= MAX_OTHERS {
            return Err(too_large("it has too many values that are no tensors"));
        }
        self.contents.others.push(Other {
            path: self.path.clone(),
            kind: kind.to_string(),
            repr,
        });
        Ok(())
    }

    /// An object of an unknown class is left out, unless that would leave out a
    /// tensor with it.
    fn refuse_hidden_tensor(&mut self, id: ObjectId) -> Result<(), Refusal> {
        if !self.reaches_storage(id) {
            return Ok(());
        }
        let (kind, _) = describe(self.torch.pickle(), id);
        Err(Refusal::new(
            Cause::Unsupported,
            format!(
                "`{}` is an object of class {kind} with tensors inside, which is not read",
                self.path.escape_debug()
            ),
        ))
    }

    fn reaches_storage(&mut self, id: ObjectId) -> bool {
        let pickle = self.torch.pickle();
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            if !self.inert.insert(id) {
                continue;
            }
            if matches!(pickle.get(id), Object::Persistent(_)) {
                // What led here is not inert after all.
                self.inert.clear();
                return true;
            }
            push_children(pickle.get(id), &mut pending);
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
        Ok(match self.torch.meaning(*inner) {
            Ok(Meaning::Map(_)) => Some(*inner),
            _ => None,
        })
    }

    /// Reports what stands beside `state_dict`, without looking into it.
    fn beside_state_dict(&mut self, entries: &[(ObjectId, ObjectId)]) {
        let pickle = self.torch.pickle();
        for (key, value) in entries {
            let Some(path) = pickle.as_str(*key).filter(|key| *key != "state_dict") else {
                continue;
            };
            let (kind, repr) = describe(pickle, *value);
            self.contents.others.push(Other {
                path: path.to_string(),
                kind,
                repr,
            });
        }
    }

    fn finish(self) -> Result<Contents, Refusal> {
        let mut names = HashSet::with_capacity(self.contents.tensors.len());
        for tensor in &self.contents.tensors {
            if !names.insert(tensor.name.as_str()) {
                return Err(Refusal::new(
                    Cause::Inexpressible,
                    format!(
                        "two tensors are called `{}` once their paths are written with dots",
                        tensor.name.escape_debug()
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

/// Python type and short form of a value.
fn describe(pickle: &Pickle, id: ObjectId) -> (String, String) {
    let short = |text: &str| {
        let mut short: String = text
            .chars()
            .take(REPR)
            .flat_map(char::escape_debug)
            .collect();
        if text.chars().nth(REPR).is_some() {
            short.push_str("...");
        }
        short
    };
    let (kind, repr) = match pickle.get(id) {
        Object::None => ("NoneType", "None".into()),
        Object::Bool(true) => ("bool", "True".into()),
        Object::Bool(false) => ("bool", "False".into()),
        Object::Int(value) => ("int", value.to_string()),
        Object::BigInt(bytes) => ("int", format!("{} bytes", bytes.len())),
        Object::Float(value) => ("float", format!("{value:?}")),
        Object::Str(text) => {
            let text = String::from_utf8_lossy(text.as_bytes());
            ("str", format!("'{}'", short(&text)))
        }
        Object::String8(bytes) => {
            let text = String::from_utf8_lossy(bytes);
            ("str", format!("'{}'", short(&text)))
        }
        Object::Bytes(bytes) => ("bytes", format!("{} bytes", bytes.len())),
        Object::ByteArray(bytes) => ("bytearray", format!("{} bytes", bytes.len())),
        Object::Tuple(items) => ("tuple", format!("{} items", items.len())),
        Object::List(items) => ("list", format!("{} items", items.len())),
        Object::Set(items) => ("set", format!("{} items", items.len())),
        Object::FrozenSet(items) => ("frozenset", format!("{} items", items.len())),
        Object::Dict(_) => ("dict", format!("{} items", pickle.entries(id).len())),
        Object::Global { module, name } => {
            return ("type".into(), short(&format!("{module}.{name}")));
        }
        Object::Call(call) => return (class(pickle, call), String::new()),
        Object::Persistent(_) => ("storage", String::new()),
    };
    (kind.to_string(), repr)
}

/// The class or function that a call names.
fn class(pickle: &Pickle, call: &Call) -> String {
    match pickle.global(call.callable) {
        Some((module, name)) => format!("{}.{}", module.escape_debug(), name.escape_debug()),
        None => "an unknown class".into(),
    }
}

fn push_children(object: &Object, pending: &mut Vec<ObjectId>) {
    match object {
        Object::Tuple(items) | Object::FrozenSet(items) => pending.extend(items.iter()),
        Object::List(items) | Object::Set(items) => pending.extend(items),
        Object::Dict(entries) => {
            pending.extend(entries.iter().flat_map(|(key, value)| [*key, *value]))
        }
        Object::Call(call) => {
            pending.extend([call.callable, call.args]);
            pending.extend(call.kwargs);
            pending.extend(&call.state);
            pending.extend(&call.appended);
            pending.extend(call.items.iter().flat_map(|(key, value)| [*key, *value]));
        }
        _ => {}
    }
}

fn too_large(what: &str) -> Refusal {
    Refusal::new(Cause::TooLarge, what)
}
