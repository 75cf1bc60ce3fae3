//! Two files held against each other: files of the safetensors crate, and checkpoints
//! with the same values.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use stfs::convert::compare::{Comparison, Distance, Pairs, Side, Tally, Unit, What};
use stfs::convert::{self, Reader};

use super::support;

/// A safetensors file of vectors, and its metadata.
fn native(vectors: &[(&str, &[f32])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = vectors
        .iter()
        .map(|(_, values)| values.iter().copied().flat_map(f32::to_le_bytes).collect())
        .collect();
    let views = vectors.iter().zip(&bytes).map(|((name, values), bytes)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytes).unwrap();
        (*name, view)
    });
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect();
    let metadata = Some(metadata).filter(|metadata| !metadata.is_empty());
    safetensors::serialize(views, metadata).unwrap()
}

fn open(directory: &Path, name: &str, bytes: &[u8]) -> Reader {
    let path = directory.join(name);
    support::write(&path, bytes);
    convert::open(&path).unwrap()
}

fn compare(a: &[u8], b: &[u8]) -> Comparison {
    let directory = tempfile::tempdir().unwrap();
    let a = open(directory.path(), "a", a);
    let b = open(directory.path(), "b", b);
    let pairs = Pairs::find(&a, &b).unwrap();
    let bytes = pairs.bytes();
    let done = AtomicU64::new(0);
    let comparison = pairs.compare(&|more| {
        done.fetch_add(more, Ordering::Relaxed);
    });
    assert_eq!(done.into_inner(), bytes);
    comparison.unwrap()
}

/// `-a`: a tensor that only A has; `+b`: that only B has; `x`: with other bytes; `x:`: of
/// another type. All names of one are joined by `=`.
fn differences(comparison: &Comparison) -> Vec<String> {
    let differences = comparison.differences.iter();
    let shown = differences.map(|difference| {
        let names = difference.names.join("=");
        match &difference.what {
            What::Only(Side::A, _) => format!("-{names}"),
            What::Only(Side::B, _) => format!("+{names}"),
            What::Type(..) => format!("{names}:"),
            What::Bytes { .. } => names,
        }
    });
    shown.collect()
}

#[test]
fn a_checkpoint_and_a_native_file_are_equal() {
    let vectors: &[(&str, &[f32])] = &[("b", &[1.0, f32::NAN]), ("a", &[]), ("c", &[-0.0; 9])];
    let comparison = compare(&support::named_vectors(vectors), &native(vectors, &[]));
    assert!(comparison.is_equal(), "{comparison:?}");
    assert_eq!((comparison.equal, comparison.equal_bytes), (3, 44));
}

#[test]
fn differences_come_by_name() {
    let a = native(
        &[
            ("z", &[1.0]),
            ("same", &[2.0]),
            ("gone", &[3.0]),
            ("len", &[4.0]),
        ],
        &[],
    );
    let b = native(
        &[
            ("z", &[1.5]),
            ("same", &[2.0]),
            ("new", &[3.0]),
            ("len", &[4.0, 4.0]),
        ],
        &[],
    );
    let comparison = compare(&a, &b);
    assert_eq!(differences(&comparison), ["-gone", "len:", "+new", "z"]);
    assert_eq!((comparison.equal, comparison.equal_bytes), (1, 4));
}

/// A pickle in which all of these are one tensor; what a native file holds, and what its
/// metadata say; what differs.
type Case<'a> = (
    &'a [&'a str],
    &'a [(&'a str, &'a [f32])],
    &'a [(&'a str, &'a str)],
    &'a [&'a str],
);

#[test]
fn whichever_tied_name_is_kept() {
    const T: &[f32] = &[1.0, 2.0];
    const OTHER: &[f32] = &[1.0, 9.0];
    let cases: &[Case] = &[
        (&["head", "wte"], &[("wte", T)], &[], &[]),
        (&["head", "wte"], &[("head", T)], &[], &[]),
        (&["head", "wte"], &[("head", T), ("wte", T)], &[], &[]),
        (&["head", "wte"], &[("wte", T)], &[("head", "wte")], &[]),
        (&["head", "wte"], &[("head", T)], &[("wte", "head")], &[]),
        // Each of the two that B has is compared.
        (
            &["head", "wte"],
            &[("head", T), ("wte", OTHER)],
            &[],
            &["wte"],
        ),
        (&["head", "wte"], &[("head", OTHER)], &[], &["head"]),
        // One pair, not two.
        (
            &["head", "wte"],
            &[("wte", OTHER)],
            &[("head", "wte")],
            &["head=wte"],
        ),
        (&["head", "wte"], &[("x", T)], &[], &["-head=wte", "+x"]),
        (&["head", "wte"], &[("x", T)], &[("wte", "x")], &[]),
        // Only B calls them tied.
        (&["wte"], &[("wte", T)], &[("head", "wte")], &[]),
        (&["head"], &[("wte", T)], &[("head", "wte")], &[]),
        // What B's metadata say of tensors that it has or has not is nothing.
        (&["a"], &[("a", T), ("b", T)], &[("b", "a")], &["+b"]),
        (&["a"], &[("b", T)], &[("a", "c")], &["-a", "+b"]),
        (
            &["format"],
            &[("pt", T)],
            &[("format", "pt")],
            &["-format", "+pt"],
        ),
    ];
    for (tied, vectors, metadata, expected) in cases {
        let (a, b) = (support::tied(tied, T), native(vectors, metadata));
        let what = format!("{tied:?} {vectors:?} {metadata:?}");
        assert_eq!(differences(&compare(&a, &b)), *expected, "{what}");
        let reverse: Vec<String> = differences(&compare(&b, &a));
        let mirrored = expected.iter().map(|name| match name.split_at(1) {
            ("-", name) => format!("+{name}"),
            ("+", name) => format!("-{name}"),
            _ => name.to_string(),
        });
        assert_eq!(reverse, mirrored.collect::<Vec<_>>(), "reverse: {what}");
    }
}

