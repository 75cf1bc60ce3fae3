//! The memo: objects under the numbers by which the pickle names them again.

use std::collections::HashMap;

use super::object::ObjectId;

/// Indices up to this are dense in any case.
const FEW: u64 = 1 << 10;

/// Picklers count up. Indices are kept in a vector as long as half of it is in
/// use, so that an index near 2^63 costs one entry and not its value.
#[derive(Default)]
pub(super) struct Memo {
    dense: Vec<Option<ObjectId>>,
    /// Entries that were stored when the vector was too short for them.
    sparse: HashMap<u64, ObjectId>,
    length: usize,
}

impl Memo {
    /// How many indices hold an object.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn get(&self, index: u64) -> Option<ObjectId> {
        let dense = usize::try_from(index).ok();
        dense
            .and_then(|index| self.dense.get(index).copied().flatten())
            .or_else(|| self.sparse.get(&index).copied())
    }

    /// Stores `object`, in place of an earlier one if there is any.
    pub(super) fn put(&mut self, index: u64, object: ObjectId) {
        let earlier = if index < self.length as u64 * 2 + FEW {
            let dense = index as usize;
            if dense >= self.dense.len() {
                self.dense.resize(dense + 1, None);
            }
            let sparse = match self.sparse.is_empty() {
                true => None,
                false => self.sparse.remove(&index),
            };
            self.dense[dense].replace(object).or(sparse)
        } else {
            self.sparse.insert(index, object)
        };
        self.length += usize::from(earlier.is_none());
    }

    /// Bytes of memory, about.
    pub(super) fn memory(&self) -> usize {
        self.dense.capacity() * size_of::<Option<ObjectId>>()
            + self.sparse.capacity() * (size_of::<(u64, ObjectId)>() + 1)
    }
}
