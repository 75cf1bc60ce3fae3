//! The layout of a tensor: which elements of a storage it is, and whether they
//! lie inside it.

use safetensors::Dtype;
use serde_json::json;

use super::dtype::{ElementType, Foreign};
use super::refusal::{Cause, Refusal, malformed};
use super::tensor::Lazy;

/// Dimensions of one tensor; numpy and most of torch stop here too. Tensors can
/// share one tuple of sizes, so that without a bound a small file could ask for
/// any amount of memory.
pub const MAX_RANK: usize = 64;

/// A storage that was resolved.
#[derive(Clone, Copy, Debug)]
pub struct StorageRef {
    /// Which one, for [`Tensor::storage`](super::Tensor::storage).
    pub index: u32,
    /// Bytes from the start of that one.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its numbers are big-endian.
    pub swap: bool,
}

/// A tensor before it has a name.
#[derive(Clone, Debug)]
pub struct Layout {
    pub dtype: Dtype,
    pub shape: Box<[u64]>,
    pub strides: Box<[u64]>,
    pub storage: u32,
    pub offset: u64,
    pub lazy: Lazy,
    /// What it was before it was written like this.
    pub note: Option<Note>,
}

/// What a tensor was before it was written in another way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The last dimension is the real and the imaginary part.
    Complex128,
    /// Integers, which `scale` and `zero_point` beside them belong to.
    Quantized {
        /// As in `torch.per_tensor_affine`.
        scheme: String,
        /// torch's name of the type.
        dtype: &'static str,
        /// The dimension that scales and zero points run along.
        axis: Option<i64>,
    },
    /// Values, whose places the indices beside them tell.
    Sparse {
        /// As in `torch.sparse_coo`.
        layout: String,
        shape: Box<[u64]>,
    },
}

impl Note {
    /// The form it has in the metadata of the converted file.
    pub fn json(&self) -> serde_json::Value {
        match self {
            Note::Complex128 => json!({"dtype": "complex128"}),
            Note::Quantized {
                scheme,
                dtype,
                axis,
            } => {
                let mut note = json!({"dtype": dtype, "qscheme": scheme});
                if let Some(axis) = axis {
                    note["axis"] = (*axis).into();
                }
                note
            }
            Note::Sparse { layout, shape } => json!({"layout": layout, "shape": shape}),
        }
    }
}

/// A layout that has not been checked yet.
pub struct Dense {
    pub storage: StorageRef,
    pub element: ElementType,
    /// Elements from the start of the storage.
    pub offset: u64,
    /// Elements.
    pub sizes: Box<[u64]>,
    /// Elements.
    pub strides: Box<[u64]>,
    pub lazy: Lazy,
}

impl Dense {
    /// The layout, in a type that safetensors has.
    pub fn layout(self) -> Result<Layout, Refusal> {
        check_lazy(self.element, self.lazy)?;
        let offset = check_layout(
            self.offset,
            &self.sizes,
            &self.strides,
            self.element.size(),
            self.storage.len,
        )?;
        let layout = |dtype, shape, strides, note| Layout {
            dtype,
            shape,
            strides,
            storage: self.storage.index,
            offset: self.storage.start + offset,
            lazy: self.lazy,
            note,
        };
        match self.element {
            ElementType::Plain(dtype) => Ok(layout(dtype, self.sizes, self.strides, None)),
            ElementType::Foreign(Foreign {
                name: "complex128", ..
            }) => {
                // Each element is two numbers; no stride that matters is out of bounds.
                let strides = self.strides.iter().map(|stride| stride.saturating_mul(2));
                let strides = strides.chain([1]).collect();
                let shape = self.sizes.iter().copied().chain([2]).collect();
                Ok(layout(Dtype::F64, shape, strides, Some(Note::Complex128)))
            }
            ElementType::Foreign(foreign) => Err(inexpressible(foreign.name)),
        }
    }
}

/// Why a type that only torch has is refused.
pub fn inexpressible(name: &str) -> Refusal {
    Refusal::new(
        Cause::Inexpressible,
        format!("its type is {name}, for which safetensors has no name"),
    )
}

/// Checks that all elements lie inside a storage of `len` bytes, and gives the
/// offset in bytes.
fn check_layout(
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
    // A dimension of size 0 makes no other size harmless: torch and safetensors
    // multiply them one by one.
    shape
        .iter()
        .filter(|size| **size != 0)
        .try_fold(element, |product, size| product.checked_mul(*size))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(overflow)?;
    if shape.contains(&0) {
        // Without elements it lies nowhere.
        return Ok(0);
    }
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
fn check_lazy(element: ElementType, lazy: Lazy) -> Result<(), Refusal> {
    let (negatable, complex) = match element {
        ElementType::Plain(Dtype::C64) => (true, true),
        ElementType::Plain(Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) => (true, false),
        ElementType::Plain(_) => (false, false),
        ElementType::Foreign(foreign) => {
            let complex = foreign.name == "complex128";
            (complex, complex)
        }
    };
    if (lazy.negate && !negatable) || (lazy.conjugate && !complex) {
        return Err(malformed(
            "its negative or conjugate bit does not go with its type",
        ));
    }
    Ok(())
}
