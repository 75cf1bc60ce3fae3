//! Which tensor names a transformers architecture calls tied: the names that are
//! better not kept when several share one storage.
//!
//! The tables hold `_tied_weights_keys` of every class of two transformers
//! releases. Keys that are regular expressions there are compared literally, as
//! convert.py compares them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde_json::Value;

/// Newest release first. The tables differ for a few classes.
static TABLES: LazyLock<[HashMap<String, Ties>; 2]> = LazyLock::new(|| {
    [
        parse(include_str!("tied_weights/transformers-5.23.0.json")),
        parse(include_str!("tied_weights/transformers-4.57.0.json")),
    ]
});

/// What a release says of the names of one class.
#[derive(Debug, Default)]
pub struct Ties {
    pub tied: HashSet<String>,
    /// The names that those are tied to. Releases before 5.0 do not say them.
    pub sources: HashSet<String>,
}

/// What the releases that have a class say of its names.
#[derive(Clone, Copy, Debug)]
pub struct TiedNames<'t> {
    pub newest: &'t Ties,
    pub older: Option<&'t Ties>,
}

/// How well a name stands among those of one tensor. The first that there is stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// No release calls it tied, and the newest ties others to it.
    Source,
    /// No release calls it tied.
    Untied,
    /// An older one does.
    TiedBefore,
    /// The newest does.
    Tied,
}

impl TiedNames<'_> {
    /// A release finds all weights where the name that stays is one that it does not
    /// tie to another: 4.57 looks at no other, and fills the rest with nothing.
    pub fn standing(&self, name: &str) -> Standing {
        let Some(older) = self.older else {
            return match self.newest.tied.contains(name) {
                true => Standing::Tied,
                false => Standing::Untied,
            };
        };
        match (self.newest.tied.contains(name), older.tied.contains(name)) {
            (true, _) => Standing::Tied,
            (false, true) => Standing::TiedBefore,
            // Encoders and decoders have ties of their own, which the classes around
            // them do not list.
            (false, false) if self.newest.sources.contains(name) => Standing::Source,
            (false, false) => Standing::Untied,
        }
    }
}

/// The names that `architecture` calls tied, if a release has it.
pub fn tied(architecture: &str) -> Option<TiedNames<'static>> {
    let mut known = TABLES.iter().filter_map(|table| table.get(architecture));
    Some(TiedNames {
        newest: known.next()?,
        older: known.next(),
    })
}

/// Classes map to a list of names (4.x) or to an object from name to source (5.x).
fn parse(json: &str) -> HashMap<String, Ties> {
    let classes: HashMap<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_string);
    let ties = |value: Value| match value {
        Value::Array(names) => Ties {
            tied: names.iter().filter_map(text).collect(),
            sources: HashSet::new(),
        },
        Value::Object(names) => Ties {
            sources: names.values().filter_map(text).collect(),
            tied: names.into_iter().map(|(name, _)| name).collect(),
        },
        _ => Ties::default(),
    };
    classes
        .into_iter()
        .map(|(class, value)| (class, ties(value)))
        .collect()
}
