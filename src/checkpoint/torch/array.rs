//! numpy's arrays in a pickle (numpy/_core/src/multiarray/methods.c,
//! numpy/_core/numeric.py), and what Paddle makes of them
//! (paddle/framework/io.py). An array is a tensor wherever it stands.

use std::collections::HashMap;
use std::sync::Arc;

use super::joblib::{Wrapped, wrapped};
use super::{Meaning, Storages, Torch, View, malformed, unsupported};
use crate::checkpoint::numpy::{Numbers, Order, numbers};
use crate::checkpoint::refusal::{Refusal, shown};
use crate::checkpoint::storage::{Codec, Encoded, Place, Storage};
use crate::pickle::{Call, CallKind, Object, ObjectId, Objects, Payload, Pickle, Str};

/// The key under which Paddle tells which parameters it split, in pickles of
/// protocols that cannot hold a large one.
const SPLIT: &str = "UnpackBigParamInfor@@";
/// Bytes of the name of a part, which is that of a parameter and a number.
const MAX_NAME: usize = 1024;

/// The arrays read so far.
#[derive(Default)]
pub(super) struct Arrays {
    /// By what makes each: two names of one array are names of one tensor.
    views: HashMap<ObjectId, View>,
    /// Any number of arrays may be made of the same bytes.
    bytes: HashMap<ObjectId, Arc<[u8]>>,
}

/// An array as its pickle says it.
struct Written<'p> {
    dtype: ObjectId,
    shape: ObjectId,
    order: Order,
    data: &'p ObjectId,
}

/// The bytes of an array as its pickle says them.
pub(super) enum Data<'p> {
    Bytes(&'p Payload<'p>),
    /// Text, a letter for each byte.
    Latin1(&'p Str<'p>),
    Empty,
}

/// How the callable `module.name` makes an array.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    /// `(class, (0,), b"b")`, and the state `(version, shape, dtype, fortran, data)`.
    Reconstruct,
    /// `(data, dtype, shape, order)`; for order `K` also the order of the dimensions.
    FromBuffer,
    /// Arrays with a mask, which are not read.
    Masked,
}

fn maker(pickle: &Pickle, call: &Call) -> Option<Maker> {
    match pickle.global(call.callable)? {
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
            Some(Maker::Reconstruct)
        }
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Maker::FromBuffer),
        ("numpy.ma.core" | "numpy.ma", "_mareconstruct") => Some(Maker::Masked),
        _ => None,
    }
}

/// Whether the object `id` is an array of any kind.
fn is_array(pickle: &Pickle, id: ObjectId) -> bool {
    let call = pickle.as_call(id);
    call.is_some_and(|call| maker(pickle, call).is_some())
}

/// The array that Paddle has `eval` return: `eval("data", {"data": array})`. No
/// other call of `eval` is harmless.
pub fn evaluated(pickle: &Pickle, call: &Call) -> Option<ObjectId> {
    let eval = pickle.global(call.callable)?;
    let [expression, names] = pickle.as_tuple(call.args)? else {
        return None;
    };
    let Object::Dict(names) = pickle.get(*names) else {
        return None;
    };
    let [(name, array)] = names.as_slice() else {
        return None;
    };
    let is_data = |id: ObjectId| pickle.as_str(id) == Some("data");
    let exact = matches!(eval, ("builtins" | "__builtin__", "eval"))
        && is_plain(call)
        && is_data(*expression)
        && is_data(*name);
    (exact && is_array(pickle, *array)).then_some(*array)
}

/// Whether nothing is done to what the call returns.
fn is_plain(call: &Call) -> bool {
    call.kind == CallKind::Reduce
        && call.state.is_empty()
        && call.appended.is_empty()
        && call.items.is_empty()
}

