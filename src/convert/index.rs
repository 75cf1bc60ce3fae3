//! Index files of sharded checkpoints: which tensor is in which file.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// A parsed index file.
#[derive(Debug)]
pub struct Index(Value);

impl Index {
    /// None unless `json` has a `weight_map` from names to file names.
    pub fn parse(json: &[u8]) -> Option<Index> {
        let value: Value = serde_json::from_slice(json).ok()?;
        let map = value.get("weight_map")?.as_object()?;
        map.values().all(Value::is_string).then_some(Index(value))
    }

    /// The files named, each once, in name order, with the tensors in them.
    pub fn files(&self) -> BTreeMap<&str, Vec<&str>> {
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in self
            .0
            .get("weight_map")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            if let Some(file) = file.as_str() {
                files.entry(file).or_default().push(tensor);
            }
        }
        files
    }

    /// The index with every file name put through `rename`, all else kept, as
    /// convert.py writes it: `json.dump(index, f, indent=4)`.
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Vec<u8> {
        if let Some(map) = self.0.get_mut("weight_map").and_then(Value::as_object_mut) {
            for file in map.values_mut() {
                if let Some(name) = file.as_str() {
                    *file = Value::String(rename(name));
                }
            }
        }
        let mut json = Vec::new();
        let mut serializer =
            Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(b"    "));
        // A parsed value always has a JSON form, and a Vec takes every byte.
        let _ = serde::Serialize::serialize(&self.0, &mut serializer);
        escape_non_ascii(&json)
    }
}

/// Python's json module escapes everything beyond ASCII, as UTF-16.
fn escape_non_ascii(json: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(json);
    let mut ascii = Vec::with_capacity(json.len());
    for letter in text.chars() {
        match u8::try_from(letter) {
            Ok(byte) if byte.is_ascii() && byte != 0x7f => ascii.push(byte),
            Ok(0x7f) => ascii.push(0x7f),
            _ => {
                let mut units = [0; 2];
                for unit in letter.encode_utf16(&mut units) {
                    ascii.extend(format!("\\u{unit:04x}").into_bytes());
                }
            }
        }
    }
    ascii
}
