//! Tensors that are kept in boxes, read as if they lay row by row.

use std::sync::Arc;

use super::files::Files;
use super::gather::Strided;
use super::stored::{Stored, past_end};
use crate::checkpoint::{Tile, Tiling};
use crate::source::Result;

/// A row-major tensor that is put together from others.
#[derive(Debug)]
pub struct Tiled {
    /// Elements.
    shape: Box<[u64]>,
    /// Bytes of one element.
    element: u64,
    /// In the order of their first elements. They cover the tensor without overlap.
    parts: Box<[Part]>,
}

#[derive(Debug)]
struct Part {
    /// Elements along each dimension.
    start: Box<[u64]>,
    /// Elements along each dimension.
    sizes: Box<[u64]>,
    /// Elements that lie together in the part and in the whole.
    run: u64,
    view: Strided,
}

impl Tiled {
    pub fn new(tiling: &Tiling) -> Tiled {
        let parts = tiling
            .tiles
            .iter()
            .filter(|tile| tile.tensor.elements() > 0);
        Tiled {
            shape: tiling.shape.clone(),
            element: tiling
                .tiles
                .first()
                .map_or(1, |tile| tile.tensor.element_size()),
            parts: parts.map(|tile| Part::new(tile, &tiling.shape)).collect(),
        }
    }

    /// Bytes of memory that it takes, about.
    pub fn held(&self) -> usize {
        self.parts.len() * (size_of::<Part>() + 32 * self.shape.len() + 64)
    }

    /// Fills `buffer` with the bytes from `offset` on; both are whole elements.
    pub fn read_exact_at(&self, files: &Files, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut buffer = buffer;
        let mut first = offset / self.element;
        while !buffer.is_empty() {
            let at = self.coordinates(first);
            let part = self.part(&at).ok_or_else(|| past_end(first, first))?;
            let inner = part.inner(&at);
            let run = (part.run - inner % part.run).saturating_mul(self.element);
            let len = run.min(buffer.len() as u64);
            let (head, rest) = buffer.split_at_mut(len as usize);
            part.view.read(files, inner, head)?;
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

    /// The part with the element at `at`: one of those that begin before it.
    fn part(&self, at: &[u64]) -> Option<&Part> {
        let before = self.parts.partition_point(|part| *part.start <= *at);
        let mut before = self.parts[..before].iter().rev();
        before.find(|part| part.contains(at))
    }
}

impl Part {
    fn new(tile: &Tile, whole: &[u64]) -> Part {
        let sizes = tile.tensor.shape.clone();
        // Dimensions that the part has in full, and the one before them.
        let full = sizes.iter().zip(whole).rev();
        let full = full.take_while(|(size, whole)| size == whole).count();
        let together = (full + 1).min(sizes.len());
        Part {
            start: tile.start.clone(),
            run: sizes.iter().rev().take(together).product(),
            sizes,
            view: Strided::new(&tile.tensor, Arc::new(Stored::new(&tile.storage))),
        }
    }

    fn contains(&self, at: &[u64]) -> bool {
        let mut axes = at.iter().zip(&self.start).zip(&self.sizes);
        axes.all(|((at, start), size)| at.checked_sub(*start).is_some_and(|at| at < *size))
    }

    /// The number, within the part, of the element at `at`.
    fn inner(&self, at: &[u64]) -> u64 {
        let axes = at.iter().zip(&self.start).zip(&self.sizes);
        axes.fold(0, |inner, ((at, start), size)| inner * size + (at - start))
    }
}
