//! torch's objects in a pickle: storages, the functions that rebuild tensors, and
//! the containers around them. Nothing is called; each known name is given the
//! meaning it has in torch (torch/_utils.py, torch/_tensor.py).

use std::collections::HashMap;

use super::Lazy;
use super::dtype::ElementType;
use super::refusal::{Cause, Refusal, shown};
use super::strided::{View, check_lazy, check_view};
use super::wrapper::{NO_DATA, Wrapper, wrapper};
use crate::pickle::{Call, CallKind, Object, ObjectId, PersistentId, Pickle};

/// How many wrappers may stand around one tensor: a parameter of a subclass of
/// a device tensor is three.
const MAX_WRAPPERS: usize = 16;
/// Dimensions of one tensor; numpy and most of torch stop here too. Tensors can
/// share one tuple of sizes, so that without a bound a small file could ask for
/// any amount of memory.
const MAX_RANK: usize = 64;
/// Bytes of a storage's key, which torch makes of digits.
const MAX_KEY: usize = 1024;

/// The storages of a container, found by the key in a persistent id.
pub trait Storages {
    /// The bytes behind `key`, which the pickle says hold `elements` elements of
    /// `element`. An error unless the container holds exactly those bytes.
    fn resolve(
        &mut self,
        key: &str,
        elements: u64,
        element: ElementType,
    ) -> Result<StorageRef, Refusal>;
}

/// A storage that was resolved.
#[derive(Clone, Copy, Debug)]
pub struct StorageRef {
    /// Which one, for [`super::Tensor::storage`].
    pub index: u32,
    /// Bytes.
    pub len: u64,
    /// Its numbers are big-endian.
    pub swap: bool,
}

/// A storage as a persistent id names it.
#[derive(Clone, Copy)]
struct TypedStorage {
    storage: StorageRef,
    element: ElementType,
}

/// Reads torch's objects out of one pickle.
pub struct Torch<'p, S> {
    pickle: &'p Pickle<'p>,
    storages: S,
    resolved: HashMap<ObjectId, TypedStorage>,
}

