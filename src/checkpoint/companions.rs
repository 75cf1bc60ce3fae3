//! Companions: other files of a checkpoint's directory that its tensors lie in.

use std::io;

use serde::{Deserialize, Serialize};

use crate::source::{self, Identity, Source};

/// A file beside the one that a checkpoint was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Its name, without a directory.
    pub name: String,
    /// As it was when the checkpoint was read.
    pub identity: Identity,
}

/// The files of the directory that a checkpoint lies in.
pub trait Companions {
    /// Opens the regular file called `name`, which has no directory in it.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none.
    fn open(&self, name: &str) -> io::Result<Source>;
}

/// Opens the files that were found to be the `companions` of a checkpoint.
///
/// # Errors
/// [`source::Error::Changed`] when one of them is no longer what it was then.
pub fn open_companions(
    companions: &[Companion],
    directory: &dyn Companions,
) -> source::Result<Vec<Source>> {
    let opened = companions
        .iter()
        .map(|file| match directory.open(&file.name) {
            Ok(source) if *source.identity() == file.identity => Ok(source),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Err(source::Error::Changed),
        });
    opened.collect()
}
