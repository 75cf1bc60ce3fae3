//! Tensors that safetensors says with other tensors: quantized and sparse ones,
//! and complex numbers of twice 64 bits. What it takes to undo that is noted.

use super::meaning::Meaning;
use super::rebuild::ReadAs;
use super::torch::{Composed, Storages, Torch};
use super::wrapper::{Wrapper, wrapper};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::layout::{Layout, Note};
use crate::checkpoint::refusal::{Refusal, malformed, unsupported};
use crate::checkpoint::storage::Storage;
use crate::checkpoint::tensor::Lazy;
use crate::pickle::{Object, ObjectId};
use safetensors::Dtype;

impl<'p, S: Storages> Torch<'p, S> {
    /// `(storage, offset, size, stride, quantizer, requires_grad, hooks)`
    pub(super) fn quantized(&mut self, args: &[ObjectId]) -> Result<Meaning<'p>, Refusal> {
        let [storage, _, _, _, quantizer, _, _] = args else {
            return Err(malformed(
                "a quantized tensor has too few or too many arguments",
            ));
        };
        let pickle = self.pickle;
        let dtype = match self.storage(*storage)?.element {
            ElementType::Foreign(foreign) => foreign.name,
            ElementType::Plain(_) => return Err(malformed("its storage is not quantized")),
        };
        let integers = self.rebuild(&args[..4], ReadAs::Integers)?;
        let quantizer = pickle.as_tuple(*quantizer).unwrap_or_default();
        let scheme = quantizer.first().and_then(|scheme| pickle.global(*scheme));
        let Some(("torch", scheme)) = scheme else {
            return Err(malformed("its quantizer has no scheme"));
        };
        let (scale, zero_point, axis) = match (scheme, quantizer) {
            ("per_tensor_affine" | "per_tensor_symmetric", [_, scale, zero_point]) => {
                (*scale, *zero_point, None)
            }
            (
                "per_channel_affine" | "per_channel_symmetric" | "per_channel_affine_float_qparams",
                [_, scale, zero_point, axis],
            ) => {
                let axis = pickle.as_int(*axis);
                (
                    *scale,
                    *zero_point,
                    Some(axis.ok_or_else(|| malformed("its axis is no number"))?),
                )
            }
            _ => return Err(unsupported(format!("its quantizer `{scheme}` is unknown"))),
        };
        let parts = Composed {
            tensors: vec![
                ("", integers),
                (".scale", self.numbers(scale)?),
                (".zero_point", self.numbers(zero_point)?),
            ],
            note: Note::Quantized {
                scheme: scheme.to_string(),
                dtype,
                axis,
            },
        };
        Ok(Meaning::Composed(parts))
    }

    /// `(layout, (indices, values, size, ...))`, with two kinds of indices where
    /// one of them is compressed.
    pub(super) fn sparse(&mut self, args: &[ObjectId]) -> Result<Meaning<'p>, Refusal> {
        let [layout, data] = args else {
            return Err(malformed(
                "a sparse tensor has too few or too many arguments",
            ));
        };
        let layout = self.layout(*layout)?;
        let names: &[&'static str] = match layout {
            "sparse_coo" => &[".indices", ".values"],
            "sparse_csr" | "sparse_bsr" => &[".crow_indices", ".col_indices", ".values"],
            "sparse_csc" | "sparse_bsc" => &[".ccol_indices", ".row_indices", ".values"],
            _ => return Err(unsupported("its layout is unknown")),
        };
        let data = self.pickle.as_tuple(*data).unwrap_or_default();
        let (Some(parts), Some(size)) = (data.get(..names.len()), data.get(names.len())) else {
            return Err(malformed("a sparse tensor lacks a part"));
        };
        let note = Note::Sparse {
            layout: layout.to_string(),
            shape: self.dimensions(*size, "sizes")?,
        };
        let tensors = names.iter().zip(parts);
        let tensors = tensors.map(|(name, part)| Ok((*name, self.dense(*part)?)));
        let tensors = tensors.collect::<Result<_, Refusal>>()?;
        Ok(Meaning::Composed(Composed { tensors, note }))
    }

    /// `torch.serialization._get_layout("torch.sparse_coo")`
    fn layout(&self, id: ObjectId) -> Result<&'p str, Refusal> {
        let pickle = self.pickle;
        let name = match pickle.get(id) {
            Object::Call(call) => match pickle.global(call.callable) {
                Some(("torch.serialization", "_get_layout")) => pickle
                    .as_tuple(call.args)
                    .and_then(|args| pickle.as_str(*args.first()?)),
                _ => None,
            },
            _ => None,
        };
        name.and_then(|name| name.strip_prefix("torch."))
            .ok_or_else(|| malformed("a sparse tensor has no layout"))
    }

    /// A tensor that is rebuilt from its storage and nothing else: what parts are
    /// made of is never composed again.
    fn dense(&mut self, id: ObjectId) -> Result<Layout, Refusal> {
        let pickle = self.pickle;
        if let Object::Call(call) = pickle.get(id)
            && let Some((module, name)) = pickle.global(call.callable)
            && let Some(args) = pickle.as_tuple(call.args)
        {
            match wrapper(module, name) {
                Wrapper::Rebuild(counts) if counts.contains(&args.len()) => {
                    return self.rebuild(args, ReadAs::Dense);
                }
                Wrapper::RebuildTyped if matches!(args.len(), 7 | 8) => {
                    return self.rebuild_typed(args);
                }
                _ => {}
            }
        }
        Err(malformed("a part of it is no tensor"))
    }

    /// The tensor that `torch.tensor` makes of a number.
    pub fn number(&mut self, id: ObjectId) -> Result<Option<Layout>, Refusal> {
        let (dtype, bytes) = match self.pickle.get(id) {
            Object::Int(number) => (Dtype::I64, number.to_le_bytes().to_vec()),
            Object::Float(number) => (Dtype::F32, (*number as f32).to_le_bytes().to_vec()),
            _ => return Ok(None),
        };
        Ok(Some(Layout {
            dtype,
            strides: [].into(),
            shape: [].into(),
            storage: self.table.add(Storage::in_memory(bytes))?,
            offset: 0,
            lazy: Lazy::default(),
            note: None,
        }))
    }

    /// A tensor, or the number or list of numbers that older versions of torch
    /// wrote instead.
    fn numbers(&mut self, id: ObjectId) -> Result<Layout, Refusal> {
        let pickle = self.pickle;
        let (items, shape): (&[ObjectId], Box<[u64]>) = match pickle.get(id) {
            Object::Call(_) => return self.dense(id),
            Object::List(items) => (items, [items.len() as u64].into()),
            Object::Tuple(items) => (items, [items.len() as u64].into()),
            _ => (&[id], [].into()),
        };
        let mut bytes = Vec::with_capacity(items.len() * 8);
        let mut dtype = Dtype::I64;
        for item in items {
            match pickle.get(*item) {
                Object::Int(number) => bytes.extend(number.to_le_bytes()),
                Object::Float(number) => {
                    dtype = Dtype::F64;
                    bytes.extend(number.to_le_bytes());
                }
                _ => return Err(malformed("a part of it is no number")),
            }
        }
        let mixed = items
            .iter()
            .any(|item| matches!(pickle.get(*item), Object::Int(_)) == (dtype == Dtype::F64));
        if mixed {
            return Err(malformed("a part of it mixes whole numbers with others"));
        }
        Ok(Layout {
            dtype,
            strides: shape.iter().map(|_| 1).collect(),
            shape,
            storage: self.table.add(Storage::in_memory(bytes))?,
            offset: 0,
            lazy: Lazy::default(),
            note: None,
        })
    }
}
