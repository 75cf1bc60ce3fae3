//! torch's objects in a pickle: storages, the functions that rebuild tensors, and
//! the containers around them. Nothing is called; each known name is given the
//! meaning it has in torch (torch/_utils.py, torch/_tensor.py).

use std::collections::HashMap;

use safetensors::Dtype;

use super::dtype::{ElementType, Numeric, numeric};
use super::refusal::{Cause, Refusal};
use super::{Lazy, Storage};
use crate::pickle::{Call, Object, ObjectId, PersistentId, Pickle};

/// How many wrappers may stand around one tensor: a parameter of a subclass of
/// a device tensor is three.
const MAX_WRAPPERS: usize = 16;

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
    pub span: Storage,
    /// Its numbers are big-endian.
    pub swap: bool,
}

/// A tensor before it has a name.
#[derive(Clone, Debug)]
pub struct View {
    pub dtype: Dtype,
    pub shape: Box<[u64]>,
    pub strides: Box<[u64]>,
    pub storage: u32,
    pub offset: u64,
    pub lazy: Lazy,
}

/// A storage as a persistent id names it.
#[derive(Clone, Copy)]
struct TypedStorage {
    storage: StorageRef,
    element: ElementType,
    typed: bool,
}

/// Reads torch's objects out of one pickle.
pub struct Torch<'p, S> {
    pickle: &'p Pickle<'p>,
    storages: S,
    resolved: HashMap<ObjectId, TypedStorage>,
}

/// What an object is to torch.
pub enum Meaning {
    Tensor(View),
    /// A dict: entries in order, each key once.
    Map(Vec<(ObjectId, ObjectId)>),
    /// A list or tuple.
    Sequence(Vec<ObjectId>),
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
    pub fn meaning(&mut self, id: ObjectId) -> Result<Meaning, Refusal> {
        Ok(match self.pickle.get(id) {
            Object::Dict(_) => Meaning::Map(self.pickle.entries(id)),
            Object::List(items) => Meaning::Sequence(items.clone()),
            Object::Tuple(items) => Meaning::Sequence(items.to_vec()),
            Object::Call(call) => match self.ordered_dict(id, call)? {
                Some(entries) => Meaning::Map(entries),
                None => self.tensor(call)?.map_or(Meaning::Other, Meaning::Tensor),
            },
            _ => Meaning::Other,
        })
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
        let mut entries = match (name, args) {
            ("OrderedDict" | "Counter" | "defaultdict", []) => Vec::new(),
            ("defaultdict", [_factory]) => Vec::new(),
            ("OrderedDict" | "Counter", [initial]) => self.initial_entries(*initial)?,
            _ => return Ok(None),
        };
        entries.extend(self.pickle.entries(id));
        Ok(Some(self.pickle.last_of_each_key(&entries)))
    }

