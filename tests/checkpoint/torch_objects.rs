//! The objects of torch in a pickle. What torch 2.15 makes of each was measured.

use safetensors::Dtype;
use stfs::checkpoint::Cause;

use super::archive::Archive;
use super::opcodes::*;
use super::{Seen, read, refused};

/// The storages that the pickles of this file name.
const STORAGES: &[(&str, &[u8])] = &[
    (
        "0",
        &[0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64, 0, 0, 128, 64],
    ),
    (
        "1",
        &[0, 0, 16, 65, 0, 0, 0, 65, 0, 0, 224, 64, 0, 0, 192, 64],
    ),
];

fn archive(tensor: Vec<u8>) -> Vec<u8> {
    Archive::torch(&named(tensor), STORAGES).bytes()
}

/// The one tensor of a checkpoint.
#[track_caller]
fn tensor(object: Vec<u8>) -> Seen {
    let mut seen = read(&archive(object)).unwrap();
    assert_eq!(seen.len(), 1);
    seen.remove(0)
}

/// Its floats.
#[track_caller]
fn values(object: Vec<u8>) -> Vec<f32> {
    let seen = tensor(object);
    assert_eq!(seen.dtype, Dtype::F32);
    seen.bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect()
}

#[track_caller]
fn refuses(object: Vec<u8>, cause: Cause) {
    refused(&archive(object), cause);
}

fn zero() -> Vec<u8> {
    storage("FloatStorage", "0", 4)
}

fn args() -> Vec<Vec<u8>> {
    view(zero(), 0, &[4], &[1])
}

fn with_metadata(metadata: Vec<u8>) -> Vec<u8> {
    rebuild(&[args(), vec![metadata]].concat())
}

fn utils(name: &str) -> Vec<u8> {
    global("torch._utils", name)
}

#[test]
fn lays_strided_views_out_row_by_row() {
    let view = |offset, size: &[i64], stride: &[i64]| rebuild(&view(zero(), offset, size, stride));
    assert_eq!(values(view(0, &[2, 2], &[2, 1])), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(view(0, &[2, 2], &[1, 2])), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(view(1, &[3], &[1])), [2.0, 3.0, 4.0]);
    assert_eq!(values(view(1, &[2], &[2])), [2.0, 4.0]);
    assert_eq!(values(view(3, &[3], &[0])), [4.0, 4.0, 4.0]);
    assert_eq!(
        values(view(0, &[3, 2], &[1, 1])),
        [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]
    );
    assert_eq!(values(view(2, &[], &[])), [3.0]);
    assert_eq!(tensor(view(0, &[2, 2], &[1, 2])).shape, [2, 2]);
}

#[test]
fn takes_lists_and_torch_sizes_for_sizes() {
    let mut args = args();
    args[2] = list(&[int(2)]);
    args[3] = call(global("torch", "Size"), &[ints(&[1])]);
    assert_eq!(values(rebuild(&args)), [1.0, 2.0]);
}

#[test]
fn refuses_views_outside_of_their_storage() {
    for (offset, size, stride) in [
        (0, &[5][..], &[1][..]),
        (1, &[4], &[1]),
        (0, &[2], &[4]),
        (-1, &[1], &[1]),
        (0, &[-1], &[1]),
        (0, &[2], &[-1]),
        (i64::MAX, &[1], &[1]),
        (0, &[i64::MAX], &[0]),
        (0, &[1 << 32, 1 << 32], &[0, 0]),
        (0, &[2, 2], &[i64::MAX, i64::MAX]),
        (0, &[4], &[]),
        (0, &[4], &[1, 1]),
        // torch multiplies before it comes to the zero.
        (0, &[1 << 40, 1 << 40, 0], &[0, 0, 1]),
    ] {
        refuses(
            rebuild(&view(zero(), offset, size, stride)),
            Cause::Malformed,
        );
    }
    let ones = vec![1; 65];
    refuses(rebuild(&view(zero(), 0, &ones, &ones)), Cause::TooLarge);
}

