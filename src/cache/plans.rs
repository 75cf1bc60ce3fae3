//! Plans in memory: each made once however many ask for it at the same time,
//! the least recently used forgotten first.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use lru::LruCache;

use crate::checkpoint::Refusal;
use crate::convert::{Error, Plan};
use crate::source::{self, Identity};

/// What a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub identity: Identity,
    /// The class of model that decides which names of tied tensors stay.
    pub architecture: Option<Arc<str>>,
}

/// A plan, or why there is none. Both hold for as long as the file stays as it is.
pub type Outcome = Result<Arc<Plan>, Arc<Refusal>>;

/// Bytes that an entry takes beside the plan in it.
const OVERHEAD: usize = 256;

#[derive(Debug)]
pub struct Plans {
    kept: Mutex<Kept>,
    /// Bytes.
    budget: usize,
}

#[derive(Debug)]
struct Kept {
    slots: LruCache<Key, Slot>,
    /// Bytes.
    weight: usize,
}

#[derive(Clone, Debug)]
struct Slot {
    outcome: Arc<OnceLock<Outcome>>,
    /// Bytes, once the outcome is known.
    weight: usize,
}

impl Plans {
    /// `budget`: about how many bytes of plans are kept. A plan that is in use
    /// outlives its place here.
    pub fn new(budget: usize) -> Plans {
        Plans {
            kept: Mutex::new(Kept {
                slots: LruCache::unbounded(),
                weight: 0,
            }),
            budget,
        }
    }

    /// The outcome for `key`, made by `make` when it is not known. Callers with
    /// equal keys wait for the one that makes it. An error of the source is not
    /// kept: the next caller tries again.
    pub fn get(
        &self,
        key: &Key,
        make: impl FnOnce() -> Result<Plan, Error>,
    ) -> Result<Outcome, source::Error> {
        let slot = self.slot(key);
        let mut failure = None;
        let mut made = false;
        // An unkept error leaves a refusal in a slot that nobody finds any more.
        let outcome = slot.outcome.get_or_init(|| {
            made = true;
            match make() {
                Ok(plan) => Ok(Arc::new(plan)),
                Err(Error::Refused(refusal)) => Err(Arc::new(refusal)),
                Err(Error::Source(error)) => {
                    let refusal = changing(&error);
                    failure = Some(error);
                    Err(Arc::new(refusal))
                }
            }
        });
        match failure {
            Some(error) => {
                self.forget(key, &slot);
                Err(error)
            }
            None => {
                if made {
                    self.weigh(key, &slot, outcome);
                }
                Ok(outcome.clone())
            }
        }
    }

    fn slot(&self, key: &Key) -> Slot {
        let mut kept = self.lock();
        kept.slots
            .get_or_insert(key.clone(), || Slot {
                outcome: Arc::default(),
                weight: 0,
            })
            .clone()
    }

    fn forget(&self, key: &Key, slot: &Slot) {
        let mut kept = self.lock();
        let same = kept
            .slots
            .peek(key)
            .is_some_and(|kept| Arc::ptr_eq(&kept.outcome, &slot.outcome));
        if same {
            kept.slots.pop(key);
        }
    }

    /// Accounts for a new outcome, and makes room for it.
    fn weigh(&self, key: &Key, slot: &Slot, outcome: &Outcome) {
        let weight = OVERHEAD + outcome.as_ref().map_or(0, |plan| plan.weight());
        let mut guard = self.lock();
        let kept = &mut *guard;
        match kept.slots.peek_mut(key) {
            Some(kept_slot) if Arc::ptr_eq(&kept_slot.outcome, &slot.outcome) => {
                kept_slot.weight = weight;
            }
            _ => return,
        }
        kept.weight += weight;
        while kept.weight > self.budget && kept.slots.len() > 1 {
            let Some((_, oldest)) = kept.slots.pop_lru() else {
                break;
            };
            kept.weight -= oldest.weight;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What those are told who waited for an attempt that failed.
fn changing(error: &source::Error) -> Refusal {
    use crate::checkpoint::Cause;
    let cause = match error {
        source::Error::Io(_) => Cause::Unreadable,
        _ => Cause::Changing,
    };
    Refusal::new(cause, error.to_string())
}
