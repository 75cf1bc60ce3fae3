//! A directory that changes at random, against a plain model of the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, FileTimes};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use stfs::view::{Error, Kind, Node, View};

use super::{list, read, safetensors_of, support, view};

/// Names that get in each other's way, with the stem that each has, and whether
/// a name promises a checkpoint.
const NAMES: [(&str, &str, bool); 16] = [
    ("m", "m", false),
    ("m.bin", "m", true),
    ("m.ckpt", "m", true),
    ("m.pt", "m", true),
    ("m.pt.bin", "m.pt", true),
    ("m.pt.bin.pth", "m.pt.bin", true),
    ("m.pt.refused.txt", "m.pt.refused.txt", false),
    ("m.pt.safetensors", "m.pt", false),
    ("m.safetensors", "m", false),
    ("m.tensors", "m.tensors", false),
    ("model.pt", "model", true),
    ("model.safetensors", "model", false),
    ("notes.txt", "notes.txt", false),
    ("optimizer.pt", "optimizer", true),
    ("pytorch_model.bin", "model", true),
    ("q.pth.tar", "q", true),
];

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Checkpoint(u8),
    Native(u8),
    /// A pickle that is broken off.
    Pickle,
    /// One without tensors.
    NoWeights,
    Text(u8),
    Empty,
}

impl Content {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Content::Checkpoint(seed) => support::one_vector(&values(*seed)),
            Content::Native(seed) => safetensors_of(&values(*seed)),
            Content::Pickle => b"\x80\x02X".to_vec(),
            Content::NoWeights => b"\x80\x02N.".to_vec(),
            Content::Text(seed) => format!("# some text, number {seed}\n").into_bytes(),
            Content::Empty => Vec::new(),
        }
    }

    fn is_checkpoint(&self, name: &str) -> bool {
        match self {
            Content::Checkpoint(_) | Content::Pickle | Content::NoWeights => true,
            Content::Empty => about(name).2,
            Content::Native(_) | Content::Text(_) => false,
        }
    }
}

fn about(name: &str) -> (&'static str, &'static str, bool) {
    *NAMES.iter().find(|(known, ..)| *known == name).unwrap()
}

fn values(seed: u8) -> Vec<f32> {
    (0..=seed % 7)
        .map(|n| f32::from(n) * f32::from(seed))
        .collect()
}

fn raw(seed: u8) -> Vec<u8> {
    values(seed)
        .into_iter()
        .flat_map(f32::to_le_bytes)
        .collect()
}

/// What a name in the tree holds.
#[derive(Debug, PartialEq)]
enum Shown {
    File(Vec<u8>),
    /// The bytes of the only tensor, `weight`.
    Tensors(Vec<u8>),
    Refusal,
}

type Files = BTreeMap<&'static str, Content>;

/// The tree that the rules give to a directory of `files`.
fn tree(files: &Files, show_pickles: bool) -> BTreeMap<String, Shown> {
    let mut tree = BTreeMap::new();
    for (name, content) in files {
        if show_pickles || !content.is_checkpoint(name) {
            tree.insert(name.to_string(), Shown::File(content.bytes()));
        }
        if let (Content::Native(seed), Some(stem)) = (content, name.strip_suffix(".safetensors")) {
            tree.entry(format!("{stem}.tensors"))
                .or_insert(Shown::Tensors(raw(*seed)));
        }
    }
    let real: BTreeSet<String> = files
        .iter()
        .filter(|(name, content)| show_pickles || !content.is_checkpoint(name))
        .map(|(name, _)| name.to_string())
        .collect();
    let checkpoints: Vec<&str> = files
        .iter()
        .filter(|(name, content)| {
            content.is_checkpoint(name) && !matches!(content, Content::NoWeights)
        })
        .map(|(name, _)| *name)
        .collect();
    let whole = whole_names(&checkpoints);
    for name in &checkpoints {
        let base = if whole.contains(name) {
            name
        } else {
            about(name).1
        };
        let converted = format!("{base}.safetensors");
        if real.contains(&converted) {
            continue;
        }
        if let Content::Checkpoint(seed) = files[*name] {
            let old = tree.insert(converted, Shown::File(safetensors_of(&values(seed))));
            assert!(old.is_none());
            tree.entry(format!("{base}.tensors"))
                .or_insert(Shown::Tensors(raw(seed)));
        } else {
            tree.entry(format!("{name}.refused.txt"))
                .or_insert(Shown::Refusal);
        }
    }
    // What is safetensors under the name of a checkpoint has tensors where nothing
    // else is called as they would be.
    let natives = files.iter().filter_map(|(name, content)| match content {
        Content::Native(seed) => Some((*name, *seed)),
        _ => None,
    });
    let natives: Vec<(&str, u8)> = natives
        .filter(|(name, _)| about(name).2 || name.ends_with(".safetensors"))
        .collect();
    let with_tensors: Vec<&str> = natives
        .iter()
        .map(|(name, _)| *name)
        .chain(checkpoints)
        .collect();
    let whole = whole_names(&with_tensors);
    for (name, seed) in natives.iter().filter(|(name, _)| about(name).2) {
        let base = match whole.contains(name) {
            true => name,
            false => about(name).1,
        };
        tree.entry(format!("{base}.tensors"))
            .or_insert(Shown::Tensors(raw(*seed)));
    }
    // A real file wins, whatever was there before it.
    for (name, content) in files {
        if real.contains(*name) {
            tree.insert(name.to_string(), Shown::File(content.bytes()));
        }
    }
    tree
}

