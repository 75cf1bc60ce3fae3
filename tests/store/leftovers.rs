//! What a process that was killed leaves at each stage of its work.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use stfs::cache::Promotion;
use tempfile::tempdir;

use super::common::*;

const LEN: usize = 5 * MIB;

#[test]
fn every_stage_is_collected_or_made_good() {
    for collect in [false, true] {
        for stage in 0..5 {
            let folder = tempdir().unwrap();
            let root = folder.path().join("cache");
            let store = store(&root);
            let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
            promote(&store, &name(1), &reader).unwrap();
            let data = store.directory().file(&name(1));
            let record = store.directory().record(&name(1));
            let incoming = store.directory().incoming_file(&name(1));
            match stage {
                // An empty file, or a part of one.
                0 | 1 => {
                    fs::remove_file(&record).unwrap();
                    fs::rename(&data, &incoming).unwrap();
                    let file = File::options().write(true).open(&incoming).unwrap();
                    file.set_len(stage * MIB as u64).unwrap();
                }
                // All of it, before it has its name.
                2 => {
                    fs::remove_file(&record).unwrap();
                    fs::rename(&data, &incoming).unwrap();
                }
                // With its name, before it has a record.
                3 => fs::remove_file(&record).unwrap(),
                // A record alone.
                _ => fs::remove_file(&data).unwrap(),
            }
            assert!(store.find(&name(1)).is_none(), "stage {stage}");
            if collect {
                assert_eq!(store.collect().unwrap(), 1, "stage {stage}");
                assert!(files(&root).is_empty());
            }
            assert_eq!(
                promote(&store, &name(1), &reader).unwrap(),
                Promotion::Made(Vec::new())
            );
            holds(&store, &name(1), &wanted);
            assert_eq!(store.collect().unwrap(), 0);
        }
    }
}

#[test]
fn unfinished_small_files_go_when_they_are_old() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let store = store(&root);
    let (reader, wanted) = model(&folder.path().join("m.pt"), 1, LEN);
    promote(&store, &name(1), &reader).unwrap();
    let beside = store.directory().file(&name(1));
    let plans = store.directory().plan(&name(1));
    fs::create_dir_all(plans.parent().unwrap()).unwrap();
    let unfinished: Vec<_> = [&root.join("x"), &beside, &plans]
        .map(|path| path.with_file_name(".stfs-unfinished-aB3"))
        .into();
    for path in &unfinished {
        fs::write(path, b"").unwrap();
    }
    assert_eq!(store.collect().unwrap(), 0);
    for path in &unfinished {
        let old = SystemTime::now() - Duration::from_secs(3700);
        File::open(path).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(store.collect().unwrap(), 3);
    holds(&store, &name(1), &wanted);
}

/// Nothing that stfs did not put there is touched.
#[test]
fn other_files_stay() {
    let folder = tempdir().unwrap();
    let root = folder.path().join("cache");
    let store = store(&root);
    let hex = name(1).hex().to_uppercase();
    let others = [
        "notes.txt".to_string(),
        ".tmpabc".to_string(),
        "incoming/notes".to_string(),
        format!("incoming/{hex}"),
        "files/notes".to_string(),
        "files/ab/notes".to_string(),
        format!("files/{}/{}", &hex[..2], &hex[2..]),
        format!("files/{}/{}.record", &hex[..2], &hex[2..]),
        format!("files/ab/{}", &hex[..10]),
    ];
    for other in &others {
        let path = root.join(other);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"mine").unwrap();
        let old = SystemTime::now() - Duration::from_secs(86400);
        File::open(&path).unwrap().set_modified(old).unwrap();
    }
    store.clear().unwrap();
    assert_eq!(files(&root).len(), others.len());
}
