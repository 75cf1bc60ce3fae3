//! Where the bytes of a tensor come from: directly from the file, or assembled when
//! they are read.

use std::sync::Arc;

use super::boxes::{self, Boxes};
use super::decoded::{Decoded, Decoding};
use super::files::Files;
use super::strided::Strided;
use crate::checkpoint::{Backing, Storage, Tensor};
use crate::source::{Error, Result};

/// The bytes of a tensor, row by row.
#[derive(Debug)]
pub enum Extent {
    /// Those of the file as they lie there, from this byte on.
    Direct(u64),
    Assembled(Box<Assembled>),
}

impl Extent {
    /// The bytes of `tensor`, whose storage is `storage`.
    pub fn new(tensor: &Tensor, storage: &Arc<Stored>) -> Extent {
        let elements = Strided::new(tensor);
        match (&**storage, elements.contiguous()) {
            (Stored::File(start), Some(offset)) => Extent::Direct(start + offset),
            _ => Extent::Assembled(Box::new(Assembled {
                storage: storage.clone(),
                elements,
            })),
        }
    }
}

/// What the bytes of storages are read from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub files: &'a Files,
    pub decoding: &'a Decoding,
}

/// Elements of a storage that are put in a row when they are read.
#[derive(Clone, Debug)]
pub struct Assembled {
    storage: Arc<Stored>,
    elements: Strided,
}

impl Assembled {
    /// Bytes of one element.
    pub fn element(&self) -> u64 {
        self.elements.element()
    }

    /// The storage that its bytes are decoded from, and where they begin in that, if
    /// nothing else has to be done to them.
    pub fn decoded(&self) -> Option<(&Decoded, u64)> {
        match &*self.storage {
            Stored::Decoded(storage) => Some((storage, self.elements.contiguous()?)),
            _ => None,
        }
    }

    /// Whether its bytes are picked out of what is decoded, in any order.
    pub fn gathers_decoded(&self) -> bool {
        self.decoded().is_none() && self.storage.is_decoded()
    }

    /// Fills `out` with the elements from number `first` on, in row-major order.
    /// `out` is a whole number of elements.
    pub fn read(&self, inputs: Inputs, first: u64, out: &mut [u8]) -> Result<()> {
        let fetch = |buffer: &mut [u8], offset| self.storage.read_exact_at(inputs, buffer, offset);
        self.elements.read(&fetch, first, out)
    }
}

/// A storage of the files that a plan was made from, ready to be read by ranges.
#[derive(Debug)]
pub enum Stored {
    /// In the file, from this byte on.
    File(u64),
    /// In a companion, from this byte on.
    Companion(u32, u64),
    Memory(Arc<[u8]>),
    Decoded(Decoded),
    /// One after the other, with their bytes.
    Chain(Vec<(u64, Stored)>),
    /// In boxes, and those that have elements.
    Tiled(Boxes, Box<[Assembled]>),
}

impl Stored {
    pub fn new(storage: &Storage) -> Stored {
        match &storage.backing {
            Backing::File(offset) => Stored::File(*offset),
            Backing::Companion { file, offset } => Stored::Companion(*file, *offset),
            Backing::Memory(bytes) => Stored::Memory(bytes.clone()),
            Backing::Decoded(encoded) => Stored::Decoded(Decoded {
                encoded: *encoded,
                len: storage.len,
            }),
            Backing::Chain(links) => {
                let links = links.iter().map(|link| (link.len, Stored::new(link)));
                Stored::Chain(links.collect())
            }
            Backing::Tiles(tiling) => {
                let tiles = boxes::filled(tiling).map(|tile| Assembled {
                    storage: Arc::new(Stored::new(&tile.storage)),
                    elements: Strided::new(&tile.tensor),
                });
                Stored::Tiled(Boxes::new(tiling), tiles.collect())
            }
        }
    }

    /// Whether some of its bytes have to be decoded.
    fn is_decoded(&self) -> bool {
        match self {
            Stored::Decoded(_) => true,
            Stored::Chain(links) => links.iter().any(|(_, link)| link.is_decoded()),
            Stored::Tiled(_, tiles) => tiles.iter().any(|tile| tile.storage.is_decoded()),
            Stored::File(_) | Stored::Companion(..) | Stored::Memory(_) => false,
        }
    }

    /// Bytes of memory that it takes, about.
    pub fn held(&self) -> usize {
        match self {
            Stored::Memory(bytes) => bytes.len(),
            Stored::Chain(links) => links.iter().map(|(_, link)| link.held()).sum(),
            Stored::Tiled(boxes, _) => boxes.held(),
            Stored::File(_) | Stored::Companion(..) | Stored::Decoded(_) => 0,
        }
    }

    /// Fills `buffer` with the bytes of the storage from `offset` on.
    fn read_exact_at(&self, inputs: Inputs, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Stored::File(start) => inputs
                .files
                .main()
                .read_exact_at(buffer, start.saturating_add(offset)),
            Stored::Companion(file, start) => inputs
                .files
                .companion(*file)?
                .read_exact_at(buffer, start.saturating_add(offset)),
            Stored::Memory(bytes) => {
                let span = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
                buffer.copy_from_slice(span.ok_or_else(|| past_end(offset, bytes.len() as u64))?);
                Ok(())
            }
            Stored::Decoded(storage) => {
                let source = inputs.files.main();
                inputs
                    .decoding
                    .read_exact_at(source, storage, buffer, offset)
            }
            Stored::Chain(links) => {
                let mut buffer = buffer;
                let mut skip = offset;
                for (len, link) in links {
                    if skip >= *len {
                        skip -= len;
                        continue;
                    }
                    let here = (len - skip).min(buffer.len() as u64) as usize;
                    let (head, rest) = buffer.split_at_mut(here);
                    link.read_exact_at(inputs, head, skip)?;
                    (buffer, skip) = (rest, 0);
                }
                match buffer.is_empty() {
                    true => Ok(()),
                    false => Err(past_end(offset, offset - skip)),
                }
            }
            Stored::Tiled(boxes, tiles) => boxes.read(buffer, offset, |tile, first, out| {
                let tile = tiles.get(tile).ok_or_else(|| past_end(offset, offset))?;
                tile.read(inputs, first, out)
            }),
        }
    }
}

fn past_end(wanted: u64, size: u64) -> Error {
    Error::PastEnd { wanted, size }
}
