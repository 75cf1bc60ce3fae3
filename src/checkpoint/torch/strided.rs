//! Strided views of a storage, and whether they lie inside it.

use safetensors::Dtype;

use super::composed::Note;
use crate::checkpoint::Lazy;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::refusal::{Cause, Refusal};

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

/// Checks that all elements lie inside a storage of `len` bytes, and gives the
/// offset in bytes.
pub fn check_view(
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
pub fn check_lazy(element: ElementType, lazy: Lazy) -> Result<(), Refusal> {
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
