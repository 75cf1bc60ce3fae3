//! Arrays in joblib's streams: an object stands in for each, and its elements stand
//! between the opcodes behind it (joblib/numpy_pickle.py).

use super::numpy_dtype::numbers_of;
use crate::checkpoint::layout::MAX_RANK;
use crate::checkpoint::refusal::{Refusal, unsupported};
use crate::pickle::{Call, CallKind, Object, ObjectId, Objects};

/// The elements of an array behind joblib's stand-in for it.
pub enum Follows {
    Bytes {
        len: u64,
        /// Whether padding stands before them.
        aligned: bool,
    },
    /// Of Python objects.
    Pickle,
}

/// Whether the object `id`, just built, is joblib's stand-in for an array, whose
/// elements follow it in the stream.
pub fn follows(objects: &Objects, id: ObjectId) -> Result<Option<Follows>, Refusal> {
    let Some(wrapper) = objects.as_call(id).and_then(|call| stand_in(objects, call)) else {
        return Ok(None);
    };
    let unknown = || unsupported("an array that joblib wrote in an unknown way");
    let entry = |name| entry_of(objects, wrapper, name).ok_or_else(unknown);
    let dtype = entry("dtype")?;
    if is_of_objects(objects, dtype) {
        return Ok(Some(Follows::Pickle));
    }
    let numbers = numbers_of(objects, dtype)?;
    let numbers = numbers.ok_or_else(|| unsupported("joblib wrote an array of texts or dates"))?;
    let shape = objects.as_tuple(entry("shape")?).ok_or_else(unknown)?;
    if shape.len() > MAX_RANK {
        return Err(unknown());
    }
    let sizes = shape
        .iter()
        .map(|size| u64::try_from(objects.as_int(*size)?).ok());
    let sizes: Box<[u64]> = sizes.collect::<Option<_>>().ok_or_else(unknown)?;
    // joblib before 1.2 did not align.
    let alignment = entry_of(objects, wrapper, "numpy_array_alignment_bytes");
    let aligned = alignment.is_some_and(|id| objects.as_int(id).is_some());
    Ok(Some(Follows::Bytes {
        len: numbers.bytes(&sizes)?,
        aligned,
    }))
}

fn is_of_objects(objects: &Objects, dtype: ObjectId) -> bool {
    let args = objects
        .as_call(dtype)
        .and_then(|call| objects.as_tuple(call.args));
    let kind = args.and_then(|args| objects.as_str(*args.first()?));
    kind.is_some_and(|kind| kind.starts_with('O'))
}

/// The state of joblib's stand-in for an array.
pub(super) fn stand_in(objects: &Objects, call: &Call) -> Option<ObjectId> {
    match *call.state {
        [state] if is_wrapper(objects, call) => Some(state),
        _ => None,
    }
}

/// Whether the call makes a stand-in, as protocols since 2 write that, or those before.
pub(super) fn is_wrapper(objects: &Objects, call: &Call) -> bool {
    let is_class = |id| objects.global(id) == Some(("joblib.numpy_pickle", "NumpyArrayWrapper"));
    let args = objects.as_tuple(call.args).unwrap_or_default();
    match (objects.global(call.callable), args) {
        (Some(("copyreg" | "copy_reg", "_reconstructor")), [class, _, _]) => is_class(*class),
        _ => call.kind == CallKind::NewObj && is_class(call.callable),
    }
}

pub(super) fn entry_of(objects: &Objects, state: ObjectId, name: &str) -> Option<ObjectId> {
    /// It has six.
    const MOST: usize = 16;
    match objects.get(state) {
        Object::Dict(items) if items.len() <= MOST => items
            .iter()
            .rev()
            .find_map(|(key, value)| (objects.as_str(*key) == Some(name)).then_some(*value)),
        _ => None,
    }
}
