//! What readers decode has room in the cache directory while they are open, within its
//! limit, and leaves nothing there.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use stfs::cache::{Promotion, Store};
use stfs::checkpoint::{Backing, Checkpoint, Codec, Encoded, Storage, Tensor};
use stfs::convert::{Files, Plan, Reader};
use stfs::source::memory::MemoryTree;
use tempfile::{TempDir, tempdir};

use super::common::*;

const LEN: usize = 5 * MIB;

/// A store, and a file all of which is one deflated tensor, with what it becomes.
fn deflated(store: impl FnOnce(&Path) -> Store) -> (TempDir, Store, PathBuf, Vec<u8>) {
    let folder = tempdir().unwrap();
    let content = noise(4, LEN);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&content).unwrap();
    let path = folder.path().join("m.pt");
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    let wanted = safetensors(&[("weight", "U8", &[LEN], &content)]);
    let store = store(&folder.path().join("cache"));
    (folder, store, path, wanted)
}

fn open(path: &Path) -> Reader {
    let encoded = Encoded {
        offset: 0,
        len: fs::metadata(path).unwrap().len(),
        codec: Codec::Deflate,
    };
    let storage = Storage {
        backing: Backing::Decoded(encoded),
        len: LEN as u64,
    };
    let checkpoint = Checkpoint {
        tensors: vec![bytes_tensor("weight", 0, LEN)],
        storages: vec![storage],
        ..Checkpoint::default()
    };
    reader(path, checkpoint)
}

fn lent(store: &Store, path: &Path) -> Reader {
    let reader = open(path);
    reader.lend(Box::new(store.scratch()));
    reader
}

fn left(store: &Store) -> Vec<PathBuf> {
    files(store.directory().root())
}

#[test]
fn it_is_there_while_somebody_reads() {
    let (_folder, store, path, wanted) = deflated(|root| limited(root, 16 * MIB));
    let reader = lent(&store, &path);
    assert!(left(&store).is_empty());
    reader.read_tensor(0, 0, 1).unwrap();
    // No more than is needed is taken from others.
    let bytes = store.occupancy().unwrap().bytes;
    assert!((1..=4 * MIB as u64).contains(&bytes), "{bytes}");
    for _ in 0..2 {
        assert!(all(&reader) == wanted);
    }
    let bytes = store.occupancy().unwrap().bytes;
    assert!((LEN as u64..=16 * MIB as u64).contains(&bytes), "{bytes}");
    let there = left(&store);
    assert_eq!(there.len(), 1);
    // Nobody takes it away.
    store.clear().unwrap();
    assert_eq!(left(&store), there);
    assert!(all(&reader) == wanted);
    drop(reader);
    assert!(left(&store).is_empty());
    assert_eq!(store.occupancy().unwrap().bytes, 0);
}

#[test]
fn without_room_nothing_is_written() {
    for limit in [0, 100_000, 3 * MIB] {
        let (_folder, store, path, wanted) = deflated(|root| limited(root, limit));
        let reader = lent(&store, &path);
        for _ in 0..2 {
            assert!(all(&reader) == wanted);
        }
        let bytes = store.occupancy().unwrap().bytes;
        assert!(bytes <= limit as u64, "{bytes} of {limit}");
        drop(reader);
        assert!(left(&store).is_empty());
    }
}

#[test]
fn files_that_nobody_uses_make_room() {
    let (folder, store, path, wanted) = deflated(|root| limited(root, 10 * MIB));
    let (other, _) = model(&folder.path().join("other.pt"), 1, 2 * MIB);
    for number in 1..=3 {
        promote(&store, &name(number), &other).unwrap();
    }
    let used = store.find(&name(2)).unwrap();
    let reader = lent(&store, &path);
    assert!(all(&reader) == wanted);
    assert!(store.occupancy().unwrap().bytes <= 10 * MIB as u64);
    assert!(store.find(&name(2)).is_some());
    assert!(store.list().unwrap().len() < 3);
    drop((used, reader));
}

#[test]
fn a_promotion_writes_nothing_twice() {
    // There is no room for more than the file.
    let (_folder, store, path, wanted) = deflated(|root| limited(root, LEN + MIB / 2));
    let promotion = promote(&store, &name(1), &open(&path)).unwrap();
    assert_eq!(promotion, Promotion::Made(Vec::new()));
    holds(&store, &name(1), &wanted);
}

#[test]
fn a_promotion_shares_with_who_reads() {
    let (_folder, store, path, wanted) = deflated(|root| limited(root, 40 * MIB));
    let reader = lent(&store, &path);
    reader.read_tensor(0, 3 * MIB as u64, 9).unwrap();
    promote(&store, &name(1), &reader).unwrap();
    assert!(all(&reader) == wanted);
    drop(reader);
    holds(&store, &name(1), &wanted);
}

/// A tensor that lies column by column is gathered from the whole of its storage again
/// and again.
#[test]
fn a_promotion_decodes_nothing_over_and_over() {
    let folder = tempdir().unwrap();
    let store = limited(&folder.path().join("cache"), 40 * MIB);
    let (rows, columns) = (3000, 4000);
    let content = noise(7, rows * columns);
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(&content).unwrap();
    let deflated = encoder.finish().unwrap();
    let size = deflated.len() as u64;
    let encoded = Encoded {
        offset: 0,
        len: size,
        codec: Codec::Deflate,
    };
    let tensor = Tensor {
        shape: [columns as u64, rows as u64].into(),
        strides: [1, columns as u64].into(),
        ..bytes_tensor("weight", 0, 0)
    };
    let checkpoint = Checkpoint {
        tensors: vec![tensor],
        storages: vec![Storage {
            backing: Backing::Decoded(encoded),
            len: content.len() as u64,
        }],
        ..Checkpoint::default()
    };
    let tree = MemoryTree::new();
    tree.write("m.pt", deflated);
    let source = tree.root().open(OsStr::new("m.pt")).unwrap();
    let plan = Plan::new(checkpoint, size, None).unwrap();
    let reader = Reader::new(Files::new(source, Vec::new()), Arc::new(plan));
    promote(&store, &name(1), &reader).unwrap();
    let (_, read) = tree.reads();
    assert!(read <= 2 * size, "{read} of {size}");
    drop(reader);
    let place = |column| (0..rows).map(move |row| row * columns + column);
    let turned: Vec<u8> = (0..columns)
        .flat_map(place)
        .map(|place| content[place])
        .collect();
    let wanted = safetensors(&[("weight", "U8", &[columns, rows], &turned)]);
    holds(&store, &name(1), &wanted);
}

/// The directory of the cache may be deleted at any time.
#[test]
fn what_is_open_outlives_its_directory() {
    let (_folder, store, path, wanted) = deflated(|root| limited(root, 40 * MIB));
    let reader = lent(&store, &path);
    reader.read_tensor(0, 0, 2 * MIB).unwrap();
    fs::remove_dir_all(store.directory().root()).unwrap();
    assert!(all(&reader) == wanted);
}
