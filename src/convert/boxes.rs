//! Tensors that are kept in boxes: which box each stretch of the row-major form
//! lies in.

use crate::checkpoint::{Tile, Tiling};
use crate::source::{Error, Result};

/// How a row-major tensor is cut into boxes.
#[derive(Debug)]
pub struct Boxes {
    /// Elements.
    shape: Box<[u64]>,
    /// Bytes of one element.
    element: u64,
    /// In the order of their first elements. They cover the tensor without overlap.
    boxes: Box<[Placed]>,
}

/// A box and where it is in the whole.
#[derive(Debug)]
struct Placed {
    /// Elements along each dimension.
    start: Box<[u64]>,
    /// Elements along each dimension.
    sizes: Box<[u64]>,
    /// Elements that lie together in the box and in the whole.
    run: u64,
}

/// The boxes of a tensor that have elements.
pub fn filled(tiling: &Tiling) -> impl Iterator<Item = &Tile> {
    let tiles = tiling.tiles.iter();
    tiles.filter(|tile| tile.tensor.elements() > 0)
}

impl Boxes {
    pub fn new(tiling: &Tiling) -> Boxes {
        Boxes {
            shape: tiling.shape.clone(),
            element: tiling
                .tiles
                .first()
                .map_or(1, |tile| tile.tensor.element_size()),
            boxes: filled(tiling)
                .map(|tile| Placed::new(tile, &tiling.shape))
                .collect(),
        }
    }

    /// Bytes of memory that it takes, about.
    pub fn held(&self) -> usize {
        self.boxes.len() * (size_of::<Placed>() + 32 * self.shape.len() + 64)
    }

    /// Fills `buffer` with the bytes from `offset` on; both are whole elements. `read`
    /// does that for one of the boxes that are [`filled`], from one of its elements
    /// on.
    pub fn read(
        &self,
        buffer: &mut [u8],
        offset: u64,
        read: impl Fn(usize, u64, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = buffer;
        let mut first = offset / self.element;
        while !buffer.is_empty() {
            let at = self.coordinates(first);
            let (number, placed) = self.find(&at).ok_or(Error::PastEnd {
                wanted: first,
                size: first,
            })?;
            let inner = placed.inner(&at);
            let run = (placed.run - inner % placed.run).saturating_mul(self.element);
            let len = run.min(buffer.len() as u64);
            let (head, rest) = buffer.split_at_mut(len as usize);
            read(number, inner, head)?;
            buffer = rest;
            first += len / self.element;
        }
        Ok(())
    }

    /// Where the element with this number is.
    fn coordinates(&self, mut element: u64) -> Box<[u64]> {
        let mut at: Box<[u64]> = self.shape.clone();
        for axis in at.iter_mut().rev() {
            let size = (*axis).max(1);
            *axis = element % size;
            element /= size;
        }
        at
    }

    /// The box with the element at `at`: one of those that begin before it.
    fn find(&self, at: &[u64]) -> Option<(usize, &Placed)> {
        let before = self.boxes.partition_point(|placed| *placed.start <= *at);
        let mut before = self.boxes.iter().enumerate().take(before).rev();
        before.find(|(_, placed)| placed.contains(at))
    }
}

impl Placed {
    fn new(tile: &Tile, whole: &[u64]) -> Placed {
        let sizes = tile.tensor.shape.clone();
        // Dimensions that the box has in full, and the one before them.
        let full = sizes.iter().zip(whole).rev();
        let full = full.take_while(|(size, whole)| size == whole).count();
        let together = (full + 1).min(sizes.len());
        Placed {
            start: tile.start.clone(),
            run: sizes.iter().rev().take(together).product(),
            sizes,
        }
    }

    fn contains(&self, at: &[u64]) -> bool {
        let mut axes = at.iter().zip(&self.start).zip(&self.sizes);
        axes.all(|((at, start), size)| at.checked_sub(*start).is_some_and(|at| at < *size))
    }

    /// The number, within the box, of the element at `at`.
    fn inner(&self, at: &[u64]) -> u64 {
        let axes = at.iter().zip(&self.start).zip(&self.sizes);
        axes.fold(0, |inner, ((at, start), size)| inner * size + (at - start))
    }
}
