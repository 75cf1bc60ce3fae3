//! Where the bytes of tensors hang in a pickle, whatever stands around them.

use safetensors::Dtype;

use super::array::maker;
use super::numpy_dtype::numbers_of;
use super::saved::saved_storage;
use super::tensor::MAX_WRAPPERS;
use super::torch::{Storages, Torch};
use super::wrapper::{NO_DATA, Wrapper, wrapper};
use crate::checkpoint::dtype::ElementType;
use crate::pickle::{Call, Object, ObjectId, PersistentId};

/// What a tensor is made of, and what else its maker is called with.
#[derive(Default)]
pub struct Parts {
    pub of: Vec<ObjectId>,
    pub beside: Vec<ObjectId>,
}

impl Parts {
    fn first_of(&mut self, items: &[ObjectId]) {
        let items = items.split_first();
        if let Some((first, rest)) = items {
            self.of.push(*first);
            self.beside.extend(rest);
        }
    }
}

impl<'p, S: Storages> Torch<'p, S> {
    /// Whether the object `id` is a stretch of tensor bytes: a storage beside the
    /// pickle or inside, or an array of numbers.
    pub fn is_payload(&self, id: ObjectId) -> bool {
        match self.pickle.get(id) {
            Object::Persistent(persistent) => !self.is_module_class(persistent),
            Object::Call(call) => self.is_embedded(call) || self.is_array_of_numbers(id),
            _ => false,
        }
    }

    /// Whether the object `id` makes a tensor of a storage or of another tensor, as far
    /// as the name of its maker tells.
    pub fn makes_tensor(&self, id: ObjectId) -> bool {
        let call = self.pickle.as_call(id);
        let maker = call.and_then(|call| self.pickle.global(call.callable));
        maker.is_some_and(|(module, name)| {
            // Without data there is nothing to lose.
            !matches!(
                wrapper(module, name),
                Wrapper::None | Wrapper::Unsupported(NO_DATA)
            )
        })
    }

    /// Whether a tensor was made of the array `id`.
    pub fn is_read_array(&self, id: ObjectId) -> bool {
        self.arrays.layouts.contains_key(&id)
    }

