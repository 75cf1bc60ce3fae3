//! Arrays that numpy saved. The headers and elements are those that numpy 1.26
//! and 2.4 write alike.

use safetensors::Dtype;
use stfs::checkpoint::Cause;

use super::archive::Archive;
use super::zip_oddities::deflate;
use super::{Seen, read, refused};

/// A file as `numpy.save` lays it out: the header is padded so that the elements
/// begin at a multiple of 64 bytes.
fn npy(version: u8, header: &str, elements: &[u8]) -> Vec<u8> {
    let prefix = if version == 1 { 10 } else { 12 };
    let len = (prefix + header.len() + 1).next_multiple_of(64) - prefix;
    let mut file = b"\x93NUMPY".to_vec();
    file.extend([version, 0]);
    match version {
        1 => file.extend((len as u16).to_le_bytes()),
        _ => file.extend((len as u32).to_le_bytes()),
    }
    file.extend(format!("{header:<width$}\n", width = len - 1).bytes());
    file.extend(elements);
    file
}

fn header(descr: &str, fortran_order: &str, shape: &str) -> String {
    format!("{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {shape}, }}")
}

const NUMBERS: &[u8] = b"\x01\0\x02\0\x03\0\x04\0\x05\0\x06\0";

fn seen(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Seen {
    Seen {
        name: name.into(),
        dtype,
        shape: shape.into(),
        bytes: bytes.into(),
    }
}

#[test]
fn reads_arrays_in_both_orders_and_byte_orders() {
    let wanted = [seen("tensor", Dtype::I16, &[2, 3], NUMBERS)];
    let files = [
        npy(1, &header("<i2", "False", "(2, 3)"), NUMBERS),
        npy(2, &header("<i2", "False", "(2, 3)"), NUMBERS),
        npy(3, &header("<i2", "False", "(2, 3)"), NUMBERS),
        npy(
            1,
            &header("<i2", "True", "(2, 3)"),
            b"\x01\0\x04\0\x02\0\x05\0\x03\0\x06\0",
        ),
        npy(
            1,
            &header(">i2", "False", "(2, 3)"),
            b"\0\x01\0\x02\0\x03\0\x04\0\x05\0\x06",
        ),
        // Python 2, and a writer with its own idea of blanks.
        npy(1, &header("<i2", "False", "(2L, 3L)"), NUMBERS),
        npy(
            1,
            "{\"shape\":(2,3),\"fortran_order\":False,\"descr\":\"<i2\"}",
            NUMBERS,
        ),
    ];
    for file in files {
        assert_eq!(read(&file).unwrap(), wanted, "{}", file.escape_ascii());
    }
}

#[test]
fn reads_every_numeric_type() {
    for (descr, dtype, size) in [
        ("|b1", Dtype::BOOL, 1),
        ("|i1", Dtype::I8, 1),
        ("<i4", Dtype::I32, 4),
        ("<i8", Dtype::I64, 8),
        ("|u1", Dtype::U8, 1),
        ("<u2", Dtype::U16, 2),
        ("<u4", Dtype::U32, 4),
        ("<u8", Dtype::U64, 8),
        ("<f2", Dtype::F16, 2),
        ("<f4", Dtype::F32, 4),
        ("<f8", Dtype::F64, 8),
        ("<c8", Dtype::C64, 8),
    ] {
        let zeros = vec![0; size];
        let file = npy(1, &header(descr, "False", "(1,)"), &zeros);
        assert_eq!(read(&file).unwrap(), [seen("tensor", dtype, &[1], &zeros)]);
    }
    // complex128 has no name: 1+2j becomes [1.0, 2.0].
    let number = [1.0_f64.to_le_bytes(), 2.0_f64.to_le_bytes()].concat();
    assert_eq!(
        read(&npy(1, &header("<c16", "False", "()"), &number)).unwrap(),
        [seen("tensor", Dtype::F64, &[2], &number)]
    );
    let swapped = [1.0_f64.to_be_bytes(), 2.0_f64.to_be_bytes()].concat();
    assert_eq!(
        read(&npy(1, &header(">c16", "True", "(1, 1)"), &swapped)).unwrap(),
        [seen("tensor", Dtype::F64, &[1, 1, 2], &number)]
    );
}

#[test]
fn reads_arrays_without_dimensions_or_elements() {
    let seven = npy(1, &header("|u1", "False", "()"), &[7]);
    assert_eq!(
        read(&seven).unwrap(),
        [seen("tensor", Dtype::U8, &[], &[7])]
    );
    let none = npy(1, &header("<f4", "True", "(0, 3)"), &[]);
    assert_eq!(
        read(&none).unwrap(),
        [seen("tensor", Dtype::F32, &[0, 3], &[])]
    );
}

#[test]
fn refuses_what_are_no_numbers() {
    let refuse = |descr: &str, cause| {
        let file = npy(1, &header(descr, "False", "(1,)"), &[0; 16]);
        refused(&file, cause)
    };
    assert!(refuse("|O", Cause::Unsupported).contains("objects"));
    refuse("|V2", Cause::Unsupported);
    refuse("<U2", Cause::NoTensors);
    refuse("|S3", Cause::NoTensors);
    refuse("<M8[D]", Cause::NoTensors);
    refuse("<f16", Cause::Inexpressible);
    refuse("<i3", Cause::Inexpressible);
    let records =
        "{'descr': [('a', '<f4'), ('b', '<i2')], 'fortran_order': False, 'shape': (1,), }";
    refused(&npy(1, records, &[0; 6]), Cause::Unsupported);
}

#[test]
fn refuses_headers_that_numpy_does_not_write() {
    for text in [
        "",
        "{",
        "{}",
        "{'descr': '<i2', 'fortran_order': False}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (6,), 'more': 1}",
        "{'descr': '<i2', 'descr': '<i2', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<i2', 'fortran_order': 0, 'shape': (6,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (6)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (-6,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (06,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (0x6,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (6, 1 2)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': [6]}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999999999999,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (4294967296, 4294967296)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (6,)} + {}",
        "{'descr': '\\x3ci2', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': 'i2', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<i2, 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<i2', 'fortran_order': False, 'shape': __import__('os').getpid()}",
    ] {
        let refusal = read(&npy(1, text, NUMBERS)).unwrap_err();
        let is_wrong = matches!(refusal.cause(), Cause::Malformed | Cause::Inexpressible);
        assert!(is_wrong, "{text}: {refusal}");
    }
    let deep = format!(
        "{{'descr': '<i2', 'fortran_order': False, 'shape': ({}6)}}",
        "1, ".repeat(64)
    );
    refused(&npy(1, &deep, NUMBERS), Cause::TooLarge);
    refused(
        &npy(9, &header("<i2", "False", "(6,)"), NUMBERS),
        Cause::Unsupported,
    );
}

#[test]
fn refuses_files_with_fewer_or_more_bytes() {
    let file = npy(1, &header("<i2", "False", "(2, 3)"), NUMBERS);
    for len in [6, 7, 9, 10, 127, file.len() - 1] {
        refused(&file[..len], Cause::NotDownloaded);
    }
    refused(&[&file[..], b"\0"].concat(), Cause::Unsupported);
    // A header of almost four gigabytes.
    refused(b"\x93NUMPY\x02\0\xf0\xff\xff\xff{'descr'", Cause::TooLarge);
}

/// An archive as `numpy.savez` makes it.
fn npz(arrays: &[(&str, Vec<u8>)]) -> Archive {
    let mut archive = Archive::default();
    for (name, file) in arrays {
        archive.push(&format!("{name}.npy"), file);
    }
    archive
}

fn several() -> Archive {
    npz(&[
        (
            "Transformer/kernel",
            npy(1, &header("<i2", "True", "(2, 3)"), NUMBERS),
        ),
        ("W", npy(1, &header("|u1", "False", "(2,)"), &[1, 2])),
        ("w", npy(1, &header("|u1", "False", "()"), &[3])),
    ])
}

fn several_seen() -> [Seen; 3] {
    let columns = b"\x01\0\x03\0\x05\0\x02\0\x04\0\x06\0";
    [
        seen("Transformer/kernel", Dtype::I16, &[2, 3], columns),
        seen("W", Dtype::U8, &[2], &[1, 2]),
        seen("w", Dtype::U8, &[], &[3]),
    ]
}

#[test]
fn reads_archives_of_arrays() {
    assert_eq!(read(&several().bytes()).unwrap(), several_seen());
    let deflated = several().each(|entry| deflate(entry, entry.data.len()));
    assert_eq!(read(&deflated.bytes()).unwrap(), several_seen());
}

#[test]
fn refuses_archives_with_an_array_that_cannot_be_read() {
    let good = || npy(1, &header("|u1", "False", "(2,)"), &[1, 2]);
    let objects = npy(1, &header("|O", "False", "(1,)"), b"\x80\x04N.");
    let refusal = refused(
        &npz(&[("good", good()), ("bad", objects)]).bytes(),
        Cause::Unsupported,
    );
    assert!(
        refusal.contains("`bad`") && refusal.contains("objects"),
        "{refusal}"
    );
    let cut_off = good()[..129].to_vec();
    refused(
        &npz(&[("good", good()), ("bad", cut_off)]).bytes(),
        Cause::NotDownloaded,
    );
    refused(
        &npz(&[("bad", b"no array".to_vec())]).bytes(),
        Cause::Malformed,
    );
    refused(
        &npz(&[("twice", good()), ("twice", good())]).bytes(),
        Cause::Ambiguous,
    );
    refused(
        &npz(&[("__metadata__", good())]).bytes(),
        Cause::Inexpressible,
    );
    // Deflated to nothing but a few bytes.
    let damaged = npz(&[("bad", good())]).each(|entry| {
        deflate(entry, 130);
        entry.data = vec![0xff; entry.data.len()];
    });
    refused(&damaged.bytes(), Cause::Malformed);
}
