//! numpy's dtypes in a pickle.

use crate::checkpoint::numpy::{Numbers, numbers};
use crate::checkpoint::refusal::{Refusal, unsupported};
use crate::pickle::{Object, ObjectId, Objects};

/// `numpy.dtype("f4", align, copy)`, and the state `(version, byte order,
/// subarray, names, fields, ...)`. None for texts and dates.
pub fn numbers_of(objects: &Objects, dtype: ObjectId) -> Result<Option<Numbers>, Refusal> {
    let unknown = || unsupported("it is an array of an unknown type");
    let Object::Call(call) = objects.get(dtype) else {
        return Err(unknown());
    };
    let args = objects.as_tuple(call.args).unwrap_or_default();
    let (Some(("numpy", "dtype")), [kind, ..]) = (objects.global(call.callable), args) else {
        return Err(unknown());
    };
    let order = match &*call.state {
        [] => "=",
        [state] => match objects.as_tuple(*state) {
            Some([_version, order, subarray, names, fields, ..]) => {
                let parts = [subarray, names, fields];
                let is_none = |id: &&ObjectId| matches!(objects.get(**id), Object::None);
                if !parts.iter().all(is_none) {
                    return Err(unsupported("its elements are records"));
                }
                objects.as_str(*order).ok_or_else(unknown)?
            }
            _ => return Err(unknown()),
        },
        _ => return Err(unknown()),
    };
    match (objects.global(*kind), objects.as_str(*kind)) {
        (Some(("ml_dtypes", name)), _) => Numbers::of_ml_dtype(order, name).map(Some),
        (_, Some(kind)) => numbers(order, kind),
        _ => Err(unknown()),
    }
}
