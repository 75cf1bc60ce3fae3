//! Directories of torch.distributed.checkpoint, written as torch 2.15 does: each
//! box of a tensor an archive of its own, one after the other in `.distcp` files.

use std::fs;
use std::path::Path;

use stfs::checkpoint::{Cause, Refusal};

use super::archive::Archive;
use super::opcodes::{
    FALSE, build, call, dict, global, int, ints, list, new, pickle, rebuild, storage, text, tuple,
    view,
};
use super::{Seen, read_file};

const METADATA: &str = "torch.distributed.checkpoint.metadata";

/// A box of a tensor: where it begins, its sizes, and where it is kept.
struct Chunk {
    start: Vec<i64>,
    sizes: Vec<i64>,
    file: &'static str,
    /// The archive of it.
    bytes: Vec<u8>,
}

/// A box with these numbers, row by row.
fn chunk(file: &'static str, start: &[i64], sizes: &[i64], values: &[f32]) -> Chunk {
    let mut strides = vec![1; sizes.len()];
    for axis in (1..sizes.len()).rev() {
        strides[axis - 1] = strides[axis] * sizes[axis];
    }
    strided(file, start, sizes, &strides, values)
}

fn strided(
    file: &'static str,
    start: &[i64],
    sizes: &[i64],
    strides: &[i64],
    values: &[f32],
) -> Chunk {
    let storage = storage("FloatStorage", "0", values.len() as i64);
    let tensor = rebuild(&view(storage, 0, sizes, strides));
    let values: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    Chunk {
        start: start.to_vec(),
        sizes: sizes.to_vec(),
        file,
        bytes: Archive::torch(&pickle(tensor), &[("0", &values)]).bytes(),
    }
}

struct Saved {
    name: &'static str,
    shape: Vec<i64>,
    chunks: Vec<Chunk>,
    /// More fields of where the boxes lie.
    extra: Vec<(Vec<u8>, Vec<u8>)>,
}

fn saved(name: &'static str, shape: &[i64], chunks: Vec<Chunk>) -> Saved {
    Saved {
        name,
        shape: shape.to_vec(),
        chunks,
        extra: Vec::new(),
    }
}

fn object(module: &str, class: &str, fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    build(new(global(module, class), &[]), dict(fields))
}

fn size(sizes: &[i64]) -> Vec<u8> {
    call(global("torch", "Size"), &[ints(sizes)])
}

/// Writes a directory with these tensors and one object, and gives its `.metadata`.
fn write(directory: &Path, tensors: &[Saved]) -> std::path::PathBuf {
    let mut described = Vec::new();
    let mut places = Vec::new();
    for tensor in tensors {
        let mut chunks = Vec::new();
        for chunk in &tensor.chunks {
            let path = directory.join(chunk.file);
            let mut file = fs::read(&path).unwrap_or_default();
            let index = [
                (text("fqn"), text(tensor.name)),
                (text("offset"), size(&chunk.start)),
                (text("index"), int(0)),
            ];
            let mut place = vec![
                (text("relative_path"), text(chunk.file)),
                (text("offset"), int(file.len() as i64)),
                (text("length"), int(chunk.bytes.len() as i64)),
            ];
            place.extend(tensor.extra.iter().cloned());
            places.push((
                object(METADATA, "MetadataIndex", &index),
                object(
                    "torch.distributed.checkpoint.filesystem",
                    "_StorageInfo",
                    &place,
                ),
            ));
            file.extend(&chunk.bytes);
            if !chunk.file.contains('/') {
                fs::write(path, file).unwrap();
            }
            let fields = [
                (text("offsets"), size(&chunk.start)),
                (text("sizes"), size(&chunk.sizes)),
            ];
            chunks.push(object(METADATA, "ChunkStorageMetadata", &fields));
        }
        let properties = tuple(&[
            global("torch", "float32"),
            call(
                global("torch.serialization", "_get_layout"),
                &[text("torch.strided")],
            ),
            FALSE.to_vec(),
            call(global(METADATA, "_MEM_FORMAT_ENCODING"), &[int(0)]),
            FALSE.to_vec(),
        ]);
        let properties = build(new(global(METADATA, "TensorProperties"), &[]), properties);
        let fields = [
            (text("properties"), properties),
            (text("size"), size(&tensor.shape)),
            (text("chunks"), list(&chunks)),
        ];
        described.push((
            text(tensor.name),
            object(METADATA, "TensorStorageMetadata", &fields),
        ));
    }
    described.push((
        text("step"),
        new(global(METADATA, "BytesStorageMetadata"), &[]),
    ));
    let fields = [
        (text("state_dict_metadata"), dict(&described)),
        (text("storage_data"), dict(&places)),
    ];
    let path = directory.join(".metadata");
    fs::write(&path, pickle(object(METADATA, "Metadata", &fields))).unwrap();
    path
}

