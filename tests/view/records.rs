//! What is found out about a checkpoint outlives the view: another one on the same
//! cache shows the same without reading it.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use stfs::budget::Budget;
use stfs::cache::Directory;
use stfs::checkpoint::{Content, sniff};
use stfs::convert;
use stfs::view::{Kind, Node, Options, View};
use tempfile::TempDir;

use super::{bytes, find, is_missing, names, read, safetensors_of, support, view};

pub fn cached(source: &Path, cache: &Path) -> View {
    rooted(source, cache, None)
}

fn rooted(source: &Path, cache: &Path, root: Option<&str>) -> View {
    let options = Options {
        cache: Some(Directory::open(cache).unwrap()),
        weights: root.map(str::to_string),
        ..Options::default()
    };
    View::new(source, options).unwrap()
}

/// A source of these files, which may be written down, and an empty cache.
pub fn settled(files: &[(&str, Vec<u8>)]) -> (TempDir, TempDir) {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (name, bytes) in files {
        support::write(&source.path().join(name), bytes);
    }
    settle(source.path());
    (source, cache)
}

/// Waits until nothing below `root` is so new that it might change unnoticed.
fn settle(root: &Path) {
    let files = files(root);
    while !files.iter().all(|path| support::version(path).settled) {
        thread::sleep(Duration::from_millis(50));
    }
}

/// The files below `root`, in order.
pub fn files(root: &Path) -> Vec<PathBuf> {
    let (mut files, mut pending) = (Vec::new(), vec![root.to_path_buf()]);
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => pending.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    files
}

pub fn records(cache: &Path) -> Vec<PathBuf> {
    files(&cache.join("plans"))
}

/// The sizes that `ls -lR` shows, with or without the directories of tensors.
fn sizes(view: &View, tensors: bool) -> BTreeMap<PathBuf, u64> {
    let mut sizes = BTreeMap::new();
    walk(view, |path, node| {
        sizes.insert(path.to_path_buf(), node.attr().size);
        tensors || path.extension() != Some("tensors".as_ref())
    });
    sizes
}

/// Everything in a tree: bytes of files, by path.
pub fn contents(view: &View) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut contents = BTreeMap::new();
    walk(view, |path, node| {
        if node.kind() == Kind::File {
            let bytes = read(&view.open(node).unwrap()).unwrap();
            assert_eq!(bytes.len() as u64, node.attr().size, "{path:?}");
            contents.insert(path.to_path_buf(), bytes);
        }
        true
    });
    contents
}

/// Shows every node to `visit`, which says whether to go on below it.
fn walk(view: &View, mut visit: impl FnMut(&Path, &Node) -> bool) {
    let mut pending = vec![(PathBuf::new(), view.root().unwrap())];
    while let Some((path, directory)) = pending.pop() {
        let listing = view.list(&directory).unwrap();
        for index in 0..listing.len() {
            let (name, node) = listing.entry(index).unwrap();
            let path = path.join(&*name);
            if visit(&path, &node) && node.kind() == Kind::Directory {
                pending.push((path, node));
            }
        }
    }
}

/// Tells which files somebody opens and reads.
struct Watch {
    inotify: Inotify,
    files: HashMap<WatchDescriptor, PathBuf>,
}

impl Watch {
    fn new(files: impl IntoIterator<Item = PathBuf>) -> Watch {
        let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
        let watch = |path: PathBuf| (inotify.add_watch(&path, flags).unwrap(), path);
        Watch {
            files: files.into_iter().map(watch).collect(),
            inotify,
        }
    }

    /// The files that were opened since the last call, each with whether it was read.
    fn seen(&self) -> BTreeMap<PathBuf, bool> {
        let mut seen = BTreeMap::new();
        while let Ok(events) = self.inotify.read_events() {
            for event in events {
                assert!(!event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW));
                let read: &mut bool = seen.entry(self.files[&event.wd].clone()).or_default();
                *read |= event.mask.contains(AddWatchFlags::IN_ACCESS);
            }
        }
        seen
    }
}

