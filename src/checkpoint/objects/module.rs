//! Modules, as their `state_dict()` lists them: parameters, buffers but for those that
//! are not to be saved, then submodules (torch/nn/modules/module.py,
//! `_save_to_state_dict`). A module is known by its attributes: its class may be
//! anybody's.
//!
//! Some modules list other attributes too, or keep them in another form:
//! torch's quantized ones (torch/ao/nn/quantized/), and those of hqq.

use super::map::{Entries, Kind, Label, Map, keyed};
use super::meaning::Meaning;
use super::torch::{Storages, Torch};
use crate::checkpoint::refusal::{Refusal, unsupported};
use crate::pickle::{Call, CallKind, Object, ObjectId, PersistentId};

/// torch's packed parameters: a state, and the name of the class of its own that it is
/// the state of.
const SCRIPT_OBJECT: (&str, &str) = ("torch", "ScriptObject");

/// The packed weight of an embedding, which `state_dict()` unpacks.
const EMBEDDING: &str = "__torch__.torch.classes.quantized.EmbeddingPackedParamsBase";

impl<'p, S: Storages> Torch<'p, S> {
    /// The module that `call` makes, compiled or pickled.
    pub(super) fn module(&mut self, call: &'p Call) -> Result<Option<Map>, Refusal> {
        if let Some(map) = self.classes.state(self.pickle, call)? {
            return Ok(Some(map));
        }
        if let Some(("torch._dynamo.eval_frame", "OptimizedModule")) = self.class(call)
            && let Some([original, _context]) = self.pickle.as_tuple(call.args)
        {
            let entries = vec![(Label::Name("_orig_mod"), *original)];
            return Ok(Some(Map::of(Kind::Module, entries)));
        }
        if let Some((module, class)) = self.class(call)
            && call.kind != CallKind::Reduce
        {
            if is_quantized(module)
                && let Some(map) = self.quantized_convolution(call)
            {
                return Ok(Some(map));
            }
            if module.starts_with("bitsandbytes.") && !call.state.is_empty() {
                return Err(unsupported(format!(
                    "it is a whole model with the layers of bitsandbytes ({class}), which unpack \
                     their weights with code of their own"
                )));
            }
        }
        Ok(self.pickled_module(call))
    }

    /// The class or function that makes an object. Streams from before torch 1.6 name
    /// the classes of modules with their source: `("module", class, file, source)`.
    fn class(&self, call: &Call) -> Option<(&'p str, &'p str)> {
        let class = match self.pickle.get(call.callable) {
            Object::Persistent(PersistentId::Object(tuple)) => {
                *self.pickle.as_tuple(*tuple)?.get(1)?
            }
            _ => call.callable,
        };
        self.pickle.global(class)
    }

    fn pickled_module(&self, call: &Call) -> Option<Map> {
        let (attributes, needs_both) = match self.module_argument(call) {
            // Whoever makes modules from a dict makes them from no other.
            Some(attributes) => (attributes, false),
            None => (self.attributes(&call.state), true),
        };
        let attribute = |name| {
            let mut found = attributes.iter().rev();
            found.find_map(|(label, value)| self.is_key(label, name).then_some(*value))
        };
        let group = |name| self.group(attribute(name)?);
        let (parameters, submodules) = (group("_parameters"), group("_modules"));
        let is_one = match needs_both {
            true => parameters.is_some() && submodules.is_some(),
            false => parameters.is_some() || submodules.is_some(),
        };
        if !is_one {
            return None;
        }
        let buffers = group("_buffers").unwrap_or_default();
        let unsaved = attribute("_non_persistent_buffers_set");
        let unsaved = unsaved.map_or_else(Vec::new, |unsaved| self.members(unsaved));
        let is_saved = |key: ObjectId| {
            let text = self.pickle.as_str(key);
            !unsaved.iter().any(|name| self.pickle.as_str(*name) == text)
        };
        let (buffers, unsaved): (Vec<_>, Vec<_>) =
            buffers.into_iter().partition(|(key, _)| is_saved(*key));
        let mut entries = keyed(parameters.unwrap_or_default());
        entries.extend(keyed(buffers));
        entries.extend(keyed(submodules.unwrap_or_default()));
        let groups = ["_parameters", "_modules", "_buffers"];
        let is_group = |label: &Label| groups.iter().any(|name| self.is_key(label, name));
        let mut map = Map {
            unsaved: keyed(unsaved),
            buffers: attribute("_buffers"),
            ..Map::of(Kind::Module, Vec::new())
        };
        let class = self.class(call).unwrap_or_default();
        for (label, value) in attributes {
            if is_group(&label) {
                continue;
            }
            if let Some(packed) = self.packed(value) {
                entries.push((label, packed));
            } else if lists_quantizer(class) && self.is_quantizer(&label, value) {
                map.numbers.push((label, value));
            } else if class == ("hqq.core.quantize", "HQQLinear") && self.is_key(&label, "meta") {
                entries.extend(keyed(self.pickle.entries(value)));
            } else {
                map.attributes.push((label, value));
            }
        }
        entries.retain(|(_, value)| !matches!(self.pickle.get(*value), Object::None));
        map.entries = entries;
        Some(map)
    }

