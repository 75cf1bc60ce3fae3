//! Where the bytes of tensors hang in a pickle, whatever stands around them.

use safetensors::Dtype;

use super::array::maker;
use super::numpy_dtype::numbers_of;
use super::saved::saved_storage;
use super::torch::{Storages, Torch};
use super::wrapper::{Wrapper, wrapper};
use crate::checkpoint::dtype::ElementType;
use crate::pickle::{Call, Object, ObjectId, PersistentId};

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
        maker.is_some_and(|(module, name)| !matches!(wrapper(module, name), Wrapper::None))
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

    /// Elements of a storage of bytes; None for any other stretch.
    pub fn byte_storage(&mut self, id: ObjectId) -> Option<u64> {
        let bytes = ElementType::Plain(Dtype::U8);
        let (element, len) = match self.pickle.get(id) {
            Object::Persistent(_) => {
                let saved = saved_storage(self.pickle, id, S::PARTS).ok()??;
                (saved.element, saved.elements)
            }
            Object::Call(call) if self.is_embedded(call) => {
                let storage = self.embedded(call).ok()?;
                (storage.element, storage.storage.len)
            }
            _ => return None,
        };
        (element == bytes).then_some(len)
    }

    /// The key of a storage beside the pickle.
    pub fn storage_key(&self, id: ObjectId) -> Option<&'p str> {
        let saved = saved_storage(self.pickle, id, S::PARTS).ok()??;
        Some(saved.key)
    }

    /// The stretches that tensors were read from.
    pub fn read_payloads(&self) -> impl Iterator<Item = ObjectId> {
        let storages = self.resolved.keys();
        storages.chain(self.arrays.layouts.keys()).copied()
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
