//! `stfs mount`.

use std::path::{self, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use log::LevelFilter;

use super::cache_options::CacheOptions;
use super::{Failure, say};
use crate::budget::Budget;
use crate::mount::options::{self, Word, Words};
use crate::mount::{Access, Config, Prepared};
use crate::source::Links;
use crate::view::{self, Promote, Tensors};

/// Requests that may wait at once, unless the user says otherwise: they take no processor
/// while they do.
const THREADS: usize = 64;

/// Show a model directory with its checkpoints as safetensors
///
/// The process goes to the background once the mount answers; `stfs umount` ends
/// it. The mount is read-only and shows changes of the source within a second.
#[derive(Args)]
#[command(after_help = "Examples:
  stfs mount ./models /mnt/models
  stfs mount --tensors hide ./models /mnt/models
  stfs mount ./models /mnt/models -o noexec,allow_other

Words for -o:
  allow_other, allow_root, show_pickles, tensors=WHICH, threads=N, log_file=PATH,
  cache_dir=PATH, cache_size=SIZE, promote=WHEN, memory=SIZE
                    as the options of these names
  nonempty          mount over a directory that has something in it
  noexec, noatime   as in mount(8)
  ro, nosuid, nodev, default_permissions are always the case, and words that
  fstab(5) keeps for itself have no effect. `\\,` is a comma within a value.")]
pub struct Arguments {
    /// The model directory
    source: PathBuf,
    /// Where to mount it: an empty directory, created if it is missing
    mountpoint: PathBuf,

    /// Stay in the foreground and log to stderr; Ctrl-C unmounts
    #[arg(short, long)]
    foreground: bool,
    /// Let all users in, as far as file modes allow. Symbolic links that lead out of the source, or through private directories, are then not followed
    #[arg(long, conflicts_with = "allow_root")]
    allow_other: bool,
    /// Let root in besides yourself. Symbolic links are followed as with --allow-other
    #[arg(long)]
    allow_root: bool,
    /// Show the pickle checkpoints too, beside their converted form
    #[arg(long)]
    show_pickles: bool,
    /// The directories of single tensors: in listings, reachable by path only, or not there
    #[arg(long, value_name = "WHICH", default_value = "show",
        value_parser = PossibleValuesParser::new(["show", "hide", "off"]).try_map(|text| options::tensors(&text)))]
    tensors: Tensors,
    /// Take the tensors below this dotted path of each checkpoint, such as `ema`
    #[arg(long, value_name = "KEY")]
    root: Option<String>,
    /// Requests that may wait at once for planning, decompressing, or a slow source, from 1 to 256: half of them for one file system, a quarter for one directory, an eighth for one file [default: 64]
    #[arg(long, value_name = "N", value_parser = options::threads)]
    threads: Option<usize>,
    /// Append the log to this file [default: the system log, in the foreground stderr]
    #[arg(long, value_name = "PATH")]
    log_file: Option<PathBuf>,
    #[command(flatten)]
    cache: CacheOptions,
    /// Keep converted files whole in the cache: those that are mapped or read to their end, all that are opened, or none
    #[arg(long, value_name = "WHEN", default_value = "auto",
        value_parser = PossibleValuesParser::new(["auto", "always", "never"]).try_map(|text| options::promote(&text)))]
    promote: Promote,
    /// Memory for work on files, such as 512M: one file may take half of it [default: a sixteenth of the machine's, from 256M to 2G]
    #[arg(long, value_name = "SIZE", value_parser = options::memory)]
    memory: Option<u64>,
    /// Options as mount(8) takes them, separated by commas
    #[arg(short = 'o', value_name = "WORDS", value_parser = options::words)]
    words: Vec<Words>,
}

pub fn run(arguments: Arguments, log_level: LevelFilter) -> Result<(), Failure> {
    let foreground = arguments.foreground;
    let prepared = Prepared::new(config(arguments, log_level)?)?;
    if prepared.cleared_dead_mount() {
        say("a mount whose process was gone has been cleared away");
    }
    match foreground {
        true => prepared.run_in_foreground(|problem| say(problem))?,
        false => prepared.run_in_background(|problem| say(problem))?,
    }
    Ok(())
}

fn config(arguments: Arguments, log_level: LevelFilter) -> Result<Config, Failure> {
    let mut config = Config {
        source: arguments.source,
        mount_point: arguments.mountpoint,
        view: view::Options {
            tensors: arguments.tensors,
            show_pickles: arguments.show_pickles,
            links: Links::Anywhere,
            weights: arguments.root,
            cache: None,
            no_cache: None,
            cache_limit: arguments.cache.limit(),
            promote: arguments.promote,
            memory: arguments.memory.map(Budget::new).unwrap_or_default(),
        },
        access: match (arguments.allow_other, arguments.allow_root) {
            (true, _) => Access::Everyone,
            (_, true) => Access::OwnerAndRoot,
            _ => Access::Owner,
        },
        noexec: false,
        noatime: false,
        nonempty: false,
        threads: arguments.threads.unwrap_or(THREADS),
        log_file: arguments.log_file,
        cache_dir: arguments.cache.path(),
        log_level,
    };
    for word in arguments.words.into_iter().flat_map(|words| words.0) {
        match word {
            Word::NoExec => config.noexec = true,
            Word::NoAtime => config.noatime = true,
            Word::NonEmpty => config.nonempty = true,
            Word::Access(access) if config.access == Access::Owner => config.access = access,
            Word::Access(access) if config.access == access => {}
            Word::Access(_) => {
                let message = "allow_other and allow_root exclude each other";
                return Err(Failure::Usage(message.to_owned()));
            }
            Word::Tensors(tensors) => config.view.tensors = tensors,
            Word::ShowPickles => config.view.show_pickles = true,
            Word::Threads(threads) => config.threads = threads,
            Word::LogFile(path) => config.log_file = Some(path),
            Word::CacheDir(path) => config.cache_dir = Some(path),
            Word::CacheSize(limit) => config.view.cache_limit = limit,
            Word::Memory(memory) => config.view.memory = Budget::new(memory),
            Word::Promote(promote) => config.view.promote = promote,
        }
    }
    // The process in the background has another working directory.
    config.cache_dir = (config.cache_dir).map(|path| path::absolute(&path).unwrap_or(path));
    // Otherwise a link could lend the mounting user's rights to everybody.
    if config.access != Access::Owner {
        config.view.links = Links::Inside;
    }
    Ok(config)
}
