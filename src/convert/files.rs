//! The files that a converted file is made from, held open.

use crate::source::{self, Result, Rights, Source};

/// The file of a checkpoint, and its companions.
#[derive(Debug)]
pub struct Files {
    main: Source,
    companions: Vec<Source>,
}

impl Files {
    /// `companions` are those of [`Plan::companions`](super::Plan::companions), in
    /// that order.
    pub fn new(main: Source, companions: Vec<Source>) -> Files {
        Files { main, companions }
    }

    pub fn main(&self) -> &Source {
        &self.main
    }

    /// The companion with this number.
    pub fn companion(&self, number: u32) -> Result<&Source> {
        let source = self.companions.get(number as usize);
        source.ok_or(source::Error::Changed)
    }

    /// All of them: the file itself, then the companions with their numbers.
    pub fn all(&self) -> impl Iterator<Item = (Option<u32>, &Source)> {
        let companions = (0..).map(Some).zip(&self.companions);
        std::iter::once((None, &self.main)).chain(companions)
    }

    /// Those that all of them have in common.
    pub fn rights(&self) -> Rights {
        let rights = self.companions.iter().map(|file| file.metadata().rights);
        rights.fold(self.main.metadata().rights, Rights::common)
    }

    /// As [`Source::check`], of all of them.
    pub fn check(&self) -> Result<()> {
        self.main.check()?;
        self.companions.iter().try_for_each(Source::check)
    }

    /// As [`Source::check_version`], of all of them.
    pub fn check_version(&self) -> Result<()> {
        self.main.check_version()?;
        self.companions.iter().try_for_each(Source::check_version)
    }
}
