//! The cache directory: where things lie in it, who may read them, and how a
//! small file gets into it whole or not at all.
//!
//! ```text
//! CACHEDIR.TAG      tells backup programs to leave the directory out
//! plans/ab/cdef...  what is known of one source file
//! files/ab/cdef...  one converted file, and beside it its `.record`
//! incoming/cdef...  one that is being written, or what a reader decodes
//! mounts/1234...    locked by the mount with this number while it lives
//! ```
//!
//! Everything may be taken away at any time: what is missing is made again.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

/// <https://bford.info/cachedir/>
const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55\n\
    # Made by stfs. What is in here can be deleted at any time.\n";

/// What the records of converted files end in.
const RECORD: &str = "record";

/// What the names of small files begin with while they are written. A process that
/// is killed leaves them behind.
const TEMPORARY: &str = ".stfs-unfinished-";

/// The name of something in the cache: what it was made from, as a SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name([u8; 32]);

impl Name {
    /// `parts` with their lengths, so that no two lists of them are alike.
    pub fn of(parts: &[&[u8]]) -> Name {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Name(hash.finalize().into())
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`Name::hex`] writes.
    pub fn from_hex(text: &str) -> Option<Name> {
        let digits = text.as_bytes();
        let mut name = [0; 32];
        if digits.len() != 2 * name.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, pair) in name.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Name(name))
    }

    /// Where it lies below a directory of many.
    fn below(&self, directory: &Path) -> PathBuf {
        let hex = self.hex();
        let (first, rest) = hex.split_at(2);
        directory.join(first).join(rest)
    }
}

/// The cache directory of a user. Several processes may use it at once.
#[derive(Clone, Debug)]
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// Where it is unless the user says otherwise: `$XDG_CACHE_HOME/stfs`, or
    /// `~/.cache/stfs`. None for a user without a home.
    pub fn default_path() -> Option<PathBuf> {
        let absolute = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Some(cache?.join("stfs"))
    }

    /// Takes `root` for a cache directory, and makes it if it is missing.
    ///
    /// # Errors
    /// Others may write to it: what is in it is believed.
    pub fn open(root: &Path) -> io::Result<Directory> {
        make(root)?;
        let metadata = fs::metadata(root)?;
        let owner = metadata.uid();
        if metadata.mode() & 0o022 != 0 || owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            let what = "other users may write to it, and could put their own bytes into models. \
                        Name another one, or take their right away with chmod go-w";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, what));
        }
        let directory = Directory {
            root: root.canonicalize()?,
        };
        directory.prepare()?;
        Ok(directory)
    }

    /// Makes what every cache directory has. It may have been deleted since it was
    /// opened.
    pub fn prepare(&self) -> io::Result<()> {
        let tag = self.tag();
        match tag.exists() {
            true => Ok(()),
            false => self.write(&tag, &[TAG]),
        }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What every cache directory has, from its first moment on.
    pub fn tag(&self) -> PathBuf {
        self.root.join("CACHEDIR.TAG")
    }

    pub fn plans(&self) -> PathBuf {
        self.root.join("plans")
    }

    pub fn plan(&self, name: &Name) -> PathBuf {
        name.below(&self.plans())
    }

    pub fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    pub fn file(&self, name: &Name) -> PathBuf {
        name.below(&self.files())
    }

    /// What is known of [`Directory::file`].
    pub fn record(&self, name: &Name) -> PathBuf {
        self.file(name).with_extension(RECORD)
    }

    pub fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// Where the file of this name is while it is written.
    pub fn incoming_file(&self, name: &Name) -> PathBuf {
        self.incoming().join(name.hex())
    }

    fn mount(&self, number: u64) -> PathBuf {
        self.root.join("mounts").join(format!("{number:016x}"))
    }

    /// Tells other processes that the mount with this number is there, for as long as
    /// the result lives.
    pub fn announce(&self, number: u64) -> io::Result<Alive> {
        let path = self.mount(number);
        make(&self.root.join("mounts"))?;
        File::create(&path)?;
        // Nothing is open for writing, so that the file system can be made read-only.
        let file = File::open(&path)?;
        file.try_lock_shared()?;
        Ok(Alive { path, _lock: file })
    }

    /// Whether the mount with this number is there. What one that was killed left
    /// behind goes.
    pub fn is_alive(&self, number: u64) -> bool {
        let path = self.mount(number);
        match File::open(&path).map(|file| file.try_lock()) {
            Ok(Err(_)) => true,
            Ok(Ok(())) => {
                let _ = fs::remove_file(&path);
                false
            }
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Writes the small file `path`, which lies below the root: it is there as a
    /// whole, or is what it was.
    pub fn write(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        self.temporary(path, parts)?.persist(path)?;
        Ok(())
    }

    /// As [`Directory::write`], and it still is when the power fails.
    pub fn write_durably(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let file = self.temporary(path, parts)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        // Not every file system can do this to a directory. Without it `path` may be
        // what it was when the power fails.
        if let Some(parent) = path.parent() {
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        Ok(())
    }

    /// A file beside `path` with these bytes.
    fn temporary(&self, path: &Path, parts: &[&[u8]]) -> io::Result<NamedTempFile> {
        let parent = path.parent().unwrap_or(&self.root);
        make(parent)?;
        let mut file = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(parent)?;
        for part in parts {
            file.write_all(part)?;
        }
        Ok(file)
    }
}

/// A mount, to other processes.
#[derive(Debug)]
pub struct Alive {
    path: PathBuf,
    _lock: File,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a file is a small one that was never finished, and that nobody writes any
/// more: it takes far less time than this.
pub fn is_abandoned(name: &OsStr, metadata: &fs::Metadata) -> bool {
    const AGE: Duration = Duration::from_secs(60 * 60);
    let age = metadata.modified().map(|written| written.elapsed());
    metadata.is_file()
        && name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
        && matches!(age, Ok(Ok(age)) if age > AGE)
}

/// Makes a directory, and those above it, for this user alone.
pub fn make(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        _ => DirBuilder::new().recursive(true).mode(0o700).create(path),
    }
}
