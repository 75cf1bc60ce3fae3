//! What the kernel may keep for long: names, attributes and listings of source
//! directories that are watched with inotify(7).
//!
//! A directory is watched before what is told of it is found out. The first event
//! ends the watch, and a thread of its own has the kernel forget all it was told of
//! that directory; from then on the kernel is told things for [`SHORT`] until the
//! directory is watched again. So no more than one event comes from each watch,
//! however busy the source is, and a mount at rest wakes nobody.
//!
//! Two kinds of changes are no event: a write through a shared mapping, before it is
//! closed, and one through a hard link in another directory that was made after the
//! directory was listed. Hence an open compares what it finds with what was told.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::mountinfo::{self, Mount};
use crate::source::Tree;
use log::{debug, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::statfs::{
    BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, F2FS_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC,
    fstatfs,
};

/// How long the kernel may answer by itself from what it was told of something that
/// is not watched, and so how long a change of it may go unseen.
pub const SHORT: Duration = Duration::from_secs(1);
/// The same for what is watched. It has an end for the sake of changes that no event
/// tells of.
pub const LONG: Duration = Duration::from_secs(60);

/// Directories watched at once, at most. Two events each fit into the kernel's queue.
const MOST: usize = 8000;
/// Inodes that are remembered because the kernel was told of them, at most.
const MOST_TOLD: usize = 1 << 18;
/// How long after an event names are made to expire again. An answer that was on its
/// way at the first time has arrived by then.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the end waits for a notification that is under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// File systems of this machine alone, which tell of every change. The magic number of
/// ext4 is that of ext2 and ext3 too.
const TELLING: [FsType; 5] = [
    EXT4_SUPER_MAGIC,
    XFS_SUPER_MAGIC,
    BTRFS_SUPER_MAGIC,
    TMPFS_MAGIC,
    F2FS_SUPER_MAGIC,
];

/// Makes the kernel forget. No call waits for a request to be answered.
pub trait Forget: Send {
    /// Has every name looked up again at its next use.
    fn names(&self);
    /// Has the attributes asked for again.
    fn attributes(&self, inode: u64);
    /// Drops the listing of `directory`, and its attributes.
    fn listing(&self, directory: u64);
}

/// Proof that a directory was watched when this was given out. It says nothing about
/// later: [`Watcher::tell`] and [`Watcher::holds`] do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    directory: u64,
    descriptor: WatchDescriptor,
}

/// Watches directories, which go by their inode numbers in the mount.
pub struct Watcher {
    inotify: Inotify,
    state: Mutex<State>,
    /// No notification is under way.
    at_rest: Condvar,
    wake: PipeWriter,
}

#[derive(Default)]
struct State {
    phase: Phase,
    notifying: bool,
    /// The thread has been woken and has not looked yet.
    woken: bool,
    directories: HashMap<u64, Directory>,
    /// The directories behind each descriptor: one of the source may be several of the
    /// mount.
    by_descriptor: HashMap<WatchDescriptor, Vec<u64>>,
    /// Directories whose every event concerns all that was told.
    concerning_all: HashSet<WatchDescriptor>,
    /// Inodes in `directories`.
    told: usize,
    /// Listings that the kernel keeps and nobody watches.
    unwatched: Vec<u64>,
    /// Inodes whose attributes changed and no event told of it.
    changed: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// There is no thread yet, and nothing is watched.
    #[default]
    Before,
    Running,
    Over,
}

struct Directory {
    descriptor: WatchDescriptor,
    /// What is listed in it changes with it alone.
    complete: bool,
    /// Inode numbers that the kernel was told.
    told: HashSet<u64>,
    /// When the last of what was told is forgotten anyway.
    until: Instant,
}

/// What the kernel has to forget.
#[derive(Default)]
struct Stale {
    directories: Vec<(u64, Directory)>,
    unwatched: Vec<u64>,
    changed: Vec<u64>,
}

impl Watcher {
    /// One that watches nothing until it is started.
    ///
    /// # Errors
    /// This user has too many inotify instances, or the process too many files.
    pub fn new() -> io::Result<(Arc<Watcher>, PipeReader)> {
        let (woken, wake) = io::pipe()?;
        let watcher = Watcher {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            state: Mutex::default(),
            at_rest: Condvar::new(),
            wake,
        };
        Ok((Arc::new(watcher), woken))
    }

