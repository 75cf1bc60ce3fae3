//! A mount that runs out of descriptors: nothing is shown that it should not be, and what
//! was an error is there again afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};

use super::support::{self, skip::skip};
use super::{Place, fuse, kill, wait_until};

/// Descriptors that the process may have.
const LIMIT: u64 = 64;
const PICKLES: usize = 20;

fn names(directory: &Path) -> io::Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory)?;
    entries
        .map(|entry| Ok(entry?.file_name().into_string().unwrap()))
        .collect()
}

/// The name of a pickle says nothing: what it is must be found out each time.
fn pickle(number: usize) -> String {
    format!("blob{number:02}")
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::EIO | libc::ESTALE)
    )
}

#[test]
fn without_descriptors_no_pickle_is_shown() {
    if !fuse() {
        return skip("no /dev/fuse");
    }
    let place = Place::new();
    for number in 0..PICKLES {
        place.write(&pickle(number), support::one_vector(&[number as f32]));
    }
    for number in 0..2 * LIMIT {
        place.write(&format!("plain{number:03}.txt"), "plain");
    }
    let mut command = place.command(&["--foreground", "--tensors", "off"]);
    // SAFETY: setrlimit(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT)?));
    }
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    wait_until("the mount is there", || place.is_mounted());

    // Each costs the process one descriptor at least.
    let mut held = Vec::new();
    for number in 0..2 * LIMIT {
        match File::open(place.shown(&format!("plain{number:03}.txt"))) {
            Ok(file) => held.push(file),
            Err(error) => assert!(is_out_of_descriptors(&error), "{error}"),
        }
    }
    assert!((held.len() as u64) < LIMIT);
    let mut failures = 0;
    for _ in 0..5 {
        for number in 0..PICKLES {
            let shown = File::open(place.shown(&pickle(number)));
            let error = shown.expect_err("a pickle is visible");
            failures += usize::from(is_out_of_descriptors(&error));
        }
        match names(&place.point) {
            Ok(names) => {
                for number in 0..PICKLES {
                    assert!(!names.contains(&pickle(number)), "{names:?}");
                }
            }
            Err(error) => assert!(is_out_of_descriptors(&error), "{error}"),
        }
        // Room for some, and not for all.
        held.pop();
    }
    assert!(failures > 0);

    drop(held);
    let wanted: BTreeSet<String> = (0..PICKLES)
        .map(|number| pickle(number) + ".safetensors")
        .chain((0..2 * LIMIT).map(|number| format!("plain{number:03}.txt")))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !names(&place.point).is_ok_and(|names| names == wanted) {
        assert!(Instant::now() < deadline, "{:?}", names(&place.point));
        thread::sleep(Duration::from_millis(50));
    }
    kill("-TERM", child.id());
    assert!(child.wait().unwrap().success());
}
