//! Which values are tensors, what they are called, and pickles made to keep a
//! reader busy.

use stfs::checkpoint::Cause;
use stfs::convert;

use super::archive::Archive;
use super::opcodes::*;
use super::{read, refused};

fn archive(object: Vec<u8>) -> Vec<u8> {
    Archive::torch(&pickle(object), &[("0", &[0; 16]), ("1", &[1; 16])]).bytes()
}

fn ones() -> Vec<u8> {
    rebuild(&view(storage("FloatStorage", "1", 4), 0, &[4], &[1]))
}

#[track_caller]
fn names(object: Vec<u8>) -> Vec<String> {
    let seen = read(&archive(object)).unwrap();
    seen.into_iter().map(|tensor| tensor.name).collect()
}

/// Python 2's `str`.
fn text8(text: &[u8]) -> Vec<u8> {
    [b"U", &[text.len() as u8][..], text].concat()
}

#[test]
fn names_are_dotted_paths() {
    let nested = dict(&[
        (text("a"), dict(&[(text("b"), floats()), (int(3), ones())])),
        (text("c"), list(&[int(1), tuple(&[floats_of("0", 1)])])),
    ]);
    assert_eq!(names(nested), ["a.3", "a.b", "c.1.0"]);
}

/// Part of a storage, which is no duplicate of the whole.
fn floats_of(key: &str, count: i64) -> Vec<u8> {
    rebuild(&view(storage("FloatStorage", key, 4), 0, &[count], &[1]))
}

#[test]
fn one_tensor_or_a_list_of_them_has_names_too() {
    assert_eq!(names(floats()), ["tensor"]);
    assert_eq!(names(list(&[floats(), ones()])), ["0", "1"]);
}

#[test]
fn unwraps_state_dict() {
    let wrapped = dict(&[
        (text("epoch"), int(7)),
        (text("state_dict"), dict(&[(text("w"), floats())])),
    ]);
    assert_eq!(names(wrapped), ["w"]);
    // Only a dict can be one.
    assert_eq!(
        names(dict(&[(text("state_dict"), floats())])),
        ["state_dict"]
    );
}

#[test]
fn reads_ordered_dicts_of_both_pythons() {
    let class = || global("collections", "OrderedDict");
    let items = list(&[list(&[text8(b"w"), floats()])]);
    assert_eq!(names(call(class(), std::slice::from_ref(&items))), ["w"]);
    let set = [call(class(), &[]), text("w"), floats(), b"s".to_vec()].concat();
    let metadata = dict(&[(text("_metadata"), ordered_dict())]);
    assert_eq!(names(build(set.clone(), metadata)), ["w"]);
    // `OrderedDict.__new__` puts nothing in.
    refused(&archive(new(class(), &[items])), Cause::Unsupported);
    // An attribute has a name too.
    let attribute = dict(&[(text("ema"), ones())]);
    assert_eq!(names(build(set, attribute)), ["ema", "w"]);
}

#[test]
fn the_last_value_of_a_key_counts() {
    let twice = dict(&[(text("w"), floats()), (text8(b"w"), ones())]);
    let seen = read(&archive(twice)).unwrap();
    assert_eq!((&*seen[0].name, &*seen[0].bytes), ("w", &[1; 16][..]));
}

#[test]
fn refuses_names_that_cannot_be_told_apart_or_written() {
    let refuses = |items: &[(Vec<u8>, Vec<u8>)]| refused(&archive(dict(items)), Cause::Names);
    refuses(&[
        (text("a.b"), floats()),
        (text("a"), dict(&[(text("b"), ones())])),
    ]);
    refuses(&[(text("0"), floats()), (int(0), ones())]);
    // None, a bool, bytes in no encoding, a lone surrogate.
    refuses(&[(NONE.to_vec(), floats())]);
    refuses(&[(TRUE.to_vec(), floats())]);
    refuses(&[(text8(b"\xff"), floats())]);
    refuses(&[(b"X\x03\0\0\0\xed\xa0\x80".to_vec(), floats())]);
}

