//! What becomes of files whose plans take much memory.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use stfs::budget::Budget;
use stfs::cache::Directory;
use stfs::source::memory::MemoryTree;
use stfs::view::{Options, View};

use super::archive::Archive;
use super::{bytes, is_missing, names, safetensors_of, support, text};

const MIB: u64 = 1 << 20;

/// The vector `values`, in a pickle that makes `lists` more objects and drops them.
/// Each takes 32 bytes, and makes the budget of its pickle grow by more.
fn swollen(lists: usize, values: &[f32]) -> Vec<u8> {
    let tensor = support::Tensor {
        name: "weight",
        storage: 0,
        offset: 0,
        shape: &[values.len() as u32],
        strides: &[1],
    };
    let storage = support::Storage::floats(values.iter().copied());
    let pickle = support::pickle(&[tensor], std::slice::from_ref(&storage));
    let (protocol, rest) = pickle.split_at(2);
    let pickle = [protocol, &b"]0".repeat(lists), rest].concat();
    Archive::torch(&pickle, &[("0", &storage.bytes)]).bytes()
}

fn view(tree: &MemoryTree, memory: u64, cache: Option<&Path>) -> View {
    let options = Options {
        memory: Budget::new(memory),
        cache: cache.map(|path| Directory::open(path).unwrap()),
        ..Options::default()
    };
    View::over(tree.root(), options)
}

#[test]
fn a_pickle_that_takes_too_much_is_refused_in_words_and_not_for_good() {
    let tree = MemoryTree::new();
    tree.write("big.pt", swollen(1_200_000, &[1.0]));
    tree.write("small.pt", support::one_vector(&[2.0]));
    let cache = tempfile::tempdir().unwrap();
    let poor = view(&tree, 64 * MIB, Some(cache.path()));
    let listed = ["big.pt.refused.txt", "small.safetensors", "small.tensors"];
    assert_eq!(names(&poor, ""), listed);
    let refusal = text(&poor, "big.pt.refused.txt");
    let words = [
        "big.pt is not shown",
        "it takes at least ",
        "no file may take more than 32 MiB",
        "`--memory`",
    ];
    for words in words {
        assert!(refusal.contains(words), "{refusal}");
    }
    drop(poor);
    let rich = view(&tree, 256 * MIB, Some(cache.path()));
    assert!(is_missing(&rich, "big.pt.refused.txt"));
    assert_eq!(bytes(&rich, "big.safetensors"), safetensors_of(&[1.0]));
}

#[test]
fn pickles_that_do_not_fit_together_are_read_in_turn() {
    let tree = MemoryTree::new();
    for file in 0..6_u8 {
        let values = [f32::from(file)];
        tree.write(format!("{file}.pt"), swollen(700_000, &values));
    }
    let view = view(&tree, 64 * MIB, None);
    thread::scope(|scope| {
        for file in 0..6_u8 {
            let view = &view;
            scope.spawn(move || {
                let converted = bytes(view, &format!("{file}.safetensors"));
                assert_eq!(converted, safetensors_of(&[f32::from(file)]));
            });
        }
    });
}

/// An index of about so many bytes, of one shard.
fn index(bytes: usize) -> Vec<u8> {
    let entry = |number| format!("\"layer{number:06}.weight\": \"model-1.bin\"");
    let entries: Vec<String> = (0..bytes / 40).map(entry).collect();
    format!("{{\"weight_map\": {{{}}}}}", entries.join(",")).into_bytes()
}

/// They are more than is kept, so that they are read and written again and again, by
/// several at once.
#[test]
fn indexes_that_do_not_fit_together_are_read_in_turn() {
    const INDEXES: usize = 24;
    const ROUNDS: usize = 3;
    const PATIENCE: Duration = Duration::from_secs(300);
    let tree = MemoryTree::new();
    for number in 0..INDEXES {
        let directory = format!("{number}");
        tree.make_directory(&directory);
        tree.write(
            format!("{directory}/model-1.bin"),
            support::one_vector(&[1.0]),
        );
        tree.write(
            format!("{directory}/model.bin.index.json"),
            index(600 << 10),
        );
    }
    let view = Arc::new(view(&tree, 8 * MIB, None));
    let (done, all) = channel();
    for thread in 0..INDEXES {
        let (view, done) = (view.clone(), done.clone());
        thread::spawn(move || {
            for round in 0..ROUNDS {
                let path = format!(
                    "{}/model.safetensors.index.json",
                    (thread + round) % INDEXES
                );
                let renamed = text(&view, &path);
                assert!(renamed.contains("\"model-1.safetensors\""), "{path}");
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..INDEXES {
        all.recv_timeout(PATIENCE).unwrap();
    }
}
