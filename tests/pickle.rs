//! The pickle layer against CPython.

#[path = "pickle/accepted.rs"]
mod accepted;
#[path = "pickle/joblib.rs"]
mod joblib;
#[path = "pickle/refused.rs"]
mod refused;
#[path = "pickle/repr.rs"]
mod repr;
#[path = "pickle/window.rs"]
mod window;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use accepted::{ACCEPTED, OPCODES};
use proptest::prelude::*;
use repr::repr;
use serde_pickle::{HashableValue, SerOptions, Value};
use stfs::pickle::{CallKind, Error, ErrorKind, Limits, Object, Pickle, parse};

fn read(input: &[u8]) -> Result<Pickle<'_>, Error> {
    parse(input, &Limits::default())
}

fn refusal(input: &[u8]) -> Error {
    match read(input) {
        Ok(_) => panic!("accepted: {}", input.escape_ascii()),
        Err(error) => error,
    }
}

fn object_of(input: &[u8]) -> String {
    let pickle = read(input).unwrap();
    repr(&pickle, pickle.root())
}

#[test]
fn reads_what_cpython_reads() {
    for &(opcode, input, expected) in ACCEPTED {
        let pickle = match read(input) {
            Ok(pickle) => pickle,
            Err(error) => panic!("{opcode}: {}: {error}", input.escape_ascii()),
        };
        assert_eq!(repr(&pickle, pickle.root()), expected, "{opcode}");
        assert_eq!(pickle.end(), input.len() as u64, "{opcode}");
    }
}

#[test]
fn every_opcode_has_a_case() {
    const REFUSED: [&str; 5] = ["EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"];
    let accepted: HashSet<&str> = ACCEPTED
        .iter()
        .filter_map(|(title, _, _)| title.split(' ').next())
        .collect();
    for (_, name) in OPCODES {
        assert_ne!(accepted.contains(name), REFUSED.contains(name), "{name}");
    }
}

#[test]
fn knows_every_opcode_by_name_and_no_other_byte() {
    let limits = Limits {
        opcodes: 0,
        ..Limits::default()
    };
    for byte in 0..=u8::MAX {
        let error = parse(&[byte], &limits).unwrap_err();
        let known = OPCODES.iter().find(|(code, _)| *code == byte);
        assert_eq!(error.opcode, known.map(|(_, name)| *name), "{byte:#04x}");
        assert_eq!(
            error.kind == ErrorKind::UnknownOpcode(byte),
            known.is_none(),
            "{byte:#04x}"
        );
    }
}

#[test]
fn refuses_too_few_objects() {
    for &input in refused::STACK.iter().chain(refused::MARK) {
        let kind = refusal(input).kind;
        assert!(
            matches!(
                kind,
                ErrorKind::StackUnderflow | ErrorKind::NoMark | ErrorKind::OddItems
            ),
            "{}: {kind}",
            input.escape_ascii()
        );
    }
}

#[test]
fn refuses_truncated_arguments() {
    for &input in refused::TRUNCATED {
        let kind = refusal(input).kind;
        assert!(
            matches!(kind, ErrorKind::Truncated { .. } | ErrorKind::NoNewline),
            "{}: {kind}",
            input.escape_ascii()
        );
    }
}

#[test]
fn refuses_strings_out_of_quotes() {
    for &input in refused::QUOTES {
        let kind = refusal(input).kind;
        assert!(
            matches!(kind, ErrorKind::NotQuoted | ErrorKind::NoNewline),
            "{}: {kind}",
            input.escape_ascii()
        );
    }
}