#[test]
fn keys_without_text_are_left_alone_where_no_tensor_lies_behind_them() {
    assert_eq!(
        names(dict(&[(NONE.to_vec(), int(1)), (text("w"), floats())])),
        ["w"]
    );
}

#[test]
fn reports_values_that_are_no_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    let object = dict(&[
        (text("w"), floats()),
        (text("epoch"), int(7)),
        (text("name"), text("a\nb")),
        (text("args"), new(global("argparse", "Namespace"), &[])),
    ]);
    std::fs::write(&path, archive(object)).unwrap();
    let reader = convert::open(&path).unwrap();
    let others: Vec<(&str, &str, &str)> = reader
        .plan()
        .others()
        .iter()
        .map(|other| (&*other.path, &*other.kind, &*other.repr))
        .collect();
    assert_eq!(
        others,
        [
            ("epoch", "int", "7"),
            ("name", "str", "'a\\nb'"),
            ("args", "argparse.Namespace", ""),
            (
                "data/1",
                "record",
                "16 bytes that the pickle never refers to"
            ),
        ]
    );
}

#[test]
fn refuses_objects_with_tensors_that_it_does_not_know() {
    let made = call(global("mine", "net"), &[dict(&[(text("w"), floats())])]);
    let what = refused(
        &archive(dict(&[(text("model"), made.clone())])),
        Cause::Unsupported,
    );
    assert!(
        what.contains("mine.net") && what.contains("model"),
        "{what}"
    );
    refused(&archive(made), Cause::Unsupported);
}

#[test]
fn leaves_an_optimizer_out() {
    let optimizer = dict(&[
        (
            text("state"),
            dict(&[(int(0), dict(&[(text("exp_avg"), ones())]))]),
        ),
        (text("param_groups"), list(&[])),
    ]);
    assert_eq!(
        names(dict(&[
            (text("w"), floats()),
            (text("optimizer"), optimizer)
        ])),
        ["w"]
    );
}

#[test]
fn refuses_what_holds_no_tensors() {
    refused(&archive(dict(&[(text("epoch"), int(1))])), Cause::NoTensors);
    refused(&archive(int(1)), Cause::NoTensors);
}

#[test]
fn refuses_an_attack_by_its_name() {
    let attack = call(global("posix", "system"), &[text("true")]);
    let bytes = archive(dict(&[(text("w"), floats()), (text("x"), attack)]));
    assert!(refused(&bytes, Cause::Dangerous).contains("posix.system"));
    // The rest of the pickle being broken does not hide it.
    let broken = Archive::torch(b"\x80\x02cos\nsystem\nX", &[]).bytes();
    refused(&broken, Cause::Dangerous);
}

/// `memo[index] = top of the stack`
fn put(index: u8) -> Vec<u8> {
    vec![b'q', index]
}

fn get(index: u8) -> Vec<u8> {
    vec![b'h', index]
}

#[test]
fn refuses_containers_inside_themselves() {
    let list = [b"]".to_vec(), put(0), get(0), b"a".to_vec()].concat();
    refused(
        &archive(dict(&[(text("w"), floats()), (text("x"), list)])),
        Cause::Unsupported,
    );
    let dict = [b"}".to_vec(), put(0), text("k"), get(0), b"s".to_vec()].concat();
    refused(&archive(dict), Cause::Unsupported);
}

/// A container of two copies of the container before it, `depth` times over:
/// 2^depth paths lead to `leaf`.
fn laughs(leaf: Vec<u8>, depth: u8, double: impl Fn(Vec<u8>, u8) -> Vec<u8>) -> Vec<u8> {
    let start = [leaf, put(0)].concat();
    (0..depth).fold(start, |inner, level| {
        [double(inner, level), put(level + 1)].concat()
    })
}

