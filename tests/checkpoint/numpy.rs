//! numpy's arrays in pickles. The pickles are those of numpy 1.26 and 2.4.

use safetensors::Dtype;
use stfs::checkpoint::Cause;

use super::archive::Archive;
use super::opcodes::*;
use super::{Seen, read, refused};

const NUMPY1_PROTOCOL2: &[u8] =
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\
    \nencode\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\x09(K\x01K\
    \x02K\x03\x86q\ncnumpy\ndtype\nq\x0bX\x02\0\0\0i2q\x0c\x89\x88\x87q\x0dRq\x0e(K\x03X\x01\0\0\
    \0<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x89h\x03X\x0e\0\0\0\x01\0\x02\0\x03\
    \0\x04\0\x05\0\xc3\xba\xc3\xbfq\x11h\x05\x86q\x12Rq\x13tq\x14b.";

const NUMPY1_PROTOCOL4: &[u8] =
    b"\x80\x04\x95\x96\0\0\0\0\0\0\0\x8c\x15numpy.core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\
    \x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\
    \x02K\x03\x86\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02i2\x94\x89\x88\x87\x94R\x94(K\x03\x8c\
    \x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b\x89C\x0c\x01\0\x02\0\x03\0\x04\0\x05\
    \0\xfa\xff\x94t\x94b.";

const NUMPY1_PROTOCOL5: &[u8] =
    b"\x80\x05\x95\x81\0\0\0\0\0\0\0\x8c\x12numpy.core.numeric\x94\x8c\x0b_frombuffer\x94\x93\x94(\
    \x96\x0c\0\0\0\0\0\0\0\x01\0\x02\0\x03\0\x04\0\x05\0\xfa\xff\x94\x8c\x05numpy\x94\x8c\x05dty\
    pe\x94\x93\x94\x8c\x02i2\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\
    \xff\xff\xff\xffK\0t\x94bK\x02K\x03\x86\x94\x8c\x01C\x94t\x94R\x94.";

const NUMPY1_COLUMNS_BIG_ENDIAN: &[u8] =
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\
    \nencode\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\x09(K\x01K\
    \x02K\x03\x86q\ncnumpy\ndtype\nq\x0bX\x02\0\0\0i2q\x0c\x89\x88\x87q\x0dRq\x0e(K\x03X\x01\0\0\
    \0>q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x88h\x03X\x0e\0\0\0\0\x01\0\x04\0\
    \x02\0\x05\0\x03\xc3\xbf\xc3\xbaq\x11h\x05\x86q\x12Rq\x13tq\x14b.";

const NUMPY2_PROTOCOL2: &[u8] =
    b"\x80\x02cnumpy._core.multiarray\n_reconstruct\nq\0cnumpy\nndarray\nq\x01K\0\x85q\x02c_codecs\
    \nencode\nq\x03X\x01\0\0\0bq\x04X\x06\0\0\0latin1q\x05\x86q\x06Rq\x07\x87q\x08Rq\x09(K\x01K\
    \x02K\x03\x86q\ncnumpy\ndtype\nq\x0bX\x02\0\0\0i2q\x0c\x89\x88\x87q\x0dRq\x0e(K\x03X\x01\0\0\
    \0<q\x0fNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x10b\x89h\x03X\x0e\0\0\0\x01\0\x02\0\x03\
    \0\x04\0\x05\0\xc3\xba\xc3\xbfq\x11h\x05\x86q\x12Rq\x13tq\x14b.";

const NUMPY2_PROTOCOL4: &[u8] =
    b"\x80\x04\x95\x97\0\0\0\0\0\0\0\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\
    \x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\
    \x02K\x03\x86\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x02i2\x94\x89\x88\x87\x94R\x94(K\x03\x8c\
    \x01<\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b\x89C\x0c\x01\0\x02\0\x03\0\x04\0\x05\
    \0\xfa\xff\x94t\x94b.";

const NUMPY2_COLUMNS: &[u8] =
    b"\x80\x05\x95\x82\0\0\0\0\0\0\0\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer\x94\x93\x94\
    (\x96\x0c\0\0\0\0\0\0\0\x01\0\x04\0\x02\0\x05\0\x03\0\xfa\xff\x94\x8c\x05numpy\x94\x8c\x05dt\
    ype\x94\x93\x94\x8c\x02i2\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01<\x94NNNJ\xff\xff\xff\xffJ\
    \xff\xff\xff\xffK\0t\x94bK\x02K\x03\x86\x94\x8c\x01F\x94t\x94R\x94.";

/// `arange(12).reshape(2, 3, 2).transpose(1, 0, 2)`, of int8.
const TRANSPOSED: &[u8] =
    b"\x80\x05\x95\x8c\0\0\0\0\0\0\0\x8c\x13numpy._core.numeric\x94\x8c\x0b_frombuffer\x94\x93\x94\
    (\x96\x0c\0\0\0\0\0\0\0\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\n\x0b\x94\x8c\x05numpy\x94\x8c\
    \x05dtype\x94\x93\x94\x8c\x02i1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\
    \xffJ\xff\xff\xff\xffK\0t\x94bK\x02K\x03K\x02\x87\x94\x8c\x01K\x94K\x01K\0K\x02\x87\x94t\x94\
    R\x94.";

/// `{"t": text, "d": a date, "s": float32(1), "a": array([7]), "b": array([7])}`; the
/// bytes of the last two are one object in the pickle.
const NO_NUMBERS: &[u8] =
    b"\x80\x04\x95\x97\x01\0\0\0\0\0\0}\x94(\x8c\x01t\x94\x8c\x16numpy._core.multiarray\x94\x8c\
    \x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\
    \x94\x87\x94R\x94(K\x01K\x01\x85\x94h\x05\x8c\x05dtype\x94\x93\x94\x8c\x02U2\x94\x89\x88\x87\
    \x94R\x94(K\x03\x8c\x01<\x94NNNK\x08K\x04K\x08t\x94b\x89C\x08a\0\0\0b\0\0\0\x94t\x94b\x8c\
    \x01d\x94h\x04h\x07K\0\x85\x94h\x09\x87\x94R\x94(K\x01K\x01\x85\x94h\x0e\x8c\x02M8\x94\x89\
    \x88\x87\x94R\x94(K\x04h\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0N(C\x01D\x94K\x01K\x01K\
    \x01t\x94\x86\x94t\x94b\x89C\x08VG\0\0\0\0\0\0\x94t\x94b\x8c\x01s\x94h\x02\x8c\x06scalar\x94\
    \x93\x94h\x0e\x8c\x02f4\x94\x89\x88\x87\x94R\x94(K\x03h\x12NNNJ\xff\xff\xff\xffJ\xff\xff\xff\
    \xffK\0t\x94bC\x04\0\0\x80?\x94\x86\x94R\x94\x8c\x01a\x94h\x04h\x07K\0\x85\x94h\x09\x87\x94R\
    \x94(K\x01K\x01\x85\x94h\x0e\x8c\x02u1\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01|\x94NNNJ\xff\
    \xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b\x89C\x01\x07\x94t\x94b\x8c\x01b\x94h\x04h\x07K\0\x85\
    \x94h\x09\x87\x94R\x94(K\x01K\x01\x85\x94h5\x89h8t\x94bu.";

const OBJECTS: &[u8] =
    b"\x80\x04\x95\x91\0\0\0\0\0\0\0}\x94\x8c\x01w\x94\x8c\x16numpy._core.multiarray\x94\x8c\x0c_r\
    econstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\x94\x87\
    \x94R\x94(K\x01K\x01\x85\x94h\x05\x8c\x05dtype\x94\x93\x94\x8c\x02O8\x94\x89\x88\x87\x94R\
    \x94(K\x03\x8c\x01|\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?t\x94b\x89]\x94Nat\x94bs.";

const COMPLEX: &[u8] =
    b"\x80\x04\x95\x9a\0\0\0\0\0\0\0\x8c\x16numpy._core.multiarray\x94\x8c\x0c_reconstruct\x94\x93\
    \x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\0\x85\x94C\x01b\x94\x87\x94R\x94(K\x01K\
    \x01\x85\x94h\x03\x8c\x05dtype\x94\x93\x94\x8c\x03c16\x94\x89\x88\x87\x94R\x94(K\x03\x8c\x01\
    <\x94NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t\x94b\x89C\x10\0\0\0\0\0\0\xf0?\0\0\0\0\0\0\0@\
    \x94t\x94b.";

/// `array([[1, 2, 3], [4, 5, -6]])`
const BYTES: &[u8] = b"\x01\0\x02\0\x03\0\x04\0\x05\0\xfa\xff";

fn seen(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Seen {
    Seen {
        name: name.into(),
        dtype,
        shape: shape.into(),
        bytes: bytes.into(),
    }
}

fn dtype(kind: &str, order: &str) -> Vec<u8> {
    let made = call(global("numpy", "dtype"), &[text(kind), int(0), int(1)]);
    let none = || NONE.to_vec();
    let rest = [int(-1), int(-1), int(0)];
    let state = [
        vec![int(3), text(order), none(), none(), none()],
        rest.to_vec(),
    ]
    .concat();
    build(made, tuple(&state))
}

fn bytes(bytes: &[u8]) -> Vec<u8> {
    [b"B", &(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn python2_text(bytes: &[u8]) -> Vec<u8> {
    [b"T", &(bytes.len() as u32).to_le_bytes()[..], bytes].concat()
}

fn array_of(class: &str, shape: &[i64], dtype: Vec<u8>, data: Vec<u8>) -> Vec<u8> {
    let class = global("numpy", class);
    let reconstruct = global("numpy.core.multiarray", "_reconstruct");
    let made = call(reconstruct, &[class, ints(&[0]), text("b")]);
    build(
        made,
        tuple(&[int(1), ints(shape), dtype, FALSE.to_vec(), data]),
    )
}

fn array(shape: &[i64], data: &[u8]) -> Vec<u8> {
    array_of("ndarray", shape, dtype("u1", "|"), bytes(data))
}

#[test]
fn reads_what_numpy_pickles() {
    for file in [
        NUMPY1_PROTOCOL2,
        NUMPY1_PROTOCOL4,
        NUMPY1_PROTOCOL5,
        NUMPY1_COLUMNS_BIG_ENDIAN,
        NUMPY2_PROTOCOL2,
        NUMPY2_PROTOCOL4,
        NUMPY2_COLUMNS,
    ] {
        let wanted = [seen("tensor", Dtype::I16, &[2, 3], BYTES)];
        assert_eq!(read(file).unwrap(), wanted, "{}", file.escape_ascii());
    }
    let transposed = [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11];
    assert_eq!(
        read(TRANSPOSED).unwrap(),
        [seen("tensor", Dtype::I8, &[3, 2, 2], &transposed)]
    );
    let complex = [1.0_f64.to_le_bytes(), 2.0_f64.to_le_bytes()].concat();
    assert_eq!(
        read(COMPLEX).unwrap(),
        [seen("tensor", Dtype::F64, &[1, 2], &complex)]
    );
}

#[test]
fn reads_arrays_beside_tensors() {
    let items = [(text("a"), array(&[2], &[1, 2])), (text("w"), floats())];
    let archive = Archive::torch(&pickle(dict(&items)), &[("0", &[0; 16])]);
    assert_eq!(
        read(&archive.bytes()).unwrap(),
        [
            seen("a", Dtype::U8, &[2], &[1, 2]),
            seen("w", Dtype::F32, &[4], &[0; 16]),
        ]
    );
}

#[test]
fn reads_the_byte_strings_of_python_2() {
    let of = |data| pickle(array_of("ndarray", &[2], dtype("u1", "|"), data));
    let wanted = [seen("tensor", Dtype::U8, &[2], &[1, 0xfa])];
    assert_eq!(read(&of(python2_text(&[1, 0xfa]))).unwrap(), wanted);
    assert_eq!(read(&of(text("\x01\u{fa}"))).unwrap(), wanted);
    refused(&of(text("\x01\u{1fa}")), Cause::Malformed);
}

#[test]
fn reads_arrays_whose_bytes_stay_in_the_file() {
    let numbers: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let letters: String = numbers.iter().map(|byte| char::from(*byte)).collect();
    let array = |data| array_of("ndarray", &[100_000], dtype("u1", "|"), data);
    let encoded = call(
        global("_codecs", "encode"),
        &[text(&letters), text("latin1")],
    );
    let file = pickle(dict(&[
        (text("bytes"), array(bytes(&numbers))),
        (text("encoded"), array(encoded)),
        (text("letters"), array(text(&letters))),
        (text("python2"), array(python2_text(&numbers))),
    ]));
    let wanted = ["bytes", "encoded", "letters", "python2"]
        .map(|name| seen(name, Dtype::U8, &[100_000], &numbers));
    assert!(read(&file).unwrap() == wanted);
    // Text that cannot be so many bytes.
    let short = "\u{e9}".repeat(40_000);
    refused(&pickle(array(text(&short))), Cause::Malformed);
    refused(&pickle(array(text(&letters.repeat(2)))), Cause::Malformed);
}

#[test]
fn reads_device_tensors_kept_as_arrays() {
    let from = |dtype: &str| {
        let args = [
            array(&[2], &[1, 2]),
            global("torch", dtype),
            text("xla:0"),
            FALSE.to_vec(),
        ];
        let tensor = call(
            global("torch._utils", "_rebuild_device_tensor_from_numpy"),
            &args,
        );
        Archive::torch(&named(tensor), &[]).bytes()
    };
    assert_eq!(
        read(&from("uint8")).unwrap(),
        [seen("w", Dtype::U8, &[2], &[1, 2])]
    );
    refused(&from("int8"), Cause::Unsupported);
}

#[test]
fn texts_dates_and_single_numbers_are_no_tensors() {
    let one = |name| seen(name, Dtype::U8, &[1], &[7]);
    assert_eq!(read(NO_NUMBERS).unwrap(), [one("a"), one("b")]);
}

#[test]
fn types_of_ml_dtypes_are_those_of_torch() {
    let made = |name| {
        call(
            global("numpy", "dtype"),
            &[global("ml_dtypes", name), int(0), int(1)],
        )
    };
    let of = |name| pickle(array_of("ndarray", &[2], made(name), bytes(&[1, 2, 3, 4])));
    assert_eq!(
        read(&of("bfloat16")).unwrap(),
        [seen("tensor", Dtype::BF16, &[2], &[1, 2, 3, 4])]
    );
    refused(&of("int4"), Cause::Inexpressible);
}

#[test]
fn refuses_arrays_that_cannot_be_read() {
    assert!(refused(OBJECTS, Cause::Unsupported).contains("`w`"));
    let of = |shape: &[i64], dtype| pickle(array_of("ndarray", shape, dtype, bytes(&[0; 4])));
    refused(&of(&[3], dtype("u1", "|")), Cause::Malformed);
    refused(&of(&[5], dtype("u1", "|")), Cause::Malformed);
    refused(&of(&[-4], dtype("u1", "|")), Cause::Malformed);
    refused(&of(&[1 << 62, 1 << 62], dtype("f4", "<")), Cause::Malformed);
    refused(&of(&[1], dtype("f4", "?")), Cause::Malformed);
    refused(&of(&[1], dtype("V4", "|")), Cause::Unsupported);
    refused(&of(&[1], dtype("i3", "<")), Cause::Inexpressible);
    refused(&of(&[1], text("f4")), Cause::Unsupported);
    let masked = array_of("matrix", &[4], dtype("u1", "|"), bytes(&[0; 4]));
    refused(&pickle(masked), Cause::Unsupported);
    let reconstruct = global("numpy.core.multiarray", "_reconstruct");
    let empty = call(
        reconstruct,
        &[global("numpy", "ndarray"), ints(&[0]), text("b")],
    );
    refused(&pickle(empty), Cause::Unsupported);
}

#[test]
fn arrays_inside_objects_have_their_attributes_names() {
    let estimator = build(
        new(global("mine", "Estimator"), &[]),
        dict(&[(text("coefficients"), array(&[1], &[1]))]),
    );
    let file = pickle(dict(&[
        (text("a"), array(&[1], &[1])),
        (text("e"), estimator),
    ]));
    let names: Vec<String> = read(&file)
        .unwrap()
        .into_iter()
        .map(|seen| seen.name)
        .collect();
    assert_eq!(names, ["a", "e.coefficients"]);
}

#[test]
fn refuses_what_functions_make_of_arrays() {
    let made = call(global("mine", "estimator"), &[array(&[1], &[1])]);
    let file = pickle(dict(&[(text("a"), array(&[1], &[1])), (text("e"), made)]));
    let what = refused(&file, Cause::Unsupported);
    assert!(
        what.contains("`e`") && what.contains("mine.estimator"),
        "{what}"
    );
}

#[test]
fn refuses_pickles_that_are_not_alone() {
    refused(
        &[NUMPY2_PROTOCOL4, NUMPY2_PROTOCOL4].concat(),
        Cause::Unsupported,
    );
    let estimator = build(
        new(global("mine", "Estimator"), &[]),
        dict(&[(text("coefficients"), joblib(&[1], "u1", b"\0."))]),
    );
    let hidden = dict(&[(text("a"), array(&[1], &[1])), (text("e"), estimator)]);
    let seen = read(&pickle(hidden)).unwrap();
    assert_eq!(
        (&*seen[1].name, &*seen[1].bytes),
        ("e.coefficients", &b"."[..])
    );
    let storage = pickle(dict(&[(text("w"), floats())]));
    refused(&storage, Cause::Malformed);
}

/// joblib's stand-in for an array of bytes, and what follows it.
fn joblib(shape: &[i64], kind: &str, follows: &[u8]) -> Vec<u8> {
    let wrapper = new(global("joblib.numpy_pickle", "NumpyArrayWrapper"), &[]);
    let state = dict(&[
        (text("subclass"), global("numpy", "ndarray")),
        (text("shape"), ints(shape)),
        (text("order"), text("F")),
        (text("dtype"), dtype(kind, "|")),
        (text("allow_mmap"), TRUE.to_vec()),
        (text("numpy_array_alignment_bytes"), int(16)),
    ]);
    [build(wrapper, state), follows.to_vec()].concat()
}

#[test]
fn reads_arrays_that_joblib_puts_behind_their_objects() {
    let two = dict(&[
        (
            text("a"),
            joblib(&[2, 2], "u1", b"\x02\xff\xff\x01\x02\x03\x04"),
        ),
        (text("b"), joblib(&[], "u1", b"\0.")),
    ]);
    assert_eq!(
        read(&pickle(two)).unwrap(),
        [
            seen("a", Dtype::U8, &[2, 2], &[1, 3, 2, 4]),
            seen("b", Dtype::U8, &[], b"."),
        ]
    );
    let objects = |inner: &[u8]| pickle(dict(&[(text("o"), joblib(&[1], "O8", inner))]));
    let refusal = refused(&objects(b"\x80\x02]N\x61."), Cause::Unsupported);
    assert!(refusal.contains("`o`"), "{refusal}");
    refused(&objects(b"\x80\x02cos\nsystem\n."), Cause::Dangerous);
    // More elements than there are bytes, or numbers.
    refused(&pickle(joblib(&[9], "u1", b"\0.")), Cause::NotDownloaded);
    refused(
        &pickle(joblib(&[1 << 62, 4], "u1", b"\0.")),
        Cause::Malformed,
    );
    refused(&pickle(joblib(&[-1], "u1", b"\0.")), Cause::Unsupported);
    // In a torch file nothing follows.
    let archive = Archive::torch(&named(joblib(&[1], "u1", b"")), &[]);
    refused(&archive.bytes(), Cause::Unsupported);
}

fn eval(expression: &str, names: Vec<u8>) -> Vec<u8> {
    call(global("builtins", "eval"), &[text(expression), names])
}

#[test]
fn eval_that_returns_an_array_is_paddles() {
    let data = || dict(&[(text("data"), array(&[1], &[1]))]);
    assert_eq!(
        read(&pickle(dict(&[(text("w"), eval("data", data()))]))).unwrap(),
        [seen("w", Dtype::U8, &[1], &[1])]
    );
    let two = dict(&[(text("data"), array(&[1], &[1])), (text("x"), int(1))]);
    let attacks = [
        eval("data ", data()),
        eval("__import__('os')", data()),
        eval("data", two),
        eval("data", dict(&[(text("data"), int(1))])),
        eval("data", dict(&[(text("date"), array(&[1], &[1]))])),
        call(global("builtins", "eval"), &[text("data"), data(), data()]),
        call(global("builtins", "exec"), &[text("data"), data()]),
        build(eval("data", data()), int(1)),
        global("builtins", "eval"),
        // The array, and something else that is done on the way.
        [eval("data", data()), eval("1", data()), b"0".to_vec()].concat(),
        call(
            global("builtins", "map"),
            &[global("builtins", "eval"), list(&[])],
        ),
    ];
    for attack in attacks {
        let items = [(text("v"), eval("data", data())), (text("w"), attack)];
        assert!(refused(&pickle(dict(&items)), Cause::Dangerous).contains("builtins."));
    }
}

/// A parameter `w` of the shape that Paddle says it had, in these parts.
fn split(shape: &[i64], parts: &[&str]) -> Vec<u8> {
    let names: Vec<Vec<u8>> = parts.iter().map(|name| text(name)).collect();
    let about = dict(&[
        (text("OriginShape"), ints(shape)),
        (text("slices"), list(&names)),
    ]);
    pickle(dict(&[
        (text("w@@.0"), array(&[4], &[1, 2, 3, 4])),
        (text("w@@.1"), array(&[2], &[5, 6])),
        (text("b"), array(&[1], &[7])),
        (text("UnpackBigParamInfor@@"), dict(&[(text("w"), about)])),
    ]))
}

#[test]
fn joins_the_parameters_that_paddle_split() {
    assert_eq!(
        read(&split(&[2, 3], &["w@@.0", "w@@.1"])).unwrap(),
        [
            seen("b", Dtype::U8, &[1], &[7]),
            seen("w", Dtype::U8, &[2, 3], &[1, 2, 3, 4, 5, 6]),
        ]
    );
    for (shape, parts) in [
        (&[2, 3][..], &["w@@.0"][..]),
        (&[2, 2], &["w@@.0", "w@@.1"]),
        (&[2, 3], &["w@@.0", "w@@.2"]),
        (&[0], &[]),
    ] {
        let refusal = refused(&split(shape, parts), Cause::Malformed);
        assert!(refusal.contains("`w`"), "{refusal}");
    }
    let many = ["w@@.0", "w@@.0", "w@@.0", "w@@.0"];
    refused(&split(&[16], &many), Cause::Malformed);
}

#[test]
fn paddles_tensors_are_arrays_with_a_name() {
    let pair = tuple(&[text("linear_0.w_0"), array(&[1], &[1])]);
    let tensor = call(global("builtins", "tuple"), &[pair]);
    assert_eq!(
        read(&pickle(dict(&[(text("w"), tensor)]))).unwrap(),
        [seen("w", Dtype::U8, &[1], &[1])]
    );
}
