//! What is said of a checkpoint that is not shown: it is true, and it helps.

use stfs::checkpoint::{Cause, Refusal};
use stfs::source::memory::MemoryTree;
use stfs::view::{Options, View};

use super::{bytes, find, is_missing, names, support, text, view};

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";

/// Whoever has the file does not know what it does when it is loaded.
#[test]
fn nothing_advises_to_load_a_pickle() {
    for cause in [
        Cause::NotDownloaded,
        Cause::LfsPointer,
        Cause::Changing,
        Cause::Unreadable,
        Cause::Unsupported,
        Cause::Ambiguous,
        Cause::Dangerous,
        Cause::Malformed,
        Cause::Inexpressible,
        Cause::TooLarge,
        Cause::NoTensors,
        Cause::OptimizerState,
        Cause::Headless,
        Cause::Unpacked,
        Cause::Blocked,
        Cause::Circular,
        Cause::Younger,
    ] {
        let remedy = Refusal::new(cause, "").remedy();
        let sentences = remedy.trim_end_matches('.').split(". ").count();
        assert!((1..=2).contains(&sentences), "{remedy}");
        for advice in ["torch.save", "torch.load", "Load the file", "save it again"] {
            assert!(!remedy.contains(advice), "{remedy}");
        }
    }
}

#[test]
fn pointers_called_safetensors_are_not_shown_as_such() {
    let directory = tempfile::tempdir().unwrap();
    support::write(&directory.path().join("x.safetensors"), POINTER);
    support::write(&directory.path().join("notes.txt"), POINTER);
    let view = view(directory.path());
    assert_eq!(names(&view, ""), ["notes.txt", "x.safetensors.refused.txt"]);
    assert!(text(&view, "x.safetensors.refused.txt").contains("git lfs pull"));
    assert!(is_missing(&view, "x.safetensors"));
    assert!(is_missing(&view, "x.tensors"));
}

#[test]
fn an_archive_that_was_unpacked_is_to_be_packed_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let tensor = support::Tensor {
        name: "w",
        storage: 0,
        offset: 0,
        shape: &[2],
        strides: &[1],
    };
    let storage = support::Storage::floats([1.0, 2.0]);
    let pickle = support::pickle(&[tensor], &[storage]);
    for parts in ["u", "lone"] {
        support::write(&root.join(parts).join("data.pkl"), &pickle);
    }
    support::write(&root.join("u/version"), b"3\n");
    support::write(&root.join("u/data/0"), &[0; 8]);
    let view = view(root);
    assert_eq!(
        names(&view, "u"),
        ["data", "data.pkl.refused.txt", "version"]
    );
    let unpacked = text(&view, "u/data.pkl.refused.txt");
    assert!(unpacked.contains("unpacked") && unpacked.contains("zip -0"));
    let lone = text(&view, "lone/data.pkl.refused.txt");
    assert!(!lone.contains("unpacked") && lone.contains("Download the file again"));
}

/// That of a file called `.metadata` would be hidden.
#[test]
fn the_refusal_of_a_directory_is_called_as_the_directory_is() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("run");
    let broken = b"\x80\x02(";
    support::write(&root.join(".metadata"), broken);
    support::write(&root.join("step1/.metadata"), broken);
    support::write(&root.join("mine/.metadata"), broken);
    support::write(&root.join("mine/mine.refused.txt"), b"mine");
    support::write(&root.join("twice/.metadata"), broken);
    support::write(&root.join("twice/twice"), broken);
    let view = view(&root);
    assert_eq!(
        names(&view, ""),
        ["mine", "run.refused.txt", "step1", "twice"]
    );
    assert_eq!(names(&view, "step1"), ["step1.refused.txt"]);
    assert!(text(&view, "step1/step1.refused.txt").starts_with(".metadata is not shown"));
    assert!(find(&view, "step1/step1.refused.txt").unwrap().is_refusal());
    for absent in ["step1/.metadata.refused.txt", "step1/run.refused.txt"] {
        assert!(is_missing(&view, absent), "{absent}");
    }
    assert_eq!(names(&view, "mine"), ["mine.refused.txt"]);
    assert_eq!(bytes(&view, "mine/mine.refused.txt"), b"mine");
    assert_eq!(names(&view, "twice"), ["twice.refused.txt"]);
    assert!(text(&view, "twice/twice.refused.txt").starts_with("twice is not shown"));
}

#[test]
fn a_metadata_that_cannot_be_looked_at_is_said_to_be_so() {
    let tree = MemoryTree::new();
    tree.write("step1/.metadata", &b"\x80\x02}."[..]);
    tree.fail("step1/.metadata", std::io::ErrorKind::Other, 0);
    let view = View::over(tree.root(), Options::default());
    assert_eq!(names(&view, "step1"), ["step1.refused.txt"]);
    assert!(text(&view, "step1/step1.refused.txt").contains("cannot be read"));
}