/// The inner container and the same one again, in a new container.
fn twice(inner: Vec<u8>, level: u8) -> [Vec<u8>; 2] {
    [inner, get(level)]
}

#[test]
fn refuses_the_same_values_over_and_over() {
    // 2^40 values behind a few hundred bytes.
    let lists = laughs(int(0), 40, |inner, level| list(&twice(inner, level)));
    refused(&archive(lists), Cause::TooLarge);
    let tuples = laughs(floats(), 40, |inner, level| tuple(&twice(inner, level)));
    refused(&archive(tuples), Cause::TooLarge);
    let dicts = laughs(floats(), 40, |inner, level| {
        let [a, b] = twice(inner, level);
        dict(&[(text("a"), a), (text("b"), b)])
    });
    refused(&archive(dicts), Cause::TooLarge);
}

#[test]
fn refuses_long_names_over_and_over() {
    // A key of a megabyte at each of 30 levels: 2^30 names of 30 megabytes.
    let long = [text(&"k".repeat(1 << 20)), put(200), b"0".to_vec()].concat();
    let dicts = laughs(floats(), 30, |inner, level| {
        let [a, b] = twice(inner, level);
        dict(&[(get(200), a), (text("b"), b)])
    });
    refused(&archive([long.clone(), dicts].concat()), Cause::TooLarge);
    // The same for values that are only reported.
    let lists = laughs(int(0), 30, |inner, level| list(&twice(inner, level)));
    let below = dict(&[(get(200), lists)]);
    refused(&archive([long, below].concat()), Cause::TooLarge);
}

#[test]
fn refuses_a_long_key_that_is_set_over_and_over() {
    // One key of a megabyte, set a hundred thousand times in one dict.
    let long = [text(&"k".repeat(1 << 20)), put(0), b"0".to_vec()].concat();
    let items = [get(0), int(1)].concat().repeat(100_000);
    let object = [long, b"}(".to_vec(), items, b"u".to_vec()].concat();
    refused(&archive(object), Cause::TooLarge);
}

#[test]
fn refuses_keys_without_text_over_and_over() {
    // A dict of 10,000 keys without text, behind 2^30 paths.
    let keys: Vec<(Vec<u8>, Vec<u8>)> = (0..10_000)
        .map(|key: i64| {
            let bits = (key as f64 + 0.5).to_be_bytes();
            ([&b"G"[..], &bits].concat(), NONE.to_vec())
        })
        .collect();
    let lists = laughs(dict(&keys), 30, |inner, level| list(&twice(inner, level)));
    refused(&archive(lists), Cause::TooLarge);
}

#[test]
fn refuses_many_tensors_of_many_dimensions() {
    let ones = vec![1; 64];
    let tensor = rebuild(&view(storage("FloatStorage", "0", 4), 0, &ones, &ones));
    let lists = laughs(tensor, 20, |inner, level| list(&twice(inner, level)));
    refused(&archive(lists), Cause::TooLarge);
}

#[test]
fn deep_nesting_is_refused_without_a_deep_stack() {
    let deep = [b"]".repeat(200_000), b"a".repeat(199_999)].concat();
    refused(&archive(deep), Cause::TooLarge);
    let deep = [b"]".repeat(200_000), b"a".repeat(199_999)].concat();
    let hidden = build(new(global("mine", "Net"), &[]), deep);
    let seen = names(dict(&[(text("w"), floats()), (text("x"), hidden)]));
    assert_eq!(seen, ["w"]);
}

#[test]
fn messages_stay_short() {
    let long = "x".repeat(4000);
    let mut bad = view(storage("FloatStorage", "0", 4), 0, &[5], &[1]);
    bad[1] = int(0);
    let what = refused(
        &archive(dict(&[(text(&long), rebuild(&bad))])),
        Cause::Malformed,
    );
    assert!(what.len() < 1000, "{} bytes", what.len());
}
