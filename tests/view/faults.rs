//! What the tree does when its source is slow, fails in the middle, changes while it
//! is read, or is gone.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stfs::cache::Directory;
use stfs::source::memory::MemoryTree;
use stfs::source::{Obstacle, Rights, System};
use stfs::view::{Error, Options, View};

use super::archive::Archive;
use super::{bytes, find, is_missing, names, read, safetensors_of, support, text};

fn view(tree: &MemoryTree) -> View {
    View::over(tree.root(), Options::default())
}

fn with_cache(tree: &MemoryTree, cache: &Path) -> View {
    let options = Options {
        cache: Some(Directory::open(cache).unwrap()),
        ..Options::default()
    };
    View::over(tree.root(), options)
}

/// On a file system of which nothing is known beyond one mount.
fn mounted(mount: u64) -> MemoryTree {
    MemoryTree::on(System::Mounted { mount, device: 1 })
}

/// A directory of two checkpoints and a plain file.
fn source() -> MemoryTree {
    let tree = MemoryTree::new();
    tree.write("a.pt", support::one_vector(&[1.0]));
    tree.write("b.pt", support::one_vector(&[2.0]));
    tree.write("notes.txt", &b"text"[..]);
    tree
}

#[test]
fn an_error_in_the_middle_of_a_plan_is_of_that_file_alone() {
    for after in 0..6 {
        let tree = source();
        tree.fail("a.pt", ErrorKind::Other, after);
        let view = view(&tree);
        let listed = names_of(&view);
        match listed.contains(&"a.safetensors".to_string()) {
            // It was over before the error.
            true => assert!(after >= 2, "{after}"),
            false => {
                assert_eq!(listed[0], "a.pt.refused.txt", "{after}");
                assert!(text(&view, "a.pt.refused.txt").contains("cannot be read"));
            }
        }
        assert!(listed.contains(&"b.safetensors".to_string()));
        // It is tried again, and not remembered as refused.
        tree.heal();
        assert_eq!(bytes(&view, "a.safetensors"), safetensors_of(&[1.0]));
        assert!(is_missing(&view, "a.pt.refused.txt"));
    }
}

/// The names in the root, whether they can be read or not.
fn names_of(view: &View) -> Vec<String> {
    let listing = view.list(&view.root().unwrap()).unwrap();
    (0..listing.len())
        .map(|at| listing.entry(at).unwrap().0.to_string_lossy().into_owned())
        .collect()
}

#[test]
fn a_file_that_cannot_be_looked_at_is_an_error_and_not_shown_raw() {
    let tree = source();
    // Without the ending of a checkpoint: only its content says what it is.
    tree.write("hidden", support::one_vector(&[3.0]));
    tree.fail("hidden", ErrorKind::Other, 0);
    tree.fail("notes.txt", ErrorKind::Other, 0);
    let view = view(&tree);
    assert!(matches!(find(&view, "hidden"), Err(Error::Io(_))));
    let listed = names_of(&view);
    for name in ["hidden", "notes.txt"] {
        assert!(!listed.contains(&name.to_string()), "{listed:?}");
        let refusal = format!("{name}.refused.txt");
        assert!(listed.contains(&refusal), "{listed:?}");
        assert!(text(&view, &refusal).contains("cannot be read"));
    }
    tree.heal();
    assert_eq!(
        names(&view, ""),
        [
            "a.safetensors",
            "a.tensors",
            "b.safetensors",
            "b.tensors",
            "hidden.safetensors",
            "hidden.tensors",
            "notes.txt"
        ]
    );
}

/// What a file decides about others is not guessed when it cannot be looked at, at its
/// first byte or at all.
fn fail(tree: &MemoryTree, path: &str, at_all: bool) {
    match at_all {
        true => tree.close(path, ErrorKind::Other),
        false => tree.fail(path, ErrorKind::Other, 0),
    }
}

