//! numpy's arrays in a pickle (numpy/_core/src/multiarray/methods.c,
//! numpy/_core/numeric.py). An array is a tensor wherever it stands.

use std::sync::Arc;

use super::joblib;
use super::numpy_dtype::numbers_of;
use super::torch::{Storages, Torch};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::numpy::Order;
use crate::checkpoint::refusal::{Refusal, malformed, shown, unsupported};
use crate::checkpoint::storage::{Backing, Codec, Encoded, Storage};
use crate::pickle::{Call, CallKind, Object, ObjectId, Payload, Pickle, Str};

/// An array as its pickle says it.
pub(super) struct Written {
    pub(super) dtype: ObjectId,
    pub(super) shape: ObjectId,
    order: Order,
    /// None where they follow the object.
    data: Option<ObjectId>,
}

/// The bytes of an array as its pickle says them.
pub(super) enum ArrayBytes<'p> {
    Bytes(&'p Payload<'p>),
    /// Text, a letter for each byte.
    Latin1(&'p Str<'p>),
    Empty,
}

/// How the callable `module.name` makes an array.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    /// `(class, (0,), b"b")`, and the state `(version, shape, dtype, fortran, data)`.
    Reconstruct,
    /// `(data, dtype, shape, order)`; for order `K` also the order of the dimensions.
    FromBuffer,
    /// The stand-in of joblib, whose bytes follow it.
    Joblib,
    /// Arrays with a mask, which are not read.
    Masked,
}

pub(super) fn maker(pickle: &Pickle, call: &Call) -> Option<Maker> {
    match pickle.global(call.callable)? {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
            Some(Maker::Reconstruct)
        }
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Maker::FromBuffer),
        _ if joblib::is_wrapper(pickle, call) => Some(Maker::Joblib),
        ("numpy.ma.core" | "numpy.ma", "_mareconstruct") => Some(Maker::Masked),
        _ => None,
    }
}

/// Whether the object `id` is an array of any kind.
pub(super) fn is_array(pickle: &Pickle, id: ObjectId) -> bool {
    let call = pickle.as_call(id);
    call.is_some_and(|call| maker(pickle, call).is_some())
}

/// Whether nothing is done to what the call returns.
pub(super) fn is_plain(call: &Call) -> bool {
    call.kind == CallKind::Reduce
        && call.state.is_empty()
        && call.appended.is_empty()
        && call.items.is_empty()
}

impl<'p, S: Storages> Torch<'p, S> {
    /// Whether the object `id` is an array of numbers, or may be one.
    pub fn is_array_of_numbers(&self, id: ObjectId) -> bool {
        let Object::Call(call) = self.pickle.get(id) else {
            return false;
        };
        let Some(maker) = maker(self.pickle, call) else {
            return false;
        };
        let written = self.written(maker, call);
        !matches!(
            written.and_then(|written| numbers_of(self.pickle, written.dtype)),
            Ok(None)
        )
    }

    /// The array `id`; None when it is none, or its elements are no numbers.
    pub(super) fn array_layout(&mut self, id: ObjectId) -> Result<Option<Layout>, Refusal> {
        if let Some(layout) = self.arrays.layouts.get(&id) {
            return Ok(Some(layout.clone()));
        }
        let pickle = self.pickle;
        let Object::Call(call) = pickle.get(id) else {
            return Ok(None);
        };
        let Some(maker) = maker(pickle, call) else {
            return Ok(None);
        };
        let written = self.written(maker, call)?;
        let Some(numbers) = numbers_of(self.pickle, written.dtype)? else {
            return Ok(None);
        };
        let shape = self.dimensions(written.shape, "sizes")?;
        let storage = match (written.data, pickle.raw(id)) {
            (Some(data), _) => self.bytes_of(data, numbers.bytes(&shape)?)?,
            (None, Some(span)) => Storage::in_file(span.offset, span.len),
            (None, None) => return Err(unsupported("its bytes are not in the file")),
        };
        let len = storage.len;
        let place = (self.table.add(storage)?, 0, len);
        let layout = numbers.layout(place, shape, &written.order)?;
        self.arrays.layouts.insert(id, layout.clone());
        Ok(Some(layout))
    }

