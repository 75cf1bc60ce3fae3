//! What is promoted is the converted file, byte for byte, whatever its tensors are
//! made of, and nobody else may read it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use safetensors::Dtype;
use stfs::cache::{Comparison, Error, Promotion};
use stfs::checkpoint::{Backing, Checkpoint, Codec, Companion, Encoded, Lazy, Storage, Tensor};
use stfs::convert::{self, Reader, Segment};
use tempfile::tempdir;

use super::common::*;
use super::support;

/// Promotes, and compares with bytes from elsewhere and with what the reader gives.
fn becomes(reader: &Reader, wanted: &[u8]) {
    let root = tempdir().unwrap();
    let store = store(root.path());
    assert_eq!(
        promote(&store, &name(1), reader).unwrap(),
        Promotion::Made(Vec::new())
    );
    assert!(all(reader) == wanted);
    holds(&store, &name(1), wanted);
    assert_eq!(store.verify(&name(1), reader).unwrap(), Comparison::Same);
    assert_eq!(
        promote(&store, &name(1), reader).unwrap(),
        Promotion::Already
    );
}

#[test]
fn a_tensor_that_lies_in_the_source() {
    let folder = tempdir().unwrap();
    for len in [0, 1, 4 * MIB - HEADER, 4 * MIB, 9 * MIB + 5] {
        let (reader, wanted) = model(&folder.path().join("m.pt"), 1, len);
        becomes(&reader, &wanted);
    }
}

#[test]
fn a_file_that_torch_would_write() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let (a, b) = (vec![1.5_f32; 100_000], [2.0_f32, -3.0]);
    support::write(&path, &support::named_vectors(&[("b", &b), ("a", &a)]));
    let le = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let wanted = safetensors(&[
        ("a", "F32", &[100_000], &le(&a)),
        ("b", "F32", &[2], &le(&b)),
    ]);
    becomes(&convert::open(&path).unwrap(), &wanted);
}

#[test]
fn many_small_tensors_between_large_ones() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let content = noise(7, 6 * MIB);
    fs::write(&path, &content).unwrap();
    // Backwards in the source, so that no two lie together.
    let mut names = Vec::new();
    let (mut tensors, mut storages, mut end) = (Vec::new(), Vec::new(), content.len());
    for index in 0..400 {
        let len = if index % 100 == 50 { MIB } else { index };
        end -= len;
        let name = format!("t{index:03}");
        tensors.push(bytes_tensor(&name, index as u32, len));
        storages.push(Storage::in_file(end as u64, len as u64));
        names.push((name, [len], &content[end..end + len]));
    }
    let checkpoint = Checkpoint {
        tensors,
        storages,
        ..Checkpoint::default()
    };
    let wanted: Vec<(&str, &str, &[usize], &[u8])> = names
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), "U8", shape.as_slice(), *bytes))
        .collect();
    becomes(&reader(&path, checkpoint), &safetensors(&wanted));
}

#[test]
fn a_tensor_that_is_gathered() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let (rows, columns) = (1200_usize, 1100_usize);
    let numbers: Vec<u32> = (0..(rows * columns) as u32).collect();
    let le = |numbers: &mut dyn Iterator<Item = u32>| -> Vec<u8> {
        numbers.flat_map(u32::to_le_bytes).collect()
    };
    fs::write(&path, le(&mut numbers.iter().copied())).unwrap();
    let len = (4 * rows * columns) as u64;
    let tensor = Tensor {
        dtype: Dtype::U32,
        shape: [columns as u64, rows as u64].into(),
        strides: [1, columns as u64].into(),
        ..bytes_tensor("t", 0, 0)
    };
    let checkpoint = Checkpoint {
        tensors: vec![tensor],
        storages: vec![Storage::in_file(0, len)],
        ..Checkpoint::default()
    };
    let place = |column| (0..rows).map(move |row| (row * columns + column) as u32);
    let transposed = le(&mut (0..columns).flat_map(place));
    let wanted = safetensors(&[("t", "U32", &[columns, rows], &transposed)]);
    becomes(&reader(&path, checkpoint), &wanted);
}

#[test]
fn tensors_that_are_deflated_and_swapped_and_in_memory() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let content = noise(3, 5 * MIB);
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::fast());
    deflate.write_all(&content).unwrap();
    let deflated = deflate.finish().unwrap();
    fs::write(&path, &deflated).unwrap();
    let encoded = Encoded {
        offset: 0,
        len: deflated.len() as u64,
        codec: Codec::Deflate,
    };
    let swapped = Tensor {
        dtype: Dtype::U16,
        shape: [2].into(),
        lazy: Lazy {
            swap: true,
            ..Lazy::default()
        },
        ..bytes_tensor("b", 1, 0)
    };
    let checkpoint = Checkpoint {
        tensors: vec![bytes_tensor("a", 0, content.len()), swapped],
        storages: vec![
            Storage {
                backing: Backing::Decoded(encoded),
                len: content.len() as u64,
            },
            Storage::in_memory([1, 2, 3, 4]),
        ],
        ..Checkpoint::default()
    };
    let wanted = safetensors(&[
        ("b", "U16", &[2], &[2, 1, 4, 3]),
        ("a", "U8", &[content.len()], &content),
    ]);
    becomes(&reader(&path, checkpoint), &wanted);
}