fn content(path: &Path) -> Content {
    let hint = convert::hint(path.file_name().unwrap());
    sniff(&support::open(path), hint, &Budget::default().share()).unwrap()
}

/// A copy of the repository's checkpoints: zip, legacy, tar, pickled and embedded
/// arrays, deflated, gathered, cut over files, native, refused.
fn everything() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    for part in ["tests/data/formats", "examples/models"] {
        for file in files(&repository.join(part)) {
            let name = file.strip_prefix(repository).unwrap();
            let expectation = name.to_str().unwrap().ends_with(".expected.json");
            if !expectation {
                support::write(&copy.path().join(name), &fs::read(&file).unwrap());
            }
        }
    }
    let both = copy.path().join("both");
    support::write(&both.join("model.safetensors"), &safetensors_of(&[1.0]));
    support::write(
        &both.join("pytorch_model.bin"),
        &support::one_vector(&[1.0]),
    );
    settle(copy.path());
    copy
}

#[test]
fn nothing_is_read_twice() {
    let (source, cache) = (everything(), tempfile::tempdir().unwrap());
    let (source, cache) = (source.path(), cache.path());
    let of = |wanted: fn(Content) -> bool| {
        let files = files(source).into_iter();
        files.filter(move |path| wanted(content(path)))
    };
    // What is broken at its head is as cheap to look at as a record.
    let checkpoints = Watch::new(of(|content| matches!(content, Content::Checkpoint { .. })));
    let natives = Watch::new(of(|content| content == Content::Safetensors));
    assert!(checkpoints.files.len() > 100 && natives.files.len() > 1);

    let plain = view(source);
    assert_eq!(sizes(&cached(source, cache), false), sizes(&plain, false));
    assert_eq!(checkpoints.seen().len(), checkpoints.files.len());
    assert_eq!(natives.seen().len(), natives.files.len());
    let recorded = records(cache);
    let written = |path: &PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let when: Vec<SystemTime> = recorded.iter().map(written).collect();
    let known = checkpoints.files.len() + natives.files.len();
    assert_eq!(recorded.len(), known);

    let second = cached(source, cache);
    let all = sizes(&plain, true);
    checkpoints.seen();
    natives.seen();
    assert_eq!(sizes(&second, false), sizes(&plain, false));
    assert_eq!((checkpoints.seen(), natives.seen()), Default::default());
    // The tensors of a native file stand in its header alone.
    assert_eq!(sizes(&second, true), all);
    assert_eq!(checkpoints.seen(), BTreeMap::new());

    let third = cached(source, cache);
    walk(&third, |path, node| {
        if node.kind() == Kind::File {
            third
                .open(node)
                .unwrap_or_else(|error| panic!("{path:?}: {error}"));
        }
        true
    });
    // It has to be open to be read from; its pickle is not.
    let pickles: Vec<_> = checkpoints.seen().into_iter().collect();
    assert!(pickles.iter().all(|(_, read)| !read), "{pickles:?}");
    assert_eq!(contents(&third), contents(&plain));

    assert_eq!(records(cache), recorded);
    let again: Vec<SystemTime> = recorded.iter().map(written).collect();
    assert!(when == again, "a record was written twice");
}

#[test]
fn files_that_may_still_change_are_not_recorded() {
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, cache) = (source.path(), cache.path());
    let path = source.join("m.pt");
    support::write(&path, &support::one_vector(&[1.0]));
    let file = File::open(&path).unwrap();
    let later = SystemTime::now() + Duration::from_secs(3600);
    file.set_times(FileTimes::new().set_modified(later))
        .unwrap();
    let first = cached(source, cache);
    assert_eq!(bytes(&first, "m.safetensors"), safetensors_of(&[1.0]));
    assert!(records(cache).is_empty());

    let earlier = SystemTime::now() - Duration::from_secs(3600);
    file.set_times(FileTimes::new().set_modified(earlier))
        .unwrap();
    let settled = support::version(&path).settled;
    assert!(!settled, "the inode has changed just now");
    settle(source);
    assert_eq!(
        names(&cached(source, cache), ""),
        ["m.safetensors", "m.tensors"]
    );
    assert_eq!(records(cache).len(), 1);
}

