//! TorchScript archives: the zip container of torch.save, with a module in
//! `ROOT/data.pkl`, its classes as source in `ROOT/code/` and the constants of
//! that source in `ROOT/constants.pkl` (torch/csrc/jit/serialization,
//! `export_module.cpp`, `import_source.cpp`).
//!
//! The tensors are those that `torch.jit.load(...).state_dict()` has. The pickle
//! holds the attributes of each module, and says of none what it is: its class
//! does, with the lists `__parameters__` and `__buffers__` and the declared types.
//! Those lines are all that is read of the source.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::map::{Kind, Map, keyed};
use crate::checkpoint::refusal::{Cause, Refusal, shown};
use crate::pickle::{Call, CallKind, Import, Object, ObjectId, Pickle};

/// Bytes of source that are read of one archive: the classes of large models
/// take some hundred KiB.
pub const MAX_SOURCE: u64 = 64 << 20;

/// Where the names of all classes of an archive begin.
const ROOT: &str = "__torch__";

/// The classes that a pickle makes objects of, by module and name, as the pickle
/// imports them.
#[derive(Debug, Default)]
pub struct Classes(HashMap<String, HashMap<String, Class>>);

/// What its source says of a class.
#[derive(Debug, Default)]
struct Class {
    /// A `torch.nn.Module`; others are plain data.
    is_module: bool,
    parameters: HashSet<String>,
    /// None where the source has no such list: it was written by a torch that
    /// took every tensor for a buffer.
    buffers: Option<HashSet<String>>,
    /// Attributes declared as `Tensor`.
    tensors: HashSet<String>,
    /// Its objects are not pickled by their attributes.
    has_set_state: bool,
}

impl Classes {
    /// The modules of source, without repetition, whose classes `imports` names.
    pub fn modules(imports: &[Import]) -> BTreeSet<&str> {
        let modules = imports.iter().map(|import| &*import.module);
        modules.filter(|module| is_compiled(module)).collect()
    }

    /// The entry that the source of `module` lies in, below the archive's root.
    pub fn entry(module: &str) -> String {
        format!("code/{}.py", module.replace('.', "/"))
    }

    /// Adds the classes of `module`.
    pub fn add(&mut self, module: &str, source: &str) {
        self.0.insert(module.to_string(), declared(source));
    }

    /// Whether the object `id` is a module.
    pub fn is_module(&self, pickle: &Pickle, id: ObjectId) -> bool {
        let call = pickle.as_call(id);
        call.is_some_and(|call| self.module(pickle, call).is_some())
    }

    /// The class of the object that `call` makes, if it is a module.
    fn module<'p>(&self, pickle: &'p Pickle, call: &Call) -> Option<(&'p str, &'p str, &Class)> {
        if call.kind != CallKind::NewObj {
            return None;
        }
        let (module, name) = pickle.global(call.callable)?;
        let class = self.0.get(module)?.get(name)?;
        class.is_module.then_some((module, name, class))
    }

    /// The module that `call` makes; None when it makes something else.
    ///
    /// # Errors
    /// A module whose state only its own code can tell.
    pub fn state(&self, pickle: &Pickle, call: &Call) -> Result<Option<Map>, Refusal> {
        let Some((module, name, class)) = self.module(pickle, call) else {
            return Ok(None);
        };
        let [state] = *call.state else {
            return Err(own_form(module, name));
        };
        if class.has_set_state || !matches!(pickle.get(state), Object::Dict(_)) {
            return Err(own_form(module, name));
        }
        let is_state = |(key, value): &(ObjectId, ObjectId)| {
            let (Some(attribute), Object::Call(value)) = (pickle.as_str(*key), pickle.get(*value))
            else {
                return false;
            };
            class.is_state(attribute) || self.module(pickle, value).is_some()
        };
        let (entries, attributes) = pickle.entries(state).into_iter().partition(is_state);
        Ok(Some(Map {
            attributes: keyed(attributes),
            ..Map::of(Kind::Module, keyed(entries))
        }))
    }
}

impl Class {
    /// Whether the attribute is a parameter or a buffer, if it is a tensor.
    fn is_state(&self, attribute: &str) -> bool {
        let is_buffer = match &self.buffers {
            Some(buffers) => buffers.contains(attribute),
            None => true,
        };
        self.parameters.contains(attribute) || is_buffer && self.tensors.contains(attribute)
    }
}

/// Whether the classes of a module come from the archive itself.
fn is_compiled(module: &str) -> bool {
    let rest = module.strip_prefix(ROOT);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn own_form(module: &str, name: &str) -> Refusal {
    Refusal::new(
        Cause::Unsupported,
        format!(
            "its module `{}` keeps its state in a form of its own, which only its code can read",
            shown(&format!("{module}.{name}"))
        ),
    )
}

/// The classes that a source declares. torch prints each line of a class body
/// with two spaces in front, each attribute on one line, and the bodies of
/// methods with four (torch/csrc/jit/serialization/python_print.cpp).
fn declared(source: &str) -> HashMap<String, Class> {
    let mut classes: HashMap<String, Class> = HashMap::new();
    let mut current: Option<&mut Class> = None;
    for line in source.lines() {
        if let Some(header) = line.strip_prefix("class ") {
            let name = header.split(['(', ':']).next().unwrap_or_default();
            let class = classes.entry(name.to_string()).or_default();
            class.is_module = header[name.len()..].starts_with("(Module)");
            current = Some(class);
        } else if let Some(member) = line.strip_prefix("  ") {
            if let Some(class) = &mut current
                && !member.starts_with(' ')
            {
                class.declare(member);
            }
        } else if !line.is_empty() {
            current = None;
        }
    }
    classes
}

impl Class {
    /// Takes in one line of the class body.
    fn declare(&mut self, line: &str) {
        if line.starts_with("def __setstate__(") {
            self.has_set_state = true;
        } else if let Some(list) = line.strip_prefix("__parameters__ = ") {
            self.parameters = quoted(list).map(str::to_string).collect();
        } else if let Some(list) = line.strip_prefix("__buffers__ = ") {
            self.buffers = Some(quoted(list).map(str::to_string).collect());
        } else if let Some(rest) = line.strip_prefix("__annotations__[") {
            // A name that is no identifier.
            if let Some((name, "Tensor")) = rest.split_once("] = ") {
                self.tensors.extend(quoted(name).map(str::to_string));
            }
        } else if let Some((name, "Tensor")) = line.split_once(" : ") {
            self.tensors.insert(name.to_string());
        }
    }
}

/// What stands between quotes; torch escapes nothing there.
fn quoted(list: &str) -> impl Iterator<Item = &str> {
    list.split('"').skip(1).step_by(2)
}

/// Refuses an archive that is no module's.
pub fn no_module() -> Refusal {
    Refusal::new(
        Cause::Unsupported,
        "this is a TorchScript archive of something else than a module",
    )
}

/// Refuses a module whose tensors were made constants of its code: `state_dict()`
/// has nothing of it.
pub fn frozen() -> Refusal {
    Refusal::new(
        Cause::Unsupported,
        "this is a frozen TorchScript module: its weights are constants of its code and have no names",
    )
}
