//! Which value of a checkpoint holds the weights. The same rule for every container;
//! the first that applies:
//!
//! 1. The value at the path that was asked for.
//! 2. `state_dict` at the top, when it is a dictionary or a module: so does
//!    Hugging Face's convert.py.
//! 3. `params_ema` at the top, which stands before `params`.
//! 4. The embedding of a textual inversion, which is one tensor.
//! 5. The one value that holds weights, when it is a dictionary or a module, and so on
//!    inside of it until weights stand side by side.
//! 6. Everything.

use std::borrow::Cow;

use super::refusal::{Cause, Refusal, shown};

/// What is wanted of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// What the rule finds.
    #[default]
    Rule,
    /// What lies at this dotted path, in files that have it; else what the rule finds.
    Preferred(&'a str),
    /// What lies at this dotted path, and nothing else.
    Exactly(&'a str),
}

/// A value of a dictionary, by its key if that has a text.
pub type Entry<'v, Id> = (Option<Cow<'v, str>>, Id);

/// The values of a file, as the rule sees them.
pub trait Values<'v> {
    type Id: Copy + PartialEq;

    /// The entries of the dictionary at `id`; None when it is something else.
    fn entries(&mut self, id: Self::Id) -> Result<Option<Vec<Entry<'v, Self::Id>>>, Refusal>;

    /// Whether `id` is a dictionary or a module.
    fn is_mapping(&mut self, id: Self::Id) -> Result<bool, Refusal>;

    /// Whether anything at or below the entry could be weights. `at_top` when the entry
    /// is one of the whole file's.
    fn holds_weights(&mut self, entry: &Entry<'v, Self::Id>, at_top: bool)
    -> Result<bool, Refusal>;

    /// The value at the dotted path below `id`.
    fn at(&mut self, id: Self::Id, path: &str) -> Result<Option<Self::Id>, Refusal>;

    /// The text that an entry is.
    fn text(&self, id: Self::Id) -> Option<Cow<'v, str>>;

    /// The only value in the dictionary or module at `id`, if that is a tensor.
    fn only_tensor(&mut self, id: Self::Id) -> Result<Option<Self::Id>, Refusal>;
}

/// What is left of the dotted path `name` below `root`; what lies at `root` itself is
/// called `tensor`.
pub fn below<'n>(name: &'n str, root: &str) -> Option<&'n str> {
    match name.strip_prefix(root)? {
        "" => Some("tensor"),
        rest => rest.strip_prefix('.'),
    }
}

/// Where the weights are.
pub struct Picked<Id> {
    pub value: Id,
    /// Its dotted path; empty for the whole file.
    pub path: String,
    /// The values that the way to it leads past.
    pub beside: Vec<Beside<Id>>,
    /// What it is called, if it is a tensor that has a name of its own.
    pub name: Option<String>,
    /// It was asked for: whatever else there is was not.
    pub asked: bool,
}

/// A value that the way to the weights leads past.
pub struct Beside<Id> {
    pub holder: Id,
    pub value: Id,
    /// Its dotted path.
    pub path: String,
}

/// Finds the weights below `top`.
///
/// # Errors
/// Nothing lies at a path that was to be taken exactly.
pub fn pick<'v, V: Values<'v>>(
    values: &mut V,
    top: V::Id,
    wanted: Wanted,
) -> Result<Picked<V::Id>, Refusal> {
    let mut picked = Picked {
        value: top,
        path: String::new(),
        beside: Vec::new(),
        name: None,
        asked: false,
    };
    if let Wanted::Preferred(path) | Wanted::Exactly(path) = wanted {
        match (values.at(top, path)?, wanted) {
            (Some(value), _) => {
                return Ok(Picked {
                    value,
                    path: path.to_string(),
                    asked: true,
                    ..picked
                });
            }
            (None, Wanted::Exactly(_)) => {
                return Err(Refusal::new(
                    Cause::NoSuchRoot,
                    format!("it has nothing at `{}`, which was asked for", shown(path)),
                ));
            }
            (None, _) => {}
        }
    }
    while let Some(entries) = values.entries(picked.value)? {
        let is_top = picked.path.is_empty();
        if is_top && picked.embedding(values, &entries)? {
            break;
        }
        let named = match is_top {
            true => of_name(values, &entries)?,
            false => None,
        };
        let Some(next) = named.map_or_else(|| lone(values, &entries, is_top), |at| Ok(Some(at)))?
        else {
            break;
        };
        picked.step(entries, next);
    }
    Ok(picked)
}

