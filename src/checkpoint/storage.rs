//! Where the bytes of a storage come from.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::refusal::{Cause, Refusal};
use super::tensor::Tensor;
use super::wire;

/// A run of bytes that tensors are views of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Storage {
    pub backing: Backing,
    /// Bytes.
    pub len: u64,
}

/// What the bytes of a storage are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Backing {
    /// Those of the file, from this byte on.
    File(u64),
    /// Those of another file, an index into [`Checkpoint::companions`], from this
    /// byte on.
    ///
    /// [`Checkpoint::companions`]: super::Checkpoint::companions
    Companion { file: u32, offset: u64 },
    /// What decoding a stretch of the file gives.
    Decoded(Encoded),
    /// Made while the checkpoint was read.
    Memory(#[serde(with = "wire::bytes")] Arc<[u8]>),
    /// Those of several storages, one after the other.
    Chain(#[serde(deserialize_with = "wire::nested")] Box<[Storage]>),
    /// A row-major tensor that is kept in boxes.
    Tiles(Tiling),
}

/// A tensor cut into boxes, each of which is a tensor of the same type. They
/// cover it without overlap.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tiling {
    /// Elements.
    pub shape: Box<[u64]>,
    /// In the order of their first elements.
    pub tiles: Box<[Tile]>,
}

/// A box of a larger tensor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tile {
    /// Where its first element is, in elements along each dimension.
    pub start: Box<[u64]>,
    /// Its elements, a view of `storage` whatever index it has itself.
    pub tensor: Tensor,
    #[serde(deserialize_with = "wire::nested")]
    pub storage: Storage,
}

/// A stretch of the file that is not the bytes themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Encoded {
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes in the file.
    pub len: u64,
    pub codec: Codec,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// A raw deflate stream, as in zip archives.
    Deflate,
    /// UTF-8 text of the letters U+0000 to U+00FF, each of which is a byte.
    Latin1,
}

impl Storage {
    /// `len` bytes of the file, from `offset` on.
    pub fn in_file(offset: u64, len: u64) -> Storage {
        Storage {
            backing: Backing::File(offset),
            len,
        }
    }

    pub fn in_memory(bytes: impl Into<Arc<[u8]>>) -> Storage {
        let bytes = bytes.into();
        Storage {
            len: bytes.len() as u64,
            backing: Backing::Memory(bytes),
        }
    }
}

/// The storages of one checkpoint, in the order they were asked for.
#[derive(Debug, Default)]
pub struct StorageTable(Vec<Storage>);

impl StorageTable {
    /// Adds a storage and gives its index.
    pub fn add(&mut self, storage: Storage) -> Result<u32, Refusal> {
        let index = u32::try_from(self.0.len())
            .map_err(|_| Refusal::new(Cause::TooLarge, "it has too many storages"))?;
        self.0.push(storage);
        Ok(index)
    }

    pub fn get(&self, index: u32) -> Option<&Storage> {
        self.0.get(index as usize)
    }
}

impl From<StorageTable> for Vec<Storage> {
    fn from(table: StorageTable) -> Vec<Storage> {
        table.0
    }
}