/// `numpy.dtype("f4", align, copy)`, and the state `(version, byte order,
/// subarray, names, fields, ...)`. None for texts and dates.
pub fn numbers_of(pickle: &Objects, dtype: ObjectId) -> Result<Option<Numbers>, Refusal> {
    let unknown = || unsupported("it is an array of an unknown type");
    let Object::Call(call) = pickle.get(dtype) else {
        return Err(unknown());
    };
    let args = pickle.as_tuple(call.args).unwrap_or_default();
    let (Some(("numpy", "dtype")), [kind, ..]) = (pickle.global(call.callable), args) else {
        return Err(unknown());
    };
    let order = match &*call.state {
        [] => "=",
        [state] => match pickle.as_tuple(*state) {
            Some([_version, order, subarray, names, fields, ..]) => {
                let parts = [subarray, names, fields];
                let is_none = |id: &&ObjectId| matches!(pickle.get(**id), Object::None);
                if !parts.iter().all(is_none) {
                    return Err(unsupported("its elements are records"));
                }
                pickle.as_str(*order).ok_or_else(unknown)?
            }
            _ => return Err(unknown()),
        },
        _ => return Err(unknown()),
    };
    match (pickle.global(*kind), pickle.as_str(*kind)) {
        (Some(("ml_dtypes", name)), _) => Numbers::of_ml_dtype(order, name).map(Some),
        (_, Some(kind)) => numbers(order, kind),
        _ => Err(unknown()),
    }
}