/// CPython's C unpickler refuses these too, unless a comment says that it does not.
#[test]
fn refuses_with_place_and_reason() {
    let cases: &[(&[u8], &str)] = &[
        (b"", "byte 0: the pickle ends without STOP"),
        (b"N", "byte 1: the pickle ends without STOP"),
        (b"N\xff.", "byte 1: 0xff is not an opcode"),
        (
            b"\x80\x06N.",
            "byte 0 (PROTO): protocol 6 is not known (0 to 5 are)",
        ),
        // Lengths.
        (
            b"\x8d\0\0\0\0\x01\0\0\0abc.",
            "byte 0 (BINUNICODE8): 4294967296 bytes announced, 4 left",
        ),
        (
            b"N\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            "byte 1 (BINBYTES8): 18446744073709551615 bytes announced, 1 left",
        ),
        (
            b"\x96\0\0\0\0\0\0\0\x80.",
            "byte 0 (BYTEARRAY8): 9223372036854775808 bytes announced, 1 left",
        ),
        (
            b"X\xff\xff\xff\xff.",
            "byte 0 (BINUNICODE): 4294967295 bytes announced, 1 left",
        ),
        (
            b"B\xff\xff\xff\xff.",
            "byte 0 (BINBYTES): 4294967295 bytes announced, 1 left",
        ),
        (
            b"T\xff\xff\xff\xff.",
            "byte 0 (BINSTRING): negative length -1",
        ),
        (
            b"\x8b\xff\xff\xff\xff.",
            "byte 0 (LONG4): negative length -1",
        ),
        // A bound, not CPython's.
        (
            b"\x8b\x01\x04\0\0.",
            "byte 0 (LONG4): more than 1024 bytes in an integer",
        ),
        // Numbers.
        (b"I\n.", "byte 0 (INT): `` is not a number"),
        (b"I1L\n.", "byte 0 (INT): `1L` is not a number"),
        (b"I1__0\n.", "byte 0 (INT): `1__0` is not a number"),
        (b"I1_\n.", "byte 0 (INT): `1_` is not a number"),
        (b"I_1\n.", "byte 0 (INT): `_1` is not a number"),
        (b"I0x\n.", "byte 0 (INT): `0x` is not a number"),
        (b"I- 1\n.", "byte 0 (INT): `- 1` is not a number"),
        // CPython's C unpickler reads 8 here, its Python unpickler fails.
        (b"I010\n.", "byte 0 (INT): `010` is not a number"),
        // As before: 1 in C, which takes NUL for the end of the line.
        (b"I1\0\n.", "byte 0 (INT): `1\\x00` is not a number"),
        (b"L012L\n.", "byte 0 (LONG): `012` is not a number"),
        (b"L1LL\n.", "byte 0 (LONG): `1L` is not a number"),
        (b"L\n.", "byte 0 (LONG): `` is not a number"),
        (b"F\n.", "byte 0 (FLOAT): `` is not a number"),
        (b"F 1.0\n.", "byte 0 (FLOAT): ` 1.0` is not a number"),
        (b"F1_0.0\n.", "byte 0 (FLOAT): `1_0.0` is not a number"),
        (b"F0x1p3\n.", "byte 0 (FLOAT): `0x1p3` is not a number"),
        (
            b"F1e400\n.",
            "byte 0 (FLOAT): `1e400` is too large for a float",
        ),
        // The memo.
        (b"g1\n.", "byte 0 (GET): nothing stored in the memo at 1"),
        (
            b"h\x01.",
            "byte 0 (BINGET): nothing stored in the memo at 1",
        ),
        (
            b"Nq\0j\x01\0\0\0.",
            "byte 3 (LONG_BINGET): nothing stored in the memo at 1",
        ),
        (
            b"Np-1\n.",
            "byte 1 (PUT): memo index -1 is not between 0 and 2^63 - 1",
        ),
        (
            b"Np9223372036854775808\n.",
            "byte 1 (PUT): memo index 9223372036854775808 is not between 0 and 2^63 - 1",
        ),
        (b"Npx\n.", "byte 1 (PUT): `x` is not a number"),
        // Text.
        (
            b"X\x01\0\0\0\xff.",
            "byte 0 (BINUNICODE): the text is not UTF-8",
        ),
        (
            b"\x8c\x02\xc0\x80.",
            "byte 0 (SHORT_BINUNICODE): the text is not UTF-8",
        ),
        (
            b"\x8c\x02\xed\xa0.",
            "byte 0 (SHORT_BINUNICODE): the text is not UTF-8",
        ),
        (
            b"V\\u12\n.",
            "byte 0 (UNICODE): invalid escape at byte 0 of the text",
        ),
        (
            b"Va\\U00110000\n.",
            "byte 0 (UNICODE): invalid escape at byte 1 of the text",
        ),
        (
            b"S'\\x4'\n.",
            "byte 0 (STRING): invalid escape at byte 1 of the text",
        ),
        (
            b"S'a\\'\n.",
            "byte 0 (STRING): invalid escape at byte 2 of the text",
        ),
        (b"P\xc3\xa9\n.", "byte 0 (PERSID): the text is not ASCII"),
        // Imports.
        (
            b"c\nf\n.",
            "byte 0 (GLOBAL): the import has an empty module or name",
        ),
        (
            b"cm\n\n.",
            "byte 0 (GLOBAL): the import has an empty module or name",
        ),
        (b"c\xff\nf\n.", "byte 0 (GLOBAL): the text is not UTF-8"),
        (b"(i\xc3\xa9\nf\n.", "byte 1 (INST): the text is not ASCII"),
        (
            b"K\x01\x8c\x01f\x93.",
            "byte 5 (STACK_GLOBAL): a str expected, found an int",
        ),
        (
            b"\x8c\x01mC\x01f\x93.",
            "byte 6 (STACK_GLOBAL): a str expected, found bytes",
        ),
        // Calls.
        (
            b"N)R.",
            "byte 2 (REDUCE): something to call expected, found None",
        ),
        (
            b"\x8c\x01f)R.",
            "byte 4 (REDUCE): something to call expected, found a str",
        ),
        (
            b"cm\nf\n]R.",
            "byte 6 (REDUCE): a tuple of arguments expected, found a list",
        ),
        (
            b"cm\nf\nN\x81.",
            "byte 6 (NEWOBJ): a tuple of arguments expected, found None",
        ),
        (
            b"K\x01)\x81.",
            "byte 3 (NEWOBJ): something to call expected, found an int",
        ),
        (
            b"cm\nf\n))\x92.",
            "byte 7 (NEWOBJ_EX): a dict of arguments expected, found a tuple",
        ),
        (
            b"(K\x01o.",
            "byte 3 (OBJ): something to call expected, found an int",
        ),
        // Containers. CPython appends to a bytearray, sets items of a list, and
        // lets pass a BUILD without state and an APPENDS of nothing.
        (b"}Na.", "byte 2 (APPEND): a list expected, found a dict"),
        (
            b"\x8f(Ne.",
            "byte 3 (APPENDS): a list expected, found a set",
        ),
        (
            b"\x96\0\0\0\0\0\0\0\0K\x01a.",
            "byte 11 (APPEND): a list expected, found a bytearray",
        ),
        (
            b"K\x01(e.",
            "byte 3 (APPENDS): a list expected, found an int",
        ),
        (
            b"](N\x90.",
            "byte 3 (ADDITEMS): a set expected, found a list",
        ),
        (
            b"(\x91(N\x90.",
            "byte 4 (ADDITEMS): a set expected, found a frozenset",
        ),
        (
            b"](NNu.",
            "byte 4 (SETITEMS): a dict expected, found a list",
        ),
        (
            b"]NaK\0Ns.",
            "byte 6 (SETITEM): a dict expected, found a list",
        ),
        (
            b"cm\nC\nNb.",
            "byte 6 (BUILD): the result of a call expected, found a global",
        ),
        (
            b"}}b.",
            "byte 2 (BUILD): the result of a call expected, found a dict",
        ),
        (
            b"}(Nu.",
            "byte 3 (SETITEMS): an odd number of keys and values",
        ),
        // Hashing.
        (
            b"(]Nd.",
            "byte 3 (DICT): a list cannot be a dict key or set member",
        ),
        (
            b"}}Ns.",
            "byte 3 (SETITEM): a dict cannot be a dict key or set member",
        ),
        (
            b"}(N]\x85Nu.",
            "byte 6 (SETITEMS): an odd number of keys and values",
        ),
        (
            b"}(]\x85\x85Nu.",
            "byte 6 (SETITEMS): a tuple cannot be a dict key or set member",
        ),
        (
            b"\x8f(\x8f\x90.",
            "byte 3 (ADDITEMS): a set cannot be a dict key or set member",
        ),
        (
            b"(\x96\0\0\0\0\0\0\0\0\x91.",
            "byte 10 (FROZENSET): a bytearray cannot be a dict key or set member",
        ),
        // What lies outside of the file.
        (
            b"\x82\x07.",
            "byte 0 (EXT1): extension code 7: the registry of a running process is not part of a file",
        ),
        (
            b"\x83\0\x01.",
            "byte 0 (EXT2): extension code 256: the registry of a running process is not part of a file",
        ),
        (
            b"\x84\xff\xff\xff\xff.",
            "byte 0 (EXT4): extension code -1: the registry of a running process is not part of a file",
        ),
        (
            b"\x97.",
            "byte 0 (NEXT_BUFFER): the pickle refers to a buffer outside of itself",
        ),
        (
            b"N\x98.",
            "byte 1 (READONLY_BUFFER): the pickle refers to a buffer outside of itself",
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(
            refusal(input).to_string(),
            *expected,
            "{}",
            input.escape_ascii()
        );
    }
}

/// Each of these is accepted by one of CPython's readers (C from bytes, C from
/// a file, Python) and but for the last refused by another.
#[test]
fn holds_frames_to_their_length() {
    let cases: &[(&[u8], &str)] = &[
        (
            b"\x95\x03\0\0\0\0\0\0\0N.",
            "byte 0 (FRAME): 3 bytes announced, 2 left",
        ),
        (
            b"\x95\x02\0\0\0\0\0\0\0M\x01\x02.",
            "byte 9 (BININT2): 2 bytes announced, 1 left in the frame",
        ),
        (
            b"\x95\x04\0\0\0\0\0\0\0cm\nf\n.",
            "byte 9 (GLOBAL): the line does not end",
        ),
        (
            b"\x95\x0b\0\0\0\0\0\0\0\x95\x01\0\0\0\0\0\0\0N0N.",
            "byte 9 (FRAME): the last frame has not been read to its end (2 left)",
        ),
        (
            b"\x95\x03\0\0\0\0\0\0\0N.N",
            "byte 10 (STOP): the last frame has not been read to its end (1 left)",
        ),
    ];
    for (input, expected) in cases {
        assert_eq!(refusal(input).to_string(), *expected);
    }
}

#[test]
fn tells_kinds_of_string_and_call_apart() {
    let pickle = read(b"(U\x01a\x8c\x01aC\x01at.").unwrap();
    let items = pickle.as_tuple(pickle.root()).unwrap();
    assert!(matches!(pickle.get(items[0]), Object::String8(_)));
    assert!(matches!(pickle.get(items[1]), Object::Str(_)));
    assert!(matches!(pickle.get(items[2]), Object::Bytes(bytes) if bytes.as_bytes() == Some(b"a")));
    assert_eq!(pickle.as_str(items[0]), Some("a"));
    assert_eq!(pickle.as_str(items[1]), Some("a"));
    assert_eq!(pickle.as_str(items[2]), None);

    let cases: &[(&[u8], CallKind)] = &[
        (b"cm\nC\n)R.", CallKind::Reduce),
        (b"cm\nC\n)\x81.", CallKind::NewObj),
        (b"cm\nC\n)}\x92.", CallKind::NewObjEx),
        (b"(im\nC\n.", CallKind::Inst),
        (b"(cm\nC\no.", CallKind::Obj),
    ];
    for &(input, kind) in cases {
        let pickle = read(input).unwrap();
        let call = pickle.as_call(pickle.root()).unwrap();
        assert_eq!(call.kind, kind);
        assert_eq!(pickle.global(call.callable), Some(("m", "C")));
        assert_eq!(pickle.as_tuple(call.args), Some(&[][..]));
    }
}

#[test]
fn python_2_strings_name_imports() {
    // CPython decodes them first: `loads(b"U\x02osU\x06getcwd\x93)R.")` calls.
    assert_eq!(object_of(b"U\x02osU\x06getcwd\x93)R."), "os.getcwd()");
}

#[test]
fn repeated_keys_are_one_key() {
    // {1: 'a', True: 'b', 1.0: 'c', 'k': 'd', 'k': 'e'} is {1: 'c', 'k': 'e'}.
    let input = b"(K\x01\x8c\x01a\x88\x8c\x01bG?\xf0\0\0\0\0\0\0\x8c\x01c\
        \x8c\x01k\x8c\x01d\x8c\x01k\x8c\x01ed.";
    assert_eq!(object_of(input), "{1: 'c', 'k': 'e'}");
    // 2^63 as a float and 2^63 - 1 are two keys.
    let input = b"(\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fNGC\xe0\0\0\0\0\0\0Nd.";
    assert_eq!(read(input).map(|p| p.entries(p.root()).len()).unwrap(), 2);
    // b'k' is not 'k'.
    assert_eq!(
        object_of(b"(\x8c\x01kNC\x01kNd."),
        "{'k': None, b'k': None}"
    );
}

#[test]
fn shares_objects_by_id() {
    let pickle = read(b"]q\x00h\x00\x86.").unwrap();
    let items = pickle.as_tuple(pickle.root()).unwrap();
    assert_eq!(items[0], items[1]);

    let pickle = read(b"]]\x86.").unwrap();
    let items = pickle.as_tuple(pickle.root()).unwrap();
    assert_ne!(items[0], items[1]);
}

#[test]
fn stops_at_stop() {
    let two = b"\x80\x02K\x01.\x80\x02K\x02.";
    let first = read(two).unwrap();
    assert_eq!(first.end(), 5);
    let second = read(&two[5..]).unwrap();
    assert_eq!(second.as_int(second.root()), Some(2));
}

#[test]
fn lists_imports_once_in_order_used_or_not() {
    let pickle = read(b"cos\nsystem\n0(im\nC\n0\x8c\x02os\x8c\x06system\x93cos\na.b\nN.").unwrap();
    let imports: Vec<(u64, &str, &str)> = pickle
        .imports()
        .iter()
        .map(|import| (import.offset, &*import.module, &*import.name))
        .collect();
    assert_eq!(
        imports,
        [(0, "os", "system"), (13, "m", "C"), (32, "os", "a.b")]
    );
}

#[test]
fn a_failure_keeps_the_imports_before_it() {
    for input in [
        &b"cposix\nsystem\n\x8c\x02id\x85R\xff"[..],
        b"cposix\nsystem\nNR.",
        b"cposix\nsystem\n",
        b"iposix\nsystem\n.",
    ] {
        let imports = refusal(input).imports;
        assert_eq!(imports.len(), 1, "{}", input.escape_ascii());
        assert_eq!(&*imports[0].module, "posix");
        assert_eq!(&*imports[0].name, "system");
        assert_eq!(imports[0].offset, 0);
    }
}

#[test]
fn limits_bound_what_they_name() {
    let default = Limits::default;
    #[rustfmt::skip]
    let cases: &[(Limits, &[u8], &[u8], &str)] = &[
        (Limits { opcodes: 2, ..default() }, b"N.", b"N0N.", "byte 2 (NONE): more than 2 opcodes"),
        (Limits { number_line: 3, ..default() }, b"I100\n.", b"I1000\n.", "byte 0 (INT): more than 3 bytes in a number"),
        (Limits { long_bytes: 2, ..default() }, b"L32767L\n.", b"L32768L\n.", "byte 0 (LONG): more than 2 bytes in an integer"),
        (Limits { long_bytes: 2, ..default() }, b"\x8a\x02ab.", b"\x8a\x03abc.", "byte 0 (LONG1): more than 2 bytes in an integer"),
        (Limits { name: 2, ..default() }, b"cos\nos\n.", b"cos\nabc\n.", "byte 0 (GLOBAL): more than 2 bytes in the module or name of an import"),
        (Limits { name: 2, ..default() }, b"\x8c\x02os2\x93.", b"\x8c\x03abc2\x93.", "byte 6 (STACK_GLOBAL): more than 2 bytes in the module or name of an import"),
        (Limits { imports: 1, ..default() }, b"cm\na\ncm\na\n.", b"cm\na\ncm\nb\n.", "byte 5 (GLOBAL): more than 1 distinct imports"),
    ];
    for (limits, within, beyond, expected) in cases {
        assert!(parse(within, limits).is_ok(), "{}", within.escape_ascii());
        assert_eq!(parse(beyond, limits).unwrap_err().to_string(), *expected);
    }
}

fn quickly<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < Duration::from_secs(10));
    result
}

