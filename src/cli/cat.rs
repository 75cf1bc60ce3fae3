//! `stfs cat`.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

use clap::Args;

use super::open::open;
use super::{CHUNK, Failure, FileError, write_bytes};

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
    let index = reader
        .plan()
        .find(&arguments.tensor)
        .ok_or_else(|| FileError::no_tensor(path, &arguments.tensor))?;
    // The standard library's stdout looks for newlines in what it is given; these
    // bytes are for the kernel alone.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut offset = 0;
    loop {
        let bytes = reader
            .read_tensor(index, offset, CHUNK)
            .map_err(|error| FileError::new(path, error.into()))?;
        match write_bytes(&mut out, &bytes) {
            Ok(0) => return Ok(out.flush()?),
            Ok(written) => offset += written as u64,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}
