//! A set of the objects of one pickle.

use super::object::ObjectId;
use super::objects::Objects;

/// A set of objects: a bit for each object that there is.
#[derive(Debug, Clone, Default)]
pub struct Marks(Box<[u64]>);

impl Marks {
    /// An empty set, for ids of `objects` alone.
    pub fn of(objects: &Objects) -> Marks {
        Marks(vec![0; objects.count().div_ceil(64)].into())
    }

    /// Tells whether it was not there yet.
    pub fn insert(&mut self, id: ObjectId) -> bool {
        let (word, bit) = place(id);
        match self.0.get_mut(word) {
            Some(word) => {
                let is_new = *word & bit == 0;
                *word |= bit;
                is_new
            }
            None => false,
        }
    }

    pub fn remove(&mut self, id: ObjectId) {
        let (word, bit) = place(id);
        if let Some(word) = self.0.get_mut(word) {
            *word &= !bit;
        }
    }

    pub fn contains(&self, id: ObjectId) -> bool {
        let (word, bit) = place(id);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

fn place(id: ObjectId) -> (usize, u64) {
    (id.index() / 64, 1 << (id.index() % 64))
}