/// What an object is to torch.
pub enum Meaning<'p> {
    /// A tensor, and the attributes that its object is given besides.
    Tensor(View, Vec<ObjectId>),
    /// A dict: entries in order, each key once; and the same of its object.
    Map(Vec<(ObjectId, ObjectId)>, &'p [ObjectId]),
    /// A list or tuple.
    Sequence(&'p [ObjectId]),
    /// Anything else.
    Other,
}

impl<'p, S: Storages> Torch<'p, S> {
    pub fn new(pickle: &'p Pickle<'p>, storages: S) -> Torch<'p, S> {
        Torch {
            pickle,
            storages,
            resolved: HashMap::new(),
        }
    }

    pub fn pickle(&self) -> &'p Pickle<'p> {
        self.pickle
    }

    pub fn into_storages(self) -> S {
        self.storages
    }

    /// What the object `id` is. An error when it is a tensor that cannot be
    /// read.
    pub fn meaning(&mut self, id: ObjectId) -> Result<Meaning<'p>, Refusal> {
        Ok(match self.pickle.get(id) {
            Object::Dict(_) => Meaning::Map(self.pickle.entries(id), &[]),
            Object::List(items) => Meaning::Sequence(items),
            Object::Tuple(items) => Meaning::Sequence(items),
            Object::Call(call) => match self.ordered_dict(id, call)? {
                Some(entries) => Meaning::Map(entries, &call.state),
                None => self.tensor(call)?,
            },
            _ => Meaning::Other,
        })
    }

    /// What [`Torch::meaning`] costs: the values that the object `id` is written
    /// with, and the bytes of text among its keys.
    pub fn cost(&self, id: ObjectId) -> (usize, usize) {
        let keys =
            |items: &[(ObjectId, ObjectId)]| items.iter().map(|(key, _)| self.text_len(*key)).sum();
        let (values, text): (usize, usize) = match self.pickle.get(id) {
            Object::Dict(items) => (items.len(), keys(items)),
            Object::List(items) => (items.len(), 0),
            Object::Tuple(items) => (items.len(), 0),
            Object::Call(call) => {
                let args = self.pickle.as_tuple(call.args).unwrap_or_default();
                let (values, text) = match args.first().map(|first| self.pickle.get(*first)) {
                    Some(Object::Dict(items)) => (items.len(), keys(items)),
                    Some(Object::List(items)) => {
                        let text = items
                            .iter()
                            .filter_map(|item| Some(self.text_len(self.pair(*item)?.0)))
                            .sum();
                        (items.len(), text)
                    }
                    _ => (0, 0),
                };
                (values + call.items.len(), text + keys(&call.items))
            }
            _ => (0, 0),
        };
        (values + 1, text)
    }

    /// Bytes of a text or of another scalar that is compared by its bytes.
    fn text_len(&self, id: ObjectId) -> usize {
        match self.pickle.get(id) {
            Object::Str(text) => text.as_bytes().len(),
            Object::String8(bytes) | Object::BigInt(bytes) => bytes.len(),
            Object::Bytes(bytes) => bytes.len(),
            _ => 0,
        }
    }

    /// The entries of an `OrderedDict` or its like. Python 2 wrote them as
    /// argument, as a list of two-element lists; Python 3 sets them afterwards.
    fn ordered_dict(
        &self,
        id: ObjectId,
        call: &Call,
    ) -> Result<Option<Vec<(ObjectId, ObjectId)>>, Refusal> {
        let Some(("collections", name)) = self.pickle.global(call.callable) else {
            return Ok(None);
        };
        let args = self.pickle.as_tuple(call.args).unwrap_or_default();
        // `__new__` takes arguments, but puts nothing in.
        let new = matches!(call.kind, CallKind::NewObj | CallKind::NewObjEx);
        let mut entries = match (name, args) {
            _ if !call.appended.is_empty() => return Ok(None),
            ("OrderedDict" | "Counter" | "defaultdict", []) => Vec::new(),
            ("defaultdict", [_factory]) => Vec::new(),
            ("OrderedDict" | "Counter", [initial]) if !new => self.initial_entries(*initial)?,
            _ => return Ok(None),
        };
        entries.extend(self.pickle.entries(id));
        Ok(Some(self.pickle.last_of_each_key(&entries)))
    }

    fn initial_entries(&self, id: ObjectId) -> Result<Vec<(ObjectId, ObjectId)>, Refusal> {
        match self.pickle.get(id) {
            Object::Dict(_) => Ok(self.pickle.entries(id)),
            Object::List(items) => items
                .iter()
                .map(|item| self.pair(*item))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    malformed("an OrderedDict is made from something that is no list of pairs")
                }),
            _ => Err(malformed(
                "an OrderedDict is made from something that is no list of pairs",
            )),
        }
    }

    /// The two objects of a tuple or list of two.
    fn pair(&self, id: ObjectId) -> Option<(ObjectId, ObjectId)> {
        let items: &[ObjectId] = match self.pickle.get(id) {
            Object::List(items) => items,
            Object::Tuple(items) => items,
            _ => return None,
        };
        match items {
            [first, second] => Some((*first, *second)),
            _ => None,
        }
    }

    /// The tensor that `call` makes, if it makes one.
    fn tensor(&mut self, call: &'p Call) -> Result<Meaning<'p>, Refusal> {
        let pickle = self.pickle;
        let mut call = call;
        let mut callable = call.callable;
        let mut args = call.args;
        // The types that device tensors around this one say it has.
        let mut promised = Vec::new();
        let mut attributes = Vec::new();
        for _ in 0..MAX_WRAPPERS {
            let Some((module, name)) = pickle.global(callable) else {
                return Ok(Meaning::Other);
            };
            let wrapper = wrapper(module, name);
            let arguments = pickle.as_tuple(args).unwrap_or_default();
            let state = match wrapper {
                Wrapper::None => return Ok(Meaning::Other),
                Wrapper::Unsupported(what) => return Err(unsupported(what.into())),
                _ => self.state(call, &wrapper)?,
            };
            let too_few = || malformed(format!("`{name}` has too few or too many arguments"));
            let inner = match wrapper {
                Wrapper::None | Wrapper::Unsupported(_) => None,
                Wrapper::Rebuild(counts) => {
                    if !counts.contains(&arguments.len()) {
                        return Err(too_few());
                    }
                    let view = self.rebuild(arguments, None)?;
                    keep_promise(&view, &promised)?;
                    return Ok(Meaning::Tensor(view, attributes));
                }
                Wrapper::RebuildTyped => {
                    let (7 | 8, Some(dtype)) = (arguments.len(), arguments.get(6)) else {
                        return Err(too_few());
                    };
                    let dtype = self
                        .dtype(*dtype)
                        .ok_or_else(|| unsupported("its dtype is unknown".into()))?;
                    let view = self.rebuild(arguments, Some(dtype))?;
                    keep_promise(&view, &promised)?;
                    return Ok(Meaning::Tensor(view, attributes));
                }
                Wrapper::TensorClass => {
                    let ([], Some(state @ [storage, _, _, _])) = (arguments, state) else {
                        return Err(unsupported(format!("a `{module}.{name}` of unknown form")));
                    };
                    let element = self.storage(*storage)?.element;
                    if element_of_tensor_class(name) != Some(element) {
                        return Err(malformed(format!(
                            "a `{module}.{name}` with a storage of another type"
                        )));
                    }
                    let view = self.rebuild(state, None)?;
                    keep_promise(&view, &promised)?;
                    return Ok(Meaning::Tensor(view, attributes));
                }
                Wrapper::FromType => {
                    let [function, _type, function_args, state] = arguments else {
                        return Err(too_few());
                    };
                    attributes.push(*state);
                    callable = *function;
                    args = *function_args;
                    continue;
                }
                Wrapper::Parameter => match arguments {
                    [data, _grad, _hooks] => Some(data),
                    _ => return Err(too_few()),
                },
                Wrapper::ParameterWithState => match arguments {
                    [data, _grad, _hooks, state] => {
                        attributes.push(*state);
                        Some(data)
                    }
                    _ => return Err(too_few()),
                },
                // torch 0.1 gave the tensor with the state: data, gradient,
                // hooks, requires_grad, volatile. Later it is the argument, and
                // the state is requires_grad, volatile, hooks.
                Wrapper::ParameterClass => match (arguments, state) {
                    ([], Some([data, _, _, _, _])) => Some(data),
                    ([data] | [data, _], None | Some([_, _, _])) => Some(data),
                    _ => return Err(unsupported(format!("a `{module}.{name}` of unknown form"))),
                },
                Wrapper::FromCpu => match arguments {
                    [data, dtype, _device, _grad] => {
                        promised.push(self.dtype(*dtype));
                        Some(data)
                    }
                    _ => return Err(too_few()),
                },
            };
            let inner = inner.map(|inner| pickle.get(*inner));
            let Some(Object::Call(inner)) = inner else {
                return Err(malformed(format!("`{name}` wraps no tensor")));
            };
            call = inner;
            callable = inner.callable;
            args = inner.args;
        }
        Err(Refusal::new(
            Cause::TooLarge,
            "it is wrapped too many times",
        ))
    }

    /// The state that `call` is given after it was made, where its kind of tensor
    /// has one. torch takes such a state for other data on any tensor, so it is
    /// never left out.
    fn state(&self, call: &'p Call, wrapper: &Wrapper) -> Result<Option<&'p [ObjectId]>, Refusal> {
        let class = matches!(wrapper, Wrapper::TensorClass | Wrapper::ParameterClass);
        let made = match call.kind {
            CallKind::NewObjEx => false,
            CallKind::NewObj => class,
            CallKind::Reduce | CallKind::Inst | CallKind::Obj => true,
        };
        if made && call.appended.is_empty() && call.items.is_empty() {
            match &*call.state {
                [] => return Ok(None),
                [state] if class => {
                    if let Some(state) = self.pickle.as_tuple(*state) {
                        return Ok(Some(state));
                    }
                }
                _ => {}
            }
        }
        Err(unsupported(
            "it is changed after it was made, in a way that is not read".into(),
        ))
    }

    /// `(storage, offset, size, stride, ...)`, in elements of the storage's type,
    /// or of `dtype`, which then stands before the metadata (torch/_utils.py,
    /// `_rebuild_tensor_v3`).
    fn rebuild(&mut self, args: &[ObjectId], dtype: Option<ElementType>) -> Result<View, Refusal> {
        let [storage, offset, size, stride, rest @ ..] = args else {
            return Err(malformed("a tensor is rebuilt from too few arguments"));
        };
        let storage = self.storage(*storage)?;
        // v2: requires_grad, backward_hooks, metadata; v3 has the dtype before it.
        let metadata = rest.get(if dtype.is_some() { 3 } else { 2 });
        let element = dtype.unwrap_or(storage.element);
        let mut lazy = self.lazy(metadata)?;
        if storage.storage.swap {
            // torch swaps by the storage's type, whatever is then made of it.
            if storage.element.number_size() != element.number_size() {
                return Err(Refusal::new(
                    Cause::Ambiguous,
                    "its storage was written on a big-endian machine with another type",
                ));
            }
            lazy.swap = element.number_size() > 1;
        }
        let dtype = match element {
            ElementType::Plain(dtype) => dtype,
            ElementType::Foreign(foreign) => {
                return Err(Refusal::new(
                    Cause::Inexpressible,
                    format!(
                        "its type is {}, for which safetensors has no name",
                        foreign.name
                    ),
                ));
            }
        };
        check_lazy(dtype, lazy)?;
        let offset = self
            .pickle
            .as_int(*offset)
            .and_then(|offset| u64::try_from(offset).ok())
            .ok_or_else(|| malformed("its offset into the storage is not a number from 0"))?;
        let shape = self.dimensions(*size, "sizes")?;
        let strides = self.dimensions(*stride, "strides")?;
        let offset = check_view(
            offset,
            &shape,
            &strides,
            element.size(),
            storage.storage.len,
        )?;
        Ok(View {
            dtype,
            shape,
            strides,
            storage: storage.storage.index,
            offset,
            lazy,
        })
    }

    /// A dtype object such as `torch.float32`.
    fn dtype(&self, id: ObjectId) -> Option<ElementType> {
        match self.pickle.global(id)? {
            ("torch", name) => ElementType::of_dtype_name(name),
            _ => None,
        }
    }

    /// The negative and conjugate bits: `{"neg": True, "conj": True}`.
    fn lazy(&self, metadata: Option<&ObjectId>) -> Result<Lazy, Refusal> {
        let mut lazy = Lazy::default();
        let items: &[_] = match metadata.map(|metadata| self.pickle.get(*metadata)) {
            None | Some(Object::None) => &[],
            // torch writes one item for each bit that is set.
            Some(Object::Dict(items)) if items.len() <= 2 => items,
            Some(_) => return Err(malformed("a tensor's metadata is no dict of two bits")),
        };
        for (key, value) in items {
            // torch takes other values for bits too, by their truth.
            let Object::Bool(set) = *self.pickle.get(*value) else {
                return Err(malformed("a bit in a tensor's metadata is no bool"));
            };
            match self.pickle.as_str(*key) {
                Some("neg") => lazy.negate = set,
                Some("conj") => lazy.conjugate = set,
                _ => return Err(unsupported("it has metadata of unknown meaning".into())),
            }
        }
        Ok(lazy)
    }

    fn dimensions(&self, id: ObjectId, what: &str) -> Result<Box<[u64]>, Refusal> {
        let size = match self.pickle.get(id) {
            // torch.Size((2, 3))
            Object::Call(call) if self.pickle.global(call.callable) == Some(("torch", "Size")) => {
                match self.pickle.as_tuple(call.args) {
                    Some([inner]) => *inner,
                    _ => id,
                }
            }
            _ => id,
        };
        let items: &[ObjectId] = match self.pickle.get(size) {
            Object::Tuple(items) => items,
            Object::List(items) => items,
            _ => return Err(malformed(format!("its {what} are not a tuple of numbers"))),
        };
        if items.len() > MAX_RANK {
            return Err(Refusal::new(
                Cause::TooLarge,
                format!("it has {} dimensions", items.len()),
            ));
        }
        items
            .iter()
            .map(|item| u64::try_from(self.pickle.as_int(*item)?).ok())
            .collect::<Option<Box<[u64]>>>()
            .ok_or_else(|| malformed(format!("one of its {what} is not a number from 0")))
    }

    /// The storage behind a persistent id
    /// `("storage", class, key, location, elements)`.
    fn storage(&mut self, id: ObjectId) -> Result<TypedStorage, Refusal> {
        if let Some(storage) = self.resolved.get(&id) {
            return Ok(*storage);
        }
        let Object::Persistent(PersistentId::Object(tuple)) = self.pickle.get(id) else {
            return Err(malformed(
                "a tensor is rebuilt from something that is no storage",
            ));
        };
        let Some([kind, class, key, location, elements]) = self.pickle.as_tuple(*tuple) else {
            return Err(malformed("a persistent id is no storage"));
        };
        if !self.is_text(*kind, "storage") {
            return Err(malformed("a persistent id is no storage"));
        }
        if self.is_text(*location, "meta") {
            return Err(unsupported(NO_DATA.into()));
        }
        let Some((_module, class)) = self.pickle.global(*class) else {
            return Err(malformed("the class of a storage is no class"));
        };
        let element = ElementType::of_storage_class(class).ok_or_else(|| {
            unsupported(format!("a storage of the unknown class `{}`", shown(class)))
        })?;
        let key = Some(*key)
            .filter(|key| self.text_len(*key) <= MAX_KEY)
            .and_then(|key| self.pickle.as_str(key))
            .ok_or_else(|| malformed("a storage's key is no short text"))?;
        let elements = self
            .pickle
            .as_int(*elements)
            .and_then(|elements| u64::try_from(elements).ok())
            .ok_or_else(|| malformed("a storage's size is not a number from 0"))?;
        let storage = TypedStorage {
            storage: self.storages.resolve(key, elements, element)?,
            element,
        };
        self.resolved.insert(id, storage);
        Ok(storage)
    }

    /// Compares without a look at the whole of a long text.
    fn is_text(&self, id: ObjectId, text: &str) -> bool {
        self.text_len(id) == text.len() && self.pickle.as_str(id) == Some(text)
    }
}

/// The type of a tensor moved from a device must be the one its data has.
fn keep_promise(view: &View, promised: &[Option<ElementType>]) -> Result<(), Refusal> {
    match promised
        .iter()
        .all(|dtype| *dtype == Some(ElementType::Plain(view.dtype)))
    {
        true => Ok(()),
        false => Err(unsupported(
            "a device tensor whose type differs from its data's".into(),
        )),
    }
}

/// The elements of `FloatTensor` are those of `FloatStorage`; `Tensor` is torch's
/// default.
fn element_of_tensor_class(name: &str) -> Option<ElementType> {
    match name.strip_suffix("Tensor")? {
        "" => ElementType::of_storage_class("FloatStorage"),
        "Untyped" | "_Untyped" => None,
        kind => ElementType::of_storage_class(&format!("{kind}Storage")),
    }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}

fn unsupported(what: String) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}