    pub(super) fn written(&self, maker: Maker, call: &'p Call) -> Result<Written, Refusal> {
        let pickle = self.pickle;
        let unknown = || unsupported("an array that numpy made in an unknown way");
        if let Some(state) = joblib::stand_in(pickle, call) {
            let entry = |name| joblib::entry_of(pickle, state, name).ok_or_else(unknown);
            let class = pickle.global(entry("subclass")?);
            if !matches!(class, Some(("numpy", "ndarray" | "memmap"))) {
                return Err(unsupported("it is an array of another class than numpy's"));
            }
            return Ok(Written {
                dtype: entry("dtype")?,
                shape: entry("shape")?,
                order: match pickle.as_str(entry("order")?) {
                    Some("C") => Order::Rows,
                    Some("F") => Order::Columns,
                    _ => return Err(unknown()),
                },
                data: None,
            });
        }
        let args = pickle.as_tuple(call.args).ok_or_else(unknown)?;
        if call.kind != CallKind::Reduce || !call.appended.is_empty() || !call.items.is_empty() {
            return Err(unknown());
        }
        let (dtype, shape, order, data) = match (maker, args, &*call.state) {
            (Maker::Reconstruct, [class, _, _], [state]) => {
                let class = pickle.global(*class).ok_or_else(unknown)?;
                if !matches!(class, ("numpy", "ndarray" | "memmap")) {
                    let class = shown(&format!("{}.{}", class.0, class.1));
                    return Err(unsupported(format!("it is an array of the class {class}")));
                }
                let Some([_version, shape, dtype, columns, data]) = pickle.as_tuple(*state) else {
                    return Err(unknown());
                };
                let order = match (pickle.get(*columns), pickle.as_int(*columns)) {
                    (Object::Bool(false), _) | (_, Some(0)) => Order::Rows,
                    (Object::Bool(true), _) | (_, Some(1)) => Order::Columns,
                    _ => return Err(unknown()),
                };
                (dtype, shape, order, data)
            }
            (Maker::FromBuffer, [data, dtype, shape, order, axes @ ..], []) => {
                let order = match (pickle.as_str(*order), axes) {
                    (Some("C"), [] | [_]) => Order::Rows,
                    (Some("F"), [] | [_]) => Order::Columns,
                    (Some("K"), [axes]) => {
                        let axes = self.dimensions(*axes, "dimensions")?;
                        let axes = axes.iter().map(|axis| usize::try_from(*axis).ok());
                        Order::Transposed(axes.collect::<Option<_>>().ok_or_else(unknown)?)
                    }
                    _ => return Err(unknown()),
                };
                (dtype, shape, order, data)
            }
            (Maker::Masked, ..) => return Err(unsupported("it is an array with a mask")),
            _ => return Err(unknown()),
        };
        Ok(Written {
            dtype: *dtype,
            shape: *shape,
            order,
            data: Some(*data),
        })
    }

    /// Where the bytes of an array lie, which should be `len`. Each array has a
    /// storage of its own: pickles share small byte strings that have nothing to do
    /// with each other.
    fn bytes_of(&mut self, data: ObjectId, len: u64) -> Result<Storage, Refusal> {
        if let Some(bytes) = self.arrays.bytes.get(&data) {
            return Ok(Storage::in_memory(bytes.clone()));
        }
        let bytes: Arc<[u8]> = match self.data(data)? {
            ArrayBytes::Bytes(Payload::Here(bytes)) => bytes.as_ref().into(),
            ArrayBytes::Bytes(Payload::Apart(span)) => {
                return Ok(Storage::in_file(span.offset, span.len));
            }
            ArrayBytes::Latin1(Str::Apart(span)) => {
                // What the text decodes to is seen when somebody reads it.
                let encoded = Encoded {
                    offset: span.offset,
                    len: span.len,
                    codec: Codec::Latin1,
                };
                if !(len..=len.saturating_mul(2)).contains(&span.len) {
                    return Err(malformed(format!(
                        "its elements take {len} bytes, which {} bytes of text cannot be",
                        span.len
                    )));
                }
                return Ok(Storage {
                    backing: Backing::Decoded(encoded),
                    len,
                });
            }
            ArrayBytes::Latin1(text) => latin1(text)?.into(),
            ArrayBytes::Empty => [].into(),
        };
        self.arrays.bytes.insert(data, bytes.clone());
        Ok(Storage::in_memory(bytes))
    }

    pub(super) fn data(&self, data: ObjectId) -> Result<ArrayBytes<'p>, Refusal> {
        let pickle = self.pickle;
        match pickle.get(data) {
            // Those of Python 2 are its bytes.
            Object::Bytes(bytes) | Object::ByteArray(bytes) | Object::String8(bytes) => {
                Ok(ArrayBytes::Bytes(bytes))
            }
            Object::Str(text) => Ok(ArrayBytes::Latin1(text)),
            Object::List(_) => Err(unsupported(
                "its elements are Python objects, which numpy pickles",
            )),
            Object::Call(call) if is_plain(call) => {
                let args = pickle.as_tuple(call.args).unwrap_or_default();
                match (pickle.global(call.callable), args) {
                    // What pickle makes of bytes in protocols without them.
                    (Some(("_codecs", "encode")), [text, encoding]) => {
                        let is_latin1 = pickle.as_str(*encoding) == Some("latin1");
                        match pickle.get(*text) {
                            Object::Str(text) if is_latin1 => Some(ArrayBytes::Latin1(text)),
                            _ => None,
                        }
                    }
                    (Some(("builtins" | "__builtin__", "bytes")), []) => Some(ArrayBytes::Empty),
                    _ => None,
                }
                .ok_or_else(|| unsupported("its bytes are written in an unknown way"))
            }
            _ => Err(malformed("an array has no bytes")),
        }
    }
}

/// The bytes that text stands for, a letter for each.
pub(super) fn latin1(text: &Str) -> Result<Vec<u8>, Refusal> {
    let bytes = text.as_str().and_then(|text| {
        let letters = text.chars().map(|letter| u8::try_from(letter).ok());
        letters.collect()
    });
    bytes.ok_or_else(|| malformed("its bytes are written as text beyond Latin-1"))
}
