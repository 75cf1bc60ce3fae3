//! The files that a converted file is made from, held open.

use super::plan::Plan;
use crate::source::{self, Result, Source};

/// The file of a checkpoint, and those beside it that its storages lie in.
#[derive(Debug)]
pub struct Files {
    main: Source,
    beside: Vec<Source>,
}

impl Files {
    /// Opens the files beside `main` that `plan` was made from.
    ///
    /// # Errors
    /// [`source::Error::Changed`] when one of them is no longer what it was then.
    pub fn open(main: Source, plan: &Plan) -> Result<Files> {
        let beside = plan.beside().iter().map(|file| {
            let source = Source::open(&main.path().with_file_name(&file.name));
            match source {
                Ok(source) if *source.identity() == file.identity => Ok(source),
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Err(source::Error::Changed),
            }
        });
        let beside = beside.collect::<Result<_>>()?;
        Ok(Files { main, beside })
    }

    pub fn main(&self) -> &Source {
        &self.main
    }

    /// The file with this number in [`Plan::beside`].
    pub fn beside(&self, file: u32) -> Result<&Source> {
        self.beside.get(file as usize).ok_or(source::Error::Changed)
    }

    /// As [`Source::check`], of all of them.
    pub fn check(&self) -> Result<()> {
        self.main.check()?;
        self.beside.iter().try_for_each(Source::check)
    }
    /// As [`Source::check_identity`], of all of them.
    pub fn check_identity(&self) -> Result<()> {
        self.main.check_identity()?;
        self.beside.iter().try_for_each(Source::check_identity)
    }
}