#[test]
fn survives_deep_nesting() {
    const DEPTH: usize = 200_000;
    let lists = [b"]".repeat(DEPTH), b"a".repeat(DEPTH - 1), b".".to_vec()].concat();
    let tuples = [b"N".to_vec(), b"\x85".repeat(DEPTH), b".".to_vec()].concat();
    let marks = [b"(".repeat(DEPTH), b"t".repeat(DEPTH), b".".to_vec()].concat();
    let keys = [b"}N".to_vec(), b"\x85".repeat(DEPTH), b"Ns.".to_vec()].concat();
    for input in [lists, tuples, marks, keys] {
        quickly(|| drop(read(&input).unwrap()));
    }
}

#[test]
fn survives_billion_laughs() {
    // Forty lists, each of twice the one before.
    let by_dup = [b"N".to_vec(), b"2\x86".repeat(40), b".".to_vec()].concat();
    let by_memo = [
        b"]".to_vec(),
        b"\x94(h\x00h\x00l0h\x00h\x00\x86".repeat(40),
        b".".to_vec(),
    ];
    for input in [by_dup, by_memo.concat()] {
        quickly(|| drop(read(&input).unwrap()));
    }
}

#[test]
fn survives_memo_bombs() {
    let far = b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.";
    assert_eq!(object_of(far), "None");
    let farther = b"Np9223372036854775807\n0g9223372036854775807\n.";
    assert_eq!(object_of(farther), "None");
}

