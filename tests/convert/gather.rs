//! Reads of strided views against a reference that goes element by element.

use proptest::prelude::*;
use safetensors::Dtype;
use stfs::checkpoint::{Backing, Lazy, Storage, Tensor};
use stfs::convert::Reader;

use super::{all, file, owned, reader};
use stfs::checkpoint::Checkpoint;

/// The row-major bytes of `tensor` in `storage`, one element after the other.
fn reference(tensor: &Tensor, storage: &[u8]) -> Vec<u8> {
    let element = tensor.dtype.bitsize() / 8;
    let count: u64 = tensor.shape.iter().product();
    let mut out = Vec::new();
    for number in 0..count {
        let mut rest = number;
        let mut at = tensor.offset;
        for (size, stride) in tensor.shape.iter().zip(&tensor.strides).rev() {
            at += rest % size * stride * element as u64;
            rest /= size;
        }
        let bytes = &storage[at as usize..at as usize + element];
        match tensor.dtype {
            Dtype::BOOL if !is_row_major(tensor) => out.push(u8::from(bytes != [0])),
            _ => out.extend(resolve(bytes, tensor.dtype, tensor.lazy)),
        }
    }
    out
}

/// Whether torch says that it `is_contiguous`.
fn is_row_major(tensor: &Tensor) -> bool {
    let mut step = 1;
    let mut axes = tensor.shape.iter().zip(&tensor.strides).rev();
    axes.all(|(size, stride)| {
        let fits = *size == 1 || *stride == step;
        step *= size;
        fits
    })
}

fn resolve(bytes: &[u8], dtype: Dtype, lazy: Lazy) -> Vec<u8> {
    let swapped = |part: &[u8]| -> Vec<u8> {
        match lazy.swap {
            true => part.iter().rev().copied().collect(),
            false => part.to_vec(),
        }
    };
    let float = |part: &[u8], negate: bool| -> Vec<u8> {
        let value = f32::from_le_bytes(swapped(part).try_into().unwrap());
        (if negate { -value } else { value }).to_le_bytes().to_vec()
    };
    match dtype {
        Dtype::C64 => [
            float(&bytes[..4], lazy.negate),
            float(&bytes[4..], lazy.negate != lazy.conjugate),
        ]
        .concat(),
        Dtype::F32 => float(bytes, lazy.negate),
        Dtype::F64 => {
            let value = f64::from_le_bytes(swapped(bytes).try_into().unwrap());
            (if lazy.negate { -value } else { value })
                .to_le_bytes()
                .to_vec()
        }
        _ => swapped(bytes),
    }
}

fn lazy(dtype: Dtype) -> BoxedStrategy<Lazy> {
    let float = matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::C64);
    let bit = |may: bool| any::<bool>().prop_map(move |set| set && may);
    (
        bit(dtype.bitsize() > 8),
        bit(float),
        bit(dtype == Dtype::C64),
    )
        .prop_map(|(swap, negate, conjugate)| Lazy {
            swap,
            negate,
            conjugate,
        })
        .boxed()
}

fn view() -> impl Strategy<Value = Tensor> {
    const DTYPES: [Dtype; 6] = [
        Dtype::BOOL,
        Dtype::U8,
        Dtype::I16,
        Dtype::F32,
        Dtype::F64,
        Dtype::C64,
    ];
    let axes = proptest::collection::vec((0_u64..6, 0_u64..8), 0..5);
    proptest::sample::select(DTYPES.as_slice())
        .prop_flat_map(move |dtype| (Just(dtype), axes.clone(), 0_u64..5, lazy(dtype)))
        .prop_map(|(dtype, axes, offset, lazy)| Tensor {
            name: String::new(),
            dtype,
            shape: axes.iter().map(|(size, _)| *size).collect(),
            strides: axes.iter().map(|(_, stride)| *stride).collect(),
            storage: 0,
            offset: offset * (dtype.bitsize() / 8) as u64,
            lazy,
        })
}

/// A checkpoint of these views of one storage at byte 3 of the file, which is
/// as long as they need, and the bytes of the file and of the storage.
fn lay_out(mut tensors: Vec<Tensor>) -> (Checkpoint, Vec<u8>) {
    let mut len = 1;
    for (number, tensor) in tensors.iter_mut().enumerate() {
        tensor.name = format!("t{number}");
        let steps = tensor.shape.iter().zip(&tensor.strides);
        let last: u64 = steps
            .map(|(size, stride)| size.saturating_sub(1) * stride)
            .sum();
        len = len.max(tensor.offset + (last + 1) * (tensor.dtype.bitsize() / 8) as u64);
    }
    let bytes = (0..len + 3)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect();
    let checkpoint = Checkpoint {
        tensors,
        storages: vec![Storage::in_file(3, len)],
        ..Checkpoint::default()
    };
    (checkpoint, bytes)
}

