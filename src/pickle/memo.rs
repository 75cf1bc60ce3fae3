//! The memo: objects under the numbers by which the pickle names them again.

use std::collections::HashMap;

use super::object::ObjectId;

/// Indices below this are kept in a vector (8 MiB at most), so that an index
/// near 2^63 costs one entry and not its value.
const DENSE: u64 = 2 << 20;

#[derive(Default)]
pub(super) struct Memo {
    dense: Vec<Option<ObjectId>>,
    sparse: HashMap<u64, ObjectId>,
    length: usize,
}

impl Memo {
    /// How many indices hold an object.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn get(&self, index: u64) -> Option<ObjectId> {
        if index < DENSE {
            self.dense.get(index as usize).copied().flatten()
        } else {
            self.sparse.get(&index).copied()
        }
    }

    /// Stores `object`, in place of an earlier one if there is any.
    pub(super) fn put(&mut self, index: u64, object: ObjectId) {
        let earlier = if index < DENSE {
            let index = index as usize;
            if index >= self.dense.len() {
                self.dense.resize(index + 1, None);
            }
            self.dense[index].replace(object)
        } else {
            self.sparse.insert(index, object)
        };
        self.length += usize::from(earlier.is_none());
    }
}
