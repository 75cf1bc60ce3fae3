//! Index files of sharded checkpoints: which tensor is in which file.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

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
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Vec<u8> {
        let mut index = self.0.clone();
        if let Some(map) = index.get_mut("weight_map").and_then(Value::as_object_mut) {
            for file in map.values_mut() {
                if let Some(name) = file.as_str() {
                    *file = Value::String(rename(name));
                }
            }
        }
        let mut json = Vec::new();
        let format = Python(PrettyFormatter::with_indent(b"    "));
        // A parsed value always has a JSON form, and a Vec takes every byte.
        let _ = index.serialize(&mut Serializer::with_formatter(&mut json, format));
        json
    }
}

/// JSON as Python's json module writes it: ASCII alone, and floats as `repr`
/// gives them. The layout is serde_json's own.
struct Python(PrettyFormatter<'static>);

impl Formatter for Python {
    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        // Rust and Python agree on the digits, and from where on there is an exponent.
        let text = format!("{value:?}");
        match text
            .split_once('e')
            .and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)))
        {
            Some((digits, exponent)) => write!(out, "{digits}e{exponent:+03}"),
            None => out.write_all(text.as_bytes()),
        }
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        for letter in fragment.chars() {
            if matches!(letter, ' '..='~') {
                write!(out, "{letter}")?;
                continue;
            }
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}
