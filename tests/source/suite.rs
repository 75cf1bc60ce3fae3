//! What every tree does, whatever stands behind it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use stfs::source::memory::MemoryTree;
use stfs::source::{Error, Found, Links, Metadata, Obstacle, Tree};

use super::{Ground, Local};

/// Runs a test of the suite over each kind of tree.
macro_rules! over_every_tree {
    ($($test:ident)*) => {
        mod memory {
            $(#[test] fn $test() { super::$test(&super::MemoryTree::new()); })*
        }
        mod local {
            $(#[test] fn $test() { super::$test(&super::Local::new(super::Links::Anywhere)); })*
        }
        mod local_inside {
            $(#[test] fn $test() { super::$test(&super::Local::new(super::Links::Inside)); })*
        }
    };
}

over_every_tree! {
    names_are_listed_once
    what_stands_under_a_name
    files_are_read_by_ranges
    a_directory_is_entered_by_its_path
    versions_tell_contents_apart
    a_file_that_is_open_keeps_its_bytes_or_fails
    rights_are_passed_on_without_write
    what_is_found_in_a_directory_lies_in_it
    a_source_that_is_gone_is_an_error
    odd_names_are_names
}

fn names(tree: &dyn Tree) -> Vec<OsString> {
    let mut names = tree.list().unwrap();
    names.sort_unstable();
    names
}

fn file(tree: &dyn Tree, name: &str) -> Metadata {
    match tree.stat(name.as_ref()).unwrap() {
        Found::File(metadata) => metadata,
        other => panic!("{name}: {other:?}"),
    }
}

fn enter(ground: &dyn Ground, path: &str) -> Arc<dyn Tree> {
    ground.root().enter(Path::new(path)).unwrap()
}

fn names_are_listed_once(ground: &dyn Ground) {
    assert!(names(&*ground.root()).is_empty());
    for path in ["b", "a", "d/e", "d/f/g"] {
        ground.write(path, b"x");
    }
    ground.make_directory("empty");
    assert_eq!(names(&*ground.root()), ["a", "b", "d", "empty"]);
    assert_eq!(names(&*enter(ground, "d")), ["e", "f"]);
    assert!(names(&*enter(ground, "empty")).is_empty());
    ground.remove("d");
    assert_eq!(names(&*ground.root()), ["a", "b", "empty"]);
}

fn what_stands_under_a_name(ground: &dyn Ground) {
    ground.write("file", b"12345");
    ground.make_directory("directory");
    ground.make_special("pipe");
    ground.make_dangling_link("dangling");
    let root = ground.root();
    let stat = |name: &str| root.stat(name.as_ref()).unwrap();
    assert_eq!(file(&*root, "file").version.size, 5);
    assert!(matches!(stat("directory"), Found::Directory(_)));
    assert_eq!(stat("pipe"), Found::Special);
    assert!(matches!(
        stat("dangling"),
        Found::Blocked(_, Obstacle::Nowhere)
    ));
    assert_eq!(stat("missing"), Found::Missing);
    assert_eq!(stat(&"x".repeat(300)), Found::Missing);
    for name in ["directory", "pipe", "dangling", "missing"] {
        assert!(root.open(name.as_ref()).is_err(), "{name}");
    }
}

fn files_are_read_by_ranges(ground: &dyn Ground) {
    let bytes: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
    ground.write("d/file", &bytes);
    let source = enter(ground, "d").open("file".as_ref()).unwrap();
    assert_eq!(source.size(), 100_000);
    assert_eq!(source.read_at(0, 100_000).unwrap(), bytes);
    assert_eq!(source.read_at(99_999, 1).unwrap(), bytes[99_999..]);
    assert_eq!(source.read_at(100_000, 0).unwrap(), b"");
    for (offset, len) in [(99_999, 2), (100_001, 0), (u64::MAX, 1), (1, u64::MAX)] {
        let error = source.read_at(offset, len).unwrap_err();
        assert!(matches!(error, Error::PastEnd { .. }), "{error}");
    }
    let ranges: Vec<_> = (0..200).map(|at| at * 500..at * 500 + at).collect();
    let found = source.read_ranges(&ranges).unwrap();
    assert_eq!(found.len(), 200);
    for (range, found) in ranges.iter().zip(found) {
        assert_eq!(found, bytes[range.start as usize..range.end as usize]);
    }
    assert!(source.read_ranges(&[0..1, 99_999..100_001]).is_err());
    assert_eq!(source.reply(7, 1000).unwrap().len(), 1000);
    source.check().unwrap();
    source.check_version().unwrap();
    assert_eq!(
        *source.version(),
        file(&*enter(ground, "d"), "file").version
    );
}

fn a_directory_is_entered_by_its_path(ground: &dyn Ground) {
    ground.write("a/b/c/file", b"x");
    for path in ["", "a", "a/b", "a/b/c"] {
        let tree = enter(ground, path);
        assert_eq!(tree.path(), Path::new(path));
        // From wherever one is.
        let again = enter(ground, "a/b").enter(Path::new(path)).unwrap();
        assert_eq!(again.metadata().version.file, tree.metadata().version.file);
    }
    let error = |path: &str| ground.root().enter(Path::new(path)).unwrap_err().kind();
    assert_eq!(error("a/missing"), ErrorKind::NotFound);
    assert_eq!(error("a/b/c/file"), ErrorKind::NotADirectory);
}

fn versions_tell_contents_apart(ground: &dyn Ground) {
    ground.write("a", b"one");
    ground.write("b", b"one");
    let root = ground.root();
    let version = |name| file(&*root, name).version;
    let first = version("a");
    assert_eq!(version("a"), first);
    assert_ne!(version("b"), first);
    std::thread::sleep(std::time::Duration::from_millis(20));
    ground.write("a", b"two");
    let second = version("a");
    assert!(!second.same_stamps(&first));
    std::thread::sleep(std::time::Duration::from_millis(20));
    ground.replace("a", b"two");
    assert!(!version("a").same_stamps(&second));
}

fn a_file_that_is_open_keeps_its_bytes_or_fails(ground: &dyn Ground) {
    ground.write("a", b"old bytes");
    ground.write("b", b"old bytes");
    let root = ground.root();
    let (replaced, rewritten) = (root.open("a".as_ref()), root.open("b".as_ref()));
    let (replaced, rewritten) = (replaced.unwrap(), rewritten.unwrap());
    std::thread::sleep(std::time::Duration::from_millis(20));
    ground.replace("a", b"new bytes");
    ground.write("b", b"new");
    assert_eq!(replaced.read_at(0, 9).unwrap(), b"old bytes");
    replaced.check().unwrap();
    assert!(matches!(replaced.check_version(), Err(Error::Changed)));
    assert!(matches!(rewritten.check(), Err(Error::Changed)));
    ground.remove("a");
    assert_eq!(replaced.read_at(0, 9).unwrap(), b"old bytes");
}

fn rights_are_passed_on_without_write(ground: &dyn Ground) {
    ground.write("a", b"x");
    for (mode, shown) in [(0o640, 0o440), (0o600, 0o400), (0o755, 0o555)] {
        ground.set_mode("a", mode);
        let root = ground.root();
        assert_eq!(file(&*root, "a").rights.mode, shown);
        let source = root.open("a".as_ref()).unwrap();
        assert_eq!(source.metadata().rights.mode, shown);
    }
}

fn what_is_found_in_a_directory_lies_in_it(ground: &dyn Ground) {
    ground.write("d/file", b"old");
    let tree = enter(ground, "d");
    ground.remove("d");
    ground.write("d/other", b"new");
    // Held or by its path, but never half of each.
    match tree.stat("other".as_ref()) {
        Ok(Found::Missing) | Err(_) => {}
        Ok(found) => {
            assert!(matches!(found, Found::File(_)));
            assert_eq!(tree.stat("file".as_ref()).unwrap(), Found::Missing);
        }
    }
}

fn a_source_that_is_gone_is_an_error(ground: &dyn Ground) {
    ground.write("d/file", b"x");
    let root = ground.root();
    ground.end();
    for path in ["", "d", "missing"] {
        let error = root.enter(Path::new(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotConnected, "{path}: {error}");
    }
    assert!(root.list().is_err(), "never an empty directory");
}

fn odd_names_are_names(ground: &dyn Ground) {
    let names_there = ["-", "a b", "new\nline", "\u{e9}", "%2F", "..."];
    for name in names_there {
        ground.write(name, name.as_bytes());
    }
    let root = ground.root();
    let mut expected = names_there.to_vec();
    expected.sort_unstable();
    assert_eq!(names(&*root), expected);
    for name in names_there {
        let source = root.open(name.as_ref()).unwrap();
        assert_eq!(source.read_at(0, source.size()).unwrap(), name.as_bytes());
    }
}