/// Two tensors of A that B's metadata call one are not, if their bytes are not.
#[test]
fn metadata_do_not_make_tensors_equal() {
    let a = native(&[("head", &[1.0]), ("wte", &[2.0])], &[]);
    let b = native(&[("wte", &[2.0])], &[("head", "wte")]);
    assert_eq!(differences(&compare(&a, &b)), ["head"]);
    assert_eq!(differences(&compare(&b, &a)), ["head"]);
}

/// Larger than what one thread takes on at a time, the one transposed and the other not.
#[test]
fn a_large_tensor() {
    const ROWS: usize = 1100;
    const COLUMNS: usize = 2311;
    let value = |row: usize, column: usize| (row * COLUMNS + column) as f32;
    let columns = (0..COLUMNS).flat_map(|column| (0..ROWS).map(move |row| value(row, column)));
    let tensor = support::Tensor {
        name: "t",
        storage: 0,
        offset: 0,
        shape: &[ROWS as u32, COLUMNS as u32],
        strides: &[1, ROWS as u32],
    };
    let a = support::checkpoint(&[tensor], &[support::Storage::floats(columns)]);
    let rows = |changed: &[(usize, f32)]| {
        let mut values: Vec<f32> = (0..ROWS * COLUMNS).map(|at| at as f32).collect();
        for (at, by) in changed {
            values[*at] += by;
        }
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        let view = TensorView::new(Dtype::F32, vec![ROWS, COLUMNS], &bytes).unwrap();
        safetensors::serialize([("t", view)], None).unwrap()
    };
    let comparison = compare(&a, &rows(&[]));
    assert!(comparison.is_equal());
    assert_eq!(comparison.equal_bytes, 4 * (ROWS * COLUMNS) as u64);

    // At the borders of 4 MiB and of 256 KiB, and at both ends.
    let border = (4 << 20) / 4;
    let changed = [
        (0, 1.0),
        (border / 16, 0.5),
        (border - 1, -8.0),
        (border, 2.0),
        (2 * border, 4.0),
        (ROWS * COLUMNS - 1, 1.0),
    ];
    let comparison = compare(&a, &rows(&changed));
    let [difference] = &*comparison.differences else {
        panic!("{comparison:?}");
    };
    let What::Bytes {
        tally, unit, count, ..
    } = &difference.what
    else {
        panic!("{difference:?}");
    };
    let expected = Tally {
        different: 6,
        largest: Some(Distance::Float(8.0)),
        ..Tally::default()
    };
    assert_eq!(*tally, expected);
    assert_eq!((*unit, *count), (Unit::Elements, (ROWS * COLUMNS) as u64));
}

fn touch(path: &Path) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(9))
        .unwrap();
}

#[test]
fn a_file_that_changes_meanwhile_is_no_result() {
    let directory = tempfile::tempdir().unwrap();
    let bytes = native(&[("t", &[1.0; 100])], &[]);
    let a = open(directory.path(), "a", &bytes);
    let b = open(directory.path(), "b", &bytes);
    let pairs = Pairs::find(&a, &b).unwrap();
    let failed = pairs.compare(&|_| touch(&directory.path().join("b")));
    assert_eq!(failed.unwrap_err().side, Side::B);

    let b = open(directory.path(), "b", &bytes);
    let pairs = Pairs::find(&a, &b).unwrap();
    touch(&directory.path().join("a"));
    assert_eq!(pairs.compare(&|_| {}).unwrap_err().side, Side::A);

    let c = open(directory.path(), "c", &bytes);
    let pairs = Pairs::find(&b, &c).unwrap();
    support::write(&directory.path().join("c"), &bytes[..40]);
    assert_eq!(pairs.compare(&|_| {}).unwrap_err().side, Side::B);
}
