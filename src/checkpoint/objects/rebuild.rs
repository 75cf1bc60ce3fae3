//! Dense tensors: a storage, and a view of it.

use safetensors::Dtype;

use super::saved::saved_storage;
use super::torch::{Storages, Torch, TypedStorage};
use crate::checkpoint::dtype::{ElementType, Foreign};
use crate::checkpoint::layout::{Dense, Layout, MAX_RANK, inexpressible};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, unsupported};
use crate::checkpoint::tensor::Lazy;
use crate::pickle::{Object, ObjectId};

/// What the elements of a storage are read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAs {
    /// As the storage's type.
    Dense,
    /// As another type, given beside the storage.
    Typed(ElementType),
    /// As the integers behind a quantized type.
    Integers,
}

impl<S: Storages> Torch<'_, S> {
    /// `(storage, offset, size, stride, ...)`, in elements of the storage's type,
    /// or of `dtype`, which then stands before the metadata (torch/_utils.py,
    /// `_rebuild_tensor_v3`).
    pub(super) fn rebuild(
        &mut self,
        args: &[ObjectId],
        reading: ReadAs,
    ) -> Result<Layout, Refusal> {
        let [storage, offset, size, stride, rest @ ..] = args else {
            return Err(malformed("a tensor is rebuilt from too few arguments"));
        };
        let storage = self.storage(*storage)?;
        // v2: requires_grad, backward_hooks, metadata; v3 has the dtype before it.
        let (metadata, element) = match reading {
            ReadAs::Dense | ReadAs::Integers => (rest.get(2), storage.element),
            ReadAs::Typed(dtype) => (rest.get(3), dtype),
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
        let element = match reading {
            ReadAs::Integers => integers(element)?,
            ReadAs::Dense | ReadAs::Typed(_) => element,
        };
        let offset = self
            .pickle
            .as_int(*offset)
            .and_then(|offset| u64::try_from(offset).ok())
            .ok_or_else(|| malformed("its offset into the storage is not a number from 0"))?;
        let dense = Dense {
            storage: storage.storage,
            element,
            offset,
            sizes: self.dimensions(*size, "sizes")?,
            strides: self.dimensions(*stride, "strides")?,
            lazy,
        };
        dense.layout()
    }

    /// As [`Torch::rebuild`], of bytes with a dtype as seventh argument.
    pub(super) fn rebuild_typed(&mut self, args: &[ObjectId]) -> Result<Layout, Refusal> {
        let dtype = args.get(6).and_then(|dtype| self.dtype(*dtype));
        let dtype = dtype.ok_or_else(|| unsupported("its dtype is unknown"))?;
        self.rebuild(args, ReadAs::Typed(dtype))
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

    pub fn dimensions(&self, id: ObjectId, what: &str) -> Result<Box<[u64]>, Refusal> {
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

    /// The storage behind a persistent id.
    pub(super) fn storage(&mut self, id: ObjectId) -> Result<TypedStorage, Refusal> {
        if let Some(storage) = self.resolved.get(&id) {
            return Ok(*storage);
        }
        let pickle = self.pickle;
        if let Object::Call(call) = pickle.get(id)
            && pickle.global(call.callable) == Some(("torch.storage", "_load_from_bytes"))
        {
            let storage = self.embedded(call)?;
            self.resolved.insert(id, storage);
            return Ok(storage);
        }
        let saved = saved_storage(self.pickle, id, S::PARTS)?;
        let saved =
            saved.ok_or_else(|| malformed("it is rebuilt from something that is no storage"))?;
        let storage = TypedStorage {
            storage: self.storages.resolve(&mut self.table, &saved)?,
            element: saved.element,
        };
        self.resolved.insert(id, storage);
        Ok(storage)
    }

    /// Compares without a look at the whole of a long text.
    pub(super) fn is_text(&self, id: ObjectId, text: &str) -> bool {
        self.text_len(id) == text.len() && self.pickle.as_str(id) == Some(text)
    }
}

/// The integers behind a quantized type.
fn integers(element: ElementType) -> Result<ElementType, Refusal> {
    match element {
        ElementType::Foreign(Foreign { name, .. }) => match name {
            "qint8" => Ok(ElementType::Plain(Dtype::I8)),
            "quint8" => Ok(ElementType::Plain(Dtype::U8)),
            "qint32" => Ok(ElementType::Plain(Dtype::I32)),
            _ => Err(inexpressible(name)),
        },
        ElementType::Plain(_) => Err(malformed("its storage is not quantized")),
    }
}
