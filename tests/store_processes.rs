//! The store of converted files between processes: two that promote the same, and
//! those that are killed.

#[path = "store/common.rs"]
mod common;
mod support;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use stfs::cache::{Error, Promotion, Store};
use tempfile::{TempDir, tempdir};

use common::*;

const LEN: usize = 9 * MIB;

/// A child that is being started has all open files of this process for a moment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `child` in a process of its own, on the `m.pt` of `folder`.
fn spawn(folder: &Path, action: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("STFS_TEST_FOLDER", folder)
        .env("STFS_TEST_ACTION", action)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the processes that other tests start do.
#[test]
#[ignore = "it is started by the other tests"]
fn child() {
    let (Ok(folder), Ok(action)) = (
        std::env::var("STFS_TEST_FOLDER"),
        std::env::var("STFS_TEST_ACTION"),
    ) else {
        return;
    };
    let folder = Path::new(&folder);
    let store = store(&folder.join("cache"));
    let reader = raw(&folder.join("m.pt"));
    match action.as_str() {
        // Promotes and evicts until it is killed.
        "churn" => loop {
            match promote(&store, &name(1), &reader) {
                Ok(_) | Err(Error::Busy { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            std::thread::sleep(Duration::from_millis(3));
            store.evict(&name(1)).unwrap();
        },
        // Promotes as soon as the others do.
        "race" => {
            while !folder.join("go").exists() {
                std::thread::yield_now();
            }
            let result = promote(&store, &name(1), &reader);
            let what = match result {
                Ok(Promotion::Made(_)) => "made",
                Ok(Promotion::Already) => "already",
                Err(Error::Busy { .. }) => "busy",
                Err(error) => panic!("{error}"),
            };
            fs::write(folder.join(format!("result-{}", std::process::id())), what).unwrap();
        }
        // Holds the file open until it is killed.
        "open" => {
            let _open = store.find(&name(1)).unwrap();
            fs::write(folder.join("opened"), "").unwrap();
            std::thread::sleep(Duration::from_secs(600));
        }
        // Kills itself at a step.
        _ => {
            let last: usize = action.parse().unwrap();
            let mut steps = 0;
            let mut step = |_| {
                steps += 1;
                if steps == last {
                    nix::sys::signal::raise(nix::sys::signal::SIGKILL).unwrap();
                }
                ControlFlow::Continue(())
            };
            let provenance = provenance("m.pt");
            let _ = store.promote(&name(1), &provenance, &reader, &mut step);
        }
    }
}

fn prepared() -> (TempDir, Store, Vec<u8>) {
    prepared_with(LEN)
}

fn prepared_with(len: usize) -> (TempDir, Store, Vec<u8>) {
    let folder = tempdir().unwrap();
    let store = store(&folder.path().join("cache"));
    let (_, wanted) = model(&folder.path().join("m.pt"), 1, len);
    (folder, store, wanted)
}

/// After a process was killed: nothing that is wrong, nothing that stays, nothing
/// that is in the way. Says whether the file was there.
fn is_sound(folder: &Path, store: &Store, wanted: &[u8]) -> bool {
    let reader = raw(&folder.join("m.pt"));
    let there = store.find(&name(1)).map(|kept| {
        assert!(bytes(&kept) == wanted, "other bytes");
    });
    let root = store.directory().root();
    // Unfinished records wait for an hour.
    for path in files(root) {
        if path.to_string_lossy().contains("unfinished") {
            let old = SystemTime::now() - Duration::from_secs(3700);
            File::open(root.join(path))
                .unwrap()
                .set_modified(old)
                .unwrap();
        }
    }
    let left = match there {
        Some(()) => only(&[name(1)]),
        None => Vec::new(),
    };
    store.collect().unwrap();
    assert_eq!(files(root), left);
    let promoted = promote(store, &name(1), &reader).unwrap();
    assert_eq!(promoted == Promotion::Already, there.is_some());
    holds(store, &name(1), wanted);
    there.is_some()
}

#[test]
fn killed_at_every_step() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    for step in 1..=4 {
        let (folder, store, wanted) = prepared();
        let status = spawn(folder.path(), &step.to_string()).wait().unwrap();
        assert_eq!(status.signal(), Some(9), "step {step}");
        assert_eq!(files(store.directory().root()).len(), 1, "it left a part");
        assert!(!is_sound(folder.path(), &store, &wanted));
    }
}

/// The same without a collection between: the next promotion takes the place.
#[test]
fn killed_and_promoted_again() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    let (folder, store, wanted) = prepared();
    spawn(folder.path(), "2").wait().unwrap();
    let reader = raw(&folder.path().join("m.pt"));
    assert_eq!(
        promote(&store, &name(1), &reader).unwrap(),
        Promotion::Made(Vec::new())
    );
    holds(&store, &name(1), &wanted);
}

#[test]
fn killed_at_any_moment() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    // Of a small file, most of the work is to finish it.
    for len in [LEN, 10_000] {
        let (folder, store, wanted) = prepared_with(len);
        let root = store.directory().root();
        let (mut whole, mut parts) = (0, 0);
        for round in 0..50_u64 {
            let mut child = spawn(folder.path(), "churn");
            // It begins when what was there before has gone.
            let start = Instant::now();
            let begun = || files(root) != only(&[name(1)]);
            while round > 0 && !begun() && start.elapsed() < Duration::from_secs(5) {
                std::thread::yield_now();
            }
            // Moments that hardly repeat, between 0 and 60 ms.
            std::thread::sleep(Duration::from_micros(round * 7919 % 60_000));
            child.kill().unwrap();
            child.wait().unwrap();
            parts += usize::from(!files(root).is_empty());
            whole += usize::from(is_sound(folder.path(), &store, &wanted));
        }
        println!(
            "killed 50 times: {whole} left a file, {} a part",
            parts - whole
        );
    }
}

#[test]
fn many_promote_the_same_at_once() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    for _ in 0..5 {
        let (folder, store, wanted) = prepared();
        let children: Vec<Child> = (0..4).map(|_| spawn(folder.path(), "race")).collect();
        fs::write(folder.path().join("go"), "").unwrap();
        let mut results = Vec::new();
        for mut child in children {
            assert!(child.wait().unwrap().success());
            let result = folder.path().join(format!("result-{}", child.id()));
            results.push(fs::read_to_string(result).unwrap());
        }
        let made = results.iter().filter(|result| *result == "made").count();
        assert_eq!(made, 1, "{results:?}");
        holds(&store, &name(1), &wanted);
    }
}

