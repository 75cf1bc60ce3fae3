//! A named tensor: its type, its shape, and which elements of a storage it is.

use serde::{Deserialize, Serialize};

use super::dtype::ElementType;
use super::wire;

/// A strided view of a storage. The view has been checked: every element lies
/// inside the storage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    #[serde(with = "wire::dtype")]
    pub dtype: ::safetensors::Dtype,
    /// Elements, as torch counts them.
    pub shape: Box<[u64]>,
    /// Elements.
    pub strides: Box<[u64]>,
    /// Index into [`Checkpoint::storages`](super::Checkpoint::storages).
    pub storage: u32,
    /// Bytes from the start of the storage to the first element.
    pub offset: u64,
    pub lazy: Lazy,
}

/// What is still to be done to each element when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Lazy {
    /// The bytes of each number are big-endian.
    pub swap: bool,
    /// torch's negative bit.
    pub negate: bool,
    /// torch's conjugate bit.
    pub conjugate: bool,
}

impl Tensor {
    /// Bytes of one element.
    pub fn element_size(&self) -> u64 {
        ElementType::Plain(self.dtype).size()
    }

    /// Elements; a checked view fits `u64`.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes when laid out row by row.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.element_size()
    }
}
