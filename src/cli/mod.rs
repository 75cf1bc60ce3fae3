//! The commands. One file for each; this one reads the command line and says
//! what went wrong.

mod cache;
mod cache_options;
mod cat;
mod conversions;
mod convert;
mod diff;
mod interruption;
mod ls;
mod mount;
mod open;
mod progress;
mod status;
mod umount;
mod warm;

use std::error::Error;
use std::fmt::{self, Display, Write};
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use log::LevelFilter;

use crate::checkpoint::Refusal;
use crate::convert as conversion;
use crate::source::{self, Bytes};

/// Use PyTorch checkpoints as safetensors, without converting or running them.
///
/// `stfs mount` shows a model directory in which every pickle checkpoint (.bin,
/// .pt, .pth, .ckpt) has already become a .safetensors file and every tensor is a
/// file of its own. The model directory is never written to, and no code of a
/// checkpoint ever runs.
#[derive(Parser)]
#[command(
    name = "stfs",
    version,
    after_help = "Example:\n  stfs mount ./gpt2 /mnt/gpt2\n  ls /mnt/gpt2\n  stfs umount /mnt/gpt2",
    max_term_width = 100
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,

    /// Log more: once for what happens, twice for every request. RUST_LOG overrides it
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    Mount(mount::Arguments),
    #[command(visible_alias = "unmount")]
    Umount(umount::Arguments),
    Ls(ls::Arguments),
    Cat(cat::Arguments),
    Convert(convert::Arguments),
    Diff(diff::Arguments),
    Warm(warm::Arguments),
    Status(status::Arguments),
    #[command(subcommand)]
    Cache(cache::Command),
}

/// How a command ends when it does not succeed.
#[derive(Debug)]
enum Failure {
    /// It was asked for something that makes no sense. Exit status 2.
    Usage(String),
    /// It could not be done. Exit status 1.
    Failed(Box<dyn Error + Send + Sync>),
    /// It was done, and the answer, which was given, is no: not the same, not alive.
    /// Exit status 1.
    No,
    /// A signal of this number ended it. Exit status 128 more than that, as shells have it.
    Interrupted(u8),
    /// It could not be done, where 1 says something else. Exit status 2.
    Trouble(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(Box::new(error))
    }
}

/// Bytes read and written at a time.
const CHUNK: usize = 4 << 20;

/// What is wrong with a file that was named on the command line.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("{path}: {what}. {remedy}", path = .0.display(), what = .1, remedy = .1.remedy())]
    Refused(PathBuf, Refusal),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Source(PathBuf, source::Error),
    #[error("{path}: there is no tensor `{name}` in it. `stfs ls` lists those it has", path = .0.display(), name = .1)]
    NoTensor(PathBuf, String),
}

impl FileError {
    fn new(path: &Path, error: conversion::Error) -> FileError {
        match error {
            conversion::Error::Refused(refusal) => FileError::Refused(path.into(), refusal),
            conversion::Error::Source(error) => FileError::Source(path.into(), error),
        }
    }

    fn no_tensor(path: &Path, tensor: &str) -> FileError {
        FileError::NoTensor(path.into(), tensor.into())
    }
}

/// Hands bytes of a checkpoint to the kernel. How many there were.
fn write_bytes(file: &mut File, bytes: &Bytes) -> io::Result<usize> {
    // SAFETY: they are written to a file by system calls, and not looked at.
    file.write_all(unsafe { bytes.for_kernel() })?;
    Ok(bytes.len())
}

/// What became of output to a pipe: whoever closes it has seen enough.
fn finish(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// A shape as people read it.
fn shape(shape: &[u64]) -> String {
    let sizes: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

/// Runs the command line of this process. Exit status 0: done; 1: failed; 2:
/// wrong usage. `diff` has those of diff(1).
pub fn run() -> ExitCode {
    let line = CommandLine::parse();
    let level = match line.verbose {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        _ => LevelFilter::Debug,
    };
    // A mount starts its log where it serves, in another process perhaps.
    if !matches!(line.command, Command::Mount(_)) {
        env_logger::Builder::new()
            .filter_level(level)
            .parse_default_env()
            .init();
    }
    let result = match line.command {
        Command::Mount(arguments) => mount::run(arguments, level),
        Command::Umount(arguments) => umount::run(&arguments),
        Command::Ls(arguments) => ls::run(&arguments),
        Command::Cat(arguments) => cat::run(&arguments),
        Command::Convert(arguments) => convert::run(&arguments),
        Command::Diff(arguments) => diff::run(&arguments),
        Command::Warm(arguments) => warm::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Cache(command) => cache::run(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            say(error);
            ExitCode::FAILURE
        }
        Err(Failure::No) => ExitCode::FAILURE,
        Err(Failure::Interrupted(signal)) => ExitCode::from(signal.saturating_add(128)),
        Err(Failure::Trouble(error)) => {
            say(error);
            ExitCode::from(2)
        }
        Err(Failure::Usage(message)) => CommandLine::command()
            .error(clap::error::ErrorKind::ArgumentConflict, message)
            .exit(),
    }
}

/// Tells the user something, on stderr. It is one line whatever is in it.
fn say(message: impl Display) {
    eprintln!("stfs: {}", Printable(message));
}

/// Text with names in it that may come from anybody: control characters, with
/// which a terminal can be made to lie, are shown as escapes.
struct Printable<T>(T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                text.chars().try_for_each(|char| match char {
                    char if char.is_control() => write!(self.0, "{}", char.escape_default()),
                    // Marks that turn the direction of the text around them.
                    '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                        write!(self.0, "{}", char.escape_unicode())
                    }
                    char => self.0.write_char(char),
                })
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn names_cannot_command_the_terminal() {
        let shown = Printable("a\x1b[2Jb\nc\u{202e}d \u{e9}").to_string();
        assert_eq!(shown, "a\\u{1b}[2Jb\\nc\\u{202e}d \u{e9}");
    }
}
