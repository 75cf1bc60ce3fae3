//! What happens during a promotion: to its source, to what it writes, to the cache
//! directory, and to the wish for it.

use std::fs::{self, File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use stfs::cache::{Error, Name, Promotion, Store};
use stfs::convert::Reader;
use tempfile::tempdir;

use super::common::*;

const LEN: usize = 11 * MIB;

/// Promotes, and calls `act` after step `when`.
fn interrupted(
    store: &Store,
    name: &Name,
    reader: &Reader,
    when: usize,
    act: impl Fn(),
) -> Result<Promotion, Error> {
    let mut number = 0;
    let result = store.promote(name, &provenance("m"), reader, &mut |_| {
        number += 1;
        if number == when {
            act();
        }
        ControlFlow::Continue(())
    });
    assert!(number >= when, "{number} steps only");
    result
}

/// Steps of a file of `LEN` bytes: the header, and three chunks.
const STEPS: usize = 4;

fn source_changes(change: impl Fn(&Path)) {
    for when in 1..=STEPS {
        let folder = tempdir().unwrap();
        let path = folder.path().join("m.pt");
        let store = store(&folder.path().join("cache"));
        let (reader, _) = model(&path, 1, LEN);
        let result = interrupted(&store, &name(1), &reader, when, || change(&path));
        assert!(
            matches!(result, Err(Error::Changed { .. })),
            "step {when}: {result:?}"
        );
        assert!(store.find(&name(1)).is_none());
        assert!(files(store.directory().root()).is_empty());
    }
}

#[test]
fn the_source_is_replaced() {
    source_changes(|path| {
        let new = path.with_extension("new");
        fs::write(&new, noise(2, LEN)).unwrap();
        fs::rename(new, path).unwrap();
    });
}

#[test]
fn the_source_is_deleted() {
    source_changes(|path| fs::remove_file(path).unwrap());
}

#[test]
fn the_source_is_truncated() {
    source_changes(|path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(5 * MIB as u64).unwrap();
    });
}

#[test]
fn the_source_is_overwritten() {
    source_changes(|path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"other", 10 * MIB as u64).unwrap();
    });
}

/// Even when whoever does it sets the time back.
#[test]
fn the_source_is_overwritten_in_secret() {
    source_changes(|path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"other", 10 * MIB as u64).unwrap();
        file.set_modified(before).unwrap();
    });
}

#[test]
fn the_caller_breaks_it_off() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    for when in 1..=STEPS {
        let mut seen = Vec::new();
        let result = store.promote(&name(1), &provenance("m"), &reader, &mut |done| {
            seen.push(done);
            match seen.len() == when {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        assert!(matches!(result, Err(Error::Aborted)));
        assert!(
            seen.windows(2)
                .all(|pair| pair[0] < pair[1] && pair[1] - pair[0] <= 4 << 20)
        );
        assert!(files(store.directory().root()).is_empty());
    }
    promote(&store, &name(1), &reader).unwrap();
    holds(&store, &name(1), &wanted);
}

#[test]
fn a_panic_leaves_nothing_behind() {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (reader, _) = model(&folder.path().join("m.pt"), 1, LEN);
    let panics = std::panic::AssertUnwindSafe(|| {
        let _ = interrupted(&store, &name(1), &reader, 2, || panic!("in the middle"));
    });
    assert!(std::panic::catch_unwind(panics).is_err());
    assert!(files(store.directory().root()).is_empty());
}

/// A file system that says it wrote and did not.
#[test]
fn what_was_written_is_lost() {
    let damages: [fn(&File); 4] = [
        |file| file.write_all_at(b"x", 20).unwrap(),
        |file| file.set_len(LEN as u64 / 2).unwrap(),
        |file| file.set_len(LEN as u64 * 2).unwrap(),
        |file| {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, flags, 4 << 20, 64 << 10).unwrap();
        },
    ];
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let incoming = store.directory().incoming_file(&name(1));
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    for damage in damages {
        let result = interrupted(&store, &name(1), &reader, STEPS, || {
            damage(&OpenOptions::new().write(true).open(&incoming).unwrap());
        });
        assert!(matches!(result, Err(Error::Damaged { .. })), "{result:?}");
        assert!(files(store.directory().root()).is_empty());
    }
    promote(&store, &name(1), &reader).unwrap();
    holds(&store, &name(1), &wanted);
}

#[test]
fn one_at_a_time() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let (first, second) = (store(&root), store(&root));
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    let result = interrupted(&first, &name(1), &reader, 2, || {
        let busy = promote(&second, &name(1), &reader);
        assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
        assert!(second.find(&name(1)).is_none());
        assert!(second.peek(&name(1)).is_none());
        // What is being written is no leftover.
        assert_eq!(second.collect().unwrap(), 0);
    });
    assert_eq!(result.unwrap(), Promotion::Made(Vec::new()));
    holds(&second, &name(1), &wanted);
    assert_eq!(
        promote(&second, &name(1), &reader).unwrap(),
        Promotion::Already
    );
}

#[test]
fn the_cache_directory_is_deleted() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let store = store(&root);
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    promote(&store, &name(1), &reader).unwrap();
    let open = store.find(&name(1)).unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert!(store.find(&name(1)).is_none());
    assert!(store.peek(&name(1)).is_none());
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.collect().unwrap(), 0);
    assert!(bytes(&open) == wanted, "an open file stays what it was");
    drop(open);

    // In the middle of it, too.
    let result = interrupted(&store, &name(1), &reader, 2, || {
        fs::remove_dir_all(&root).unwrap();
    });
    assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    assert_eq!(
        promote(&store, &name(1), &reader).unwrap(),
        Promotion::Made(Vec::new())
    );
    holds(&store, &name(1), &wanted);
    assert!(root.join("CACHEDIR.TAG").exists());
}

#[test]
fn the_cache_directory_is_replaced_by_a_file() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let store = store(&root);
    fs::remove_dir_all(&root).unwrap();
    fs::write(&root, b"").unwrap();
    let (reader, _) = model(&folder.path().join("m.pt"), 1, LEN);
    let result = promote(&store, &name(1), &reader);
    assert!(matches!(result, Err(Error::Io { .. })), "{result:?}");
    assert!(store.find(&name(1)).is_none());
    assert!(store.peek(&name(1)).is_none());
}
