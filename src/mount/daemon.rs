//! The process behind a mount: from the checks to the last request.

use std::fmt::Display;
use std::fs::{self, DirBuilder, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::panic;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::thread;

use fuser::{Session, SessionACL};
use log::{LevelFilter, debug, error, info, warn};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::adapter::Adapter;
use super::device::{self, Attributes};
use super::error::Error;
use super::forget::{self, Kernel};
use super::logging::{self, Log};
use super::mountinfo::{self, Mount};
use super::mountpoint::{self, MountPoint};
use super::options::Access;
use super::state::Server;
use super::watch::Watcher;
use super::{connection, kernel, unmount};
use crate::cache::Directory;
use crate::view::{self, View};

/// A mount to be made.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: PathBuf,
    pub mount_point: PathBuf,
    pub view: view::Options,
    pub access: Access,
    pub noexec: bool,
    pub noatime: bool,
    /// Mount over a directory that has something in it.
    pub nonempty: bool,
    /// Requests that may wait for something at once.
    pub threads: usize,
    /// Where the log goes; by default stderr in the foreground, the system log
    /// in the background.
    pub log_file: Option<PathBuf>,
    pub log_level: LevelFilter,
    /// Where plans and converted files are kept for the next mount; absolute.
    pub cache_dir: Option<PathBuf>,
}

/// A mount whose source and mount point have been found fit.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    /// Absolute, free of symbolic links.
    source: PathBuf,
    place: MountPoint,
    log_file: Option<File>,
}

/// What the background process sends at last when the mount answers; what comes before it
/// is a problem that the caller should know of. Without it, the bytes are the reason why
/// there is no mount.
const READY: &[u8] = b"\0";

impl Prepared {
    /// Checks what can be checked before anything is mounted.
    ///
    /// # Errors
    /// The source, the mount point or the log file is unfit.
    pub fn new(config: Config) -> Result<Self, Error> {
        let source = directory(&config.source).map_err(|why| Error::Source {
            path: config.source.clone(),
            why,
        })?;
        let log_file = match &config.log_file {
            Some(path) => Some(logging::open(path).map_err(Error::io(path, "open the log"))?),
            None => None,
        };
        let place = mountpoint::prepare(&config.mount_point, &source, config.nonempty)?;
        Ok(Self {
            config,
            source,
            place,
            log_file,
        })
    }

    /// Whether a mount whose process is gone had to be detached first.
    pub fn cleared_dead_mount(&self) -> bool {
        self.place.cleared
    }

    /// Serves the mount until it is unmounted or a signal ends it. `tell` gets a problem
    /// that the caller should know of, unless the log says it there already.
    ///
    /// # Errors
    /// The mount was not made, or its connection to the kernel failed.
    pub fn run_in_foreground(mut self, tell: impl FnOnce(&str)) -> Result<(), Error> {
        let log = self.log_file.take().map_or(Log::Stderr, Log::File);
        let tell = matches!(log, Log::File(_)).then_some(tell);
        logging::start(log, self.config.log_level);
        self.serve(|problem| {
            if let Some((problem, tell)) = problem.zip(tell) {
                tell(problem);
            }
            Ok(())
        })
    }

    /// Leaves the mount to a process in the background and returns once it
    /// answers. `tell` gets a problem that the caller should know of.
    ///
    /// # Errors
    /// The mount was not made, or this process has more than one thread: the
    /// others would be missing in the new process, with whatever they hold.
    pub fn run_in_background(self, tell: impl FnOnce(&str)) -> Result<(), Error> {
        let place = self.place.path.clone();
        let failed = |what| Error::io(&place, what);
        let tasks = fs::read_dir("/proc/self/task").map_err(failed("count threads"))?;
        if tasks.count() != 1 {
            return Err(failed("start a process")(io::Error::other(
                "there is a second thread",
            )));
        }
        let (mut reader, writer) = io::pipe().map_err(failed("open a pipe"))?;
        // SAFETY: there is no other thread, so no lock that the child would find
        // held by nobody: it is a full process.
        match unsafe { fork() }.map_err(|why| failed("start a process")(why.into()))? {
            ForkResult::Child => {
                drop(reader);
                self.be_daemon(writer)
            }
            ForkResult::Parent { .. } => {
                drop(writer);
                let mut said = vec![];
                let result = reader.read_to_end(&mut said);
                result.map_err(failed("wait for the mount"))?;
                let text = |said: &[u8]| String::from_utf8_lossy(said).into_owned();
                match said.strip_suffix(READY) {
                    Some(b"") => Ok(()),
                    Some(problem) => {
                        tell(&text(problem));
                        Ok(())
                    }
                    None if said.is_empty() => Err(failed("mount")(io::Error::other(
                        "the background process ended early; --foreground shows more",
                    ))),
                    None => Err(Error::Background(text(&said))),
                }
            }
        }
    }

