//! Strided views of a storage, and whether they lie inside it.

use safetensors::Dtype;

use super::StorageRef;
use super::composed::Note;
use crate::checkpoint::Lazy;
use crate::checkpoint::dtype::{ElementType, Foreign};
use crate::checkpoint::refusal::{Cause, Refusal};

/// Dimensions of one tensor; numpy and most of torch stop here too. Tensors can
/// share one tuple of sizes, so that without a bound a small file could ask for
/// any amount of memory.
pub const MAX_RANK: usize = 64;

/// A tensor before it has a name.
#[derive(Clone, Debug)]
pub struct View {
    pub dtype: Dtype,
    pub shape: Box<[u64]>,
    pub strides: Box<[u64]>,
    pub storage: u32,
    pub offset: u64,
    pub lazy: Lazy,
    /// What it was before it was written like this.
    pub note: Option<Note>,
}

/// A view that has not been checked yet.
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
    /// The view, in a type that safetensors has.
    pub fn view(self) -> Result<View, Refusal> {
        check_lazy(self.element, self.lazy)?;
        let offset = check_view(
            self.offset,
            &self.sizes,
            &self.strides,
            self.element.size(),
            self.storage.len,
        )?;
        let view = |dtype, shape, strides, note| View {
            dtype,
            shape,
            strides,
            storage: self.storage.index,
            offset: self.storage.start + offset,
            lazy: self.lazy,
            note,
        };
        match self.element {
            ElementType::Plain(dtype) => Ok(view(dtype, self.sizes, self.strides, None)),
            ElementType::Foreign(Foreign {
                name: "complex128", ..
            }) => {
                // Each element is two numbers; no stride that matters is out of bounds.
                let strides = self.strides.iter().map(|stride| stride.saturating_mul(2));
                let strides = strides.chain([1]).collect();
                let shape = self.sizes.iter().copied().chain([2]).collect();
                Ok(view(Dtype::F64, shape, strides, Some(Note::Complex128)))
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

fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}
