//! Headers against the serializer of the safetensors crate.

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::{all, contiguous, file, one_storage, reader};

/// Every type of whole bytes, and `F4`, of which torch packs two into a byte.
const DTYPES: [Dtype; 20] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{1,3}(\\.[0-9]{1,2})?(\\.weight)?",
        any::<String>(),
        Just("a\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}\u{2028}\u{1f600}".to_string()),
        Just(String::new()),
    ]
    .prop_filter("kept for itself by safetensors", |name| {
        name != "__metadata__"
    })
}

type Spec = (Dtype, Vec<u64>);

fn tensors() -> impl Strategy<Value = BTreeMap<String, Spec>> {
    let spec = (
        proptest::sample::select(DTYPES.as_slice()),
        proptest::collection::vec(0_u64..4, 0..4),
    )
        .prop_filter("packs two values, has no dimension", |(dtype, shape)| {
            *dtype != Dtype::F4 || !shape.is_empty()
        });
    proptest::collection::btree_map(name(), spec, 0..12)
}

/// Bytes of an element as torch counts them.
fn size(dtype: Dtype) -> u64 {
    dtype.bitsize().div_ceil(8) as u64
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn are_byte_identical(specs in tensors()) {
        let mut data = Vec::new();
        let mut ours = Vec::new();
        let mut spans = Vec::new();
        for (name, (dtype, shape)) in &specs {
            let len = shape.iter().product::<u64>() * size(*dtype);
            ours.push(contiguous(name, *dtype, shape, data.len() as u64));
            spans.push(data.len()..data.len() + len as usize);
            let salt = data.len() as u64 * 7;
            data.extend((0..len).map(|at| (at * 31 + salt) as u8));
        }
        let source = file(&data);
        let reader = reader(&source, one_storage(data.len() as u64, ours));
        let converted = all(&reader);

        let theirs = specs.iter().zip(&spans).map(|((name, (dtype, shape)), span)| {
            let mut shape: Vec<usize> = shape.iter().map(|size| *size as usize).collect();
            if *dtype == Dtype::F4 {
                *shape.last_mut().unwrap() *= 2;
            }
            (name, TensorView::new(*dtype, shape, &data[span.clone()]).unwrap())
        });
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        let expected = safetensors::serialize(theirs, Some(metadata)).unwrap();
        prop_assert_eq!(&converted, &expected);

        let read = SafeTensors::deserialize(&converted).unwrap();
        for (name, span) in specs.keys().zip(spans) {
            prop_assert_eq!(read.tensor(name).unwrap().data(), &data[span]);
        }
    }

    #[test]
    fn with_duplicates_hold_the_same_metadata(names in proptest::collection::btree_set(name(), 1..6)) {
        let data = [1, 2, 3, 4, 5, 6, 7, 8];
        let tensors = names.iter().map(|name| contiguous(name, Dtype::F32, &[2], 0)).collect();
        let source = file(&data);
        let converted = all(&reader(&source, one_storage(8, tensors)));

        // convert.py keeps the first name, and records the others unless `format`.
        let kept = names.first().unwrap();
        let mut metadata: HashMap<String, String> =
            names.iter().skip(1).map(|name| (name.clone(), kept.clone())).collect();
        metadata.insert("format".into(), "pt".into());
        let view = TensorView::new(Dtype::F32, vec![2], &data).unwrap();
        let expected = safetensors::serialize([(kept, view)], Some(metadata)).unwrap();
        prop_assert_eq!(converted.len(), expected.len());
        let (ours, _) = SafeTensors::read_metadata(&converted).map(|(n, m)| (m, n)).unwrap();
        let (_, theirs) = SafeTensors::read_metadata(&expected).unwrap();
        prop_assert_eq!(ours.metadata(), theirs.metadata());
        // The order of the entries apart, everything is the same.
        let entries = serde_json::to_vec(&ours.metadata()).unwrap().len();
        let tail = 8 + "{'__metadata__':".len() + entries;
        prop_assert_eq!(&converted[..8], &expected[..8]);
        prop_assert_eq!(&converted[tail..], &expected[tail..]);
        let first = converted[8..].starts_with(br#"{"__metadata__":{"format":"pt""#);
        prop_assert!(first);
    }
}

#[test]
fn of_nothing_is_what_convert_py_writes() {
    let source = file(b"");
    let converted = all(&reader(&source, one_storage(0, Vec::new())));
    assert_eq!(
        converted,
        b"\x20\0\0\0\0\0\0\0{\"__metadata__\":{\"format\":\"pt\"}}"
    );
}

#[test]
fn metadata_is_sorted_after_format() {
    let source = file(&[0; 4]);
    let names = ["a", "z", "b", "format", "\u{e9}"];
    let tensors = names
        .iter()
        .map(|name| contiguous(name, Dtype::F32, &[1], 0))
        .collect();
    let converted = all(&reader(&source, one_storage(4, tensors)));
    let text = String::from_utf8_lossy(&converted[8..]);
    let expected =
        "{\"__metadata__\":{\"format\":\"pt\",\"b\":\"a\",\"z\":\"a\",\"\u{e9}\":\"a\"},";
    assert!(text.starts_with(expected), "{text}");
}

#[test]
fn packed_values_need_a_dimension() {
    let checkpoint = one_storage(1, vec![contiguous("t", Dtype::F4, &[], 0)]);
    assert!(stfs::convert::Plan::new(checkpoint, 1, None).is_err());
}