    fn initial_entries(&self, id: ObjectId) -> Result<Vec<(ObjectId, ObjectId)>, Refusal> {
        let pair = |item: &ObjectId| match self.pickle.get(*item) {
            Object::List(pair) => <[ObjectId; 2]>::try_from(pair.as_slice()).ok(),
            Object::Tuple(pair) => <[ObjectId; 2]>::try_from(&**pair).ok(),
            _ => None,
        };
        match self.pickle.get(id) {
            Object::Dict(_) => Ok(self.pickle.entries(id)),
            Object::List(items) => items
                .iter()
                .map(|item| pair(item).map(|[key, value]| (key, value)))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    malformed("an OrderedDict is made from something that is no list of pairs")
                }),
            _ => Err(malformed(
                "an OrderedDict is made from something that is no list of pairs",
            )),
        }
    }

    /// The tensor that `call` makes; None when it makes something else.
    fn tensor(&mut self, call: &Call) -> Result<Option<View>, Refusal> {
        let mut call = call;
        let mut callable = call.callable;
        let mut args = call.args;
        // The types that device tensors around this one say it has.
        let mut promised = Vec::new();
        for _ in 0..MAX_WRAPPERS {
            let Some((module, name)) = self.pickle.global(callable) else {
                return Ok(None);
            };
            let arguments = self.pickle.as_tuple(args).unwrap_or_default();
            let inner = match wrapper(module, name) {
                Wrapper::Rebuild => {
                    return keep_promise(self.rebuild(arguments, None)?, &promised);
                }
                Wrapper::RebuildTyped => {
                    return keep_promise(self.rebuild_v3(arguments)?, &promised);
                }
                Wrapper::TensorClass => {
                    let state = call
                        .state
                        .last()
                        .and_then(|state| self.pickle.as_tuple(*state));
                    return match state {
                        Some(state) if arguments.is_empty() => {
                            keep_promise(self.rebuild(state, None)?, &promised)
                        }
                        _ => Err(unsupported(format!("a `{module}.{name}` of unknown form"))),
                    };
                }
                Wrapper::FromType => {
                    let [function, _type, function_args, ..] = arguments else {
                        return Err(malformed(
                            "a tensor subclass is rebuilt from too few arguments",
                        ));
                    };
                    callable = *function;
                    args = *function_args;
                    continue;
                }
                Wrapper::Parameter => arguments.first(),
                // Before torch 0.4 a parameter's data came with its state.
                Wrapper::ParameterClass => arguments.first().or_else(|| {
                    let state = call.state.last()?;
                    self.pickle.as_tuple(*state)?.first()
                }),
                Wrapper::FromCpu => {
                    promised.push(arguments.get(1).and_then(|dtype| self.dtype(*dtype)));
                    arguments.first()
                }
                Wrapper::Unsupported(what) => return Err(unsupported(what.to_string())),
                Wrapper::None => return Ok(None),
            };
            let inner = inner.map(|inner| self.pickle.get(*inner));
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

    /// `(storage, offset, size, stride, ...)`, in elements of the storage's type.
    fn rebuild(&mut self, args: &[ObjectId], dtype: Option<ElementType>) -> Result<View, Refusal> {
        let [storage, offset, size, stride, rest @ ..] = args else {
            return Err(malformed("a tensor is rebuilt from too few arguments"));
        };
        let storage = self.storage(*storage)?;
        // v2: requires_grad, backward_hooks, metadata; v3 has the dtype before it.
        let metadata = rest.get(if dtype.is_some() { 3 } else { 2 });
        let element = dtype.unwrap_or(storage.element);
        let mut lazy = self.lazy(metadata)?;
        if storage.storage.swap && element.size() > 1 {
            if !storage.typed {
                // torch swaps by the storage's type, so not at all here.
                return Err(Refusal::new(
                    Cause::Ambiguous,
                    "an untyped storage was written on a big-endian machine",
                ));
            }
            lazy.swap = true;
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
        let shape = self.dimensions(*size, "shape")?;
        let strides = self.dimensions(*stride, "strides")?;
        let offset = check_view(
            offset,
            &shape,
            &strides,
            element.size(),
            storage.storage.span.len,
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

    /// As [`Torch::rebuild`], with a dtype of its own over an untyped storage:
    /// `(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)`.
    fn rebuild_v3(&mut self, args: &[ObjectId]) -> Result<View, Refusal> {
        let dtype = args.get(6).and_then(|dtype| self.dtype(*dtype));
        let dtype = dtype.ok_or_else(|| unsupported("its dtype is unknown".into()))?;
        let without: Vec<ObjectId> = [
            args.get(..6).unwrap_or_default(),
            args.get(6..).unwrap_or_default(),
        ]
        .concat();
        self.rebuild(&without, Some(dtype))
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
        let Some(metadata) = metadata else {
            return Ok(lazy);
        };
        let Object::Dict(_) = self.pickle.get(*metadata) else {
            return Err(malformed("a tensor's metadata is no dict"));
        };
        for (key, value) in self.pickle.entries(*metadata) {
            let set = matches!(self.pickle.get(value), Object::Bool(true));
            match self.pickle.as_str(key) {
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
            _ => return Err(malformed(format!("its {what} are no tuple of numbers"))),
        };
        items
            .iter()
            .map(|item| u64::try_from(self.pickle.as_int(*item)?).ok())
            .collect::<Option<Box<[u64]>>>()
            .ok_or_else(|| malformed(format!("its {what} are not numbers from 0")))
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
        let Some([kind, class, key, _location, elements, ..]) = self.pickle.as_tuple(*tuple) else {
            return Err(malformed("a persistent id is no storage"));
        };
        if self.pickle.as_str(*kind) != Some("storage") {
            return Err(malformed("a persistent id is no storage"));
        }
        let class = self.pickle.global(*class).map(|(_module, name)| name);
        let element = class
            .and_then(ElementType::of_storage_class)
            .ok_or_else(|| unsupported(format!("a storage of the unknown class {class:?}")))?;
        let key = self
            .pickle
            .as_str(*key)
            .ok_or_else(|| malformed("a storage's key is no text"))?;
        let elements = self
            .pickle
            .as_int(*elements)
            .and_then(|elements| u64::try_from(elements).ok())
            .ok_or_else(|| malformed("a storage's size is not a number from 0"))?;
        let storage = TypedStorage {
            storage: self.storages.resolve(key, elements, element)?,
            element,
            typed: !class.is_some_and(|class| class.ends_with("UntypedStorage")),
        };
        self.resolved.insert(id, storage);
        Ok(storage)
    }
}

/// Checks that all elements lie inside a storage of `len` bytes, and gives the
/// offset in bytes.
fn check_view(
    offset: u64,
    shape: &[u64],
    strides: &[u64],
    element: u64,
    len: u64,
) -> Result<u64, Refusal> {
    if shape.len() != strides.len() {
        return Err(malformed("it has more dimensions than strides, or fewer"));
    }
    let overflow = || malformed("its size is beyond all bounds");
    let numel = shape
        .iter()
        .try_fold(1_u64, |product, size| product.checked_mul(*size));
    // A dimension of size 0 makes any other size harmless.
    if shape.contains(&0) {
        return offset.checked_mul(element).ok_or_else(overflow);
    }
    numel
        .and_then(|numel| numel.checked_mul(element))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(overflow)?;
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |last, (size, stride)| {
            last.checked_add((size - 1).checked_mul(*stride)?)
        })
        .ok_or_else(overflow)?;
    let end = last
        .checked_add(1)
        .and_then(|end| end.checked_mul(element))
        .ok_or_else(overflow)?;
    if end > len {
        return Err(malformed(format!(
            "it reaches to byte {end} of a storage of {len} bytes"
        )));
    }
    Ok(offset * element)
}

/// torch sets the negative bit on real and complex views, the conjugate bit on
/// complex ones.
fn check_lazy(dtype: Dtype, lazy: Lazy) -> Result<(), Refusal> {
    let negatable = matches!(
        dtype,
        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 | Dtype::C64
    );
    if (lazy.negate && !negatable) || (lazy.conjugate && numeric(dtype) != Numeric::Complex) {
        return Err(malformed(
            "its negative or conjugate bit does not go with its type",
        ));
    }
    Ok(())
}

/// The type of a tensor moved from a device must be the one its data has.
fn keep_promise(view: View, promised: &[Option<ElementType>]) -> Result<Option<View>, Refusal> {
    match promised
        .iter()
        .all(|dtype| *dtype == Some(ElementType::Plain(view.dtype)))
    {
        true => Ok(Some(view)),
        false => Err(unsupported(
            "a device tensor whose type differs from its data's".into(),
        )),
    }
}

/// What the callable `module.name` makes of its arguments.
enum Wrapper {
    /// `(storage, offset, size, stride, ...)`
    Rebuild,
    /// The same over bytes, with a dtype.
    RebuildTyped,
    /// A tensor class of torch before 0.2: the arguments of `Rebuild` as state.
    TensorClass,
    /// `(function, type, arguments, state)`
    FromType,
    /// `(tensor, ...)`
    Parameter,
    /// `(tensor,)`, or nothing and a state that begins with the tensor.
    ParameterClass,
    /// `(tensor, dtype, device, requires_grad)`
    FromCpu,
    /// A tensor that is not read.
    Unsupported(&'static str),
    /// No tensor.
    None,
}

fn wrapper(module: &str, name: &str) -> Wrapper {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Wrapper::Rebuild,
        ("torch._utils", "_rebuild_tensor_v3") => Wrapper::RebuildTyped,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Wrapper::Parameter
        }
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => Wrapper::FromCpu,
        ("torch._tensor" | "torch.tensor", "_rebuild_from_type_v2" | "_rebuild_from_type") => {
            Wrapper::FromType
        }
        ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch.autograd.variable", "Variable") => Wrapper::ParameterClass,
        ("torch._utils", "_rebuild_qtensor") => Wrapper::Unsupported("it is quantized"),
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Wrapper::Unsupported("it is sparse")
        }
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => {
            Wrapper::Unsupported("it is on the meta device, so it has no data")
        }
        ("torch._utils", "_rebuild_wrapper_subclass") => {
            Wrapper::Unsupported("it is of a tensor subclass without data of its own")
        }
        (
            "torch._utils",
            "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor" | "_rebuild_mlc_tensor",
        ) => Wrapper::Unsupported("it is a device tensor kept as a numpy array"),
        ("torch._utils", "_rebuild_nested_tensor")
        | ("torch.nested._internal.nested_tensor", _) => {
            Wrapper::Unsupported("it is nested, so it has no rectangular shape")
        }
        ("torch._utils", other) if other.starts_with("_rebuild") => {
            Wrapper::Unsupported("it is rebuilt by a function of an unknown torch version")
        }
        ("torch.storage", "_load_from_bytes") => {
            Wrapper::Unsupported("its storage is kept in a pickled byte string")
        }
        ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => {
            Wrapper::Unsupported("it is uninitialized, so it has no data")
        }
        ("torch" | "torch.cuda", class) if class.ends_with("Tensor") => Wrapper::TensorClass,
        ("torch.sparse" | "torch.cuda.sparse", class) if class.ends_with("Tensor") => {
            Wrapper::Unsupported("it is sparse")
        }
        _ => Wrapper::None,
    }
}

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}

fn unsupported(what: String) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}
