//! The names in one directory of the source, ordered by what they could turn
//! into. Knows names alone; what the files hold is asked of each when it matters.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::convert::names;
use crate::source::{Identity, Metadata};

/// How long the scan of a directory that changed just now is good for.
const FRESH: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Scan {
    /// In byte order.
    names: Vec<OsString>,
    /// Names by the stem of their converted form.
    by_stem: Groups,
    /// Names of indexes of checkpoints, by the name of their converted form.
    by_index_name: Groups,
    /// Names of indexes of either kind, by the stem of the file they stand for.
    by_indexed_stem: Groups,
    identity: Identity,
    taken: Instant,
    settled: bool,
}

/// Positions in the list of names.
type Groups = HashMap<OsString, Vec<usize>>;

impl Scan {
    pub fn read(directory: &Path) -> io::Result<Scan> {
        let taken = Instant::now();
        let identity = Metadata::from(std::fs::metadata(directory)?).identity;
        let settled = identity.is_settled();
        let mut names = std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<OsString>>>()?;
        names.sort_unstable();
        let mut by_stem = Groups::with_capacity(names.len());
        let mut by_index_name = Groups::new();
        let mut by_indexed_stem = Groups::new();
        for (at, name) in names.iter().enumerate() {
            let text = name.to_str();
            by_stem.entry(stem(name)).or_default().push(at);
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
            identity,
            taken,
            settled,
        })
    }

    /// Whether the names are still those of the directory, whose identity is now
    /// `identity`.
    pub fn holds(&self, identity: &Identity) -> bool {
        self.identity == *identity && (self.settled || self.taken.elapsed() < FRESH)
    }

    pub fn names(&self) -> &[OsString] {
        &self.names
    }

    pub fn contains(&self, name: &OsStr) -> bool {
        self.names
            .binary_search_by(|known| known.as_os_str().cmp(name))
            .is_ok()
    }

    /// Names whose converted form has this stem.
    pub fn with_stem(&self, stem: &OsStr) -> impl Iterator<Item = &OsStr> {
        self.group(&self.by_stem, stem)
    }

    /// Names of index files whose converted form has this name.
    pub fn with_index_name(&self, name: &OsStr) -> impl Iterator<Item = &OsStr> {
        self.group(&self.by_index_name, name)
    }

    /// Names of index files, of either kind, that stand for a file with this stem.
    pub fn with_indexed_stem(&self, stem: &OsStr) -> impl Iterator<Item = &OsStr> {
        self.group(&self.by_indexed_stem, stem)
    }

    fn group(&self, groups: &Groups, key: &OsStr) -> impl Iterator<Item = &OsStr> {
        let found = groups.get(key).map(Vec::as_slice).unwrap_or_default();
        found.iter().map(|at| self.names[*at].as_os_str())
    }
}

/// [`names::stem`] for any name. One that is not UTF-8 has no ending.
pub fn stem(name: &OsStr) -> OsString {
    match name.to_str() {
        Some(name) => names::stem(name).into(),
        None => name.to_os_string(),
    }
}
