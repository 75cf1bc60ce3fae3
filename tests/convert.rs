//! Named tensors become safetensors files, against the safetensors crate and
//! plain references.

#[path = "convert/compare.rs"]
mod compare;
#[path = "convert/decoded.rs"]
mod decoded;
#[path = "convert/gather.rs"]
mod gather;
#[path = "convert/header.rs"]
mod header;
#[path = "convert/index.rs"]
mod index;
#[path = "convert/names.rs"]
mod names;
mod support;
#[path = "convert/ties.rs"]
mod ties;

use std::io::Write;
use std::sync::Arc;

use stfs::checkpoint::{Checkpoint, Lazy, Storage, Tensor};
use stfs::convert::{Files, Plan, Reader};
use support::owned;

/// A file with `bytes`, which nobody has open, deleted on drop.
fn file(bytes: &[u8]) -> tempfile::TempPath {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file.into_temp_path()
}

fn reader(path: &std::path::Path, checkpoint: Checkpoint) -> Reader {
    let source = support::open(path);
    let plan = Plan::new(checkpoint, source.size(), None).unwrap();
    Reader::new(Files::new(source, Vec::new()), Arc::new(plan))
}

/// The whole converted file.
fn all(reader: &Reader) -> Vec<u8> {
    owned(reader.read(0, reader.plan().size() as usize).unwrap())
}

/// A row-major tensor at `offset` bytes of the only storage.
fn contiguous(name: &str, dtype: safetensors::Dtype, shape: &[u64], offset: u64) -> Tensor {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis].max(1);
    }
    Tensor {
        name: name.to_string(),
        dtype,
        shape: shape.into(),
        strides: strides.into(),
        storage: 0,
        offset,
        lazy: Lazy::default(),
    }
}

fn one_storage(len: u64, tensors: Vec<Tensor>) -> Checkpoint {
    Checkpoint {
        tensors,
        storages: vec![Storage::in_file(0, len)],
        ..Checkpoint::default()
    }
}
