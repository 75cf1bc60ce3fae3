//! Companions: other files of a checkpoint's directory that its tensors lie in.

use std::io;

use serde::{Deserialize, Serialize};

use crate::source::{self, Source, Tree, Version};

/// A file beside the one that a checkpoint was read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Companion {
    /// Its name, without a directory.
    pub name: String,
    /// As it was when the checkpoint was read.
    pub version: Version,
}

/// Opens the files of `directory` that were found to be the `companions` of a
/// checkpoint.
///
/// # Errors
/// [`source::Error::Changed`] when one of them is no longer what it was then.
pub fn open_companions(
    companions: &[Companion],
    directory: &dyn Tree,
) -> source::Result<Vec<Source>> {
    let opened = companions
        .iter()
        .map(|file| match directory.open(file.name.as_ref()) {
            Ok(source) if source.version().same_stamps(&file.version) => Ok(source),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Err(source::Error::Changed),
        });
    opened.collect()
}
