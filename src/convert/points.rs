//! The places from which encoded storages can be decoded on. Each takes 43 KB.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::codec::Decoder;
use super::decoded::Place;

/// Most places that are kept to come back to. With more, every other one goes.
const MOST: usize = 128;
/// Blocks from one such place to the next, at first.
const SPACING: u64 = 8;
/// Most places where somebody stopped and will go on, unless others have stopped since.
const STOPS: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Decoders by the block that they decode next.
pub struct Points {
    regular: BTreeMap<Place, Decoder>,
    /// Blocks from one regular point to the next.
    spacing: u64,
    stops: LruCache<Place, Decoder>,
}

impl Default for Points {
    fn default() -> Points {
        Points {
            regular: BTreeMap::new(),
            spacing: SPACING,
            stops: LruCache::new(STOPS),
        }
    }
}

impl Points {
    /// The last block up to that of `place` that can be decoded without those before it.
    pub fn nearest(&self, place: Place) -> u64 {
        let up_to = |known: &Place| known.storage == place.storage && known.block <= place.block;
        let regular = self.regular.range(..=place).next_back();
        let regular = regular.map(|(known, _)| *known);
        let stops = self.stops.iter().map(|(known, _)| *known);
        let known = stops.chain(regular).filter(up_to);
        known.map(|known| known.block).max().unwrap_or(0)
    }

    /// What decodes the block at `place`, if it is kept. Whoever takes it goes on from
    /// there.
    pub fn take(&mut self, place: Place) -> Option<Decoder> {
        let stop = self.stops.pop(&place);
        stop.or_else(|| self.regular.get(&place).cloned())
    }

    /// `decoder` decodes the block at `place` next.
    pub fn put(&mut self, place: Place, decoder: Decoder) {
        if place.block.is_multiple_of(self.spacing) && !self.regular.contains_key(&place) {
            self.regular.insert(place, decoder.clone());
        }
        while self.regular.len() > MOST {
            self.spacing = self.spacing.saturating_mul(2);
            let spacing = self.spacing;
            self.regular
                .retain(|place, _| place.block.is_multiple_of(spacing));
        }
        self.stops.put(place, decoder);
    }
}
