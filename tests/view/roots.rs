//! `X@ROOT`: the other sets of weights of a checkpoint, by their dotted paths.

use std::path::Path;
use std::sync::Arc;

use stfs::cache::Directory;
use stfs::view::{Options, View};

use super::archive::Archive;
use super::opcodes::*;
use super::{bytes, find, is_missing, names, safetensors_of, view};
use crate::support;

fn tensor(key: &str) -> Vec<u8> {
    rebuild(&view_of(storage("FloatStorage", key, 1)))
}

fn view_of(storage: Vec<u8>) -> Vec<Vec<u8>> {
    super::opcodes::view(storage, 0, &[1], &[1])
}

/// `{"state_dict": {"weight": 1}, "ema": {"a/b": {"weight": 2}}}`
fn two_sets() -> Vec<u8> {
    let set = |key| dict(&[(text("weight"), tensor(key))]);
    let object = dict(&[
        (text("state_dict"), set("0")),
        (text("ema"), dict(&[(text("a/b"), set("1"))])),
    ]);
    let (one, two) = (1_f32.to_le_bytes(), 2_f32.to_le_bytes());
    Archive::torch(&pickle(object), &[("0", &one), ("1", &two)]).bytes()
}

/// The only element of the only tensor, which is called so.
fn weight(view: &View, path: &str) -> f32 {
    let file = bytes(view, path);
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names(), ["weight"]);
    let weight = tensors.tensor("weight").unwrap();
    f32::from_le_bytes(weight.data().try_into().unwrap())
}

fn source() -> tempfile::TempDir {
    let source = tempfile::tempdir().unwrap();
    support::write(&source.path().join("best.pth.tar"), &two_sets());
    source
}

#[test]
fn other_sets_open_by_their_paths_and_are_not_listed() {
    let source = source();
    let view = view(source.path());
    assert_eq!(names(&view, ""), ["best.safetensors", "best.tensors"]);
    assert_eq!(weight(&view, "best.safetensors"), 1.0);
    for file in ["best", "best.pth", "best.pth.tar"] {
        let set = format!("{file}@ema.a%2Fb");
        assert_eq!(weight(&view, &format!("{set}.safetensors")), 2.0);
        assert_eq!(names(&view, &format!("{set}.tensors")), ["weight"]);
    }
    for missing in [
        "best@.safetensors",
        "best@nothing.safetensors",
        "best@ema.a%2Fb",
        "other@ema.safetensors",
        "@ema.safetensors",
        "best@@ema.safetensors",
    ] {
        assert!(is_missing(&view, missing), "{missing}");
    }
}

#[test]
fn files_say_which_other_sets_there_are() {
    let source = source();
    let view = view(source.path());
    let said = |name: &str| {
        let node = find(&view, name).unwrap();
        let attributes = view.xattrs(&node).unwrap().into_iter();
        let mut roots = attributes.filter(|(name, _)| *name == "user.stfs.roots");
        roots
            .next()
            .map(|(_, value)| String::from_utf8(value).unwrap())
    };
    assert_eq!(said("best.safetensors").as_deref(), Some("[\"ema\"]"));
    assert_eq!(said("best@ema.a%2Fb.safetensors"), None);
}

#[test]
fn a_real_file_wins() {
    let source = source();
    let name = "best@ema.safetensors";
    support::write(&source.path().join(name), &safetensors_of(&[3.0]));
    let view = view(source.path());
    assert_eq!(weight(&view, name), 3.0);
    // So does what another checkpoint turns into.
    let one = support::one_vector(&[4.0]);
    support::write(&source.path().join("best@state_dict.pt"), &one);
    let view = super::view(source.path());
    assert_eq!(weight(&view, "best@state_dict.safetensors"), 4.0);
}

#[test]
fn each_set_has_a_record_of_its_own() {
    let (source, cache) = (source(), tempfile::tempdir().unwrap());
    let cached = || {
        let options = Options {
            cache: Some(Directory::open(cache.path()).unwrap()),
            ..Options::default()
        };
        View::new(source.path(), options).unwrap()
    };
    for _ in 0..2 {
        let view = cached();
        assert_eq!(weight(&view, "best.safetensors"), 1.0);
        assert_eq!(weight(&view, "best@ema.a%2Fb.safetensors"), 2.0);
        let root: Arc<str> = "ema.a/b".into();
        let node = view.derived(Path::new(""), "best.pth.tar".as_ref(), Some(&root));
        assert!(node.unwrap().is_some());
    }
}

/// A set with a key that safetensors has no name for, beside one without.
#[test]
fn a_set_that_cannot_be_converted_says_why() {
    let set = |name: Vec<u8>, key| dict(&[(name, tensor(key))]);
    let object = dict(&[
        (text("state_dict"), set(text("weight"), "0")),
        (text("odd"), set(tuple(&[text("a"), int(1)]), "1")),
    ]);
    let (one, two) = (1_f32.to_le_bytes(), 2_f32.to_le_bytes());
    let file = Archive::torch(&pickle(object), &[("0", &one), ("1", &two)]).bytes();
    let source = tempfile::tempdir().unwrap();
    support::write(&source.path().join("best.pt"), &file);
    let view = view(source.path());
    assert_eq!(weight(&view, "best.safetensors"), 1.0);
    assert!(is_missing(&view, "best@odd.safetensors"));
    let why = super::text(&view, "best@odd.refused.txt");
    assert!(why.contains("('a', 1)"), "{why}");
    assert!(is_missing(&view, "best@none.refused.txt"));
    assert_eq!(names(&view, ""), ["best.safetensors", "best.tensors"]);
}