    /// The attributes of a module that a function makes of them, its first argument:
    /// torch.fx, and the `persistence` of NVIDIA's StyleGANs, which keeps them under
    /// `state`.
    fn module_argument(&self, call: &Call) -> Option<Entries> {
        if call.kind != CallKind::Reduce {
            return None;
        }
        let argument = *self.pickle.as_tuple(call.args)?.first()?;
        let groups = |id: ObjectId| {
            let entries = self.items(id);
            let is_group = |key| self.is_text(key, "_parameters") || self.is_text(key, "_modules");
            let is_module = entries.iter().any(|(key, _)| is_group(*key));
            is_module.then(|| keyed(self.pickle.entries(id)))
        };
        let state = || {
            let entries = self.items(argument).iter().rev();
            let mut found = entries.filter(|(key, _)| self.is_text(*key, "state"));
            groups(found.next()?.1)
        };
        groups(argument).or_else(state)
    }

    /// A convolution of torch.ao, whose state is a tuple (torch/ao/nn/quantized/
    /// modules/conv.py, `__getstate__`): ten numbers, weight, bias, scale, zero point.
    fn quantized_convolution(&self, call: &Call) -> Option<Map> {
        let [state] = *call.state else { return None };
        let [.., weight, bias, scale, zero_point, _training] = self.pickle.as_tuple(state)? else {
            return None;
        };
        let mut entries = vec![(Label::Name("weight"), *weight)];
        if !matches!(self.pickle.get(*bias), Object::None) {
            entries.push((Label::Name("bias"), *bias));
        }
        Some(Map {
            numbers: vec![
                (Label::Name("scale"), *scale),
                (Label::Name("zero_point"), *zero_point),
            ],
            ..Map::of(Kind::Module, entries)
        })
    }

    /// What stands for the packed parameters `id`, if they are some: of an embedding the
    /// weight itself.
    fn packed(&self, id: ObjectId) -> Option<ObjectId> {
        let call = self.pickle.as_call(id)?;
        if self.pickle.global(call.callable) != Some(SCRIPT_OBJECT) {
            return None;
        }
        let [state] = *call.state else {
            return Some(id);
        };
        match self.pickle.as_tuple(state) {
            Some([packed, class]) if self.is_text(*class, EMBEDDING) => {
                // Version, tensors, numbers, bits.
                let tensors = *self.pickle.as_tuple(*packed)?.get(1)?;
                match self.pickle.get(tensors) {
                    Object::List(tensors) => match **tensors {
                        [weight] => Some(weight),
                        _ => Some(id),
                    },
                    _ => Some(id),
                }
            }
            _ => Some(id),
        }
    }

    /// Packed parameters as what they were packed from: `((weight, bias), class)`.
    pub(super) fn script_object(&self, call: &'p Call) -> Result<Option<Meaning<'p>>, Refusal> {
        if self.pickle.global(call.callable) != Some(SCRIPT_OBJECT) {
            return Ok(None);
        }
        let packed = match *call.state {
            [state] => match self.pickle.as_tuple(state) {
                Some([packed, _class]) => self.pickle.as_tuple(*packed),
                _ => None,
            },
            _ => None,
        };
        match packed {
            Some(packed) => Ok(Some(Meaning::Sequence(packed.into()))),
            None => Err(unsupported(
                "it is an object of a compiled class that is not known",
            )),
        }
    }

    fn is_key(&self, label: &Label, name: &str) -> bool {
        match label {
            Label::Key(key) => self.is_text(*key, name),
            Label::Name(known) => *known == name,
            Label::Index(_) => false,
        }
    }

    /// The members of a set, in whatever way it was written.
    fn members(&self, id: ObjectId) -> Vec<ObjectId> {
        match self.pickle.get(id) {
            Object::Set(items) | Object::List(items) => items.clone(),
            Object::FrozenSet(items) | Object::Tuple(items) => items.to_vec(),
            // `set([...])`, which protocols before 4 write.
            Object::Call(call) => {
                let mut members = call.appended.clone();
                for argument in self.pickle.as_tuple(call.args).unwrap_or_default() {
                    if let Object::List(items) = self.pickle.get(*argument) {
                        members.extend(items);
                    }
                }
                members
            }
            _ => Vec::new(),
        }
    }

    fn is_quantizer(&self, label: &Label, value: ObjectId) -> bool {
        let is_number = matches!(self.pickle.get(value), Object::Int(_) | Object::Float(_));
        is_number && (self.is_key(label, "scale") || self.is_key(label, "zero_point"))
    }
}

/// Whether `state_dict()` lists the numbers `scale` and `zero_point` of a module of
/// this class, as tensors.
fn lists_quantizer((module, class): (&str, &str)) -> bool {
    is_quantized(module) && (class.contains("Linear") || class == "QFunctional")
}

/// Whether the classes of a module of torch are quantized layers. Before torch 1.13 it
/// was not called `ao`.
fn is_quantized(module: &str) -> bool {
    let module = module.strip_prefix("torch.").unwrap_or_default();
    let module = module.strip_prefix("ao.").unwrap_or(module);
    module.starts_with("nn.quantized.") || module.starts_with("nn.intrinsic.quantized.")
}
