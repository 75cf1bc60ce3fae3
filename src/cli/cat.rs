//! `stfs cat`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use super::open::open;
use super::{CHUNK, Failure, FileError};

/// Write one tensor's bytes to stdout
///
/// Row-major, little-endian, without a header.
#[derive(Args)]
#[command(after_help = "Example:\n  stfs cat pytorch_model.bin wte.weight > wte.raw")]
pub struct Arguments {
    /// A pickle checkpoint or a .safetensors file
    pub file: PathBuf,
    /// The tensor's name, as `stfs ls` prints it
    pub tensor: String,
    /// Take the tensors below this dotted path of the checkpoint, such as `ema`
    #[arg(long, value_name = "KEY")]
    pub root: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.file;
    let reader = open(path, arguments.root.as_deref())?;
    let plan = reader.plan();
    let tensor = plan
        .find(&arguments.tensor)
        .and_then(|index| plan.tensors().get(index))
        .ok_or_else(|| FileError::no_tensor(path, &arguments.tensor))?;
    // The standard library's stdout looks for newlines in what it is given.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    // Whoever reads at the other end of a pipe may take his time, and nobody who wants to
    // write to the checkpoint has to wait for him.
    let mut buffer = Vec::new();
    let mut offset = 0;
    while offset < tensor.len {
        let len = CHUNK.min(usize::try_from(tensor.len - offset).unwrap_or(CHUNK));
        reader
            .read_to(tensor.start.saturating_add(offset), len, &mut buffer)
            .map_err(|error| FileError::new(path, error.into()))?;
        match out.write_all(&buffer) {
            Ok(()) => offset += len as u64,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(out.flush()?)
}
