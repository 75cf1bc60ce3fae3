//! Whatever happens to the cache, the tree is what it is without one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::thread;

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::records::{cached, contents, records, settled};
use super::{bytes, safetensors_of, support, view};

/// The warnings of all tests.
struct Warnings(Mutex<Vec<String>>);

static WARNINGS: LazyLock<Warnings> = LazyLock::new(|| Warnings(Mutex::default()));

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Takes the warnings that speak of something below `path`.
fn warnings(path: &Path) -> Vec<String> {
    let about = path.canonicalize().unwrap();
    let about = about.to_str().unwrap();
    let mut all = WARNINGS.0.lock().unwrap();
    all.extract_if(.., |warning| warning.contains(about))
        .collect()
}

fn listen() {
    // Another test may have done it.
    let _ = log::set_logger(&*WARNINGS);
    log::set_max_level(LevelFilter::Warn);
}

/// Tied, transposed, native, refused.
fn sample() -> Vec<(&'static str, Vec<u8>)> {
    let tensor = |name, strides| support::Tensor {
        name,
        storage: 0,
        offset: 0,
        shape: &[2, 3],
        strides,
    };
    let tensors = [
        tensor("a", &[3, 1]),
        tensor("b", &[3, 1]),
        tensor("t", &[1, 2]),
    ];
    let storage = support::Storage::floats([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    vec![
        ("m.pt", support::checkpoint(&tensors, &[storage])),
        ("n.safetensors", safetensors_of(&[7.0])),
        ("bad.pt", b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.".to_vec()),
    ]
}

#[test]
fn damage_is_never_believed() {
    listen();
    let (source, cache) = settled(&sample());
    let expected = contents(&view(source.path()));
    assert!(expected.contains_key(Path::new("bad.pt.refused.txt")));
    assert_eq!(contents(&cached(source.path(), cache.path())), expected);
    let records = records(cache.path());
    assert_eq!(records.len(), sample().len());
    assert_eq!(warnings(cache.path()), [""; 0]);
    // Each file by itself, with the records of the others to be confused with.
    thread::scope(|scope| {
        for file in sample() {
            let others = &records;
            scope.spawn(move || damage(file, others));
        }
    });
}

fn damage(file: (&'static str, Vec<u8>), others: &[PathBuf]) {
    let (source, slow) = settled(&[file]);
    // Some file systems write to the disk whenever a file takes another's place.
    let cache = tempfile::tempdir_in("/dev/shm").unwrap_or(slow);
    let (source, cache) = (source.path(), cache.path());
    let expected = contents(&view(source));
    assert_eq!(contents(&cached(source, cache)), expected);
    let record = &records(cache)[0];
    let name = record.strip_prefix(cache).unwrap().to_str().unwrap();
    let sound = fs::read(record).unwrap();
    let check = |damaged: &[u8], what: &str| {
        fs::write(record, damaged).unwrap();
        assert!(contents(&cached(source, cache)) == expected, "{what}");
        assert_eq!(fs::read(record).unwrap(), sound, "{what}: made again");
        let warnings = warnings(cache);
        assert!(!warnings.is_empty(), "{what}");
        assert!(
            warnings.iter().all(|it| it.contains(name)),
            "{what}: {warnings:?}"
        );
    };
    for bit in 0..8 * sound.len() {
        let mut damaged = sound.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        check(&damaged, &format!("bit {bit}"));
    }
    for len in 0..sound.len() {
        check(&sound[..len], &format!("{len} bytes"));
    }
    check(&vec![0; sound.len()], "zeros");
    check(&[&sound[..], b"\0"].concat(), "a byte more");
    check(&[0xff; 100_000], "ones");
    for other in others {
        check(&fs::read(other).unwrap(), "of another file");
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_done_without() {
    listen();
    let many: Vec<(String, Vec<u8>)> = (0..20_u8)
        .map(|number| {
            (
                format!("{number}.pt"),
                support::one_vector(&[f32::from(number)]),
            )
        })
        .collect();
    let many: Vec<(&str, Vec<u8>)> = many
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.clone()))
        .collect();
    let (source, cache) = settled(&many);
    let (source, cache) = (source.path(), cache.path());
    let expected = contents(&view(source));
    let plans = cache.join("plans");

    // A file in place of the directory: one warning for each view.
    support::write(&plans, b"");
    for _ in 0..2 {
        assert!(contents(&cached(source, cache)) == expected);
        assert_eq!(warnings(cache).len(), 1);
    }
    fs::remove_file(&plans).unwrap();

    // Links that lead nowhere, and to a device.
    for target in ["/nowhere/at/all", "/dev/null"] {
        std::os::unix::fs::symlink(target, &plans).unwrap();
        assert!(contents(&cached(source, cache)) == expected);
        fs::remove_file(&plans).unwrap();
    }
    warnings(cache);

    // Nothing can be written, except by root.
    fs::create_dir(&plans).unwrap();
    fs::set_permissions(&plans, fs::Permissions::from_mode(0o500)).unwrap();
    assert!(contents(&cached(source, cache)) == expected);
    assert!(warnings(cache).len() <= 1);
    fs::remove_dir_all(&plans).unwrap();

    // Other things than files under the names of records.
    assert!(contents(&cached(source, cache)) == expected);
    let recorded = records(cache);
    assert_eq!(recorded.len(), many.len());
    for (number, path) in recorded.iter().enumerate() {
        fs::remove_file(path).unwrap();
        match number % 3 {
            0 => fs::create_dir(path).unwrap(),
            1 => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
            _ => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap(),
        }
    }
    assert!(contents(&cached(source, cache)) == expected);
    warnings(cache);

    // Taken away under a view, which goes on and makes it anew.
    let running = cached(source, cache);
    fs::remove_dir_all(cache).unwrap();
    assert!(contents(&running) == expected);
    assert_eq!(records(cache), recorded);
    assert_eq!(
        bytes(&cached(source, cache), "1.safetensors"),
        safetensors_of(&[1.0])
    );
    assert_eq!(warnings(cache), [""; 0]);
}
