//! A tree in memory, with faults and delays on demand: what the layers above do
//! when a source is slow, fails in the middle or changes can be tried with it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{
    Error, FileId, Found, Metadata, Obstacle, Ranges, Result, Rights, Source, Space, System, Tree,
    Version,
};

/// The tree, to be filled and meddled with while others read it.
#[derive(Clone, Debug)]
pub struct MemoryTree(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    system: System,
    state: Mutex<State>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<PathBuf, Entry>,
    /// Counts changes: inode numbers and times are made of it.
    clock: i64,
    delay: Duration,
    faults: BTreeMap<PathBuf, Fault>,
    /// What cannot even be looked at.
    closed: BTreeMap<PathBuf, io::ErrorKind>,
    unsettled: bool,
    gone: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    item: Item,
    inode: u64,
    changed: i64,
    rights: Rights,
}

#[derive(Clone, Debug)]
enum Item {
    Directory,
    File(Arc<[u8]>),
    Special,
    Blocked(Obstacle),
}

/// An error that reads of one file meet.
#[derive(Clone, Copy, Debug)]
struct Fault {
    kind: io::ErrorKind,
    /// Reads that go well before.
    after: u64,
}

/// Told to each tree, so that no two are one file system.
static SYSTEMS: AtomicU64 = AtomicU64::new(0);

impl Default for MemoryTree {
    fn default() -> MemoryTree {
        MemoryTree::new()
    }
}

impl MemoryTree {
    /// An empty tree whose stamps can be trusted.
    pub fn new() -> MemoryTree {
        let id = SYSTEMS.fetch_add(1, Ordering::Relaxed);
        MemoryTree::on(System::Lasting { kind: 0, id })
    }

    /// An empty tree on a file system of this kind.
    pub fn on(system: System) -> MemoryTree {
        let tree = MemoryTree(Arc::new(Shared {
            system,
            state: Mutex::default(),
            reads: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
        }));
        tree.put(Path::new(""), Item::Directory);
        tree
    }

    /// The root, to be read by others.
    pub fn root(&self) -> Arc<dyn Tree> {
        let path = PathBuf::new();
        Arc::new(Directory {
            metadata: self.lock().metadata(self.0.system, &path).unwrap_or(EMPTY),
            tree: self.clone(),
            path,
        })
    }

    /// Writes a file in place, and makes the directories that it lies in.
    pub fn write(&self, path: impl AsRef<Path>, bytes: impl Into<Arc<[u8]>>) {
        self.put(path.as_ref(), Item::File(bytes.into()));
    }

    /// Puts another file in the place of the one that may be there.
    pub fn replace(&self, path: impl AsRef<Path>, bytes: impl Into<Arc<[u8]>>) {
        self.lock().entries.remove(path.as_ref());
        self.write(path, bytes);
    }

    pub fn make_directory(&self, path: impl AsRef<Path>) {
        self.put(path.as_ref(), Item::Directory);
    }

    pub fn make_special(&self, path: impl AsRef<Path>) {
        self.put(path.as_ref(), Item::Special);
    }

    /// Puts a link there that is not followed.
    pub fn block(&self, path: impl AsRef<Path>, obstacle: Obstacle) {
        self.put(path.as_ref(), Item::Blocked(obstacle));
    }

    pub fn set_rights(&self, path: impl AsRef<Path>, rights: Rights) {
        let mut state = self.lock();
        state.clock += 1;
        let clock = state.clock;
        if let Some(entry) = state.entries.get_mut(path.as_ref()) {
            (entry.rights, entry.changed) = (rights, clock);
        }
    }

    /// Removes a file, or a directory with all that is in it.
    pub fn remove(&self, path: impl AsRef<Path>) {
        let mut state = self.lock();
        state
            .entries
            .retain(|known, _| !known.starts_with(path.as_ref()));
        state.touch_parent(path.as_ref());
    }