/// Whoever shares its derived name goes by its whole name, which may be what another
/// one is about to be called.
fn whole_names<'n>(files: &[&'n str]) -> BTreeSet<&'n str> {
    let mut whole: BTreeSet<&str> = BTreeSet::new();
    loop {
        let shares = |name: &&&str| {
            let stem = about(name).1;
            files
                .iter()
                .any(|other| other != *name && about(other).1 == stem)
                || (stem != **name && whole.contains(stem))
        };
        let more: BTreeSet<&str> = files.iter().filter(shares).copied().collect();
        if more == whole {
            return whole;
        }
        whole = more;
    }
}

fn check(view: &View, files: &Files, show_pickles: bool) -> BTreeMap<String, Node> {
    let expected = tree(files, show_pickles);
    let root = view.root().unwrap();
    let children = list(view, &root);
    let names: Vec<&str> = children
        .iter()
        .map(|(name, _)| name.to_str().unwrap())
        .collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>(), "{files:?}");
    for ((name, node), shown) in children.iter().zip(expected.values()) {
        let name = name.to_str().unwrap();
        match shown {
            Shown::File(bytes) => {
                assert!(!node.is_refusal());
                assert_eq!(&read(&view.open(node).unwrap()).unwrap(), bytes, "{name}");
            }
            Shown::Refusal => {
                assert!(node.is_refusal(), "{name}");
                let text = String::from_utf8(read(&view.open(node).unwrap()).unwrap()).unwrap();
                let about = name.strip_suffix(".refused.txt").unwrap();
                assert!(text.starts_with(about) && text.ends_with(".\n"), "{text}");
            }
            Shown::Tensors(bytes) => {
                assert_eq!(node.kind(), Kind::Directory);
                let tensors = list(view, node);
                assert_eq!(tensors.len(), 1);
                assert_eq!(tensors[0].0, "weight");
                assert_eq!(&read(&view.open(&tensors[0].1).unwrap()).unwrap(), bytes);
            }
        }
    }
    // What is not listed is not there.
    for (name, stem, _) in NAMES {
        for base in [name, stem] {
            for end in ["", ".safetensors", ".tensors", ".refused.txt"] {
                let name = format!("{base}{end}");
                if !expected.contains_key(&name) {
                    let found = view.lookup(&root, name.as_ref());
                    assert!(matches!(found, Err(Error::NotFound)), "{name}");
                }
            }
        }
    }
    children
        .into_iter()
        .map(|(name, node)| (name.into_string().unwrap(), node))
        .collect()
}