    fn be_daemon(mut self, writer: io::PipeWriter) -> ! {
        let mut kept = vec![writer.as_raw_fd()];
        kept.extend(self.log_file.as_ref().map(AsRawFd::as_raw_fd));
        close_inherited(kept);
        let log = self.log_file.take().map_or(Log::System, Log::File);
        logging::start(log, self.config.log_level);
        panic::set_hook(Box::new(|panic| error!("{panic}")));
        let mut parent = Some(writer);
        let result = leave_terminal()
            .map_err(Error::io(
                Path::new("/dev/null"),
                "leave the terminal for it",
            ))
            .and_then(|()| {
                self.serve(|problem| match parent.take() {
                    Some(mut writer) => {
                        let problem = problem.unwrap_or_default().as_bytes();
                        writer.write_all(&[problem, READY].concat())
                    }
                    None => Ok(()),
                })
            });
        process::exit(match result {
            Ok(()) => 0,
            Err(reason) => {
                error!("{reason}");
                if let Some(mut writer) = parent {
                    // The parent is gone if this fails, and with it who would read it.
                    let _ = writer.write_all(reason.to_string().as_bytes());
                }
                1
            }
        });
    }

    /// The cache directory, or why there is none, for people. A mount without one is slower,
    /// and that is all.
    fn cache(&self) -> Result<Directory, String> {
        let Some(path) = self.config.cache_dir.as_deref() else {
            return Err(
                "no cache: there is no home directory to keep one in. Name a directory \
                        with --cache-dir"
                    .to_string(),
            );
        };
        let unfit = |why: &dyn Display| Err(format!("{}: no cache: {why}", path.display()));
        // This process would wait for itself.
        let inside = |path: &Path| path.starts_with(&self.place.path);
        let in_the_mount = "it lies in the mount. Name another directory with --cache-dir";
        // Nothing is ever written there.
        let in_the_source = "it lies in the source. Name another directory with --cache-dir";
        if inside(path) {
            return unfit(&in_the_mount);
        }
        if path.starts_with(&self.source) {
            return unfit(&in_the_source);
        }
        match Directory::open(path) {
            Ok(directory) if inside(directory.root()) => unfit(&in_the_mount),
            Ok(directory) if directory.root().starts_with(&self.source) => unfit(&in_the_source),
            Ok(directory) => Ok(directory),
            Err(why) => unfit(&why),
        }
    }

    /// Mounts, calls `ready` once the mount answers, with a problem that the caller should
    /// know of, and serves the mount to its end.
    fn serve(self, ready: impl FnOnce(Option<&str>) -> io::Result<()>) -> Result<(), Error> {
        let place = self.place.path.as_path();
        let failed = |what| Error::io(place, what);
        let source_error = |why| Error::Source {
            path: self.source.clone(),
            why,
        };
        raise_descriptor_limit();
        keep_few_heaps();
        let cache = self.cache();
        let options = view::Options {
            no_cache: cache.as_ref().err().cloned(),
            cache: cache.ok(),
            ..self.config.view.clone()
        };
        let incoming = options.cache.as_ref().map(Directory::incoming);
        let view = View::new(&self.source, options).map_err(source_error)?;
        let view = Arc::new(view);
        let problem = view.cache_problem();
        if let Some(problem) = &problem {
            warn!("{problem}");
        }
        let attributes = Attributes {
            source: view.location().into_os_string(),
            allow_other: self.config.access != Access::Owner,
            noexec: self.config.noexec,
            noatime: self.config.noatime,
        };
        let mut signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed("watch for signals"))?;
        let end = signals.handle();

        let device = device::attach(place, &attributes)?;
        let mounted = Mounted::find(place);
        let unwatched = |why: io::Error| warn!("changes of the source are not watched: {why}");
        let watching = device.try_clone();
        let watching = watching.and_then(|device| watching_by(device.into(), incoming));
        let watching = watching.map_err(unwatched).ok().flatten();
        let watcher = watching.as_ref().map(|it| it.watcher.clone());
        let adapter = Adapter::new(view.clone(), watcher.clone(), self.config.threads);
        let adapter = adapter.map_err(|error| {
            mounted.clear();
            source_error(error)
        })?;
        let prefaulter = adapter.prefaulter();
        adapter.keep_what_is_open();
        let mut settings = fuser::Config::default();
        settings.n_threads = Some(request_threads());
        // The kernel keeps strangers out, but knows no "root too".
        let acl = match self.config.access {
            Access::OwnerAndRoot => SessionACL::RootAndOwner,
            Access::Owner | Access::Everyone => SessionACL::All,
        };
        let session = Session::from_fd(adapter, device, acl, settings).map_err(|why| {
            mounted.clear();
            failed("agree with the kernel")(why)
        })?;
        prefaulter.start(session.notifier());
        if let Some(it) = watching {
            let kernel = Kernel::new(session.notifier(), it.device);
            let started = it.watcher.start(it.woken, &self.source, kernel);
            let _ = started.map_err(unwatched);
        }
        let requests = thread::spawn(move || {
            let result = session.run();
            end.close();
            result
        });