    /// Starts the thread that has the kernel forget.
    ///
    /// All that is watched lies below `source`.
    ///
    /// # Errors
    /// There is no thread, or the table of mounts cannot be read.
    pub fn start(
        self: &Arc<Self>,
        woken: PipeReader,
        source: &Path,
        forget: impl Forget + 'static,
    ) -> io::Result<()> {
        let mounts = Mounts::new(source)?;
        self.watch_above(source);
        let watcher = self.clone();
        let run = move || watcher.run(woken, mounts, &forget);
        thread::Builder::new().name("watch".into()).spawn(run)?;
        self.lock().phase = Phase::Running;
        Ok(())
    }

    /// Notifies the kernel of nothing any more. A notification that waits for the
    /// answer to a request would keep the process from ending.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.phase = Phase::Over;
        let still = |state: &mut State| state.notifying;
        let _ = self.at_rest.wait_timeout_while(state, PATIENCE, still);
        self.wake(&mut self.lock());
    }

    /// Has every file that leaves the directory at `path` concern all that was told.
    /// What is shown of a checkpoint depends on whether its converted form is kept, and
    /// that is written there before it is.
    ///
    /// # Errors
    /// As inotify_add_watch(2).
    pub fn concerns_all(&self, path: &Path) -> io::Result<()> {
        let flags = AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_ONLYDIR;
        let descriptor = self.inotify.add_watch(path, flags)?;
        self.lock().concerning_all.insert(descriptor);
        Ok(())
    }

    /// Has it concern all when one of the directories above the source is moved: another
    /// source may stand at its path then.
    fn watch_above(&self, source: &Path) {
        let flags = AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
        for directory in source.ancestors().skip(1) {
            match self.inotify.add_watch(directory, flags) {
                Ok(descriptor) => {
                    self.lock().concerning_all.insert(descriptor);
                }
                Err(why) => debug!("{}: not watched: {why}", directory.display()),
            }
        }
    }

    /// Watches `directory`, which `enter` holds, from here on. None where that cannot
    /// be, or not now, and where a symbolic link leads there.
    pub fn watch(
        &self,
        directory: u64,
        enter: impl FnOnce() -> Option<Arc<dyn Tree>>,
    ) -> Option<Watch> {
        if let Some(known) = self.known_or_room(directory)? {
            return Some(known);
        }
        // Nobody else waits for this.
        let tree = enter()?;
        let opened = tree.descriptor()?;
        if !fstatfs(opened).is_ok_and(|stats| TELLING.contains(&stats.filesystem_type())) {
            return None;
        }
        let mut state = self.lock();
        if let Some(known) = state.watch(directory) {
            return Some(known);
        }
        if state.phase != Phase::Running {
            return None;
        }
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_ONESHOT;
        let opened = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let descriptor = match self.inotify.add_watch(opened.as_str(), flags) {
            Ok(descriptor) => descriptor,
            Err(why) => {
                debug!("a directory is not watched: {why}");
                return None;
            }
        };
        let told = Directory {
            descriptor,
            complete: false,
            told: HashSet::new(),
            until: Instant::now(),
        };
        state.directories.insert(directory, told);
        let sharing = state.by_descriptor.entry(descriptor).or_default();
        sharing.push(directory);
        Some(Watch {
            directory,
            descriptor,
        })
    }

    /// The watch of `directory`, or none yet. None where there can be none.
    fn known_or_room(&self, directory: u64) -> Option<Option<Watch>> {
        let mut state = self.lock();
        if state.phase != Phase::Running {
            return None;
        }
        let known = state.watch(directory);
        if known.is_none() && state.directories.len() >= MOST {
            self.let_go_of_old(&mut state);
            if state.directories.len() >= MOST {
                return None;
            }
        }
        Some(known)
    }

    /// Names in the directory may be told from here on: they come from it alone, as
    /// was found out under `watch`.
    pub fn complete(&self, watch: Watch) {
        if let Some(watched) = self.lock().get(watch) {
            watched.complete = true;
        }
    }

    /// The watch of `directory`, if names in it may be told.
    pub fn completed(&self, directory: u64) -> Option<Watch> {
        let state = self.lock();
        let watched = state.directories.get(&directory)?;
        let descriptor = watched.descriptor;
        watched.complete.then_some(Watch {
            directory,
            descriptor,
        })
    }

    /// Whether the kernel may be told for [`LONG`] that a name in the directory is
    /// `inode`, and what its attributes are, which was found out under `watch`.
    pub fn tell(&self, watch: Watch, inode: u64) -> bool {
        let mut state = self.lock();
        let room = state.told < MOST_TOLD;
        let Some(watched) = state.get(watch).filter(|watched| watched.complete) else {
            return false;
        };
        watched.until = Instant::now() + LONG;
        if !watched.told.contains(&inode) {
            if !room {
                return false;
            }
            watched.told.insert(inode);
            state.told += 1;
        }
        true
    }

    /// Whether the kernel may be told for [`LONG`] what was found out of the directory
    /// itself under `watch`.
    pub fn holds(&self, watch: Watch) -> bool {
        let mut state = self.lock();
        let watched = state.get(watch);
        watched
            .map(|watched| watched.until = Instant::now() + LONG)
            .is_some()
    }

    /// The kernel has got all of a listing of `directory`, which it keeps; it was made
    /// under `watch`.
    pub fn listed(&self, directory: u64, watch: Option<Watch>) {
        let mut state = self.lock();
        let complete = watch.and_then(|watch| state.get(watch));
        if !complete.is_some_and(|watched| watched.complete) {
            state.unwatched.push(directory);
            self.wake(&mut state);
        }
    }

    /// The attributes of `inode` are others than the kernel was told.
    pub fn changed(&self, inode: u64) {
        let mut state = self.lock();
        state.changed.push(inode);
        self.wake(&mut state);
    }

    /// The kernel has forgotten `directory` by itself.
    pub fn forgotten(&self, directory: u64) {
        let mut state = self.lock();
        if state.directories.contains_key(&directory) {
            self.let_go(&mut state, directory);
        }
    }

    fn let_go_of_old(&self, state: &mut State) {
        let now = Instant::now();
        let old = state.directories.iter();
        let old = old.filter(|(_, watched)| watched.until < now);
        let old: Vec<u64> = old.map(|(directory, _)| *directory).collect();
        for directory in old {
            self.let_go(state, directory);
        }
    }

    fn let_go(&self, state: &mut State, directory: u64) {
        let Some(watched) = state.directories.remove(&directory) else {
            return;
        };
        state.told -= watched.told.len();
        let Some(sharing) = state.by_descriptor.get_mut(&watched.descriptor) else {
            return;
        };
        sharing.retain(|other| *other != directory);
        if sharing.is_empty() {
            state.by_descriptor.remove(&watched.descriptor);
            // It may have ended by itself.
            let _ = self.inotify.rm_watch(watched.descriptor);
        }
    }

    fn run(&self, mut woken: PipeReader, mut mounts: Mounts, forget: &impl Forget) {
        let mut again = None;
        while let Some(stale) = self.wait(&mut woken, &mut mounts, again) {
            let was_due = again;
            if self.expire(stale, &mut again, forget).is_none() {
                break;
            }
            if again != was_due {
                // It may be other directories by now.
                self.watch_above(&mounts.source);
            }
        }
        let mut state = self.lock();
        state.phase = Phase::Over;
        self.take_all(&mut state);
    }

    /// Waits until the kernel has to forget something, or until `again`. None at the
    /// end.
    fn wait(
        &self,
        woken: &mut PipeReader,
        mounts: &mut Mounts,
        again: Option<Instant>,
    ) -> Option<Stale> {
        let timeout = again.map_or(PollTimeout::NONE, |due| {
            // Rounded up, or the last of a millisecond would be spent in a circle.
            let left = due.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut ready = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(woken.as_fd(), PollFlags::POLLIN),
            PollFd::new(mounts.table.as_fd(), PollFlags::POLLPRI),
        ];
        match poll(&mut ready, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Some(Stale::default()),
            Err(why) => {
                warn!("changes of the source are noticed late from here on: {why}");
                return None;
            }
        }
        let [events, wake, mounted] = ready.map(|one| one.any().unwrap_or(true));
        if wake {
            let _ = woken.read(&mut [0]);
        }
        let mut directories = Vec::new();
        if mounted && mounts.differ() {
            directories.append(&mut self.take_all(&mut self.lock()));
        }
        if events {
            directories.append(&mut self.take_changed());
        }
        let mut state = self.lock();
        if wake {
            state.woken = false;
        }
        (state.phase != Phase::Over).then(|| Stale {
            directories,
            unwatched: std::mem::take(&mut state.unwatched),
            changed: std::mem::take(&mut state.changed),
        })
    }

    /// Has the kernel forget, and names once more at `again`. None at the end.
    fn expire(
        &self,
        stale: Stale,
        again: &mut Option<Instant>,
        forget: &impl Forget,
    ) -> Option<()> {
        let now = Instant::now();
        let is_due = again.is_some_and(|due| due <= now);
        if is_due || !stale.directories.is_empty() {
            self.notify(|| forget.names())?;
            *again = None;
        }
        if !stale.directories.is_empty() {
            // Whatever comes meanwhile puts it off and has them expire as well.
            *again = Some(now + AGAIN);
        }
        for directory in stale.unwatched {
            self.notify(|| forget.listing(directory))?;
        }
        for inode in stale.changed {
            self.notify(|| forget.attributes(inode))?;
        }
        for (directory, watched) in stale.directories {
            for inode in watched.told {
                self.notify(|| forget.attributes(inode))?;
            }
            self.notify(|| forget.listing(directory))?;
        }
        Some(())
    }

    /// Does one notification. None at the end.
    fn notify(&self, notification: impl FnOnce()) -> Option<()> {
        {
            let mut state = self.lock();
            if state.phase == Phase::Over {
                return None;
            }
            state.notifying = true;
        }
        notification();
        self.lock().notifying = false;
        self.at_rest.notify_all();
        Some(())
    }

    /// Takes out the directories that events have come of.
    fn take_changed(&self) -> Vec<(u64, Directory)> {
        let mut changed = Vec::new();
        while let Ok(events) = self.inotify.read_events() {
            let mut state = self.lock();
            for event in events {
                let overflow = event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                let concerns_all = overflow || state.concerning_all.contains(&event.wd);
                changed.append(&mut match concerns_all {
                    true => self.take_all(&mut state),
                    false => state.take(event.wd),
                });
            }
        }
        changed
    }

    /// Takes out every directory and ends its watch: what was found out under it counts
    /// no longer.
    fn take_all(&self, state: &mut State) -> Vec<(u64, Directory)> {
        for (descriptor, _) in state.by_descriptor.drain() {
            // It may have ended by itself.
            let _ = self.inotify.rm_watch(descriptor);
        }
        state.told = 0;
        state.directories.drain().collect()
    }

    fn wake(&self, state: &mut State) {
        // A pipe that is full would make this thread wait.
        if !std::mem::replace(&mut state.woken, true) {
            let _ = (&self.wake).write(&[0]);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn watch(&self, directory: u64) -> Option<Watch> {
        let descriptor = self.directories.get(&directory)?.descriptor;
        Some(Watch {
            directory,
            descriptor,
        })
    }

    fn get(&mut self, watch: Watch) -> Option<&mut Directory> {
        let watched = self.directories.get_mut(&watch.directory)?;
        (watched.descriptor == watch.descriptor).then_some(watched)
    }

    /// Takes out the directories behind `descriptor`.
    fn take(&mut self, descriptor: WatchDescriptor) -> Vec<(u64, Directory)> {
        let numbers = self.by_descriptor.remove(&descriptor).unwrap_or_default();
        let taken = numbers.into_iter();
        let taken = taken.filter_map(|number| Some((number, self.directories.remove(&number)?)));
        let taken: Vec<_> = taken.collect();
        self.told -= taken.iter().map(|(_, one)| one.told.len()).sum::<usize>();
        taken
    }
}

/// The mounts that change what is at a path of the source, of which no other event
/// tells.
struct Mounts {
    table: File,
    source: PathBuf,
    known: Vec<Mount>,
}

impl Mounts {
    fn new(source: &Path) -> io::Result<Mounts> {
        let mut mounts = Mounts {
            // First, so that no change goes unseen.
            table: File::open("/proc/self/mountinfo")?,
            source: source.to_path_buf(),
            known: Vec::new(),
        };
        mounts.known = mounts.now()?;
        Ok(mounts)
    }

    fn now(&self) -> io::Result<Vec<Mount>> {
        let mut mounts = mountinfo::mounts()?;
        mounts.retain(|mount| {
            mount.point.starts_with(&self.source) || self.source.starts_with(&mount.point)
        });
        Ok(mounts)
    }

    /// Whether they are other ones than at the time of the last call.
    fn differ(&mut self) -> bool {
        match self.now() {
            Ok(now) => now != std::mem::replace(&mut self.known, now.clone()),
            Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Links, LocalTree};
    use std::fs;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use tempfile::TempDir;

    #[derive(Debug, PartialEq)]
    enum Forgotten {
        Names,
        Attributes(u64),
        Listing(u64),
    }

    impl Forget for Sender<Forgotten> {
        fn names(&self) {
            let _ = self.send(Forgotten::Names);
        }

        fn attributes(&self, inode: u64) {
            let _ = self.send(Forgotten::Attributes(inode));
        }

        fn listing(&self, directory: u64) {
            let _ = self.send(Forgotten::Listing(directory));
        }
    }

    /// A directory on a file system that tells of changes, and its watcher.
    struct Case {
        dir: TempDir,
        watcher: Arc<Watcher>,
        forgotten: Receiver<Forgotten>,
    }

    impl Case {
        /// None where the tests have no such file system.
        fn new() -> Option<Case> {
            Case::below("")
        }

        /// One whose source is the directory `source` in it.
        fn below(source: &str) -> Option<Case> {
            let dir = TempDir::new().unwrap();
            let dir = match is_telling(dir.path()) {
                true => dir,
                false => TempDir::new_in("/dev/shm").unwrap(),
            };
            if !is_telling(dir.path()) {
                crate::skip::skip("no file system that tells of changes");
                return None;
            }
            let (watcher, woken) = Watcher::new().unwrap();
            let (sender, forgotten) = channel();
            let source = dir.path().join(source);
            fs::create_dir_all(&source).unwrap();
            watcher.start(woken, &source, sender).unwrap();
            Some(Case {
                dir,
                watcher,
                forgotten,
            })
        }

        fn next(&self) -> Forgotten {
            self.forgotten.recv_timeout(Duration::from_secs(5)).unwrap()
        }

        /// Names may expire again at any time.
        fn next_but_names(&self) -> Forgotten {
            loop {
                match self.next() {
                    Forgotten::Names => {}
                    other => return other,
                }
            }
        }

        /// Whether nothing but names is forgotten for a moment.
        fn is_quiet(&self) -> bool {
            let patience = Duration::from_millis(100);
            let next = || self.forgotten.recv_timeout(patience);
            std::iter::from_fn(|| next().ok()).all(|forgotten| forgotten == Forgotten::Names)
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            self.watcher.stop();
        }
    }

    /// The directory at `path`, whose own path is free of links.
    fn enter(path: &Path) -> impl FnOnce() -> Option<Arc<dyn Tree>> {
        let parent = LocalTree::open(path.parent().unwrap(), Links::Anywhere);
        let name = PathBuf::from(path.file_name().unwrap());
        move || parent.ok()?.enter(&name).ok()
    }

    fn is_telling(path: &Path) -> bool {
        let opened = File::open(path).unwrap();
        TELLING.contains(&fstatfs(&opened).unwrap().filesystem_type())
    }

    #[test]
    fn the_first_event_ends_the_watch_and_all_that_was_told_is_forgotten() {
        let Some(case) = Case::new() else { return };
        let (watcher, path) = (&case.watcher, case.dir.path());
        let watch = watcher.watch(5, enter(path)).unwrap();
        assert!(!watcher.tell(watch, 6), "not complete");
        watcher.complete(watch);
        assert!(watcher.tell(watch, 6));
        assert!(watcher.holds(watch));
        assert_eq!(watcher.completed(5), Some(watch));
        assert!(case.is_quiet());

        fs::write(path.join("new"), "").unwrap();
        let forgotten = [(); 3].map(|()| case.next());
        assert_eq!(
            forgotten,
            [
                Forgotten::Names,
                Forgotten::Attributes(6),
                Forgotten::Listing(5)
            ]
        );
        assert!(!watcher.holds(watch) && !watcher.tell(watch, 6));
        assert_eq!(watcher.completed(5), None);
        fs::write(path.join("new"), "again").unwrap();
        // An answer on its way at the first time is there by now.
        assert_eq!(case.next(), Forgotten::Names);
        assert!(case.is_quiet());

        let again = watcher.watch(5, enter(path)).unwrap();
        assert!(watcher.holds(again) && !watcher.holds(watch));
    }

    #[test]
    fn everything_that_may_change_what_is_shown_is_an_event() {
        let Some(case) = Case::new() else { return };
        let path = case.dir.path().join("dir");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "text").unwrap();
        let file = path.join("file");
        let mapped = File::options().read(true).write(true).open(&file).unwrap();
        let changes: [(&str, &dyn Fn()); 7] = [
            ("write", &|| {
                let mut file = File::options().append(true).open(&file).unwrap();
                file.write_all(b"more").unwrap();
            }),
            ("truncate", &|| mapped.set_len(1).unwrap()),
            ("mode", &|| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
                fs::set_permissions(&file, mode).unwrap();
            }),
            ("move", &|| fs::rename(&file, path.join("moved")).unwrap()),
            ("remove", &|| fs::remove_file(path.join("moved")).unwrap()),
            ("directory", &|| fs::create_dir(path.join("sub")).unwrap()),
            ("self", &|| {
                fs::rename(&path, case.dir.path().join("other")).unwrap()
            }),
        ];
        for (what, change) in changes {
            let watch = case.watcher.watch(5, enter(&path)).unwrap();
            change();
            assert_eq!(case.next_but_names(), Forgotten::Listing(5), "{what}");
            assert!(!case.watcher.holds(watch), "{what}");
        }
    }

    #[test]
    fn one_directory_may_go_by_two_numbers() {
        let Some(case) = Case::new() else { return };
        for number in [5, 6] {
            case.watcher.watch(number, enter(case.dir.path())).unwrap();
        }
        case.watcher.forgotten(5);
        fs::write(case.dir.path().join("new"), "").unwrap();
        assert_eq!(case.next_but_names(), Forgotten::Listing(6));
    }

    #[test]
    fn what_concerns_all_ends_every_watch() {
        let Some(case) = Case::new() else { return };
        let paths = ["watched", "incoming", "kept"].map(|name| case.dir.path().join(name));
        paths.iter().for_each(|path| fs::create_dir(path).unwrap());
        let [watched, incoming, kept] = paths;
        case.watcher.concerns_all(&incoming).unwrap();
        for round in 0..2 {
            let watch = case.watcher.watch(5, enter(&watched)).unwrap();
            fs::write(incoming.join("file"), "").unwrap();
            assert!(case.is_quiet(), "{round}");
            fs::rename(incoming.join("file"), kept.join("file")).unwrap();
            assert_eq!(case.next_but_names(), Forgotten::Listing(5));
            assert!(!case.watcher.holds(watch), "{round}");
        }
    }

    #[test]
    fn a_directory_above_the_source_that_moves_concerns_all() {
        let Some(case) = Case::below("above/source") else {
            return;
        };
        let watched = case.dir.path().join("above/source/watched");
        fs::create_dir(&watched).unwrap();
        let above = case.dir.path().join("above");
        for round in 0..2 {
            let watch = case.watcher.watch(5, enter(&watched)).unwrap();
            fs::rename(&above, case.dir.path().join(format!("old{round}"))).unwrap();
            assert_eq!(case.next_but_names(), Forgotten::Listing(5));
            assert!(!case.watcher.holds(watch), "{round}");
            fs::create_dir_all(&watched).unwrap();
            // What stands there now is watched from the next event on.
            case.watcher
                .watch_above(&case.dir.path().join("above/source"));
        }
    }

    #[test]
    fn a_listing_that_nobody_watches_is_dropped() {
        let Some(case) = Case::new() else { return };
        case.watcher.listed(7, None);
        assert_eq!(case.next(), Forgotten::Listing(7));
        let watch = case.watcher.watch(5, enter(case.dir.path())).unwrap();
        case.watcher.complete(watch);
        case.watcher.listed(5, Some(watch));
        assert!(case.is_quiet());
    }

    #[test]
    fn what_tells_of_no_changes_is_not_watched() {
        let Some(case) = Case::new() else { return };
        assert_eq!(case.watcher.watch(5, enter(Path::new("/proc/sys"))), None);
        let (link, dir) = (case.dir.path().join("link"), case.dir.path().join("dir"));
        fs::create_dir_all(dir.join("sub")).unwrap();
        std::os::unix::fs::symlink(&dir, &link).unwrap();
        assert_eq!(case.watcher.watch(5, enter(&link)), None);
        let tree = LocalTree::open(case.dir.path(), Links::Anywhere).unwrap();
        let below = || tree.enter(Path::new("link/sub")).ok();
        assert_eq!(case.watcher.watch(5, below), None);
        assert_eq!(case.watcher.watch(5, enter(&dir.join("none"))), None);
        assert!(case.watcher.watch(5, enter(&dir.join("sub"))).is_some());
    }

    #[test]
    fn nothing_is_watched_before_the_start_and_after_the_end() {
        let dir = TempDir::new().unwrap();
        let (watcher, _woken) = Watcher::new().unwrap();
        assert_eq!(watcher.watch(5, enter(dir.path())), None);
        let Some(case) = Case::new() else { return };
        case.watcher.watch(5, enter(case.dir.path())).unwrap();
        case.watcher.stop();
        assert_eq!(case.watcher.watch(6, enter(case.dir.path())), None);
        fs::write(case.dir.path().join("new"), "").unwrap();
        assert!(case.is_quiet());
    }
}