#[test]
fn plain_files_are_not_recorded() {
    let (source, cache) = settled(&[
        ("config.json", b"{}".to_vec()),
        ("tokenizer.bin", b"# no pickle".to_vec()),
        ("empty", Vec::new()),
    ]);
    let view = cached(source.path(), cache.path());
    assert_eq!(contents(&view).len(), 3);
    assert!(records(cache.path()).is_empty());
}

/// In every way that the inode can tell.
#[test]
fn a_changed_file_is_read_again() {
    let with = |value: f32| support::one_vector(&[value]);
    let (source, cache) = settled(&[("m.pt", with(1.0)), ("other.pt", with(2.0))]);
    let (source, cache) = (source.path(), cache.path());
    let path = source.join("m.pt");
    let shown = || bytes(&cached(source, cache), "m.safetensors");
    assert_eq!(shown(), safetensors_of(&[1.0]));
    let count = records(cache).len();
    assert_eq!(count, 1);

    // Other bytes, all but the time of the inode put back.
    let before = fs::metadata(&path).unwrap();
    assert_eq!(with(1.0).len(), with(3.0).len());
    fs::write(&path, with(3.0)).unwrap();
    let times = FileTimes::new().set_modified(before.modified().unwrap());
    let file = File::open(&path).unwrap();
    file.set_times(times).unwrap();
    assert_eq!(shown(), safetensors_of(&[3.0]));

    // Another file in its place, with a record of its own or without.
    fs::rename(source.join("other.pt"), &path).unwrap();
    assert_eq!(shown(), safetensors_of(&[2.0]));
    settle(source);
    assert_eq!(shown(), safetensors_of(&[2.0]));
    assert_eq!(records(cache).len(), count + 1);

    // Longer, then no checkpoint at all.
    fs::write(&path, support::one_vector(&[4.0, 5.0])).unwrap();
    assert_eq!(shown(), safetensors_of(&[4.0, 5.0]));
    settle(source);
    assert_eq!(shown(), safetensors_of(&[4.0, 5.0]));
    fs::write(&path, b"no pickle").unwrap();
    assert!(is_missing(&cached(source, cache), "m.safetensors"));
}

#[test]
fn the_path_to_the_weights_is_part_of_what_is_recorded() {
    let case = "tests/data/formats/layout-esrgan.pth";
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(case)).unwrap();
    let (source, cache) = settled(&[("m.pth", file)]);
    let (source, cache) = (source.path(), cache.path());
    let roots = [None, Some("params"), Some(""), Some("nowhere")];
    let with = |root: Option<&str>, cache: &Path| contents(&rooted(source, cache, root));
    let fresh = roots.map(|root| with(root, tempfile::tempdir().unwrap().path()));
    // A file without such a path is what it is without being asked.
    assert!(fresh[0] != fresh[1] && fresh[0] != fresh[2] && fresh[0] == fresh[3]);
    for _ in 0..2 {
        for (root, fresh) in roots.iter().zip(&fresh) {
            assert_eq!(&with(*root, cache), fresh, "{root:?}");
        }
    }
    assert_eq!(records(cache).len(), roots.len());
}