#[test]
fn a_tensor_without_elements_may_have_any_strides_and_offset() {
    for (offset, size, stride) in [
        (0, &[0][..], &[1][..]),
        (1 << 62, &[0], &[1]),
        (i64::MAX, &[0], &[1]),
        (0, &[0, 5], &[i64::MAX, 77]),
        (0, &[1 << 40, 0, 1 << 10], &[i64::MAX, 1, 1 << 50]),
    ] {
        let seen = tensor(rebuild(&view(zero(), offset, size, stride)));
        let expected: Vec<usize> = size.iter().map(|size| *size as usize).collect();
        assert_eq!((seen.shape, seen.bytes), (expected, Vec::new()));
    }
}

#[test]
fn numbers_are_ints_and_no_bools() {
    for at in [1, 2, 3] {
        let mut args = args();
        args[at] = if at == 1 {
            TRUE.to_vec()
        } else {
            tuple(&[TRUE.to_vec()])
        };
        refuses(rebuild(&args), Cause::Malformed);
    }
}

#[test]
fn wants_as_many_arguments_as_torch() {
    assert_eq!(
        values(call(utils("_rebuild_tensor"), &args()[..4])).len(),
        4
    );
    refuses(call(utils("_rebuild_tensor"), &args()), Cause::Malformed);
    for count in [0, 3, 4, 5] {
        refuses(rebuild(&args()[..count]), Cause::Malformed);
    }
    let eight = [args(), vec![NONE.to_vec(); 2]].concat();
    refuses(rebuild(&eight), Cause::Malformed);
}

#[test]
fn metadata_sets_the_negative_bit() {
    let bits = |value: &[u8]| dict(&[(text("neg"), value.to_vec())]);
    assert_eq!(values(with_metadata(bits(TRUE))), [-1.0, -2.0, -3.0, -4.0]);
    assert_eq!(values(with_metadata(bits(FALSE))), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(with_metadata(dict(&[]))), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(with_metadata(NONE.to_vec())), [1.0, 2.0, 3.0, 4.0]);
    // torch takes 1 for True.
    refuses(with_metadata(bits(&int(1))), Cause::Malformed);
    refuses(
        with_metadata(dict(&[(text("other"), TRUE.to_vec())])),
        Cause::Unsupported,
    );
    // The conjugate bit of a real tensor.
    refuses(
        with_metadata(dict(&[(text("conj"), TRUE.to_vec())])),
        Cause::Malformed,
    );
}

#[test]
fn metadata_sets_the_conjugate_bit() {
    let complex = |bit: &str| {
        let args = view(storage("ComplexFloatStorage", "0", 2), 0, &[2], &[1]);
        let seen = tensor(rebuild(
            &[args, vec![dict(&[(text(bit), TRUE.to_vec())])]].concat(),
        ));
        assert_eq!(seen.dtype, Dtype::C64);
        let parts = seen
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes));
        parts.collect::<Vec<_>>()
    };
    assert_eq!(complex("conj"), [1.0, -2.0, 3.0, -4.0]);
    assert_eq!(complex("neg"), [-1.0, -2.0, -3.0, -4.0]);
}

#[test]
fn a_dtype_of_its_own_over_a_storage_of_bytes() {
    let v3 = |dtype: &str, offset, size: i64, metadata: Option<Vec<u8>>| {
        let mut args = view(storage("UntypedStorage", "0", 16), offset, &[size], &[1]);
        args.push(global("torch", dtype));
        args.extend(metadata);
        call(utils("_rebuild_tensor_v3"), &args)
    };
    let seen = tensor(v3("uint16", 2, 6, None));
    assert_eq!(
        (seen.dtype, &*seen.bytes),
        (Dtype::U16, &STORAGES[0].1[4..])
    );
    let seen = tensor(v3("float8_e4m3fn", 0, 16, Some(NONE.to_vec())));
    assert_eq!((seen.dtype, &*seen.bytes), (Dtype::F8_E4M3, STORAGES[0].1));
    refuses(v3("uint16", 0, 9, None), Cause::Malformed);
    refuses(v3("complex32", 0, 4, None), Cause::Inexpressible);
    refuses(v3("uint3", 0, 4, None), Cause::Unsupported);
    refuses(v3("uint16", 0, 4, Some(text("x"))), Cause::Malformed);
}