/// What the converted file should be, given its header.
fn expected(reader: &Reader, tensors: &[Tensor], storage: &[u8]) -> Vec<u8> {
    let mut expected = reader.plan().header().to_vec();
    for planned in reader.plan().tensors() {
        let tensor = tensors.iter().find(|tensor| tensor.name == *planned.name);
        expected.extend(reference(tensor.unwrap(), storage));
    }
    expected
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_range_of_any_views(
        views in proptest::collection::vec(view(), 1..5),
        ranges in proptest::collection::vec((0.0..1.2_f64, 0_usize..600), 8),
    ) {
        let (checkpoint, bytes) = lay_out(views);
        let tensors = checkpoint.tensors.clone();
        let source = file(&bytes);
        let reader = reader(&source, checkpoint);
        let expected = expected(&reader, &tensors, &bytes[3..]);
        prop_assert_eq!(reader.plan().size(), expected.len() as u64);
        prop_assert_eq!(&all(&reader), &expected);
        for (start, len) in ranges {
            let start = (start * expected.len() as f64) as usize;
            let part = expected.get(start..).unwrap_or_default();
            let part = &part[..len.min(part.len())];
            prop_assert_eq!(&owned(reader.read(start as u64, len).unwrap()), part);
        }
        for (index, planned) in reader.plan().tensors().iter().enumerate() {
            let tensor = tensors.iter().find(|tensor| tensor.name == *planned.name).unwrap();
            let raw = reference(tensor, &bytes[3..]);
            prop_assert_eq!(&owned(reader.read_tensor(index, 0, raw.len() + 9).unwrap()), &raw);
            let half = raw.len() / 2;
            prop_assert_eq!(&owned(reader.read_tensor(index, half as u64, 5).unwrap()), &raw[half..raw.len().min(half + 5)]);
        }
    }
}

/// The bytes that torch 2.15 gives for `contiguous()` of the bytes 2, 0, 255, 1, 0, 7 as
/// truth values: those of a view that has to be gathered are 0 or 1.
#[test]
fn gathered_truth_values_are_zero_or_one() {
    const BYTES: [u8; 6] = [2, 0, 255, 1, 0, 7];
    let view = |shape: &[u64], strides: &[u64]| Tensor {
        strides: strides.into(),
        ..super::contiguous("t", Dtype::BOOL, shape, 0)
    };
    for (tensor, wanted) in [
        (view(&[2, 3], &[3, 1]), &BYTES[..]),
        (view(&[1, 6], &[9, 1]), &BYTES),
        (view(&[3, 2], &[1, 3]), &[1, 1, 0, 0, 1, 1]),
        (view(&[3], &[2]), &[1, 1, 0]),
        (view(&[2, 2], &[0, 1]), &[1, 0, 1, 0]),
        (view(&[2, 2], &[3, 1]), &[1, 0, 1, 0]),
    ] {
        let source = file(&BYTES);
        let reader = reader(&source, super::one_storage(6, vec![tensor]));
        assert_eq!(owned(reader.read_tensor(0, 0, 9).unwrap()), wanted);
    }
}

/// Views of more bytes than are put together at once, and elements further apart
/// than a span that is read in one piece.
#[test]
fn large_views() {
    let view = |shape: &[u64], strides: &[u64], offset| Tensor {
        name: String::new(),
        dtype: Dtype::F32,
        shape: shape.into(),
        strides: strides.into(),
        storage: 0,
        offset,
        lazy: Lazy::default(),
    };
    let views = vec![
        view(&[1100, 1021], &[1, 1100], 4),
        view(&[3, 700, 600], &[420_000, 1, 700], 0),
        view(&[1_200_000], &[0], 8),
        view(&[7, 200_000], &[0, 3], 0),
        view(&[15], &[90_001], 4),
    ];
    let (checkpoint, bytes) = lay_out(views);
    let tensors = checkpoint.tensors.clone();
    let source = file(&bytes);
    let reader = reader(&source, checkpoint);
    let expected = expected(&reader, &tensors, &bytes[3..]);
    assert!(all(&reader) == expected);
    // Pieces of an odd size, so that they cross all borders there are.
    let mut at = 0;
    while at < expected.len() {
        let len = 999_983.min(expected.len() - at);
        assert!(owned(reader.read(at as u64, 999_983).unwrap()) == expected[at..at + len]);
        at += len;
    }
}

/// torch allows any offset and any other dimension beside one of no elements.
#[test]
fn nothing_is_read_of_a_view_without_elements() {
    let mut tensor = super::contiguous("t", Dtype::F64, &[0], u64::MAX - 7);
    tensor.strides = [u64::MAX].into();
    let source = file(&[1; 16]);
    let mut checkpoint = super::one_storage(8, vec![tensor]);
    checkpoint.storages[0].backing = Backing::File(8);
    let reader = reader(&source, checkpoint);
    assert_eq!(all(&reader).len(), reader.plan().header().len());
    assert!(owned(reader.read_tensor(0, 0, 10).unwrap()).is_empty());
}

#[test]
fn a_scalar_expanded_beyond_all_measure_is_refused() {
    let mut tensor = super::contiguous("t", Dtype::F64, &[1 << 40], 0);
    tensor.strides = [0].into();
    let checkpoint = super::one_storage(8, vec![tensor]);
    let refusal = stfs::convert::Plan::new(checkpoint, 8, None).unwrap_err();
    assert_eq!(refusal.cause(), stfs::checkpoint::Cause::TooLarge);
}

#[test]
fn a_source_that_changed_gives_an_error() {
    let (checkpoint, bytes) = lay_out(vec![super::contiguous("t", Dtype::F32, &[4], 0)]);
    let source = file(&bytes);
    let reader = reader(&source, checkpoint);
    let before = all(&reader);
    std::fs::write(&source, vec![9; bytes.len()]).unwrap();
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(9);
    std::fs::File::open(&source)
        .unwrap()
        .set_modified(later)
        .unwrap();
    assert!(reader.read(before.len() as u64 - 4, 4).is_err());
    assert!(reader.read_tensor(0, 0, 4).is_err());
    std::fs::write(&source, b"").unwrap();
    assert!(reader.read(0, before.len()).is_err());
}
