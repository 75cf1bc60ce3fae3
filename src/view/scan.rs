//! The names in one directory of the source, ordered by what they could turn
//! into. Knows names alone; what the files hold is asked of each when it matters.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::time::{Duration, Instant};

use crate::convert::names;
use crate::source::{System, Tree, Version};

/// How long the names of a directory that changed just now are good for.
const FRESH: Duration = Duration::from_millis(200);
/// How long they are where a directory may change without its times moving.
const MOMENT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Scan {
    /// In byte order.
    names: Box<[Box<OsStr>]>,
    /// Positions of all names, in the order of the stems of their converted forms.
    by_stem: Box<[u32]>,
    /// Names of indexes of checkpoints, by the name of their converted form.
    by_index_name: Groups,
    /// Names of indexes of either kind, by the stem of the file they stand for.
    by_indexed_stem: Groups,
    version: Version,
    taken: Instant,
}

/// Positions in the list of names.
type Groups = HashMap<OsString, Vec<usize>>;

impl Scan {
    /// Of a directory that was entered just now.
    pub fn read(directory: &dyn Tree) -> io::Result<Scan> {
        let taken = Instant::now();
        let names = directory.list()?;
        let mut names: Box<[Box<OsStr>]> = names.into_iter().map(Box::from).collect();
        names.sort_unstable();
        let mut by_stem: Box<[u32]> =
            (0..u32::try_from(names.len()).map_err(io::Error::other)?).collect();
        by_stem.sort_by_cached_key(|at| stem(&names[*at as usize]));
        let mut by_index_name = Groups::new();
        let mut by_indexed_stem = Groups::new();
        for (at, name) in names.iter().enumerate() {
            let text = name.to_str();
            if let Some(converted) = text.and_then(names::index_name) {
                by_index_name.entry(converted.into()).or_default().push(at);
            }
            if let Some(stem) = text.and_then(names::indexed_stem) {
                by_indexed_stem.entry(stem.into()).or_default().push(at);
            }
        }
        Ok(Scan {
            names,
            by_stem,
            by_index_name,
            by_indexed_stem,
            version: directory.metadata().version,
            taken,
        })
    }

    /// Whether the names are still those of the directory, whose version is now
    /// `version`.
    pub fn holds(&self, version: &Version) -> bool {
        let age = self.taken.elapsed();
        self.version.same_stamps(version)
            && match self.version.file.system {
                System::Lasting { .. } => self.version.settled || age < FRESH,
                System::Mounted { .. } => age < MOMENT,
            }
    }

    pub fn names(&self) -> &[Box<OsStr>] {
        &self.names
    }

    pub fn position(&self, name: &OsStr) -> Option<usize> {
        self.names
            .binary_search_by(|known| known.as_ref().cmp(name))
            .ok()
    }

    pub fn contains(&self, name: &OsStr) -> bool {
        self.position(name).is_some()
    }

    /// Names whose converted form has this stem.
    pub fn with_stem<'s>(&'s self, wanted: &'s OsStr) -> impl Iterator<Item = &'s OsStr> {
        let name = |at: &u32| &*self.names[*at as usize];
        let before = self.by_stem.partition_point(|at| *stem(name(at)) < *wanted);
        let rest = self.by_stem.iter().skip(before).map(name);
        rest.take_while(move |name| *stem(name) == *wanted)
    }

    /// Names of index files whose converted form has this name.
    pub fn with_index_name(&self, name: &OsStr) -> impl Iterator<Item = &OsStr> {
        self.group(&self.by_index_name, name)
    }

    /// Names of index files, of either kind, that stand for a file with this stem.
    pub fn with_indexed_stem(&self, stem: &OsStr) -> impl Iterator<Item = &OsStr> {
        self.group(&self.by_indexed_stem, stem)
    }

    /// Names of index files of either kind.
    pub fn indexes(&self) -> impl Iterator<Item = &OsStr> {
        let found = self.by_indexed_stem.values().flatten();
        found.map(|at| &*self.names[*at])
    }

    fn group(&self, groups: &Groups, key: &OsStr) -> impl Iterator<Item = &OsStr> {
        let found = groups.get(key).map(Vec::as_slice).unwrap_or_default();
        found.iter().map(|at| &*self.names[*at])
    }
}

/// [`names::stem`] for any name. One that is not UTF-8 has no ending.
pub fn stem(name: &OsStr) -> OsString {
    match name.to_str() {
        Some(name) => names::stem(name).into(),
        None => name.to_os_string(),
    }
}
