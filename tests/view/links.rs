//! Symbolic links: followed, refused, and kept from going round in circles.

use std::os::unix::fs::{PermissionsExt, symlink};

use stfs::source::Links;
use stfs::view::{Error, Kind, Options, View};

use super::{bytes, find, is_missing, list, names, read, safetensors_of, support, text, view};

#[test]
fn a_cache_of_links_shows_what_they_lead_to() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("blobs/abc"), &support::one_vector(&[1.0, 2.0]));
    support::write(&root.join("blobs/def"), b"{}\n");
    std::fs::create_dir_all(root.join("snapshots/1")).unwrap();
    symlink(
        "../../blobs/abc",
        root.join("snapshots/1/pytorch_model.bin"),
    )
    .unwrap();
    symlink("../../blobs/def", root.join("snapshots/1/config.json")).unwrap();
    let view = view(root);
    assert_eq!(
        names(&view, "snapshots/1"),
        ["config.json", "model.safetensors", "model.tensors"]
    );
    let converted = safetensors_of(&[1.0, 2.0]);
    assert_eq!(bytes(&view, "snapshots/1/model.safetensors"), converted);
    assert_eq!(bytes(&view, "blobs/abc.safetensors"), converted);
    let config = find(&view, "snapshots/1/config.json").unwrap();
    assert_eq!(
        (config.kind(), view.attr(&config).unwrap().size),
        (Kind::File, 3)
    );
}

#[test]
fn links_that_lead_nowhere_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    symlink("gone", root.join("model.bin")).unwrap();
    symlink("a", root.join("b")).unwrap();
    symlink("b", root.join("a")).unwrap();
    symlink("gone", root.join("optimizer.pt")).unwrap();
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "a.refused.txt",
            "b.refused.txt",
            "model.bin.refused.txt",
            "optimizer.pt.refused.txt"
        ]
    );
    assert!(text(&view, "model.bin.refused.txt").contains("leads nowhere"));
    assert!(text(&view, "a.refused.txt").contains("in a circle"));
    assert!(is_missing(&view, "model.bin"));
}

#[test]
fn directories_are_never_shown_inside_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("source");
    support::write(&root.join("a/x.txt"), b"x");
    support::write(&root.join("b/y.txt"), b"y");
    symlink(".", root.join("self")).unwrap();
    symlink("..", root.join("a/up")).unwrap();
    symlink("../..", root.join("a/above")).unwrap();
    symlink("../b", root.join("a/to-b")).unwrap();
    symlink("../a", root.join("b/to-a")).unwrap();
    let view = view(&root);
    let mut pending = vec![view.root().unwrap()];
    let mut files = 0;
    while let Some(node) = pending.pop() {
        for (_, child) in list(&view, &node) {
            match child.kind() {
                Kind::Directory => pending.push(child),
                Kind::File => files += usize::from(!child.is_refusal()),
            }
        }
        assert!(pending.len() < 100);
    }
    // x and y, once as themselves and once through the other directory.
    assert_eq!(files, 4);
    assert_eq!(names(&view, "a/to-b"), ["to-a.refused.txt", "y.txt"]);
    assert_eq!(
        names(&view, "a"),
        ["above.refused.txt", "to-b", "up.refused.txt", "x.txt"]
    );
}

#[test]
fn only_links_that_stay_inside_are_followed_for_others() {
    let outside = tempfile::tempdir().unwrap();
    support::write(&outside.path().join("secret.txt"), b"secret");
    support::write(
        &outside.path().join("secret.bin"),
        &support::one_vector(&[4.0]),
    );
    let index = br#"{"weight_map":{"secret":"pytorch_model-1.bin"}}"#;
    support::write(&outside.path().join("index.json"), index);
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("in/x.txt"), b"x");
    symlink(outside.path().join("secret.txt"), root.join("out.txt")).unwrap();
    symlink(outside.path().join("secret.bin"), root.join("m.bin")).unwrap();
    symlink(outside.path(), root.join("dir")).unwrap();
    symlink("in/x.txt", root.join("x.txt")).unwrap();
    symlink(
        outside.path().join("index.json"),
        root.join("pytorch_model.bin.index.json"),
    )
    .unwrap();
    let options = Options {
        links: Links::Inside,
        ..Options::default()
    };
    let inside = View::new(root, options).unwrap();
    assert_eq!(
        names(&inside, ""),
        [
            "dir.refused.txt",
            "in",
            "m.bin.refused.txt",
            "out.txt.refused.txt",
            "pytorch_model.bin.index.json.refused.txt",
            "x.txt",
        ]
    );
    assert!(is_missing(&inside, "model.safetensors.index.json"));
    assert!(text(&inside, "dir.refused.txt").contains("leads out of"));
    let all = view(root);
    assert_eq!(
        names(&all, ""),
        [
            "dir",
            "in",
            "m.safetensors",
            "m.tensors",
            "model.safetensors.index.json",
            "out.txt",
            "x.txt"
        ]
    );
    assert_eq!(bytes(&all, "out.txt"), b"secret");
}

#[test]
fn a_directory_replaced_by_a_link_is_another_one() {
    let outside = tempfile::tempdir().unwrap();
    support::write(&outside.path().join("x.txt"), b"secret");
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("d/x.txt"), b"x");
    let view = view(root);
    let node = find(&view, "d").unwrap();
    std::fs::rename(root.join("d"), root.join("e")).unwrap();
    symlink(outside.path(), root.join("d")).unwrap();
    assert!(matches!(
        view.lookup(&node, "x.txt".as_ref()),
        Err(Error::Stale)
    ));
    assert!(matches!(view.list(&node), Err(Error::Stale)));
}

#[test]
fn a_derived_index_may_be_read_by_whom_the_index_may() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pytorch_model.bin.index.json");
    support::write(&path, br#"{"weight_map":{"a":"pytorch_model-1.bin"}}"#);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let view = view(directory.path());
    let node = find(&view, "model.safetensors.index.json").unwrap();
    assert_eq!(view.attr(&node).unwrap().mode, 0o440);
    assert!(!read(&view.open(&node).unwrap()).unwrap().is_empty());
}