#[derive(Clone, Debug)]
enum Change {
    /// Written under another name and moved into place.
    Put(&'static str, Content),
    /// Written into the file that is there.
    Overwrite(&'static str, Content),
    Remove(&'static str),
    Rename(&'static str, &'static str),
    /// To half its length.
    Truncate(&'static str),
}

fn change() -> impl Strategy<Value = Change> {
    let name = || proptest::sample::select(NAMES.as_slice()).prop_map(|(name, ..)| name);
    let content = || {
        prop_oneof![
            4 => any::<u8>().prop_map(Content::Checkpoint),
            2 => any::<u8>().prop_map(Content::Native),
            1 => Just(Content::Pickle),
            1 => Just(Content::NoWeights),
            1 => any::<u8>().prop_map(Content::Text),
            1 => Just(Content::Empty),
        ]
    };
    prop_oneof![
        6 => (name(), content()).prop_map(|(name, content)| Change::Put(name, content)),
        2 => (name(), content()).prop_map(|(name, content)| Change::Overwrite(name, content)),
        2 => name().prop_map(Change::Remove),
        2 => (name(), name()).prop_map(|(from, to)| Change::Rename(from, to)),
        1 => name().prop_map(Change::Truncate),
    ]
}

/// A clock that never shows the same time twice, so that no change hides behind
/// the resolution of time stamps.
struct Clock(SystemTime);

impl Clock {
    fn stamp(&mut self, path: &Path) {
        self.0 += Duration::from_millis(1);
        let times = FileTimes::new().set_modified(self.0);
        File::open(path).unwrap().set_times(times).unwrap();
    }
}

/// Makes the change, here and in the model.
fn apply(change: &Change, root: &Path, files: &mut Files, clock: &mut Clock) {
    match change {
        Change::Put(name, content) => {
            let temporary = root.with_extension("new");
            std::fs::write(&temporary, content.bytes()).unwrap();
            clock.stamp(&temporary);
            std::fs::rename(&temporary, root.join(name)).unwrap();
            files.insert(name, content.clone());
        }
        Change::Overwrite(name, content) => {
            std::fs::write(root.join(name), content.bytes()).unwrap();
            clock.stamp(&root.join(name));
            files.insert(name, content.clone());
        }
        Change::Remove(name) => {
            if files.remove(name).is_some() {
                std::fs::remove_file(root.join(name)).unwrap();
            }
        }
        Change::Rename(from, to) => {
            if let Some(content) = files.remove(from) {
                std::fs::rename(root.join(from), root.join(to)).unwrap();
                files.insert(to, content);
            }
        }
        // Half an archive has a pickle named in its head, half a pickle is one
        // that breaks off.
        Change::Truncate(name) => {
            let broken = match files.get(name) {
                Some(Content::Checkpoint(_)) => Content::Pickle,
                _ => return,
            };
            let file = File::options().write(true).open(root.join(name)).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
            clock.stamp(&root.join(name));
            files.insert(name, broken);
        }
    }
    clock.stamp(root);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn shows_what_the_rules_say(
        changes in proptest::collection::vec(change(), 1..14),
        show_pickles in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("source");
        std::fs::create_dir(&root).unwrap();
        let options = stfs::view::Options { show_pickles, ..Default::default() };
        let view = View::new(&root, options).unwrap();
        let mut clock = Clock(SystemTime::now() - Duration::from_secs(3600));
        let mut files = Files::new();
        let mut before = check(&view, &files, show_pickles);
        for change in &changes {
            // A truncated file under the pickles that are shown has other bytes
            // than the model knows.
            if show_pickles && matches!(change, Change::Truncate(_)) {
                continue;
            }
            let shown = tree(&files, show_pickles);
            let open: Vec<_> = before
                .iter()
                .filter(|(name, _)| is_derived(&files, &shown, name))
                .map(|(name, node)| (name, view.open(node).unwrap()))
                .collect();
            apply(change, &root, &mut files, &mut clock);
            for (name, file) in open {
                if let (Ok(bytes), Shown::File(old)) = (read(&file), &shown[name]) {
                    prop_assert_eq!(&bytes, old, "{} was open", name);
                }
            }
            let after = check(&view, &files, show_pickles);
            let now = tree(&files, show_pickles);
            for (name, node) in &after {
                if is_derived(&files, &now, name)
                    && let Some(old) = before.get(name)
                {
                    prop_assert!(shown.get(name) == now.get(name) || old.key() != node.key());
                }
            }
            before = after;
        }
    }
}

/// Whether a name stands for a file that is not one of the source.
fn is_derived(files: &Files, tree: &BTreeMap<String, Shown>, name: &str) -> bool {
    let own = files.get(name).map(|content| Shown::File(content.bytes()));
    matches!(&tree[name], shown @ Shown::File(_) if own.as_ref() != Some(shown))
}

#[test]
fn an_empty_directory_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let view = view(directory.path());
    assert!(view.list(&view.root().unwrap()).unwrap().is_empty());
}