#[test]
fn tied_tensors_have_their_name_or_none() {
    for at_all in [true, false] {
        let tree = MemoryTree::new();
        let tied = support::tied(&["lm_head.weight", "wte.weight"], &[1.0, 2.0]);
        tree.write("pytorch_model.bin", tied);
        tree.write(
            "config.json",
            &br#"{"architectures": ["GPT2LMHeadModel"]}"#[..],
        );
        let view = view(&tree);
        fail(&tree, "config.json", at_all);
        assert_eq!(
            names_of(&view),
            ["config.json.refused.txt", "pytorch_model.bin.refused.txt"]
        );
        let why = text(&view, "pytorch_model.bin.refused.txt");
        assert!(why.contains("config.json"), "{why}");
        assert!(is_missing(&view, "model.safetensors"));
        tree.heal();
        assert_eq!(names(&view, "model.tensors"), ["wte.weight"]);
    }
}

#[test]
fn an_index_that_cannot_be_read_is_not_shown_raw() {
    for at_all in [true, false] {
        let tree = MemoryTree::new();
        let (shard, index) = (
            "pytorch_model-00001-of-00001.bin",
            "pytorch_model.bin.index.json",
        );
        tree.write(shard, support::named_vectors(&[("a", &[1.0])]));
        let map = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        tree.write(index, map.into_bytes());
        let view = view(&tree);
        fail(&tree, index, at_all);
        let listed = names_of(&view);
        assert_eq!(
            listed,
            [
                "model-00001-of-00001.safetensors",
                "model-00001-of-00001.tensors",
                "pytorch_model.bin.index.json.refused.txt"
            ]
        );
        assert!(text(&view, &listed[2]).contains("cannot be read"));
        for name in [index, "model.safetensors.index.json", "model.tensors"] {
            assert!(matches!(find(&view, name), Err(Error::Io(_))), "{name}");
        }
        tree.heal();
        assert_eq!(names(&view, "model.tensors"), ["a"]);
        assert!(is_missing(&view, index));
        assert!(is_missing(&view, &listed[2]));
    }
}

