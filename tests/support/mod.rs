//! Checkpoints for tests, written without torch: a stored zip archive with the
//! pickle that torch.save writes (protocol 2, one dict of tensors).

#![allow(dead_code)]

pub mod skip;

use std::path::Path;

use stfs::source::{Bytes, Found, LocalTree, Source, Tree, Version};

/// A tensor as `torch._utils._rebuild_tensor_v2` gets it.
pub struct Tensor<'a> {
    pub name: &'a str,
    /// Which of the storages.
    pub storage: usize,
    /// Elements.
    pub offset: u32,
    pub shape: &'a [u32],
    pub strides: &'a [u32],
}

/// A storage: its class, such as `FloatStorage`, bytes of one element, bytes.
pub struct Storage {
    pub class: &'static str,
    pub element: usize,
    pub bytes: Vec<u8>,
}

impl Storage {
    pub fn floats(values: impl IntoIterator<Item = f32>) -> Storage {
        Storage {
            class: "FloatStorage",
            element: 4,
            bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
        }
    }
}

/// What torch.save makes of a dict of `tensors`.
pub fn checkpoint(tensors: &[Tensor], storages: &[Storage]) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_string(), pickle(tensors, storages))];
    for (key, storage) in storages.iter().enumerate() {
        entries.push((format!("archive/data/{key}"), storage.bytes.clone()));
    }
    entries.push(("archive/version".to_string(), b"3\n".to_vec()));
    zip(&entries)
}

/// A checkpoint of one vector called `weight`.
pub fn one_vector(values: &[f32]) -> Vec<u8> {
    named_vectors(&[("weight", values)])
}

/// A checkpoint of vectors with a storage each.
pub fn named_vectors(vectors: &[(&str, &[f32])]) -> Vec<u8> {
    let shapes: Vec<[u32; 1]> = vectors
        .iter()
        .map(|(_, values)| [values.len() as u32])
        .collect();
    let tensors: Vec<Tensor> = vectors
        .iter()
        .zip(&shapes)
        .enumerate()
        .map(|(storage, ((name, _), shape))| Tensor {
            name,
            storage,
            offset: 0,
            shape,
            strides: &[1],
        })
        .collect();
    let storages: Vec<Storage> = vectors
        .iter()
        .map(|(_, values)| Storage::floats(values.iter().copied()))
        .collect();
    checkpoint(&tensors, &storages)
}

/// Tensors that are all the whole of one storage.
pub fn tied(names: &[&str], values: &[f32]) -> Vec<u8> {
    let shape = [values.len() as u32];
    let tensors: Vec<Tensor> = names
        .iter()
        .map(|name| Tensor {
            name,
            storage: 0,
            offset: 0,
            shape: &shape,
            strides: &[1],
        })
        .collect();
    checkpoint(&tensors, &[Storage::floats(values.iter().copied())])
}

/// The pickle in it.
pub fn pickle(tensors: &[Tensor], storages: &[Storage]) -> Vec<u8> {
    let mut out = b"\x80\x02}(".to_vec();
    for tensor in tensors {
        let storage = &storages[tensor.storage];
        text(&mut out, tensor.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{}\n", storage.class).bytes());
        text(&mut out, &tensor.storage.to_string());
        text(&mut out, "cpu");
        int(&mut out, (storage.bytes.len() / storage.element) as u32);
        out.extend(b"tQ");
        int(&mut out, tensor.offset);
        for numbers in [tensor.shape, tensor.strides] {
            out.push(b'(');
            numbers.iter().for_each(|number| int(&mut out, *number));
            out.push(b't');
        }
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.bytes());
}

fn int(out: &mut Vec<u8>, number: u32) {
    assert!(i32::try_from(number).is_ok());
    out.push(b'J');
    out.extend(number.to_le_bytes());
}

/// A zip archive of stored entries (PKWARE APPNOTE 4.3).
fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in entries {
        let offset = out.len() as u32;
        let mut fields = Vec::new();
        // Version, flags, method, time, date.
        fields.extend([20_u16, 0, 0, 0, 0].iter().flat_map(|n| n.to_le_bytes()));
        fields.extend(crc32(data).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((data.len() as u32).to_le_bytes());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend(0_u16.to_le_bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&fields);
        out.extend(name.bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&fields);
        // Comment length, disk, internal and external attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((entries.len() as u16).to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Writes a file and the directories it lies in.
pub fn write(path: &Path, bytes: &[u8]) {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).unwrap();
    }
    std::fs::write(path, bytes).unwrap();
}

/// The file at `path`, open as a source.
pub fn open(path: &Path) -> Source {
    let (directory, name) = LocalTree::around(path).unwrap();
    directory.open(&name).unwrap()
}

/// The version of the file at `path`.
pub fn version(path: &Path) -> Version {
    let (directory, name) = LocalTree::around(path).unwrap();
    match directory.stat(&name).unwrap() {
        Found::File(metadata) => metadata.version,
        other => panic!("{path:?}: {other:?}"),
    }
}

/// The bytes of a reply.
pub fn owned(bytes: Bytes) -> Vec<u8> {
    match bytes {
        // SAFETY: nobody cuts the files of tests while they are read here.
        Bytes::Mapped(bytes) => unsafe { bytes.for_kernel() }.to_vec(),
        Bytes::Owned(bytes) => bytes,
    }
}