#[test]
fn storages_have_exactly_five_parts_and_a_known_class() {
    let id = |items: &[Vec<u8>]| {
        let mut args = args();
        args[0] = [tuple(items), b"Q".to_vec()].concat();
        rebuild(&args)
    };
    let whole = vec![
        text("storage"),
        global("torch", "FloatStorage"),
        text("0"),
        text("cuda:0"),
        int(4),
    ];
    assert_eq!(values(id(&whole)).len(), 4);
    let with = |at: usize, part: Vec<u8>| {
        let mut items = whole.clone();
        items[at] = part;
        id(&items)
    };
    refuses(id(&whole[..4]), Cause::Malformed);
    refuses(
        id(&[whole.clone(), vec![NONE.to_vec()]].concat()),
        Cause::Malformed,
    );
    refuses(with(0, text("module")), Cause::Malformed);
    refuses(with(1, global("torch", "TypedStorage")), Cause::Unsupported);
    refuses(with(1, text("FloatStorage")), Cause::Malformed);
    refuses(with(2, int(0)), Cause::Malformed);
    refuses(with(2, text("0\0")), Cause::Malformed);
    refuses(with(2, text("../data/0")), Cause::Malformed);
    refuses(with(2, text(&"0".repeat(1 << 20))), Cause::Malformed);
    refuses(with(3, text("meta")), Cause::Unsupported);
    refuses(with(4, int(-4)), Cause::Malformed);
    refuses(with(4, int(i64::MAX)), Cause::Malformed);
    refuses(with(4, TRUE.to_vec()), Cause::Malformed);
    let mut args = args();
    args[0] = text("0");
    refuses(rebuild(&args), Cause::Malformed);
}

#[test]
fn types_without_a_safetensors_name_are_refused() {
    let packed = view(storage("QUInt4x2Storage", "0", 16), 0, &[16], &[1]);
    refuses(rebuild(&packed), Cause::Inexpressible);
    refuses(
        call(utils("_rebuild_tensor_v9"), &args()),
        Cause::Unsupported,
    );
    for name in ["_rebuild_qtensor", "_rebuild_sparse_tensor"] {
        refuses(call(utils(name), &args()), Cause::Malformed);
    }
}

#[test]
fn looks_through_parameters_and_subclasses() {
    let wrapped = [
        call(
            utils("_rebuild_parameter"),
            &[floats(), TRUE.to_vec(), ordered_dict()],
        ),
        call(
            utils("_rebuild_parameter_with_state"),
            &[
                floats(),
                TRUE.to_vec(),
                ordered_dict(),
                dict(&[(text("tag"), int(1))]),
            ],
        ),
        call(
            utils("_rebuild_device_tensor_from_cpu_tensor"),
            &[
                floats(),
                global("torch", "float32"),
                text("xla:0"),
                FALSE.to_vec(),
            ],
        ),
        call(
            global("torch._tensor", "_rebuild_from_type_v2"),
            &[
                utils("_rebuild_tensor_v2"),
                global("torch.nn.parameter", "Buffer"),
                tuple(&args()),
                dict(&[(text("persistent"), TRUE.to_vec())]),
            ],
        ),
        // torch 0.2
        build(
            call(global("torch.nn.parameter", "Parameter"), &[floats()]),
            tuple(&[TRUE.to_vec(), FALSE.to_vec(), ordered_dict()]),
        ),
        // torch 0.1
        build(
            new(global("torch.autograd.variable", "Variable"), &[]),
            tuple(&[
                floats(),
                NONE.to_vec(),
                ordered_dict(),
                TRUE.to_vec(),
                FALSE.to_vec(),
            ]),
        ),
        build(
            new(global("torch", "FloatTensor"), &[]),
            tuple(&args()[..4]),
        ),
        build(
            new(global("torch.cuda", "FloatTensor"), &[]),
            tuple(&args()[..4]),
        ),
    ];
    for object in wrapped {
        assert_eq!(values(object), [1.0, 2.0, 3.0, 4.0]);
    }
}