impl<'p, S: Storages> Torch<'p, S> {
    /// The array that `id`, a call, makes, or that is wrapped by it.
    pub(super) fn array(
        &mut self,
        id: ObjectId,
        call: &'p Call,
    ) -> Result<Option<Meaning<'p>>, Refusal> {
        let pickle = self.pickle;
        if let Some(wrapped) = wrapped(pickle, id) {
            return Ok(Some(Meaning::Tensor(
                self.raw_view(id, &wrapped?)?,
                Vec::new(),
            )));
        }
        let array = match pickle.global(call.callable) {
            _ if maker(pickle, call).is_some() => Some(id),
            Some(("builtins" | "__builtin__", "eval")) => evaluated(pickle, call),
            Some(("builtins" | "__builtin__", "tuple")) => self.named(call),
            _ => None,
        };
        let Some(array) = array else { return Ok(None) };
        Ok(Some(match self.array_view(array)? {
            Some(view) => Meaning::Tensor(view, Vec::new()),
            None => Meaning::Other,
        }))
    }

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

    /// Paddle's tensor: `tuple((name, array))`.
    fn named(&self, call: &Call) -> Option<ObjectId> {
        let [pair] = self.pickle.as_tuple(call.args)? else {
            return None;
        };
        let (name, array) = self.pair(*pair)?;
        self.pickle.as_str(name)?;
        (is_plain(call) && is_array(self.pickle, array)).then_some(array)
    }

    /// The array `id`; None when it is none, or its elements are no numbers.
    pub(super) fn array_view(&mut self, id: ObjectId) -> Result<Option<View>, Refusal> {
        if let Some(view) = self.arrays.views.get(&id) {
            return Ok(Some(view.clone()));
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
        let storage = self.bytes_of(*written.data, numbers.bytes(&shape)?)?;
        let len = storage.len;
        let place = (self.table.add(storage)?, 0, len);
        let view = numbers.view(place, shape, &written.order)?;
        self.arrays.views.insert(id, view.clone());
        Ok(Some(view))
    }

    /// The array whose bytes follow the object `id` in the stream.
    fn raw_view(&mut self, id: ObjectId, wrapped: &Wrapped) -> Result<View, Refusal> {
        if let Some(view) = self.arrays.views.get(&id) {
            return Ok(view.clone());
        }
        let span = self.pickle.raw(id);
        let span = span.ok_or_else(|| malformed("an array has no bytes"))?;
        let storage = Storage::in_file(span.offset, span.len);
        let place = (self.table.add(storage)?, 0, span.len);
        let view = wrapped
            .numbers
            .view(place, wrapped.shape.clone(), &wrapped.order)?;
        self.arrays.views.insert(id, view.clone());
        Ok(view)
    }

    fn written(&self, maker: Maker, call: &'p Call) -> Result<Written<'p>, Refusal> {
        let pickle = self.pickle;
        let unknown = || unsupported("an array that numpy made in an unknown way");
        let args = pickle.as_tuple(call.args).ok_or_else(unknown)?;
        if call.kind != CallKind::Reduce || !call.appended.is_empty() || !call.items.is_empty() {
            return Err(unknown());
        }
        match (maker, args, &*call.state) {
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
                Ok(Written {
                    dtype: *dtype,
                    shape: *shape,
                    order,
                    data,
                })
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
                Ok(Written {
                    dtype: *dtype,
                    shape: *shape,
                    order,
                    data,
                })
            }
            (Maker::Masked, ..) => Err(unsupported("it is an array with a mask")),
            _ => Err(unknown()),
        }
    }

    /// Where the bytes of an array lie, which should be `len`. Each array has a
    /// storage of its own: pickles share small byte strings that have nothing to do
    /// with each other.
    fn bytes_of(&mut self, data: ObjectId, len: u64) -> Result<Storage, Refusal> {
        if let Some(bytes) = self.arrays.bytes.get(&data) {
            return Ok(Storage::in_memory(bytes.clone()));
        }
        let bytes: Arc<[u8]> = match self.data(data)? {
            Data::Bytes(Payload::Here(bytes)) => bytes.as_ref().into(),
            Data::Bytes(Payload::Apart(span)) => {
                return Ok(Storage::in_file(span.offset, span.len));
            }
            Data::Latin1(Str::Apart(span)) => {
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
                    place: Place::Decoded(encoded),
                    len,
                });
            }
            Data::Latin1(text) => latin1(text)?.into(),
            Data::Empty => [].into(),
        };
        self.arrays.bytes.insert(data, bytes.clone());
        Ok(Storage::in_memory(bytes))
    }

    pub(super) fn data(&self, data: ObjectId) -> Result<Data<'p>, Refusal> {
        let pickle = self.pickle;
        match pickle.get(data) {
            // Those of Python 2 are its bytes.
            Object::Bytes(bytes) | Object::ByteArray(bytes) | Object::String8(bytes) => {
                Ok(Data::Bytes(bytes))
            }
            Object::Str(text) => Ok(Data::Latin1(text)),
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
                            Object::Str(text) if is_latin1 => Some(Data::Latin1(text)),
                            _ => None,
                        }
                    }
                    (Some(("builtins" | "__builtin__", "bytes")), []) => Some(Data::Empty),
                    _ => None,
                }
                .ok_or_else(|| unsupported("its bytes are written in an unknown way"))
            }
            _ => Err(malformed("an array has no bytes")),
        }
    }

    /// The entries of a dict; where it says which parameters were split, these are
    /// whole, each under its name.
    pub(super) fn with_whole_parameters(
        &mut self,
        mut entries: Vec<(ObjectId, ObjectId)>,
    ) -> Result<Vec<(ObjectId, ObjectId)>, Refusal> {
        let pickle = self.pickle;
        let Some(at) = entries
            .iter()
            .position(|(key, _)| self.is_text(*key, SPLIT))
        else {
            return Ok(entries);
        };
        let (_, split) = entries.remove(at);
        let values: HashMap<&str, ObjectId> = entries
            .iter()
            .filter_map(|(key, value)| Some((pickle.as_str(*key)?, *value)))
            .collect();
        // Each part is an entry itself, so that all of this is paid for by these.
        let most = entries.len();
        let too_many = || malformed("it names more parts of parameters than it has");
        if self.items(split).len() > most {
            return Err(too_many());
        }
        let mut parts = Vec::new();
        let mut whole = Vec::new();
        for (key, about) in pickle.entries(split) {
            let name = pickle.as_str(key).unwrap_or(SPLIT);
            let named = |refusal: Refusal| refusal.of_tensor(name);
            let names = self.parts(about, most).map_err(named)?;
            if parts.len() + names.len() > most {
                return Err(too_many());
            }
            let view = self.joined(about, &names, &values).map_err(named)?;
            self.arrays.views.insert(about, view);
            parts.extend(names);
            whole.push((key, about));
        }
        parts.sort_unstable();
        entries.retain(|(key, _)| {
            let name = pickle.as_str(*key);
            name.is_none_or(|name| parts.binary_search(&name).is_err())
        });
        entries.extend(whole);
        Ok(entries)
    }

    /// A parameter that was put together from its parts, by what tells of them.
    pub(super) fn whole_parameter(&self, id: ObjectId) -> Option<View> {
        self.arrays.views.get(&id).cloned()
    }

    /// The names of the parts, which are `most` at most: `{"OriginShape": ...,
    /// "slices": [names]}`.
    fn parts(&self, about: ObjectId, most: usize) -> Result<Vec<&'p str>, Refusal> {
        let pickle = self.pickle;
        let names = match self.entry(about, "slices").map(|names| pickle.get(names)) {
            Some(Object::List(names)) if names.len() <= most => names.iter(),
            Some(Object::List(_)) => return Err(malformed("it was split, and a part is missing")),
            _ => return Err(malformed("it was split, but its parts have no names")),
        };
        let names = names.map(|name| {
            let short = self.text_len(*name) <= MAX_NAME;
            pickle.as_str(*name).filter(|_| short)
        });
        names
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("one of its parts has no short name"))
    }

    /// The parts of a parameter, one after the other, in the shape it had.
    fn joined(
        &mut self,
        about: ObjectId,
        names: &[&str],
        values: &HashMap<&str, ObjectId>,
    ) -> Result<View, Refusal> {
        let mut links = Vec::with_capacity(names.len());
        let mut numbers = None;
        for name in names {
            let part = values
                .get(name)
                .filter(|part| is_array(self.pickle, **part))
                .ok_or_else(|| malformed(format!("its part `{}` is missing", shown(name))))?;
            let view = self.array_view(*part)?;
            let view = view.ok_or_else(|| malformed("one of its parts holds no numbers"))?;
            let Object::Call(call) = self.pickle.get(*part) else {
                return Err(malformed("one of its parts is no array"));
            };
            let maker = maker(self.pickle, call).ok_or_else(|| malformed("a part is no array"))?;
            let of_part = numbers_of(self.pickle, self.written(maker, call)?.dtype)?;
            if view.shape.len() != 1 || *numbers.get_or_insert(of_part) != of_part {
                return Err(malformed("its parts do not fit together"));
            }
            links.extend(self.table.get(view.storage).cloned());
        }
        let numbers = numbers.flatten();
        let numbers = numbers.ok_or_else(|| malformed("it was split into no parts"))?;
        let shape = self.entry(about, "OriginShape");
        let shape = shape.ok_or_else(|| malformed("it was split, but its shape is missing"))?;
        let shape = self.dimensions(shape, "sizes")?;
        let len = links
            .iter()
            .try_fold(0_u64, |len, link| len.checked_add(link.len))
            .ok_or_else(|| malformed("its size is beyond all bounds"))?;
        let storage = Storage {
            place: Place::Chain(links.into()),
            len,
        };
        numbers.view((self.table.add(storage)?, 0, len), shape, &Order::Rows)
    }

    fn entry(&self, dict: ObjectId, name: &str) -> Option<ObjectId> {
        /// It has two.
        const MOST: usize = 8;
        if self.items(dict).len() > MOST {
            return None;
        }
        let mut entries = self.pickle.entries(dict).into_iter();
        entries.find_map(|(key, value)| self.is_text(key, name).then_some(value))
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
