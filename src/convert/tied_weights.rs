//! Which tensor names a transformers architecture calls tied: the names that
//! convert.py would rather not keep when several share one storage.
//!
//! The tables hold `_tied_weights_keys` of every class of two transformers
//! releases. Keys that are regular expressions there are compared literally, as
//! convert.py compares them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde_json::Value;

/// Class name to the names it calls tied.
type TiedNames = HashMap<String, HashSet<String>>;

/// Newest release first. The tables differ for a few classes.
static TABLES: LazyLock<[TiedNames; 2]> = LazyLock::new(|| {
    [
        parse(include_str!("tied_weights/transformers-5.23.0.json")),
        parse(include_str!("tied_weights/transformers-4.57.0.json")),
    ]
});

/// The names that `architecture` calls tied, by the newest release that has it.
pub fn tied(architecture: &str) -> Option<&'static HashSet<String>> {
    TABLES.iter().find_map(|table| table.get(architecture))
}

/// Classes map to a list of names (4.x) or to an object from name to source (5.x).
fn parse(json: &str) -> TiedNames {
    let classes: HashMap<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let names = |value: Value| match value {
        Value::Array(names) => names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_string))
            .collect(),
        Value::Object(sources) => sources.into_iter().map(|(name, _)| name).collect(),
        _ => HashSet::new(),
    };
    classes
        .into_iter()
        .map(|(class, value)| (class, names(value)))
        .collect()
}
