//! The names in one directory of the source, ordered by what they could turn
//! into. Knows names alone; what the files hold is asked of each when it matters.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use crate::convert::names;
use crate::source::{Identity, Metadata};

/// A directory whose last change is older than this when it is scanned cannot
/// change again under the same time stamp on any file system.
const SETTLED: Duration = Duration::from_secs(2);
/// How long the scan of a directory that changed just now is good for.
const FRESH: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Scan {
    /// In byte order.
    names: Vec<OsString>,
    /// Names by the stem of their converted form.
    by_stem: HashMap<OsString, Vec<usize>>,
    /// Names that could be an index of shards.
    indexes: Vec<usize>,
    identity: Identity,
    taken: Instant,
    settled: bool,
}

impl Scan {
    pub fn read(directory: &Path) -> io::Result<Scan> {
        let taken = Instant::now();
        let metadata = Metadata::from(std::fs::metadata(directory)?);
        let mut names = std::fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<OsString>>>()?;
        names.sort_unstable();
        let mut by_stem: HashMap<OsString, Vec<usize>> = HashMap::with_capacity(names.len());
        let mut indexes = Vec::new();
        for (index, name) in names.iter().enumerate() {
            by_stem.entry(stem(name)).or_default().push(index);
            if name.to_str().and_then(names::indexed_stem).is_some() {
                indexes.push(index);
            }
        }
        let identity = metadata.identity;
        Ok(Scan {
            names,
            by_stem,
            indexes,
            identity,
            taken,
            settled: is_settled(&identity),
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
        let found = self
            .by_stem
            .get(stem)
            .map(Vec::as_slice)
            .unwrap_or_default();
        found.iter().map(|index| self.names[*index].as_os_str())
    }

    /// Names of index files, of either kind.
    pub fn indexes(&self) -> impl Iterator<Item = &str> {
        self.indexes
            .iter()
            .filter_map(|index| self.names[*index].to_str())
    }
}

/// [`names::stem`] for any name. One that is not UTF-8 has no ending.
pub fn stem(name: &OsStr) -> OsString {
    match name.to_str() {
        Some(name) => names::stem(name).into(),
        None => name.to_os_string(),
    }
}

fn is_settled(identity: &Identity) -> bool {
    let changed = identity.changed.max(identity.modified);
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_secs()).is_ok_and(|now| now - changed.0 > SETTLED.as_secs() as i64)
}