        // From here on the mount has to be asked from this thread: the others
        // answer.
        let answers = fs::metadata(place).and_then(|root| {
            kernel::raise_read_ahead(root.dev());
            info!(
                "{} is mounted on {}",
                self.source.display(),
                place.display()
            );
            ready(problem.as_deref())
        });
        if let Err(why) = answers {
            mounted.end();
            return Err(failed("use the new mount")(why));
        }

        let signal = signals.forever().next();
        view.end();
        if let Some(watcher) = watcher {
            watcher.stop();
        }
        match signal {
            Some(signal) => {
                info!("signal {signal}: unmounting {}", place.display());
                mounted.end();
                Ok(())
            }
            None => {
                mounted.clear();
                match requests.join() {
                    Ok(result) => result.map_err(failed("serve requests")),
                    Err(_) => Err(failed("serve requests")(io::Error::other(
                        "a defect in stfs",
                    ))),
                }
            }
        }
    }
}

/// A watcher that is not started yet.
struct Watching {
    watcher: Arc<Watcher>,
    woken: PipeReader,
    /// Behind it is the kernel that is told to forget.
    device: File,
}

/// None where the kernel cannot be told to forget. `incoming` is where the cache writes
/// converted files.
fn watching_by(device: File, incoming: Option<PathBuf>) -> io::Result<Option<Watching>> {
    if forget::names(&device).is_err() {
        return Ok(None);
    }
    let (watcher, woken) = Watcher::new()?;
    if let Some(incoming) = incoming {
        let watched = make(&incoming).and_then(|()| watcher.concerns_all(&incoming));
        if let Err(why) = watched {
            debug!("{}: not watched: {why}", incoming.display());
        }
    }
    Ok(Some(Watching {
        watcher,
        woken,
        device,
    }))
}

/// The mount of this process.
struct Mounted {
    mount: Option<Mount>,
    /// For as long as this process serves it.
    _declaration: Option<OwnedFd>,
}

impl Mounted {
    fn find(place: &Path) -> Self {
        let mount = mountinfo::mount_at(place).ok().flatten();
        let mount = mount.filter(Mount::is_stfs);
        Self {
            _declaration: mount.as_ref().and_then(|it| connection::declare(it).ok()),
            mount,
        }
    }

    /// Ends the mount, which this process still serves, wherever it is by now.
    fn end(&self) {
        self.sever_if(|server, _| server.process().is_none());
    }

    /// Takes away what may be left of the mount when the kernel has ended the
    /// connection. Usually that is nothing, and then a new mount may be here
    /// already, even under the same numbers: hence only a dead one goes.
    fn clear(&self) {
        self.sever_if(Server::is_dead);
    }

    /// `server` is what other process serves the mount.
    fn sever_if(&self, condition: impl Fn(&Server, &Mount) -> bool) {
        let Some(mount) = &self.mount else {
            return;
        };
        let mounts = mountinfo::stfs_mounts().unwrap_or_default();
        let is_left = mounts.iter().any(|other| other.is_same(mount));
        if is_left && Server::of(mount).is_ok_and(|server| condition(&server, mount)) {
            report(unmount::sever(mount, None));
        }
    }
}

/// Threads that take requests. They answer what is known, and read from this machine.
fn request_threads() -> usize {
    thread::available_parallelism().map_or(4, |cores| cores.get().clamp(4, 16))
}

fn report(result: Result<(), Error>) {
    if let Err(reason) = result {
        error!("{reason}");
    }
}

fn directory(path: &Path) -> view::Result<PathBuf> {
    let path = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => view::Error::NotFound,
        _ => view::Error::Io(error),
    })?;
    if fs::metadata(&path)?.is_dir() {
        Ok(path)
    } else {
        Err(view::Error::NotADirectory)
    }
}

/// Makes a directory of the cache, which has its place already.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(why) if why.kind() != io::ErrorKind::AlreadyExists => Err(why),
        _ => Ok(()),
    }
}

/// Lets go of the terminal and the pipes of the caller, who may be waiting for
/// their end, and of the working directory.
fn leave_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    setsid()?;
    std::env::set_current_dir("/")
}

/// Closes what the caller had open beyond the standard streams, but for `kept`:
/// locks and pipes of theirs would live as long as the mount.
fn close_inherited(mut kept: Vec<RawFd>) {
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for end in kept.into_iter().chain([RawFd::MAX]) {
        if first < end {
            // SAFETY: right after the fork this process has opened nothing of its
            // own but `kept`. Without close_range(2) the descriptors stay open.
            unsafe { libc::close_range(first as u32, end as u32 - 1, 0) };
        }
        first = end.saturating_add(1);
    }
}

/// Every open file of the mount costs this process a descriptor or two.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(why) = raised {
        debug!("the limit of open files stays: {why}");
    }
}

/// By default the allocator has a heap for each thread, and what one leaves free is of
/// no use to the others.
fn keep_few_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions; it sets a number in the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}