#[test]
fn refuses_tensors_that_are_given_other_data_later() {
    let other = || view(storage("FloatStorage", "1", 4), 0, &[4], &[1]);
    // torch: `set_`
    refuses(build(floats(), tuple(&other()[..4])), Cause::Unsupported);
    let parameter = || {
        call(
            utils("_rebuild_parameter"),
            &[floats(), TRUE.to_vec(), ordered_dict()],
        )
    };
    refuses(build(parameter(), tuple(&other()[..4])), Cause::Unsupported);
    // torch: `self.data = `
    let five = [
        rebuild(&other()),
        NONE.to_vec(),
        NONE.to_vec(),
        TRUE.to_vec(),
        FALSE.to_vec(),
    ];
    refuses(build(floats(), tuple(&five)), Cause::Unsupported);
    let class = call(global("torch.nn.parameter", "Parameter"), &[floats()]);
    refuses(build(class, tuple(&five)), Cause::Unsupported);
    // torch: `setattr(tensor, "data", ...)`
    let data = dict(&[(text("data"), rebuild(&other()))]);
    refuses(
        call(
            global("torch._tensor", "_rebuild_from_type_v2"),
            &[
                utils("_rebuild_tensor_v2"),
                global("torch", "Tensor"),
                tuple(&args()),
                data.clone(),
            ],
        ),
        Cause::Unsupported,
    );
    refuses(
        call(
            utils("_rebuild_parameter_with_state"),
            &[floats(), TRUE.to_vec(), ordered_dict(), data],
        ),
        Cause::Unsupported,
    );
    // `tensor[0] = ...`
    refuses(
        [floats(), int(0), int(0), b"s".to_vec()].concat(),
        Cause::Unsupported,
    );
    // The second state wins.
    let class = new(global("torch", "FloatTensor"), &[]);
    let twice = build(build(class, tuple(&args()[..4])), tuple(&other()[..4]));
    refuses(twice, Cause::Unsupported);
}

#[test]
fn tensor_classes_have_storages_of_their_type() {
    let class = |name: &str| build(new(global("torch", name), &[]), tuple(&args()[..4]));
    refuses(class("DoubleTensor"), Cause::Malformed);
    refuses(class("NoSuchTensor"), Cause::Malformed);
    assert_eq!(values(class("Tensor")).len(), 4);
}

#[test]
fn device_tensors_have_the_type_of_their_data() {
    let moved = call(
        utils("_rebuild_device_tensor_from_cpu_tensor"),
        &[
            floats(),
            global("torch", "float16"),
            text("xla:0"),
            FALSE.to_vec(),
        ],
    );
    refuses(moved, Cause::Unsupported);
}

#[test]
fn refuses_endless_wrapping() {
    // parameter = _rebuild_parameter(parameter, ...) by way of the memo.
    let mut object = floats();
    for _ in 0..40 {
        object = call(
            utils("_rebuild_parameter"),
            &[object, TRUE.to_vec(), NONE.to_vec()],
        );
    }
    refuses(object, Cause::TooLarge);
}

#[test]
fn big_endian_storages_are_swapped_by_one_type_only() {
    let big = |pickle: &[u8]| {
        let mut archive = Archive::torch(pickle, STORAGES);
        archive.entry("model/byteorder").data = b"big".to_vec();
        archive.bytes()
    };
    // torch leaves bytes alone, whatever is made of them.
    let mut untyped = view(storage("UntypedStorage", "0", 16), 0, &[4], &[1]);
    untyped.push(global("torch", "uint16"));
    let untyped = call(utils("_rebuild_tensor_v3"), &untyped);
    refused(&big(&named(untyped)), Cause::Ambiguous);
    // torch swaps by the type that it meets first.
    let doubles = rebuild(&view(storage("DoubleStorage", "0", 2), 0, &[2], &[1]));
    let both = pickle(dict(&[(text("a"), doubles), (text("b"), floats())]));
    refused(&big(&both), Cause::Ambiguous);
    // The parts of a complex number are swapped, not their order.
    let complex = rebuild(&view(storage("ComplexFloatStorage", "0", 2), 0, &[2], &[1]));
    let both = pickle(dict(&[(text("a"), complex), (text("b"), floats())]));
    let seen = read(&big(&both)).unwrap();
    let mut swapped = STORAGES[0].1.to_vec();
    swapped.chunks_mut(4).for_each(<[u8]>::reverse);
    assert_eq!(seen[0].bytes, swapped);
    assert_eq!(seen[1].bytes, swapped);
}