/// Two that promote, evict and collect the same while a third reads it: whatever is
/// found has the right bytes.
#[test]
fn files_come_and_go_under_a_reader() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    let (folder, store, wanted) = prepared();
    let mut children = [spawn(folder.path(), "churn"), spawn(folder.path(), "churn")];
    let (start, mut found) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(4) {
        store.peek(&name(1));
        if let Some(kept) = store.find(&name(1)) {
            assert!(bytes(&kept) == wanted, "other bytes");
            found += 1;
        }
        store.collect().unwrap();
    }
    for child in &mut children {
        assert!(child.try_wait().unwrap().is_none(), "it failed");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(found > 0);
    println!("found {found} times");
    is_sound(folder.path(), &store, &wanted);
}

#[test]
fn what_another_process_has_open_stays() {
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(|error| error.into_inner());
    let (folder, store, wanted) = prepared();
    promote(&store, &name(1), &raw(&folder.path().join("m.pt"))).unwrap();
    let mut child = spawn(folder.path(), "open");
    while !folder.path().join("opened").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it failed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(store.list().unwrap()[0].in_use);
    assert_eq!(store.clear().unwrap().in_use, 1);
    holds(&store, &name(1), &wanted);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!store.list().unwrap()[0].in_use);
    assert_eq!(store.clear().unwrap().files, 1);
}
