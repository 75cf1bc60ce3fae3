//! Values by key in memory, weighed in bytes. Each has a lock of its own, so that
//! what it says is found out once however many ask at the same time. What takes much
//! memory goes first, and then what was not asked for longest.

use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Something that has its size, and parts of it that can be made again.
pub trait Weighed: Default {
    /// Bytes beside what every entry takes.
    fn weight(&self) -> usize;

    /// Forgets what is heavy.
    fn shed(&mut self);
}

/// A map that forgets.
#[derive(Debug)]
pub struct Memory<K: Hash + Eq, V> {
    known: Mutex<Known<K, V>>,
    /// Bytes.
    budget: usize,
}

#[derive(Debug)]
struct Known<K: Hash + Eq, V> {
    entries: LruCache<K, Entry<V>>,
    /// Those that have something heavy, in the order of their use.
    heavy: LruCache<K, ()>,
    /// Bytes: the sum of the entries'.
    weight: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: Arc<Mutex<V>>,
    /// Bytes.
    weight: usize,
}

/// From here on an entry counts as heavy, in bytes.
const HEAVY: usize = 1 << 10;

impl<K: Hash + Eq + Clone, V: Weighed> Memory<K, V> {
    /// `budget`: about how many bytes are kept. What is in use outlives its place.
    pub fn new(budget: usize) -> Memory<K, V> {
        Memory {
            known: Mutex::new(Known {
                entries: LruCache::unbounded(),
                heavy: LruCache::unbounded(),
                weight: 0,
            }),
            budget,
        }
    }

    /// What the entry `key` says and `work` finds out about it. Others who ask for
    /// the same wait meanwhile; no other entry may be asked for from inside.
    pub fn with<T>(&self, key: &K, work: impl FnOnce(&mut V) -> T) -> T {
        let value = self.lock().entry(key);
        let mut inside = value.lock().unwrap_or_else(PoisonError::into_inner);
        let done = work(&mut inside);
        let weight = inside.weight();
        drop(inside);
        self.lock().weigh(key, &value, weight, self.budget);
        done
    }

    /// Forgets what is heavy until half of the budget is left, the last one too.
    pub fn settle(&self) {
        let mut known = self.lock();
        while known.weight > self.budget / 2 && !known.heavy.is_empty() {
            known.lighten();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known<K, V>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, V: Weighed> Known<K, V> {
    /// What every entry takes, in bytes.
    const BASE: usize = 2 * size_of::<K>() + size_of::<V>() + 192;

    fn entry(&mut self, key: &K) -> Arc<Mutex<V>> {
        if let Some(entry) = self.entries.get(key) {
            return entry.value.clone();
        }
        let value = Arc::<Mutex<V>>::default();
        let entry = Entry {
            value: value.clone(),
            weight: Self::BASE,
        };
        self.weight += entry.weight;
        self.entries.put(key.clone(), entry);
        value
    }

    /// Accounts for what `value` weighs now, unless its entry was forgotten meanwhile.
    fn weigh(&mut self, key: &K, value: &Arc<Mutex<V>>, weight: usize, budget: usize) {
        let entry = self.entries.peek_mut(key);
        if let Some(entry) = entry.filter(|entry| Arc::ptr_eq(&entry.value, value)) {
            let now = Self::BASE.saturating_add(weight);
            self.weight = self.weight.saturating_sub(entry.weight) + now;
            entry.weight = now;
            match weight >= HEAVY {
                true => drop(self.heavy.put(key.clone(), ())),
                false => drop(self.heavy.pop(key)),
            }
        }
        while self.weight > budget && self.heavy.len() > 1 {
            self.lighten();
        }
        while self.weight > budget && self.entries.len() > 1 {
            let Some((key, oldest)) = self.entries.pop_lru() else {
                break;
            };
            self.heavy.pop(&key);
            self.weight = self.weight.saturating_sub(oldest.weight);
        }
    }

    /// Takes what is heavy from the entry that had it for longest.
    fn lighten(&mut self) {
        let Some((key, ())) = self.heavy.pop_lru() else {
            return;
        };
        let Some(entry) = self.entries.peek_mut(&key) else {
            return;
        };
        // One that is being worked on is weighed again when that is done.
        if let Ok(mut value) = entry.value.try_lock() {
            value.shed();
            let now = Self::BASE.saturating_add(value.weight());
            self.weight = self.weight.saturating_sub(entry.weight) + now;
            entry.weight = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Load {
        fact: Option<u32>,
        heavy: usize,
    }

    impl Weighed for Load {
        fn weight(&self) -> usize {
            self.heavy
        }
        fn shed(&mut self) {
            self.heavy = 0;
        }
    }

    #[test]
    fn what_is_heavy_goes_before_what_is_known() {
        let memory: Memory<u32, Load> = Memory::new(1 << 20);
        for key in 0..100 {
            memory.with(&key, |load| {
                (load.fact, load.heavy) = (Some(key), 100 << 10)
            });
        }
        let (facts, heavy) = (0..100).fold((0, 0), |(facts, heavy), key| {
            memory.with(&key, |load| {
                (
                    facts + u32::from(load.fact == Some(key)),
                    heavy + load.heavy,
                )
            })
        });
        assert_eq!(facts, 100);
        assert!(heavy > 500 << 10 && heavy <= 1 << 20, "{heavy}");
    }

    #[test]
    fn the_last_one_is_kept_until_all_settles() {
        let memory: Memory<u32, Load> = Memory::new(1 << 20);
        let heavy = |key| memory.with(&key, |load| load.heavy);
        memory.with(&1, |load| (load.fact, load.heavy) = (Some(1), 2 << 20));
        assert_eq!(heavy(1), 2 << 20);
        memory.settle();
        assert_eq!(heavy(1), 0);
        assert_eq!(memory.with(&1, |load| load.fact), Some(1));
    }

    #[test]
    fn what_was_not_asked_for_longest_is_forgotten() {
        let memory: Memory<u32, Load> = Memory::new(100 << 10);
        for key in 0..10_000 {
            memory.with(&0, |load| load.fact = Some(0));
            memory.with(&key, |load| load.fact = Some(key));
        }
        let known = |key| memory.with(&key, |load| load.fact);
        assert_eq!((known(0), known(9_999)), (Some(0), Some(9_999)));
        assert_eq!(known(1), None);
        assert!(memory.lock().weight <= 100 << 10);
    }

    #[test]
    fn a_panic_leaves_the_entry_usable() {
        let memory: Memory<u32, Load> = Memory::new(1 << 20);
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            memory.with(&1, |_| panic!("in the middle"))
        }));
        assert!(panics.is_err());
        assert_eq!(memory.with(&1, |load| load.fact), None);
    }
}