#[test]
fn an_index_is_an_error_when_a_directory_that_it_names_is() {
    let tree = MemoryTree::new();
    tree.write("sub/m.bin", support::named_vectors(&[("a", &[1.0])]));
    let index = "pytorch_model.bin.index.json";
    tree.write(index, &br#"{"weight_map": {"a": "sub/m.bin"}}"#[..]);
    let view = view(&tree);
    tree.close("sub", ErrorKind::Other);
    let refusals = [
        "pytorch_model.bin.index.json.refused.txt",
        "sub.refused.txt",
    ];
    assert_eq!(names_of(&view), refusals);
    for refusal in refusals {
        assert!(text(&view, refusal).contains("cannot be read"), "{refusal}");
    }
    let derived = find(&view, "model.safetensors.index.json");
    assert!(matches!(derived, Err(Error::Io(_))));
    tree.heal();
    assert!(text(&view, "model.safetensors.index.json").contains("sub/m.safetensors"));
    // One that must not be entered is none.
    tree.close("sub", ErrorKind::PermissionDenied);
    assert!(text(&view, "model.safetensors.index.json").contains("sub/m.safetensors"));
}

#[test]
fn a_name_is_not_free_because_its_owner_cannot_be_looked_at() {
    let tree = MemoryTree::new();
    tree.write("m.pt", support::one_vector(&[1.0]));
    tree.write("m.ckpt", support::one_vector(&[2.0]));
    tree.write("other.txt", &b"other"[..]);
    let view = view(&tree);
    tree.close("m.ckpt", ErrorKind::Other);
    assert_eq!(
        names_of(&view),
        ["m.ckpt.refused.txt", "m.pt.refused.txt", "other.txt"]
    );
    assert!(text(&view, "m.pt.refused.txt").contains("cannot be read"));
    assert!(matches!(find(&view, "m.safetensors"), Err(Error::Io(_))));
    tree.heal();
    assert_eq!(bytes(&view, "m.pt.safetensors"), safetensors_of(&[1.0]));
}

#[test]
fn a_source_that_is_gone_is_an_error_and_never_empty() {
    let tree = source();
    tree.make_directory("sub");
    let view = view(&tree);
    let (root, sub) = (view.root().unwrap(), find(&view, "sub").unwrap());
    let file = find(&view, "a.safetensors").unwrap();
    tree.unmount();
    for node in [&root, &sub] {
        assert!(matches!(view.list(node), Err(Error::Io(_))));
        let found = view.lookup(node, "a.safetensors".as_ref());
        assert!(matches!(found, Err(Error::Io(_))));
    }
    assert!(matches!(view.attr(&root), Err(Error::Io(_))));
    assert!(view.open(&file).is_err());
    tree.heal();
    assert_eq!(
        read(&view.open(&file).unwrap()).unwrap(),
        safetensors_of(&[1.0])
    );
}

#[test]
fn a_slow_source_is_asked_no_more_than_a_fast_one() {
    let counts = [Duration::ZERO, Duration::from_millis(2)].map(|delay| {
        let tree = source();
        tree.delay(delay);
        let view = view(&tree);
        assert_eq!(names_of(&view).len(), 5);
        tree.reads().0
    });
    assert_eq!(counts[0], counts[1]);
}

#[test]
fn a_checkpoint_that_is_replaced_is_another_one_for_whoever_looks_again() {
    let tree = source();
    let view = view(&tree);
    let old = find(&view, "a.safetensors").unwrap();
    let open = view.open(&old).unwrap();
    tree.replace("a.pt", support::one_vector(&[9.0]));
    assert_eq!(read(&open).unwrap(), safetensors_of(&[1.0]));
    assert!(matches!(view.open(&old), Err(Error::Stale)));
    assert_eq!(bytes(&view, "a.safetensors"), safetensors_of(&[9.0]));
    tree.write("a.pt", support::one_vector(&[8.0, 7.0]));
    assert_eq!(bytes(&view, "a.safetensors"), safetensors_of(&[8.0, 7.0]));
}

/// A file system whose stamps say nothing: as much as within one tick of a clock of
/// whole seconds.
#[test]
fn what_may_change_without_a_trace_is_read_from_what_is_opened() {
    let tree = source();
    tree.set_unsettled(true);
    let view = view(&tree);
    for number in 0..20 {
        let values = [number as f32];
        tree.replace("a.pt", support::one_vector(&values));
        let node = find(&view, "a.safetensors").unwrap();
        let file = view.open(&node).unwrap();
        assert_eq!(read(&file).unwrap(), safetensors_of(&values));
        assert_eq!(file.contents(), None);
    }
    tree.set_unsettled(false);
    let settled = find(&view, "a.safetensors").unwrap();
    assert!(view.is_settled(&settled));
    assert!(view.open(&settled).unwrap().contents().is_some());
}

#[test]
fn links_that_are_not_followed_say_why() {
    let tree = source();
    for (name, obstacle) in [
        ("nowhere.pt", Obstacle::Nowhere),
        ("out.pt", Obstacle::Outside),
        ("private.pt", Obstacle::Private),
    ] {
        tree.block(name, obstacle);
    }
    let view = view(&tree);
    let said = |name: &str| text(&view, &format!("{name}.refused.txt"));
    assert!(said("nowhere.pt").contains("leads nowhere"));
    assert!(said("out.pt").contains("out of the mounted directory"));
    assert!(said("private.pt").contains("directory that not everybody may enter"));
    assert!(is_missing(&view, "out.safetensors"));
}

#[test]
fn who_was_let_in_by_old_rights_looks_again() {
    let tree = source();
    let view = view(&tree);
    let node = find(&view, "notes.txt").unwrap();
    assert_eq!(read(&view.open(&node).unwrap()).unwrap(), b"text");
    tree.set_rights("notes.txt", Rights::new(0, 0, 0o400));
    assert!(matches!(view.open(&node), Err(Error::Stale)));
    let node = find(&view, "notes.txt").unwrap();
    assert_eq!(node.attr().mode, 0o400);
    assert_eq!(read(&view.open(&node).unwrap()).unwrap(), b"text");
}

/// Where stamps mean nothing beyond a mount, records are found by where a file lies
/// and what is in it.
#[test]
fn the_next_mount_finds_what_the_last_one_knew_by_content() {
    let cache = tempfile::tempdir().unwrap();
    let fill = |tree: &MemoryTree, value: f32| {
        tree.write("m.pt", support::one_vector(&[value, 2.0]));
    };
    let (first, second, other) = (mounted(1), mounted(2), mounted(3));
    for (tree, value) in [(&first, 1.0), (&second, 1.0), (&other, 5.0)] {
        fill(tree, value);
    }
    let promotion = |tree: &MemoryTree| {
        let view = with_cache(tree, cache.path());
        let node = find(&view, "m.safetensors").unwrap();
        let shown = read(&view.open(&node).unwrap()).unwrap();
        (view.cache_entry(&node).unwrap().0, shown)
    };
    let records = || super::records::records(cache.path()).len();
    let (name, shown) = promotion(&first);
    assert_eq!((shown, records()), (safetensors_of(&[1.0, 2.0]), 1));
    let (again, shown) = promotion(&second);
    assert_eq!((shown, records()), (safetensors_of(&[1.0, 2.0]), 1));
    assert!(name == again, "one file, one name");
    // The same place, size and stamps, but other bytes.
    let (else_, shown) = promotion(&other);
    assert_eq!((shown, records()), (safetensors_of(&[5.0, 2.0]), 2));
    assert!(name != else_);
    // Bytes of a tensor that change in place leave the archive's directory as it was.
    fill(&second, 1.0);
    second.replace("m.pt", support::one_vector(&[1.0, 2.0]));
    let (touched, _) = promotion(&second);
    assert!(name != touched, "another time of change");
}

/// An archive whose second tensor has another name in its local header, which nobody
/// looks at before its bytes are read.
fn misnamed() -> Vec<u8> {
    let storages = [[1.0], [2.0]].map(support::Storage::floats);
    let tensors = [("a", 0), ("b", 1)].map(|(name, storage)| support::Tensor {
        name,
        storage,
        offset: 0,
        shape: &[1],
        strides: &[1],
    });
    let pickle = support::pickle(&tensors, &storages);
    let [first, second] = storages.each_ref().map(|storage| &*storage.bytes);
    let mut archive = Archive::torch(&pickle, &[("0", first), ("1", second)]);
    let mut entries = archive.entries.iter_mut();
    let entry = entries.find(|entry| entry.name == b"model/data/1");
    entry.unwrap().local_name = Some(b"nodel/data/1".to_vec());
    archive.bytes()
}

#[test]
fn what_a_read_found_is_known_to_the_next_mount() {
    let cache = tempfile::tempdir().unwrap();
    let (first, second) = (mounted(1), mounted(2));
    for tree in [&first, &second] {
        tree.write("m.pt", misnamed());
    }
    let view = with_cache(&first, cache.path());
    let node = find(&view, "m.safetensors").unwrap();
    assert!(read(&view.open(&node).unwrap()).is_err());
    assert_eq!(names_of(&view), ["m.pt.refused.txt"]);
    let next = with_cache(&second, cache.path());
    assert_eq!(names_of(&next), ["m.pt.refused.txt"]);
    assert!(text(&next, "m.pt.refused.txt").contains("another name"));
}

#[test]
fn many_threads_share_one_look() {
    let tree = source();
    tree.delay(Duration::from_millis(1));
    let view = Arc::new(view(&tree));
    let single = {
        let tree = source();
        bytes(&self::view(&tree), "a.safetensors");
        tree.reads().0
    };
    let before = tree.reads().0;
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| find(&view, "a.safetensors").unwrap());
        }
    });
    assert!(tree.reads().0 - before <= single, "each looked for itself");
}
