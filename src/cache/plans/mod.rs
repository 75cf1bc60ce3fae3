//! Plans in memory: each made once however many ask for it at the same time,
//! the least recently used forgotten first.

mod prune;
mod record;
mod records;

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::cache::Name;
use crate::checkpoint::{Companion, Refusal};
use crate::convert::{Error, Plan};
use crate::source::{self, Identity};

pub use prune::{PLANS_BUDGET, prune_plans};
pub use record::{Body, Size, Summary};
pub use records::{Records, Subject};

/// What a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub identity: Identity,
    /// The class of model that decides which names of tied tensors stay.
    pub architecture: Option<Arc<str>>,
    /// Other files that the plan may need, in the order of their names.
    pub beside: Arc<[(OsString, Identity)]>,
}

impl Key {
    /// Whether `file` is one of those beside, as it was when they were looked at.
    pub fn has(&self, file: &Companion) -> bool {
        let name = |known: &(OsString, Identity)| known.0.as_os_str().cmp(file.name.as_ref());
        let found = self.beside.binary_search_by(name);
        let found = found.ok().and_then(|at| self.beside.get(at));
        found.is_some_and(|(_, identity)| *identity == file.identity)
    }

    /// [`Identity::is_settled`] of all the files that the plan may depend on.
    pub fn is_settled(&self) -> bool {
        let mut beside = self.beside.iter();
        self.identity.is_settled() && beside.all(|(_, identity)| identity.is_settled())
    }

    /// What the file that is converted by this plan is called when it is kept.
    /// `options`: whatever else decides about its bytes. Another version of stfs may
    /// make other bytes, and calls its file something else.
    pub fn converted_name(&self, options: &[&[u8]]) -> Name {
        let circumstances = self.circumstances();
        let identity = self.identity.to_bytes();
        let mut parts: Vec<&[u8]> = vec![
            b"converted",
            env!("CARGO_PKG_VERSION").as_bytes(),
            &identity,
            circumstances.0.as_bytes(),
        ];
        parts.extend(options);
        Name::of(&parts)
    }

    /// What the plan depends on besides the file itself.
    pub fn circumstances(&self) -> Circumstances {
        let architecture = match &self.architecture {
            Some(name) => [&[1], name.as_bytes()].concat(),
            None => Vec::new(),
        };
        let identities: Vec<_> = self.beside.iter().map(|file| file.1.to_bytes()).collect();
        let mut parts = vec![architecture.as_slice()];
        for ((name, _), identity) in self.beside.iter().zip(&identities) {
            parts.extend([name.as_bytes(), identity]);
        }
        Circumstances(Name::of(&parts))
    }
}

/// What a plan depends on besides the file itself, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances(Name);

/// A plan, or why there is none. Both hold for as long as the file stays as it is.
pub type Outcome = Result<Arc<Plan>, Arc<Refusal>>;

/// Bytes that an entry takes beside the plan in it.
const OVERHEAD: usize = 256;

#[derive(Debug)]
pub struct Plans {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    slots: LruCache<Key, Slot>,
    /// Bytes: the sum of the slots'.
    weight: usize,
    /// Bytes.
    budget: usize,
}

/// None until somebody has made it. Whoever makes it holds the lock, which no
/// other lock is waited for under but that of the slots.
type Place = Arc<Mutex<Option<Outcome>>>;

#[derive(Debug)]
struct Slot {
    place: Place,
    /// Bytes.
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
                budget,
            }),
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
        let place = self.kept().place(key);
        let mut outcome = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = &*outcome {
            return Ok(outcome.clone());
        }
        let made = match make() {
            Ok(plan) => Ok(Arc::new(plan)),
            Err(Error::Refused(refusal)) => Err(Arc::new(refusal)),
            Err(Error::Source(error)) => return Err(error),
        };
        *outcome = Some(made.clone());
        self.kept().weigh(key, &place, &made);
        Ok(made)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn place(&mut self, key: &Key) -> Place {
        if let Some(slot) = self.slots.get(key) {
            return slot.place.clone();
        }
        let place = Place::default();
        let slot = Slot {
            place: place.clone(),
            weight: OVERHEAD,
        };
        self.slots.put(key.clone(), slot);
        self.weight += OVERHEAD;
        self.make_room();
        place
    }

    /// Accounts for the plan that was made in `place`, unless the place was
    /// forgotten meanwhile.
    fn weigh(&mut self, key: &Key, place: &Place, outcome: &Outcome) {
        let slot = self.slots.peek_mut(key);
        let Some(slot) = slot.filter(|slot| Arc::ptr_eq(&slot.place, place)) else {
            return;
        };
        let plan = outcome.as_ref().map_or(0, |plan| plan.weight());
        slot.weight += plan;
        self.weight += plan;
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.weight > self.budget && self.slots.len() > 1 {
            let Some((_, oldest)) = self.slots.pop_lru() else {
                break;
            };
            self.weight -= oldest.weight;
        }
    }
}
