//! Files that are safetensors under the names of checkpoints: they are shown as they
//! are, and their tensors too.

use std::path::Path;

use stfs::view::{Options, Tensors, View};

use super::{bytes, is_missing, names, safetensors_of, support, view};

/// A directory with these files, each a vector of one number: safetensors where that
/// is positive, else a pickle.
fn directory(files: &[(&str, f32)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, number) in files {
        put(directory.path(), name, *number);
    }
    directory
}

fn put(directory: &Path, name: &str, number: f32) {
    let content = match number > 0.0 {
        true => safetensors_of(&[number]),
        false => support::one_vector(&[number]),
    };
    support::write(&directory.join(name), &content);
}

/// The number in a directory of tensors.
fn weight(view: &View, directory: &str) -> f32 {
    let bytes = bytes(view, &format!("{directory}/weight"));
    f32::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn one_that_stands_alone_goes_by_its_stem() {
    let directory = directory(&[("x.ckpt", 1.0), ("pytorch_model.bin", 2.0), ("y", 3.0)]);
    let view = view(directory.path());
    assert_eq!(
        names(&view, ""),
        [
            "model.tensors",
            "pytorch_model.bin",
            "x.ckpt",
            "x.tensors",
            "y"
        ]
    );
    assert_eq!(bytes(&view, "x.ckpt"), safetensors_of(&[1.0]));
    assert_eq!(weight(&view, "x.tensors"), 1.0);
    assert_eq!(weight(&view, "model.tensors"), 2.0);
    for absent in ["x.ckpt.tensors", "x.safetensors", "y.tensors"] {
        assert!(is_missing(&view, absent), "{absent}");
    }
}

#[test]
fn two_of_a_stem_go_by_their_whole_names() {
    let directory = directory(&[("x.ckpt", 1.0), ("x.pt", 2.0)]);
    let view = view(directory.path());
    assert_eq!(
        names(&view, ""),
        ["x.ckpt", "x.ckpt.tensors", "x.pt", "x.pt.tensors"]
    );
    assert!(is_missing(&view, "x.tensors"));
    // One whose stem is the name of another that has to go by it.
    put(directory.path(), "x.pt.bin", 3.0);
    let view = super::view(directory.path());
    assert_eq!(weight(&view, "x.pt.tensors"), 2.0);
    assert_eq!(weight(&view, "x.pt.bin.tensors"), 3.0);
    assert_eq!(names(&view, "").len(), 6);
}

#[test]
fn the_stem_belongs_to_who_is_called_so() {
    let directory = directory(&[
        ("x.ckpt", 1.0),
        ("x.pt", -2.0),
        ("y.ckpt", 3.0),
        ("y.safetensors", 4.0),
    ]);
    let view = view(directory.path());
    assert_eq!(
        names(&view, ""),
        [
            "x.ckpt",
            "x.ckpt.tensors",
            "x.safetensors",
            "x.tensors",
            "y.ckpt",
            "y.ckpt.tensors",
            "y.safetensors",
            "y.tensors",
        ]
    );
    assert_eq!(weight(&view, "x.tensors"), -2.0);
    assert_eq!(weight(&view, "x.ckpt.tensors"), 1.0);
    assert_eq!(weight(&view, "y.tensors"), 4.0);
    assert_eq!(weight(&view, "y.ckpt.tensors"), 3.0);
    // Even its whole name belongs to a checkpoint that turns into it.
    put(directory.path(), "x.ckpt.pt", -5.0);
    let view = super::view(directory.path());
    assert_eq!(weight(&view, "x.ckpt.tensors"), -5.0);
    assert!(names(&view, "").contains(&"x.ckpt.tensors".to_string()));
}

#[test]
fn a_real_file_keeps_its_name() {
    let directory = directory(&[("x.ckpt", 1.0)]);
    support::write(&directory.path().join("x.tensors"), b"mine");
    let view = view(directory.path());
    assert_eq!(names(&view, ""), ["x.ckpt", "x.tensors"]);
    assert_eq!(bytes(&view, "x.tensors"), b"mine");
}

#[test]
fn damaged_ones_have_none() {
    let directory = directory(&[]);
    let broken = b"\x08\0\0\0\0\0\0\0{\"a\":1} ";
    support::write(&directory.path().join("x.ckpt"), broken);
    assert_eq!(names(&view(directory.path()), ""), ["x.ckpt"]);
}

#[test]
fn options_hide_them_like_others() {
    let directory = directory(&[("x.ckpt", 1.0)]);
    let with = |tensors| {
        let options = Options {
            tensors,
            ..Options::default()
        };
        View::new(directory.path(), options).unwrap()
    };
    let hidden = with(Tensors::Hide);
    assert_eq!(names(&hidden, ""), ["x.ckpt"]);
    assert_eq!(weight(&hidden, "x.tensors"), 1.0);
    assert!(is_missing(&with(Tensors::Off), "x.tensors"));
}

#[test]
fn they_may_be_shards() {
    let directory = directory(&[("pytorch_model-1.bin", 1.0)]);
    let index = br#"{"weight_map":{"weight":"pytorch_model-1.bin"}}"#;
    support::write(
        &directory.path().join("pytorch_model.bin.index.json"),
        index,
    );
    let view = view(directory.path());
    assert_eq!(
        names(&view, ""),
        [
            "model-1.tensors",
            "model.safetensors.index.json",
            "model.tensors",
            "pytorch_model-1.bin",
        ]
    );
    assert_eq!(weight(&view, "model.tensors"), 1.0);
    let index = bytes(&view, "model.safetensors.index.json");
    assert!(
        String::from_utf8(index)
            .unwrap()
            .contains("\"pytorch_model-1.bin\"")
    );
    // A single one beats them.
    put(directory.path(), "pytorch_model.bin", 2.0);
    let view = super::view(directory.path());
    assert_eq!(weight(&view, "model.tensors"), 2.0);
    assert!(names(&view, "").contains(&"model.tensors".to_string()));
}
