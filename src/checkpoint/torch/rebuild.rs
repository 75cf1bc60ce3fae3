//! Dense tensors: a storage, and a view of it.

use safetensors::Dtype;

use super::composed::Note;
use super::strided::{check_lazy, check_view};
use super::wrapper::NO_DATA;
use super::{Storages, Torch, TypedStorage, View, malformed, unsupported};
use crate::checkpoint::Lazy;
use crate::checkpoint::dtype::{ElementType, Foreign};
use crate::checkpoint::refusal::{Cause, Refusal, shown};
use crate::pickle::{Object, ObjectId, PersistentId};

/// What the elements of a storage are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As the storage's type.
    Dense,
    /// As another type, given beside the storage.
    Typed(ElementType),
    /// As the integers behind a quantized type.
    Integers,
}

/// Dimensions of one tensor; numpy and most of torch stop here too. Tensors can
/// share one tuple of sizes, so that without a bound a small file could ask for
/// any amount of memory.
const MAX_RANK: usize = 64;
/// Bytes of a storage's key, which torch makes of digits.
const MAX_KEY: usize = 1024;

impl<S: Storages> Torch<'_, S> {
    /// `(storage, offset, size, stride, ...)`, in elements of the storage's type,
    /// or of `dtype`, which then stands before the metadata (torch/_utils.py,
    /// `_rebuild_tensor_v3`).
    pub(super) fn rebuild(&mut self, args: &[ObjectId], reading: Reading) -> Result<View, Refusal> {
        let [storage, offset, size, stride, rest @ ..] = args else {
            return Err(malformed("a tensor is rebuilt from too few arguments"));
        };
        let storage = self.storage(*storage)?;
        // v2: requires_grad, backward_hooks, metadata; v3 has the dtype before it.
        let (metadata, element) = match reading {
            Reading::Dense | Reading::Integers => (rest.get(2), storage.element),
            Reading::Typed(dtype) => (rest.get(3), dtype),
        };
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
        let integers = reading == Reading::Integers;
        let (dtype, note) = match element {
            ElementType::Plain(dtype) if !integers => (dtype, None),
            ElementType::Foreign(Foreign {
                name: "complex128", ..
            }) => (Dtype::F64, Some(Note::Complex128)),
            ElementType::Foreign(Foreign { name: "qint8", .. }) if integers => (Dtype::I8, None),
            ElementType::Foreign(Foreign { name: "quint8", .. }) if integers => (Dtype::U8, None),
            ElementType::Foreign(Foreign { name: "qint32", .. }) if integers => (Dtype::I32, None),
            ElementType::Plain(_) => return Err(malformed("its storage is not quantized")),
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
        check_lazy(element, lazy)?;
        let offset = self
            .pickle
            .as_int(*offset)
            .and_then(|offset| u64::try_from(offset).ok())
            .ok_or_else(|| malformed("its offset into the storage is not a number from 0"))?;
        let mut shape = self.dimensions(*size, "sizes")?;
        let mut strides = self.dimensions(*stride, "strides")?;
        let offset = check_view(
            offset,
            &shape,
            &strides,
            element.size(),
            storage.storage.len,
        )?;
        if note == Some(Note::Complex128) {
            // Each element is two numbers; no stride that matters is out of bounds.
            strides
                .iter_mut()
                .for_each(|stride| *stride = stride.saturating_mul(2));
            (shape, strides) = (with(shape, 2), with(strides, 1));
        }
        Ok(View {
            dtype,
            note,
            shape,
            strides,
            storage: storage.storage.index,
            offset,
            lazy,
        })
    }

    /// As [`Torch::rebuild`], of bytes with a dtype as seventh argument.
    pub(super) fn rebuild_typed(&mut self, args: &[ObjectId]) -> Result<View, Refusal> {
        let dtype = args.get(6).and_then(|dtype| self.dtype(*dtype));
        let dtype = dtype.ok_or_else(|| unsupported("its dtype is unknown"))?;
        self.rebuild(args, Reading::Typed(dtype))
    }

    /// A dtype object such as `torch.float32`.
    pub(super) fn dtype(&self, id: ObjectId) -> Option<ElementType> {
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
                _ => return Err(unsupported("it has metadata of unknown meaning")),
            }
        }
        Ok(lazy)
    }

    pub(super) fn dimensions(&self, id: ObjectId, what: &str) -> Result<Box<[u64]>, Refusal> {
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
    pub(super) fn storage(&mut self, id: ObjectId) -> Result<TypedStorage, Refusal> {
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
            return Err(unsupported(NO_DATA));
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
            storage: self
                .storages
                .resolve(&mut self.table, key, elements, element)?,
            element,
        };
        self.resolved.insert(id, storage);
        Ok(storage)
    }

    /// Compares without a look at the whole of a long text.
    pub(super) fn is_text(&self, id: ObjectId, text: &str) -> bool {
        self.text_len(id) == text.len() && self.pickle.as_str(id) == Some(text)
    }
}

/// One more dimension, the innermost.
fn with(dimensions: Box<[u64]>, last: u64) -> Box<[u64]> {
    let mut dimensions = dimensions.into_vec();
    dimensions.push(last);
    dimensions.into()
}
