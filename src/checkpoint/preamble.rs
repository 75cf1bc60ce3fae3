//! The pickles around the object in streams of torch.save from before 1.6: a magic
//! number, a version, keys and counts. They are of plain values and become typed
//! ones, once it is certain that this costs no more than it should.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_pickle::{DeOptions, Value};

use super::refusal::{Refusal, malformed, too_large, unsupported};
use crate::pickle::{Object, Pickle, PlainLimits};

/// `0x1950A86A20F9469CFC6C`
const MAGIC: &str = "119547037146038801333356";
const VERSION: i64 = 1001;

/// What such pickles hold at most: the keys of a million storages, of two opcodes each.
/// torch writes tuples in a list, or less.
const LIMITS: PlainLimits = PlainLimits {
    depth: 8,
    values: 2_200_000,
};
/// Bytes of one of them.
const MAX_LEN: u64 = 64 << 20;

/// A pickle of plain values that is small enough to be read without further care.
pub struct PlainPickle<'p> {
    bytes: Cow<'p, [u8]>,
    is_list: bool,
}

impl<'p> PlainPickle<'p> {
    /// `bytes` gives the `len` bytes that `pickle` was read from.
    pub fn new<E: From<Refusal>>(
        pickle: &Pickle,
        len: u64,
        bytes: impl FnOnce() -> Result<Cow<'p, [u8]>, E>,
    ) -> Result<PlainPickle<'p>, E> {
        if len > MAX_LEN || !pickle.is_plain(&LIMITS) {
            let what = "one of the pickles around its object holds more than a few plain values";
            return Err(too_large(what).into());
        }
        Ok(PlainPickle {
            bytes: bytes()?,
            is_list: matches!(pickle.get(pickle.root()), Object::List(_)),
        })
    }

    /// What it holds, if that is a `T`. Texts of Python 2 are UTF-8.
    pub fn value<T: DeserializeOwned>(&self) -> Option<T> {
        serde_pickle::from_slice(&self.bytes, options()).ok()
    }

    /// The items, if it is a list of these.
    pub fn list<T: DeserializeOwned>(&self) -> Option<Vec<T>> {
        // Sets are sequences too, but in no order.
        self.value().filter(|_| self.is_list)
    }

    /// Serde has no number of this size.
    fn is_magic(&self) -> bool {
        match serde_pickle::value_from_slice(&self.bytes, options()) {
            Ok(Value::Int(number)) => number.to_string() == MAGIC,
            _ => false,
        }
    }
}

fn options() -> DeOptions {
    DeOptions::new().decode_strings()
}

/// Checks the two pickles that every stream begins with.
pub fn check_start(magic: &PlainPickle, version: &PlainPickle) -> Result<(), Refusal> {
    if !magic.is_magic() {
        return Err(malformed("it does not begin with torch's magic number"));
    }
    match version.value() {
        Some(VERSION) => Ok(()),
        _ => Err(unsupported("its format has an unknown version")),
    }
}