/// GPT2LMHeadModel calls `lm_head.weight` tied; nobody knows the other class.
#[test]
fn another_architecture_gives_other_names_without_a_reading() {
    let tied = support::tied(&["lm_head.weight", "wte.weight"], &[1.0, 2.0]);
    let (source, cache) = settled(&[("pytorch_model.bin", tied)]);
    let (source, cache) = (source.path(), cache.path());
    let config = source.join("config.json");
    let watch = Watch::new([source.join("pytorch_model.bin")]);
    let shown = |architecture: &str| {
        let json = format!(r#"{{"architectures": ["{architecture}"]}}"#);
        support::write(&config, json.as_bytes());
        let view = cached(source, cache);
        let listed = names(&view, "model.tensors");
        let bytes = bytes(&view, "model.safetensors");
        let size = find(&view, "model.safetensors").unwrap().attr().size;
        assert_eq!(bytes.len() as u64, size);
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        (listed, metadata.into_iter().collect::<BTreeMap<_, _>>())
    };
    let expected = |kept: &str, dropped: &str| {
        let metadata = [("format", "pt"), (dropped, kept)];
        let metadata = metadata.map(|(key, value)| (key.to_string(), value.to_string()));
        (vec![kept.to_string()], BTreeMap::from(metadata))
    };
    let (head, embedding) = ("lm_head.weight", "wte.weight");
    assert_eq!(shown("SomeModel"), expected(head, embedding));
    for _ in 0..2 {
        for (architecture, kept, dropped) in [
            ("GPT2LMHeadModel", embedding, head),
            ("SomeModel", head, embedding),
        ] {
            // Listing reads the weights as well: look at the size alone.
            watch.seen();
            let json = format!(r#"{{"architectures": ["{architecture}"]}}"#);
            support::write(&config, json.as_bytes());
            let sized = sizes(&cached(source, cache), true);
            assert!(sized.contains_key(&Path::new("model.tensors").join(kept)));
            assert_eq!(watch.seen(), BTreeMap::new());
            assert_eq!(shown(architecture), expected(kept, dropped));
        }
    }
    assert_eq!(records(cache).len(), 1);
}

/// The refusal of a checkpoint whose parts are missing holds until they are there.
#[test]
fn parts_that_come_later_are_noticed() {
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats");
    let (source, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, cache) = (source.path(), cache.path());
    let from = formats.join("dcp-two-ranks");
    let copy = |wanted: fn(&str) -> bool| {
        for file in files(&from) {
            let name = file.file_name().unwrap().to_str().unwrap();
            if wanted(name) {
                support::write(&source.join("dcp").join(name), &fs::read(&file).unwrap());
            }
        }
    };
    copy(|name| !name.ends_with(".distcp"));
    settle(source);
    let shown = || contents(&cached(source, cache));
    let missing = shown();
    assert_eq!(shown(), missing);
    assert!(
        missing
            .keys()
            .all(|path| path.extension().unwrap() == "txt")
    );
    copy(|name| name.ends_with(".distcp"));
    let whole = contents(&view(source));
    assert!(
        whole
            .keys()
            .any(|path| path.extension().unwrap() == "safetensors")
    );
    // Parts that may still change are no ground for a record.
    let parts = || {
        let files = files(source).into_iter();
        files.filter(|path| path.extension().unwrap_or_default() == "distcp")
    };
    let date = |time| {
        for part in parts() {
            let file = File::options().write(true).open(part).unwrap();
            file.set_times(FileTimes::new().set_modified(time)).unwrap();
        }
    };
    let hour = Duration::from_secs(3600);
    date(SystemTime::now() + hour);
    let recorded = || -> Vec<Vec<u8>> {
        let records = records(cache).into_iter();
        records.map(|path| fs::read(path).unwrap()).collect()
    };
    let before = recorded();
    assert_eq!(shown(), whole);
    assert_eq!(recorded(), before);
    date(SystemTime::now() - hour);
    settle(source);
    assert_eq!(shown(), whole);
    assert_ne!(recorded(), before);
    assert_eq!(shown(), whole);
    // A part that changes takes the plan with it, though not `.metadata`.
    fs::remove_file(parts().next().unwrap()).unwrap();
    assert_eq!(shown(), contents(&view(source)));
}

#[test]
fn two_views_at_once_agree() {
    let files: Vec<(String, Vec<u8>)> = (0..50_u8)
        .map(|number| {
            let values = [f32::from(number), 1.0];
            (format!("{number}.pt"), support::one_vector(&values))
        })
        .collect();
    let files: Vec<(&str, Vec<u8>)> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.clone()))
        .collect();
    let (source, cache) = settled(&files);
    let (source, cache) = (source.path(), cache.path());
    let expected = contents(&view(source));
    for _ in 0..2 {
        let views = [cached(source, cache), cached(source, cache)];
        thread::scope(|scope| {
            for view in views.iter().cycle().take(8) {
                let expected = &expected;
                scope.spawn(move || assert!(contents(view) == *expected));
            }
        });
    }
    assert_eq!(records(cache).len(), files.len());
}
