//! Damaged archives: whatever a byte says, nothing is read from outside the
//! file, and nothing panics.

use std::fs;

use proptest::prelude::*;
use stfs::budget::Budget;
use stfs::checkpoint::{self, Backing, Checkpoint, Error, NameHint, Wanted, sniff};
use stfs::source::{LocalTree, Tree};

use super::archive::Archive;
use super::opcodes::*;
use super::read;

/// A checkpoint with several tensors, of several kinds.
fn sound() -> Vec<u8> {
    let transposed = rebuild(&view(storage("FloatStorage", "0", 4), 0, &[2, 2], &[1, 2]));
    let empty = rebuild(&view(storage("LongStorage", "1", 2), 1, &[0, 3], &[3, 1]));
    let parameter = call(
        global("torch._utils", "_rebuild_parameter"),
        &[floats(), TRUE.to_vec(), ordered_dict()],
    );
    let mut v3 = view(storage("UntypedStorage", "2", 8), 1, &[3], &[1]);
    v3.push(global("torch", "uint16"));
    let v3 = call(global("torch._utils", "_rebuild_tensor_v3"), &v3);
    let object = dict(&[
        (text("a"), transposed),
        (text("b"), list(&[empty, parameter])),
        (text("c"), v3),
        (text("d"), int(5)),
    ]);
    Archive::torch(
        &pickle(object),
        &[("0", &[1; 16]), ("1", &[2; 16]), ("2", &[3; 8])],
    )
    .bytes()
}

fn checkpoint(bytes: &[u8]) -> Option<Checkpoint> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, bytes).unwrap();
    let (directory, name) = LocalTree::around(&path).unwrap();
    let source = directory.open(&name).unwrap();
    let share = Budget::default().share();
    let content = sniff(&source, NameHint::Checkpoint, &share).unwrap();
    match checkpoint::read(&source, content, &directory, Wanted::Rule, &share) {
        Ok(checkpoint) => Some(checkpoint),
        Err(Error::Refused(refusal)) => {
            assert!(refusal.to_string().len() < 2000);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Every element of every tensor lies in its storage, and that in the file.
fn assert_inside(checkpoint: &Checkpoint, size: u64) {
    for storage in &checkpoint.storages {
        let Backing::File(offset) = storage.backing else {
            continue;
        };
        assert!(offset.checked_add(storage.len).unwrap() <= size);
    }
    for tensor in &checkpoint.tensors {
        let len = checkpoint.storages[tensor.storage as usize].len;
        if tensor.shape.contains(&0) {
            assert!(tensor.offset <= len);
            continue;
        }
        let steps = tensor.shape.iter().zip(&tensor.strides);
        let last: u128 = steps
            .map(|(size, stride)| u128::from(size - 1) * u128::from(*stride))
            .sum();
        let element = u128::from(tensor.element_size());
        assert!(u128::from(tensor.offset) + (last + 1) * element <= u128::from(len));
    }
}

#[test]
fn the_sound_archive_is_read() {
    let bytes = sound();
    let checkpoint = checkpoint(&bytes).unwrap();
    assert_eq!(checkpoint.tensors.len(), 4);
    assert_inside(&checkpoint, bytes.len() as u64);
}

#[test]
fn any_one_byte_may_be_any_of_a_few_others() {
    let bytes = sound();
    for at in 0..bytes.len() {
        for value in [0, 0xff, bytes[at] ^ 1] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            if let Some(checkpoint) = checkpoint(&bytes) {
                assert_inside(&checkpoint, bytes.len() as u64);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_may_be_changed(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = sound();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(checkpoint) = checkpoint(&bytes) {
            assert_inside(&checkpoint, bytes.len() as u64);
            // Read through to the end, it is a file that safetensors accepts.
            let _ = read(&bytes);
        }
    }

    #[test]
    fn any_stretch_may_be_cut_out_or_doubled(
        from in any::<prop::sample::Index>(),
        len in 1_usize..300,
        doubled in any::<bool>(),
    ) {
        let mut bytes = sound();
        let from = from.index(bytes.len());
        let to = (from + len).min(bytes.len());
        let stretch = bytes[from..to].to_vec();
        bytes.splice(from..to, if doubled { [&stretch[..], &stretch].concat() } else { Vec::new() });
        if let Some(checkpoint) = checkpoint(&bytes) {
            assert_inside(&checkpoint, bytes.len() as u64);
        }
    }

    #[test]
    fn any_numbers_may_stand_in_a_view(
        offset in any::<i64>(),
        size in prop::collection::vec(prop_oneof![0_i64..4, any::<i64>()], 0..5),
        stride in prop::collection::vec(prop_oneof![0_i64..4, any::<i64>()], 0..5),
        small in 0_i64..6,
        near in any::<bool>(),
    ) {
        let offset = if near { small } else { offset };
        let tensor = rebuild(&view(storage("FloatStorage", "0", 4), offset, &size, &stride));
        let bytes = Archive::torch(&named(tensor), &[("0", &[0; 16])]).bytes();
        if let Some(checkpoint) = checkpoint(&bytes) {
            assert_inside(&checkpoint, bytes.len() as u64);
            let _ = read(&bytes);
        }
    }
}