    /// Every call waits so long from now on.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Reads of the file `path` fail from now on, once `after` more went well.
    pub fn fail(&self, path: impl AsRef<Path>, kind: io::ErrorKind, after: u64) {
        let fault = Fault { kind, after };
        self.lock().faults.insert(path.as_ref().into(), fault);
    }

    /// Nothing can be asked of `path` itself from now on, as when descriptors run out.
    pub fn close(&self, path: impl AsRef<Path>, kind: io::ErrorKind) {
        self.lock().closed.insert(path.as_ref().into(), kind);
    }

    /// The faults and delays are over.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.closed.clear();
        (state.delay, state.gone) = (Duration::ZERO, false);
    }

    /// Whether files may change without their stamps moving.
    pub fn set_unsettled(&self, unsettled: bool) {
        self.lock().unsettled = unsettled;
    }

    /// Nothing is there any more, not even the root.
    pub fn unmount(&self) {
        self.lock().gone = true;
    }

    /// How many reads there were, and of how many bytes.
    pub fn reads(&self) -> (u64, u64) {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        (load(&self.0.reads), load(&self.0.read_bytes))
    }

    fn put(&self, path: &Path, item: Item) {
        let mut state = self.lock();
        for parent in path.ancestors().skip(1) {
            if !state.entries.contains_key(parent) {
                state.insert(parent, Item::Directory);
            }
        }
        state.insert(path, item);
        state.touch_parent(path);
    }

    /// What is to be waited for, and whether there is anything at all.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let delay = self.lock().delay;
        thread::sleep(delay);
        let state = self.lock();
        match state.gone {
            true => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the source is gone",
            )),
            false => Ok(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look(&self, path: &Path) -> io::Result<()> {
        match self.closed.get(path) {
            Some(kind) => Err((*kind).into()),
            None => Ok(()),
        }
    }

    fn insert(&mut self, path: &Path, item: Item) {
        self.clock += 1;
        let mode = match item {
            Item::Directory => 0o555,
            _ => 0o444,
        };
        let known = self.entries.get(path);
        let entry = Entry {
            item,
            inode: known.map_or(self.clock as u64, |known| known.inode),
            changed: self.clock,
            rights: known.map_or(Rights::new(0, 0, mode), |known| known.rights),
        };
        self.entries.insert(path.into(), entry);
    }

    fn touch_parent(&mut self, path: &Path) {
        self.clock += 1;
        let clock = self.clock;
        if let Some(parent) = path.parent().and_then(|path| self.entries.get_mut(path)) {
            parent.changed = clock;
        }
    }

    fn metadata(&self, system: System, path: &Path) -> Option<Metadata> {
        let entry = self.entries.get(path)?;
        let size = match &entry.item {
            Item::File(bytes) => bytes.len() as u64,
            _ => 0,
        };
        Some(Metadata {
            version: Version {
                file: FileId::new(system, entry.inode, path),
                size,
                modified: (entry.changed, 0),
                changed: (entry.changed, 0),
                settled: !self.unsettled,
            },
            rights: entry.rights,
            accessed: (0, 0),
        })
    }
}

/// Those of the root before it is there.
const EMPTY: Metadata = Metadata {
    version: Version {
        file: FileId {
            system: System::Mounted {
                mount: 0,
                device: 0,
            },
            inode: 0,
            path: 0,
        },
        size: 0,
        modified: (0, 0),
        changed: (0, 0),
        settled: false,
    },
    rights: Rights {
        uid: 0,
        gid: 0,
        mode: 0,
    },
    accessed: (0, 0),
};

#[derive(Debug)]
struct Directory {
    tree: MemoryTree,
    path: PathBuf,
    metadata: Metadata,
}