fn read(tensors: &[Saved]) -> Result<Vec<Seen>, Refusal> {
    let directory = tempfile::tempdir().unwrap();
    read_file(&write(directory.path(), tensors))
}

#[track_caller]
fn refused(tensors: &[Saved], cause: Cause, word: &str) {
    let refusal = read(tensors).unwrap_err();
    assert_eq!(refusal.cause(), cause, "{refusal}");
    assert!(refusal.to_string().contains(word), "{refusal}");
}

fn floats(seen: &Seen) -> Vec<f32> {
    let numbers = seen.bytes.as_chunks::<4>().0.iter();
    numbers.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn counted(count: usize) -> Vec<f32> {
    (0..count).map(|number| number as f32).collect()
}

const A: &str = "__0_0.distcp";
const B: &str = "__1_0.distcp";

#[test]
fn boxes_are_put_together_row_by_row() {
    let whole = saved(
        "whole",
        &[2, 3],
        vec![chunk(A, &[0, 0], &[2, 3], &counted(6))],
    );
    let rows = saved(
        "rows",
        &[3, 2],
        vec![
            chunk(B, &[2, 0], &[1, 2], &[4., 5.]),
            chunk(A, &[0, 0], &[2, 2], &[0., 1., 2., 3.]),
        ],
    );
    let columns = saved(
        "columns",
        &[2, 3],
        vec![
            chunk(A, &[0, 0], &[2, 1], &[0., 3.]),
            chunk(B, &[0, 1], &[2, 2], &[1., 2., 4., 5.]),
        ],
    );
    // The second box spans more rows than the first; the last is empty.
    let grid = saved(
        "grid",
        &[3, 3],
        vec![
            chunk(A, &[0, 0], &[1, 2], &[0., 1.]),
            chunk(B, &[0, 2], &[2, 1], &[2., 5.]),
            strided(A, &[1, 0], &[2, 2], &[1, 2], &[3., 6., 4., 7.]),
            chunk(B, &[2, 2], &[1, 1], &[8.]),
            chunk(B, &[3, 0], &[0, 3], &[]),
        ],
    );
    let cube = saved(
        "cube",
        &[2, 2, 2],
        vec![
            chunk(A, &[0, 0, 0], &[2, 1, 2], &[0., 1., 4., 5.]),
            chunk(B, &[0, 1, 0], &[2, 1, 2], &[2., 3., 6., 7.]),
        ],
    );
    let scalar = saved("scalar", &[], vec![chunk(A, &[], &[], &[0.])]);
    let tensors = [whole, rows, columns, grid, cube, scalar];
    let seen = read(&tensors).unwrap();
    assert_eq!(seen.len(), tensors.len());
    for tensor in &seen {
        let count = tensor.shape.iter().product();
        assert_eq!(floats(tensor), counted(count), "{}", tensor.name);
    }
}

#[test]
fn refuses_boxes_that_do_not_make_the_tensor() {
    let half = |start: i64| chunk(A, &[start], &[2], &[0., 1.]);
    let cases = [
        (vec![half(0)], "cover"),
        (vec![half(0), half(1), half(2)], "cover"),
        (vec![half(0), half(3)], "past its end"),
        (vec![], "cover"),
    ];
    for (chunks, word) in cases {
        refused(&[saved("w", &[4], chunks)], Cause::Malformed, word);
    }
    let crossing = vec![
        chunk(A, &[0, 0], &[1, 2], &[0., 1.]),
        chunk(A, &[0, 1], &[2, 1], &[1., 3.]),
    ];
    refused(
        &[saved("w", &[2, 2], crossing)],
        Cause::Malformed,
        "overlap",
    );
    // What the archive holds is another box.
    let mut other = chunk(A, &[0], &[4], &counted(4));
    other.bytes = chunk(A, &[0], &[3], &counted(3)).bytes;
    refused(
        &[saved("w", &[4], vec![other])],
        Cause::Malformed,
        "another type or size",
    );
}

#[test]
fn refuses_boxes_that_share_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let one = |name| saved(name, &[1], vec![chunk(A, &[0], &[1], &[0.])]);
    let metadata = write(directory.path(), &[one("v"), one("w")]);
    let pickle = fs::read(&metadata).unwrap();
    let len = one("v").chunks[0].bytes.len() as i64;
    // The second box begins where the first one does.
    let second = [text("offset"), int(len)].concat();
    let at = pickle
        .windows(second.len())
        .position(|bytes| bytes == second);
    let first = [text("offset"), int(0)].concat();
    let mut shared = pickle;
    shared[at.unwrap()..][..first.len()].copy_from_slice(&first);
    fs::write(&metadata, shared).unwrap();
    assert_eq!(read_file(&metadata).unwrap().len(), 2);
    let short = &fs::read(directory.path().join(A)).unwrap()[..len as usize];
    fs::write(directory.path().join(A), short).unwrap();
    let refusal = read_file(&metadata).unwrap_err();
    assert!(refusal.to_string().contains("share bytes"), "{refusal}");
}

