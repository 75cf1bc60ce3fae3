//! numpy's arrays, however they are kept: what their dtypes are called in
//! safetensors, and where their elements lie.

use super::dtype::ElementType;
use super::layout::{Dense, Layout, MAX_RANK, StorageRef};
use super::refusal::{Cause, Refusal, malformed, shown};
use super::tensor::Lazy;

/// The elements of an array of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    element: ElementType,
    big_endian: bool,
}

/// How the elements of an array follow each other: the index that counts fastest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// The last, as in C.
    Rows,
    /// The first, as in Fortran.
    Columns,
    /// The last, until the dimensions are put into this order.
    Transposed(Box<[usize]>),
}

/// The numbers that numpy calls `kind` (`f4`) and keeps in the byte order `order`
/// (`<`, `>`, `=` or `|`). None for texts and dates, which are none.
pub fn numbers(order: &str, kind: &str) -> Result<Option<Numbers>, Refusal> {
    let name = match kind {
        "b1" => "bool",
        "i1" => "int8",
        "i2" => "int16",
        "i4" => "int32",
        "i8" => "int64",
        "u1" => "uint8",
        "u2" => "uint16",
        "u4" => "uint32",
        "u8" => "uint64",
        "f2" => "float16",
        "f4" => "float32",
        "f8" => "float64",
        "c8" => "complex64",
        "c16" => "complex128",
        _ => return no_numbers(kind),
    };
    let element = ElementType::of_dtype_name(name);
    element
        .map(|element| Numbers::new(element, order))
        .transpose()
}

fn no_numbers(kind: &str) -> Result<Option<Numbers>, Refusal> {
    let what = match kind.bytes().next() {
        Some(b'S' | b'U' | b'M' | b'm') => return Ok(None),
        Some(b'O') => "its elements are Python objects, which numpy pickles",
        Some(b'V') => "its elements are records or bytes without a type",
        _ => return Err(nameless(kind)),
    };
    Err(Refusal::new(Cause::Unsupported, what))
}

fn nameless(kind: &str) -> Refusal {
    Refusal::new(
        Cause::Inexpressible,
        format!(
            "its type is `{}`, for which safetensors has no name",
            shown(kind)
        ),
    )
}

impl Numbers {
    /// Types that numpy knows from the package ml_dtypes.
    pub fn of_ml_dtype(order: &str, name: &str) -> Result<Numbers, Refusal> {
        let known = name == "bfloat16" || name.starts_with("float8_");
        let element = ElementType::of_dtype_name(name).filter(|_| known);
        let element = element.ok_or_else(|| nameless(name))?;
        Numbers::new(element, order)
    }

    fn new(element: ElementType, order: &str) -> Result<Numbers, Refusal> {
        let big_endian = match order {
            "<" | "=" | "|" => false,
            ">" => element.number_size() > 1,
            _ => return Err(malformed("its byte order is unknown")),
        };
        Ok(Numbers {
            element,
            big_endian,
        })
    }

    /// Bytes of an array of this shape.
    pub fn bytes(&self, shape: &[u64]) -> Result<u64, Refusal> {
        let bytes = shape
            .iter()
            .try_fold(self.element.size(), |bytes, size| bytes.checked_mul(*size));
        bytes.ok_or_else(|| malformed("its size is beyond all bounds"))
    }

    /// The array of this shape whose elements are all that lies in the storage
    /// with index `storage`, of `len` bytes, from byte `start` on.
    pub fn layout(
        &self,
        (storage, start, len): (u32, u64, u64),
        shape: Box<[u64]>,
        order: &Order,
    ) -> Result<Layout, Refusal> {
        if shape.len() > MAX_RANK {
            return Err(Refusal::new(
                Cause::TooLarge,
                format!("it has {} dimensions", shape.len()),
            ));
        }
        let bytes = self.bytes(&shape)?;
        let there = len.saturating_sub(start);
        if bytes != there {
            return Err(malformed(format!(
                "its elements take {bytes} bytes, and there are {there}"
            )));
        }
        let mut strides = strides(&shape, *order == Order::Columns);
        let mut shape = shape;
        if let Order::Transposed(axes) = order {
            let mut sorted = axes.to_vec();
            sorted.sort_unstable();
            if !sorted.into_iter().eq(0..shape.len()) {
                return Err(malformed("its dimensions are put into no order"));
            }
            strides = axes.iter().map(|axis| strides[*axis]).collect();
            shape = axes.iter().map(|axis| shape[*axis]).collect();
        }
        let dense = Dense {
            storage: StorageRef {
                index: storage,
                start,
                len: bytes,
                swap: false,
            },
            element: self.element,
            offset: 0,
            strides,
            sizes: shape,
            lazy: Lazy {
                swap: self.big_endian,
                ..Lazy::default()
            },
        };
        dense.layout()
    }
}

/// Elements from one to the next in each dimension of an array whose size was
/// checked.
fn strides(shape: &[u64], columns: bool) -> Box<[u64]> {
    let mut strides: Box<[u64]> = shape.into();
    let mut step: u64 = 1;
    let place = |stride: &mut u64| {
        let size = std::mem::replace(stride, step);
        step = step.saturating_mul(size);
    };
    match columns {
        true => strides.iter_mut().for_each(place),
        false => strides.iter_mut().rev().for_each(place),
    }
    strides
}