impl Tree for Directory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn location(&self) -> PathBuf {
        Path::new("/memory").join(&self.path)
    }

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn enter(&self, path: &Path) -> io::Result<Arc<dyn Tree>> {
        let state = self.tree.call()?;
        state.look(path)?;
        match state.entries.get(path).map(|entry| &entry.item) {
            Some(Item::Directory) => {}
            Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(io::ErrorKind::NotFound.into()),
        }
        let metadata = state.metadata(self.tree.0.system, path);
        Ok(Arc::new(Directory {
            metadata: metadata.ok_or(io::ErrorKind::NotFound)?,
            tree: self.tree.clone(),
            path: path.into(),
        }))
    }

    fn list(&self) -> io::Result<Vec<OsString>> {
        let state = self.tree.call()?;
        let beside = |path: &&PathBuf| path.parent() == Some(&self.path);
        let paths = state.entries.keys().filter(beside);
        Ok(paths
            .filter_map(|path| Some(path.file_name()?.to_os_string()))
            .collect())
    }

    fn stat(&self, name: &OsStr) -> io::Result<Found> {
        let path = self.path.join(name);
        let state = self.tree.call()?;
        state.look(&path)?;
        let entry = state.entries.get(&path);
        let metadata = state.metadata(self.tree.0.system, &path);
        let (Some(entry), Some(metadata)) = (entry, metadata) else {
            return Ok(Found::Missing);
        };
        Ok(match entry.item {
            Item::Directory => Found::Directory(metadata),
            Item::File(_) => Found::File(metadata),
            Item::Special => Found::Special,
            Item::Blocked(obstacle) => Found::Blocked(metadata, obstacle),
        })
    }

    fn open(&self, name: &OsStr) -> io::Result<Source> {
        let path = self.path.join(name);
        let state = self.tree.call()?;
        state.look(&path)?;
        let metadata = state.metadata(self.tree.0.system, &path);
        let metadata = metadata.ok_or(io::ErrorKind::NotFound)?;
        let bytes = match state.entries.get(&path).map(|entry| &entry.item) {
            Some(Item::File(bytes)) => bytes.clone(),
            Some(Item::Blocked(obstacle)) => return Err((*obstacle).into()),
            _ => return Err(io::Error::other("not a regular file")),
        };
        let opened = Opened {
            tree: self.tree.clone(),
            path: path.clone(),
            version: metadata.version,
            bytes,
        };
        let location = self.location().join(name);
        Ok(Source::new(location, metadata, Box::new(opened)))
    }

    fn address(&self, name: &OsStr) -> Option<Vec<u8>> {
        Some(self.path.join(name).into_os_string().into_encoded_bytes())
    }

    fn space(&self) -> io::Result<Space> {
        drop(self.tree.call()?);
        Ok(Space::default())
    }
}

/// A file as it was when it was opened. One that was written to since has lost
/// those bytes; one that was replaced or removed keeps them.
#[derive(Debug)]
struct Opened {
    tree: MemoryTree,
    path: PathBuf,
    version: Version,
    bytes: Arc<[u8]>,
}

impl Ranges for Opened {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let mut state = self.tree.call()?;
        if let Some(fault) = state.faults.get_mut(&self.path) {
            match fault.after.checked_sub(1) {
                Some(left) => fault.after = left,
                None => return Err(io::Error::from(fault.kind).into()),
            }
        }
        drop(state);
        self.tree.0.reads.fetch_add(1, Ordering::Relaxed);
        let len = buffer.len() as u64;
        self.tree.0.read_bytes.fetch_add(len, Ordering::Relaxed);
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = self
            .bytes
            .get(start..)
            .and_then(|it| it.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(Error::Changed)?);
        Ok(())
    }

    fn version(&self) -> io::Result<Version> {
        let state = self.tree.call()?;
        let now = state.metadata(self.tree.0.system, &self.path);
        let now = now.map(|metadata| metadata.version);
        Ok(match now {
            Some(now) if now.file == self.version.file => now,
            // It goes on without a name.
            _ => Version {
                changed: (self.version.changed.0, 1),
                ..self.version
            },
        })
    }
}