#[test]
fn survives_long_numbers() {
    let digits = [b"L".to_vec(), b"9".repeat(1 << 20), b"L\n.".to_vec()].concat();
    let error = quickly(|| refusal(&digits));
    assert_eq!(error.kind.to_string(), "more than 4096 bytes in a number");
    // 10^2465 needs 8189 bits and a sign, 10^2466 more than 1024 bytes.
    let power = |zeros| [b"L1".to_vec(), b"0".repeat(zeros), b"L\n.".to_vec()].concat();
    assert!(read(&power(2465)).is_ok());
    let error = refusal(&power(2466));
    assert_eq!(error.kind.to_string(), "more than 1024 bytes in an integer");
}

#[test]
fn crosses_threads() {
    fn crosses<T: Send + Sync + 'static>() {}
    crosses::<Pickle<'static>>();
    crosses::<Error>();
}

/// Plain values with what Python writes for them in `repr`.
fn value() -> impl Strategy<Value = (Value, String)> {
    let leaf = prop_oneof![
        Just((Value::None, "None".to_string())),
        any::<bool>().prop_map(|b| (Value::Bool(b), if b { "True" } else { "False" }.into())),
        any::<i64>().prop_map(|i| (Value::I64(i), i.to_string())),
        (-1000..1000).prop_map(|i| (
            Value::F64(f64::from(i) / 4.0),
            format!("{:?}", f64::from(i) / 4.0)
        )),
        "[a-z ]{0,300}".prop_map(|s| (Value::String(s.clone()), format!("'{s}'"))),
        "[a-z ]{0,300}".prop_map(|s| (Value::Bytes(s.clone().into()), format!("b'{s}'"))),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        let items = prop::collection::vec(inner.clone(), 0..8);
        let join = |items: &[(Value, String)]| {
            let texts: Vec<&str> = items.iter().map(|(_, text)| text.as_str()).collect();
            texts.join(", ")
        };
        let values =
            |items: Vec<(Value, String)>| items.into_iter().map(|(value, _)| value).collect();
        prop_oneof![
            items.clone().prop_map(move |items| {
                let text = format!("[{}]", join(&items));
                (Value::List(values(items)), text)
            }),
            items.prop_map(move |items| {
                let comma = if items.len() == 1 { "," } else { "" };
                let text = format!("({}{comma})", join(&items));
                (Value::Tuple(values(items)), text)
            }),
            prop::collection::btree_map("[a-z]{1,8}", inner, 0..8).prop_map(|map| {
                let texts: Vec<String> = map
                    .iter()
                    .map(|(k, (_, text))| format!("'{k}': {text}"))
                    .collect();
                let pairs = map
                    .into_iter()
                    .map(|(k, (v, _))| (HashableValue::String(k), v));
                (
                    Value::Dict(pairs.collect()),
                    format!("{{{}}}", texts.join(", ")),
                )
            }),
        ]
    })
}