#[test]
fn tensors_in_another_file() {
    let folder = tempdir().unwrap();
    let main = folder.path().join(".metadata");
    let beside = folder.path().join("__0_0.distcp");
    let content = noise(5, 5 * MIB);
    fs::write(&main, b"metadata").unwrap();
    fs::write(&beside, &content).unwrap();
    let checkpoint = || Checkpoint {
        tensors: vec![bytes_tensor("t", 0, content.len() - 3)],
        storages: vec![Storage {
            backing: Backing::Companion { file: 0, offset: 3 },
            len: content.len() as u64 - 3,
        }],
        companions: vec![Companion {
            name: "__0_0.distcp".to_string(),
            version: super::support::version(&beside),
        }],
        ..Checkpoint::default()
    };
    let wanted = safetensors(&[("t", "U8", &[content.len() - 3], &content[3..])]);
    becomes(&reader(&main, checkpoint()), &wanted);

    // The file beside it is watched like the file itself.
    let root = tempdir().unwrap();
    let store = store(root.path());
    let reader = reader(&main, checkpoint());
    fs::write(folder.path().join("new"), &content).unwrap();
    fs::rename(folder.path().join("new"), &beside).unwrap();
    let error = promote(&store, &name(1), &reader).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert!(files(root.path()).is_empty());
}

/// Every file of the fixtures that is converted, against its reader, which
/// `formats.rs` holds against the loaders of their formats.
#[test]
fn files_of_every_format() {
    let root = tempdir().unwrap();
    let store = store(root.path());
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pending = vec![
        manifest.join("tests/data/formats"),
        manifest.join("examples/models"),
    ];
    let mut count = 0;
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let Ok(reader) = convert::open(&path) else {
                continue;
            };
            if reader.plan().is_native() {
                continue;
            }
            count += 1;
            promote(&store, &name(count), &reader).unwrap();
            let promoted = store.find(&name(count)).unwrap();
            assert!(bytes(&promoted) == all(&reader), "{}", path.display());
        }
    }
    assert!(count > 40, "{count}");
}

/// A file system may keep zeros as holes, and copy them as such.
#[test]
fn a_sparse_source() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("m.pt");
    let len = 12 * MIB;
    let file = fs::File::create(&path).unwrap();
    file.set_len(len as u64).unwrap();
    file.write_all_at(b"end", len as u64 - 3).unwrap();
    drop(file);
    let content = fs::read(&path).unwrap();
    let wanted = safetensors(&[("weight", "U8", &[len], &content)]);
    becomes(&raw(&path), &wanted);
}

#[test]
fn a_native_file_is_not_copied() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, safetensors(&[("t", "U8", &[1], &[1])])).unwrap();
    let root = tempdir().unwrap();
    let error = promote(
        &store(root.path()),
        &name(1),
        &convert::open(&path).unwrap(),
    );
    assert!(matches!(error, Err(Error::Native { .. })));
    assert!(files(root.path()).is_empty());
}

/// The stretches are the file, in order, and only long ones are copied by the
/// kernel.
#[test]
fn stretches_cover_the_file() {
    let folder = tempdir().unwrap();
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, MIB);
    let size = wanted.len() as u64;
    let header = HEADER as u64;
    assert_eq!(
        reader.segment(0, u64::MAX),
        Segment::Assembled { len: header }
    );
    let rest = Segment::Direct {
        from: 0,
        len: size - header,
    };
    assert_eq!(reader.segment(header, u64::MAX), rest);
    assert_eq!(reader.segment(0, 1000), Segment::Assembled { len: 1000 });
    assert_eq!(
        reader.segment(header, 1000),
        Segment::Assembled { len: 1000 }
    );
    assert_eq!(reader.segment(size, 1000), Segment::Assembled { len: 0 });
    assert_eq!(
        reader.segment(u64::MAX, u64::MAX),
        Segment::Assembled { len: 0 }
    );
}

#[test]
fn nobody_else_may_read_it() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let store = store(&root);
    let (reader, _) = model(&folder.path().join("m.pt"), 1, 5 * MIB);
    let incoming = store.directory().incoming_file(&name(1));
    let mut modes = Vec::new();
    let mut step = |_| {
        modes.push(fs::metadata(&incoming).unwrap().mode() & 0o777);
        std::ops::ControlFlow::Continue(())
    };
    store
        .promote(&name(1), &provenance("m"), &reader, &mut step)
        .unwrap();
    assert!(modes.len() > 1 && modes.iter().all(|mode| *mode == 0o600));
    let mut pending = vec![root];
    while let Some(path) = pending.pop() {
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            pending.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
        }
    }
}