#[test]
fn refuses_files_elsewhere_and_compressed_boxes() {
    for file in ["../x.distcp", "/x.distcp", "x.pt"] {
        let tensor = saved("w", &[1], vec![chunk(file, &[0], &[1], &[0.])]);
        refused(&[tensor], Cause::Unsupported, "same directory");
    }
    let mut tensor = saved("w", &[1], vec![chunk(A, &[0], &[1], &[0.])]);
    tensor.extra = vec![(text("transform_descriptors"), list(&[text("zstd")]))];
    refused(&[tensor], Cause::Unsupported, "compressed");
}

#[test]
fn refuses_a_directory_with_missing_or_short_files() {
    let tensors = || {
        let chunks = vec![chunk(A, &[0], &[1], &[0.]), chunk(B, &[1], &[1], &[1.])];
        [saved("w", &[2], chunks)]
    };
    let directory = tempfile::tempdir().unwrap();
    let metadata = write(directory.path(), &tensors());
    let part = directory.path().join(B);
    let bytes = fs::read(&part).unwrap();
    fs::write(&part, &bytes[..bytes.len() - 1]).unwrap();
    let why = read_file(&metadata).unwrap_err().to_string();
    assert!(why.contains("cut off"), "{why}");
    fs::remove_file(&part).unwrap();
    let refusal = read_file(&metadata).unwrap_err();
    assert_eq!(refusal.cause(), Cause::NotDownloaded);
    assert!(refusal.to_string().contains(B), "{refusal}");
}

#[test]
fn optimizers_are_left_out() {
    let one = |name| saved(name, &[1], vec![chunk(A, &[0], &[1], &[0.])]);
    let names = |tensors: &[Saved]| -> Vec<String> {
        let seen = read(tensors).unwrap();
        seen.into_iter().map(|tensor| tensor.name).collect()
    };
    let tensors = [one("model.w"), one("optimizer.state.w.exp_avg")];
    assert_eq!(names(&tensors), ["model.w"]);
    let tensors = [one("state_dict.w"), one("ema.w")];
    assert_eq!(names(&tensors), ["w"]);
}
