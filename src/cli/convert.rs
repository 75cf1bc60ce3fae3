//! `stfs convert`.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Args;
use tempfile::NamedTempFile;

use super::open::open;
use super::{CHUNK, Failure, FileError, say, write_bytes};
use crate::convert::names;
use crate::source::Bytes;
use crate::view::{Kind, Node, Options, Tensors, View};

/// Convert a checkpoint, or a directory of them, to safetensors files
///
/// Writes what the mount would show. No code of a checkpoint runs. A file appears
/// under its name when it is whole.
#[derive(Args)]
#[command(after_help = "Examples:
  stfs convert pytorch_model.bin model.safetensors
  stfs convert ./models ./converted")]
pub struct Arguments {
    /// A checkpoint or a model directory
    pub source: PathBuf,
    /// The file or directory to write
    pub dest: PathBuf,
    /// Replace files that are there already
    #[arg(long)]
    pub force: bool,
    /// Take the tensors below this dotted path of each checkpoint, such as `ema`
    #[arg(long, value_name = "KEY")]
    pub root: Option<String>,
}

/// What ends a conversion.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: already there. Use --force to replace it", .0.display())]
    Exists(PathBuf),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Write(PathBuf, io::Error),
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Read(PathBuf, crate::view::Error),
    #[error("{0} of the checkpoints could not be converted")]
    Refused(usize),
    #[error("{}: lies inside the source", .0.display())]
    Inside(PathBuf),
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match arguments.source.is_dir() {
        true => directory(arguments),
        false => file(arguments),
    }
}

fn file(arguments: &Arguments) -> Result<(), Failure> {
    let source = &arguments.source;
    let reader = open(source, arguments.root.as_deref())?;
    let mut dest = arguments.dest.clone();
    if dest.is_dir() {
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        dest.push(format!("{}{}", names::stem(&name), names::SAFETENSORS));
    }
    let mode = reader.rights().mode;
    write(&dest, mode, arguments.force, |offset| {
        let bytes = reader.read(offset, CHUNK);
        bytes.map_err(|error| FileError::new(source, error.into()).into())
    })
}

/// Writes the whole tree, less the directories of tensors.
fn directory(arguments: &Arguments) -> Result<(), Failure> {
    let options = Options {
        tensors: Tensors::Off,
        weights: arguments.root.clone(),
        ..Options::default()
    };
    let read = |path: &Path| {
        let path = path.to_path_buf();
        move |error| Error::Read(path, error)
    };
    let view = View::new(&arguments.source, options).map_err(read(&arguments.source))?;
    let root = view.root().map_err(read(&arguments.source))?;
    create_directory(&arguments.dest, root.attr().mode)?;
    if arguments.dest.canonicalize()?.starts_with(view.location()) {
        return Err(Error::Inside(arguments.dest.clone()).into());
    }
    let mut refused = 0;
    let mut pending: Vec<(Node, PathBuf)> = vec![(root, arguments.dest.clone())];
    while let Some((directory, dest)) = pending.pop() {
        let listing = view.list(&directory).map_err(read(&dest))?;
        for (name, node) in (0..listing.len()).filter_map(|index| listing.entry(index)) {
            let dest = dest.join(&name);
            if node.kind() == Kind::Directory {
                create_directory(&dest, node.attr().mode)?;
                pending.push((node, dest));
                continue;
            }
            let open = view.open(&node).map_err(read(&dest))?;
            if node.is_refusal() {
                if let Bytes::Owned(text) = open.read(0, CHUNK).map_err(read(&dest))? {
                    say(String::from_utf8_lossy(&text).trim_end());
                }
                refused += 1;
                continue;
            }
            let mode = view.attr(&node).map_err(read(&dest))?.mode;
            write(&dest, mode, arguments.force, |offset| {
                Ok(open.read(offset, CHUNK).map_err(read(&dest))?)
            })?;
        }
    }
    match refused {
        0 => Ok(()),
        _ => Err(Error::Refused(refused).into()),
    }
}

/// Makes a directory that whoever may enter it in a mount may enter, and its owner.
fn create_directory(path: &Path, mode: u16) -> Result<(), Error> {
    let mode = u32::from(mode) | 0o700;
    match DirBuilder::new().mode(mode).create(path) {
        Err(_) if path.is_dir() => Ok(()),
        done => done.map_err(|error| Error::Write(path.to_path_buf(), error)),
    }
}

/// Writes a file under another name and gives it its own when it is whole.
/// `read` gives the bytes from an offset on, none at the end.
fn write<'a>(
    dest: &Path,
    mode: u16,
    force: bool,
    mut read: impl FnMut(u64) -> Result<Bytes<'a>, Failure>,
) -> Result<(), Failure> {
    if !force && dest.symlink_metadata().is_ok() {
        return Err(Error::Exists(dest.to_path_buf()).into());
    }
    let failed = |error| Error::Write(dest.to_path_buf(), error);
    let directory = dest
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let mut temporary =
        NamedTempFile::new_in(directory.unwrap_or(Path::new("."))).map_err(failed)?;
    let file: &mut File = temporary.as_file_mut();
    let mut offset = 0;
    loop {
        match write_bytes(file, &read(offset)?).map_err(failed)? {
            0 => break,
            written => offset += written as u64,
        }
    }
    // Whoever may read it in a mount, and the owner may write.
    file.set_permissions(Permissions::from_mode(u32::from(mode) | 0o200))
        .map_err(failed)?;
    file.sync_all().map_err(failed)?;
    let persisted = match force {
        true => temporary.persist(dest),
        false => temporary.persist_noclobber(dest),
    };
    persisted.map_err(|error| failed(error.error))?;
    Ok(())
}