impl<Id: Copy + PartialEq> Picked<Id> {
    /// Goes on to the entry with this number.
    fn step(&mut self, entries: Vec<Entry<Id>>, next: usize) {
        let holder = self.value;
        let mut path = String::new();
        for (at, (key, value)) in entries.into_iter().enumerate() {
            // What cannot be asked for by a path is nobody's but the ledger's.
            let Some(key) = key else { continue };
            let full = match self.path.is_empty() {
                true => key.into_owned(),
                false => format!("{}.{key}", self.path),
            };
            if at == next {
                self.value = value;
                path = full;
                continue;
            }
            self.beside.push(Beside {
                holder,
                value,
                path: full,
            });
        }
        self.path = path;
    }

    /// Takes the tensor of a textual inversion: `{"string_to_param": {"*": tensor},
    /// "string_to_token": ..., "name": ...}`.
    fn embedding<'v, V: Values<'v, Id = Id>>(
        &mut self,
        values: &mut V,
        entries: &[Entry<'v, Id>],
    ) -> Result<bool, Refusal> {
        let find = |name| entries.iter().find(|(key, _)| key.as_deref() == Some(name));
        let (Some((_, params)), Some(_)) = (find("string_to_param"), find("string_to_token"))
        else {
            return Ok(false);
        };
        let (Some(tensor), name) = (values.only_tensor(*params)?, find("name")) else {
            return Ok(false);
        };
        let name = name.and_then(|(_, name)| values.text(*name));
        let holder = self.value;
        let others = entries.iter().filter(|(_, value)| value != params);
        self.beside.extend(others.filter_map(|(key, value)| {
            Some(Beside {
                holder,
                value: *value,
                path: key.as_ref()?.to_string(),
            })
        }));
        self.path = "string_to_param".to_string();
        self.value = tensor;
        self.name = Some(match name.filter(|name| !name.is_empty()) {
            Some(name) => name.into_owned(),
            None => "*".to_string(),
        });
        Ok(true)
    }
}

/// The entry at the top that its name makes the weights.
fn of_name<'v, V: Values<'v>>(
    values: &mut V,
    entries: &[Entry<'v, V::Id>],
) -> Result<Option<usize>, Refusal> {
    let find = |name| {
        let mut keys = entries.iter();
        keys.position(|(key, _)| key.as_deref() == Some(name))
    };
    if let Some(at) = find("state_dict")
        && values.is_mapping(entries[at].1)?
    {
        // It may be an optimizer's, beside the weights.
        let mut other = false;
        if !values.holds_weights(&entries[at], true)? {
            for entry in entries {
                other = other || values.holds_weights(entry, true)?;
            }
        }
        if !other {
            return Ok(Some(at));
        }
    }
    match find("params_ema") {
        Some(at)
            if values.is_mapping(entries[at].1)? && values.holds_weights(&entries[at], true)? =>
        {
            Ok(Some(at))
        }
        _ => Ok(None),
    }
}

/// The one entry that holds weights, if it is a dictionary or a module.
fn lone<'v, V: Values<'v>>(
    values: &mut V,
    entries: &[Entry<'v, V::Id>],
    at_top: bool,
) -> Result<Option<usize>, Refusal> {
    let mut found = None;
    for (at, entry) in entries.iter().enumerate() {
        if !values.holds_weights(entry, at_top)? {
            continue;
        }
        if found.is_some() {
            return Ok(None);
        }
        found = Some(at);
    }
    match found {
        Some(at) if entries[at].0.is_some() && values.is_mapping(entries[at].1)? => Ok(Some(at)),
        _ => Ok(None),
    }
}