proptest! {
    #[test]
    fn reads_another_writers_pickles((value, expected) in value()) {
        let input = serde_pickle::value_to_vec(&value, SerOptions::new()).unwrap();
        prop_assert_eq!(object_of(&input), expected);
        for end in 0..input.len() {
            prop_assert!(read(&input[..end]).is_err());
        }
    }

    #[test]
    fn random_bytes_do_not_panic(input in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read(&input);
    }

    #[test]
    fn random_opcodes_do_not_panic(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        let input: Vec<u8> = picks
            .iter()
            .flat_map(|pick| {
                let (_, pickle, _) = pick.get(ACCEPTED);
                &pickle[..pickle.len() - 1]
            })
            .copied()
            .collect();
        let _ = read(&input);
    }

    #[test]
    fn changed_bytes_do_not_panic(
        case in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let (_, pickle, _) = case.get(ACCEPTED);
        let mut input = pickle.to_vec();
        *at.get_mut(&mut input) = byte;
        let _ = read(&input);
    }
}

/// Of a pickle that ends in its only STOP, no shorter part is a pickle.
#[test]
fn prefixes_are_refused() {
    for &(opcode, input, _) in ACCEPTED {
        for end in 0..input.len() {
            assert!(read(&input[..end]).is_err(), "{opcode}: {end}");
        }
    }
}
