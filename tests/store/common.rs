//! Checkpoints whose converted bytes are known without stfs, and a store.

#![allow(dead_code)]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use stfs::cache::{
    Directory, Error, Identity, Limit, Name, Promoted, Promotion, Provenance, Store,
};
use stfs::checkpoint::{Checkpoint, Lazy, Storage, Tensor, open_companions};
use stfs::convert::{Files, Plan, Reader};
use stfs::source::{LocalTree, Tree};

use super::support::owned;

pub const MIB: usize = 1 << 20;
/// What the header of [`raw`] takes, for sizes of seven digits.
pub const HEADER: usize = 112;

pub fn store(root: &Path) -> Store {
    Store::new(Directory::open(root).unwrap(), Limit::Bytes(u64::MAX))
}

pub fn limited(root: &Path, bytes: usize) -> Store {
    Store::new(Directory::open(root).unwrap(), Limit::Bytes(bytes as u64))
}

pub fn name(number: u32) -> Name {
    Name::of(&[&number.to_le_bytes()])
}

/// Bytes without zeros, the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8 | 1
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A tensor of bytes that is the whole of storage `storage`.
pub fn bytes_tensor(name: &str, storage: u32, len: usize) -> Tensor {
    Tensor {
        name: name.to_string(),
        dtype: Dtype::U8,
        shape: [len as u64].into(),
        strides: [1].into(),
        storage,
        offset: 0,
        lazy: Lazy::default(),
    }
}

pub fn reader(path: &Path, checkpoint: Checkpoint) -> Reader {
    let (directory, name) = LocalTree::around(path).unwrap();
    let source = directory.open(&name).unwrap();
    let plan = Plan::new(checkpoint, source.size(), None).unwrap();
    let companions = open_companions(plan.companions(), &directory).unwrap();
    Reader::new(Files::new(source, companions), Arc::new(plan))
}

/// A reader of the file at `path`, all of which is one tensor called `weight`.
pub fn raw(path: &Path) -> Reader {
    let len = fs::metadata(path).unwrap().len();
    let checkpoint = Checkpoint {
        tensors: vec![bytes_tensor("weight", 0, len as usize)],
        storages: vec![Storage::in_file(0, len)],
        ..Checkpoint::default()
    };
    reader(path, checkpoint)
}

/// Writes a file of noise, and gives a reader of it and what it must become.
pub fn model(path: &Path, seed: u64, len: usize) -> (Reader, Vec<u8>) {
    let bytes = noise(seed, len);
    fs::write(path, &bytes).unwrap();
    (raw(path), safetensors(&[("weight", "U8", &[len], &bytes)]))
}

/// A safetensors file, written by hand.
pub fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut json = r#"{"__metadata__":{"format":"pt"}"#.to_string();
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let end = at + bytes.len();
        json += &format!(
            r#","{name}":{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{at},{end}]}}"#,
            shape.join(",")
        );
        at = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend(json.bytes());
    tensors
        .iter()
        .for_each(|(_, _, _, bytes)| out.extend(*bytes));
    out
}

pub fn promote(store: &Store, name: &Name, reader: &Reader) -> Result<Promotion, Error> {
    let provenance = Provenance {
        source: reader.source().location().to_path_buf(),
        identity: Identity::Stamps(*reader.source().version()),
        root: None,
    };
    store.promote(
        name,
        &provenance,
        reader,
        &mut |_| ControlFlow::Continue(()),
    )
}

/// A file that nobody can ask for again.
pub fn provenance(source: &str) -> Provenance {
    Provenance {
        source: source.into(),
        identity: Identity::Content(name(0)),
        root: None,
    }
}

/// The bytes of an open file of the store.
pub fn bytes(promoted: &Promoted) -> Vec<u8> {
    let source = promoted.source();
    source.read_at(0, source.size()).unwrap()
}

/// What a reader gives for the whole file.
pub fn all(reader: &Reader) -> Vec<u8> {
    owned(reader.read(0, reader.plan().size() as usize).unwrap())
}

/// All files below `root` but the tag, relative to it.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => found.push(path.strip_prefix(root).unwrap().to_path_buf()),
            }
        }
    }
    found.retain(|path| path != Path::new("CACHEDIR.TAG"));
    found.sort();
    found
}

/// The two files of `names`, relative to the root, and nothing else.
pub fn only(names: &[Name]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = names
        .iter()
        .flat_map(|name| {
            let hex = name.hex();
            let path = PathBuf::from("files").join(&hex[..2]).join(&hex[2..]);
            [path.with_extension("record"), path]
        })
        .collect();
    paths.sort();
    paths
}

/// What is promised of a store that is in order: this one file, as it must be.
pub fn holds(store: &Store, name: &Name, wanted: &[u8]) {
    let promoted = store.find(name).expect("the file is in the store");
    assert!(bytes(&promoted) == wanted, "other bytes");
    assert_eq!(store.peek(name), Some(promoted.stamp()));
    assert_eq!(files(store.directory().root()), only(&[*name]));
}