    /// Bytes of a stretch of tensor bytes, as its pickle says it.
    pub fn payload_len(&self, id: ObjectId) -> u64 {
        match self.pickle.get(id) {
            Object::Persistent(_) => match saved_storage(self.pickle, id, S::PARTS) {
                Ok(Some(saved)) => saved.elements.saturating_mul(saved.element.size()),
                _ => 0,
            },
            Object::Call(call) if self.is_embedded(call) => {
                let args = self.pickle.as_tuple(call.args).unwrap_or_default();
                let bytes = args.first().map(|bytes| self.pickle.get(*bytes));
                match bytes {
                    Some(Object::Bytes(bytes) | Object::String8(bytes)) => bytes.len(),
                    _ => 0,
                }
            }
            Object::Call(call) => {
                let written = maker(self.pickle, call);
                let written = written.and_then(|maker| self.written(maker, call).ok());
                let len = written.and_then(|written| {
                    let numbers = numbers_of(self.pickle, written.dtype).ok()??;
                    let shape = self.dimensions(written.shape, "sizes").ok()?;
                    numbers.bytes(&shape).ok()
                });
                len.unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Elements of a vector of bytes that is the whole of its storage; None for any other
    /// tensor.
    pub fn byte_vector(&mut self, id: ObjectId) -> Option<u64> {
        let call = self.pickle.as_call(id)?;
        let (module, name) = self.pickle.global(call.callable)?;
        let [storage, _offset, size, ..] = self.pickle.as_tuple(call.args)? else {
            return None;
        };
        if !matches!(wrapper(module, name), Wrapper::Rebuild(_)) {
            return None;
        }
        let (element, len) = match self.pickle.get(*storage) {
            Object::Persistent(_) => {
                let saved = saved_storage(self.pickle, *storage, S::PARTS).ok()??;
                (saved.element, saved.elements)
            }
            Object::Call(call) if self.is_embedded(call) => {
                let storage = self.embedded(call).ok()?;
                (storage.element, storage.storage.len)
            }
            _ => return None,
        };
        let is_whole = matches!(*self.dimensions(*size, "sizes").ok()?, [size] if size == len);
        (is_whole && element == ElementType::Plain(Dtype::U8)).then_some(len)
    }

    /// What a tensor's maker is called with: that which the tensor is made of, and what
    /// stands beside it.
    pub fn parts_of(&self, id: ObjectId) -> Parts {
        let mut parts = Parts::default();
        let Some(call) = self.pickle.as_call(id) else {
            return parts;
        };
        let items = call.items.iter().flat_map(|(key, value)| [*key, *value]);
        parts.beside.extend(
            items
                .chain(call.appended.iter().copied())
                .chain(call.kwargs),
        );
        let wrapper_of = |callable| {
            let global = self.pickle.global(callable);
            global.map_or(Wrapper::None, |(module, name)| wrapper(module, name))
        };
        let mut kind = wrapper_of(call.callable);
        let has_state = matches!(kind, Wrapper::TensorClass | Wrapper::ParameterClass);
        for state in &call.state {
            match self.pickle.as_tuple(*state).filter(|_| has_state) {
                Some(items) => parts.first_of(items),
                None => parts.beside.push(*state),
            }
        }
        let mut args = self.pickle.as_tuple(call.args).unwrap_or_default();
        for _ in 0..MAX_WRAPPERS {
            let (at, inner) = match (&kind, args) {
                (Wrapper::FromType, [function, _, inner, _]) => {
                    let inner = self.pickle.as_tuple(*inner).unwrap_or_default();
                    kind = wrapper_of(*function);
                    (2, inner)
                }
                (Wrapper::Sparse, [_, data]) => {
                    parts
                        .of
                        .extend(self.pickle.as_tuple(*data).unwrap_or_default());
                    (1, &[][..])
                }
                (Wrapper::Quantized, [_, _, _, _, quantizer, ..]) => {
                    parts
                        .of
                        .extend(self.pickle.as_tuple(*quantizer).unwrap_or_default());
                    parts.of.extend(args.first());
                    (4, &[][..])
                }
                (_, args) => {
                    parts.first_of(args);
                    return parts;
                }
            };
            let skip = matches!(kind, Wrapper::Quantized) && at == 4;
            let beside = args.iter().enumerate();
            let beside = beside.filter(|(place, _)| *place != at && !(skip && *place == 0));
            parts.beside.extend(beside.map(|(_, held)| *held));
            if inner.is_empty() {
                return parts;
            }
            args = inner;
        }
        parts.beside.extend(args);
        parts
    }

    /// Bytes of the tensor that `id` makes of a storage, as far as its pickle says.
    pub fn tensor_len(&self, id: ObjectId) -> Option<u64> {
        let call = self.pickle.as_call(id)?;
        let (module, name) = self.pickle.global(call.callable)?;
        let [storage, _offset, size, ..] = self.pickle.as_tuple(call.args)? else {
            return None;
        };
        let element = match wrapper(module, name) {
            Wrapper::Rebuild(_) | Wrapper::Quantized => {
                saved_storage(self.pickle, *storage, S::PARTS)
                    .ok()??
                    .element
            }
            Wrapper::RebuildTyped => self.dtype(*self.pickle.as_tuple(call.args)?.get(6)?)?,
            _ => return None,
        };
        let sizes = self.dimensions(*size, "sizes").ok()?;
        let mut sizes = sizes.iter();
        sizes.try_fold(element.size(), |bytes, size| bytes.checked_mul(*size))
    }

    fn is_embedded(&self, call: &Call) -> bool {
        self.pickle.global(call.callable) == Some(("torch.storage", "_load_from_bytes"))
    }

    /// Streams from before torch 1.6 name the classes of modules so, with their source.
    fn is_module_class(&self, id: &PersistentId) -> bool {
        let PersistentId::Object(tuple) = id else {
            return false;
        };
        let items = self.pickle.as_tuple(*tuple).unwrap_or_default();
        items.len() == 4 && self.is_text(items[0], "module")
    }
}
