//! What Paddle makes of arrays: tensors with a name, calls of `eval`, and
//! parameters in parts (paddle/framework/io.py).

use std::collections::HashMap;

use super::array::{is_array, is_plain, maker};
use super::numpy_dtype::numbers_of;
use super::torch::{Storages, Torch};
use crate::checkpoint::layout::Layout;
use crate::checkpoint::numpy::Order;
use crate::checkpoint::refusal::{Refusal, malformed, shown};
use crate::checkpoint::storage::{Backing, Storage};
use crate::pickle::{Call, Object, ObjectId, Pickle};

/// The key under which Paddle tells which parameters it split, in pickles of
/// protocols that cannot hold a large one.
const SPLIT: &str = "UnpackBigParamInfor@@";
/// Bytes of the name of a part, which is that of a parameter and a number.
const MAX_NAME: usize = 1024;

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

impl<'p, S: Storages> Torch<'p, S> {
    /// Paddle's tensor: `tuple((name, array))`.
    pub(super) fn named(&self, call: &Call) -> Option<ObjectId> {
        let [pair] = self.pickle.as_tuple(call.args)? else {
            return None;
        };
        let (name, array) = self.pair(*pair)?;
        self.pickle.as_str(name)?;
        (is_plain(call) && is_array(self.pickle, array)).then_some(array)
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
            let layout = self.joined(about, &names, &values).map_err(named)?;
            self.arrays.layouts.insert(about, layout);
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
    pub(super) fn whole_parameter(&self, id: ObjectId) -> Option<Layout> {
        self.arrays.layouts.get(&id).cloned()
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
    ) -> Result<Layout, Refusal> {
        let mut links = Vec::with_capacity(names.len());
        let mut numbers = None;
        for name in names {
            let part = values
                .get(name)
                .filter(|part| is_array(self.pickle, **part))
                .ok_or_else(|| malformed(format!("its part `{}` is missing", shown(name))))?;
            let layout = self.array_layout(*part)?;
            let layout = layout.ok_or_else(|| malformed("one of its parts holds no numbers"))?;
            let Object::Call(call) = self.pickle.get(*part) else {
                return Err(malformed("one of its parts is no array"));
            };
            let maker = maker(self.pickle, call).ok_or_else(|| malformed("a part is no array"))?;
            let of_part = numbers_of(self.pickle, self.written(maker, call)?.dtype)?;
            if layout.shape.len() != 1 || *numbers.get_or_insert(of_part) != of_part {
                return Err(malformed("its parts do not fit together"));
            }
            links.extend(self.table.get(layout.storage).cloned());
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
            backing: Backing::Chain(links.into()),
            len,
        };
        numbers.layout((self.table.add(storage)?, 0, len), shape, &Order::Rows)
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
