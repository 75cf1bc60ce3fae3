//! Index files of sharded checkpoints: which tensor is in which file.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Deserializer as Json;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::value::RawValue;
use serde_transcode::Transcoder;

/// The member of an index that maps tensors to files.
const MAP: &str = "weight_map";

/// A parsed index file. Takes no more memory than its text, about.
#[derive(Debug)]
pub struct Index {
    /// In their order; the map itself has no text.
    members: Vec<(Box<str>, Option<Box<RawValue>>)>,
    map: WeightMap,
}

/// Which tensor is in which file.
#[derive(Debug, Default)]
struct WeightMap {
    /// The names of all tensors, one after the other.
    names: String,
    /// In their order.
    tensors: Vec<Entry>,
    files: Vec<Box<str>>,
}

/// One tensor.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Where its name begins and ends.
    name: (u32, u32),
    /// Index of its file.
    file: u32,
}

impl Index {
    /// None unless `json` has a `weight_map` from names to file names.
    pub fn parse(json: &[u8]) -> Option<Index> {
        serde_json::from_slice(json).ok()
    }

    /// The files named, each once.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.map.files.iter().map(|name| &**name)
    }

    /// The same, in name order, with the tensors in them.
    pub fn files(&self) -> BTreeMap<&str, Vec<&str>> {
        let map = &self.map;
        let mut files: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for entry in &map.tensors {
            if let Some(file) = map.files.get(entry.file as usize) {
                files.entry(file).or_default().push(map.name(entry));
            }
        }
        files
    }

    /// The index with every file name put through `rename`, all else kept, as
    /// convert.py writes it: `json.dump(index, f, indent=4)`.
    pub fn renamed(&self, rename: impl Fn(&str) -> String) -> Vec<u8> {
        let renamed = Renamed {
            index: self,
            files: self.file_names().map(rename).collect(),
        };
        let mut json = Vec::new();
        let format = Python(PrettyFormatter::with_indent(b"    "));
        // A parsed value always has a JSON form, and a Vec takes every byte.
        let _ = renamed.serialize(&mut Serializer::with_formatter(&mut json, format));
        json
    }

    /// Bytes of memory that it takes, about.
    pub fn weight(&self) -> usize {
        let members = self.members.iter();
        let members = members.map(|(name, text)| {
            let text = text.as_ref().map_or(0, |text| text.get().len());
            size_of::<(Box<str>, Option<Box<RawValue>>)>() + name.len() + text
        });
        let files = self.map.files.iter().map(|name| 16 + name.len());
        members.sum::<usize>()
            + files.sum::<usize>()
            + self.map.names.len()
            + self.map.tensors.len() * size_of::<Entry>()
    }
}

impl WeightMap {
    fn name(&self, entry: &Entry) -> &str {
        let (start, end) = entry.name;
        self.names
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    /// As a Python dict has it: of entries of one name the first place and the last
    /// file.
    fn without_repetitions(mut self) -> WeightMap {
        let mut order: Vec<u32> = (0..self.tensors.len() as u32).collect();
        let name = |at: &u32| self.name(&self.tensors[*at as usize]);
        order.sort_by(|a, b| name(a).cmp(name(b)));
        let mut repeated = Vec::new();
        for same in order.chunk_by(|a, b| name(a) == name(b)) {
            if let [first, .., last] = *same {
                repeated.push((first, self.tensors[last as usize].file));
                repeated.extend(same[1..].iter().map(|at| (*at, u32::MAX)));
            }
        }
        for (at, file) in &repeated {
            self.tensors[*at as usize].file = *file;
        }
        if !repeated.is_empty() {
            self.tensors.retain(|entry| entry.file != u32::MAX);
        }
        self.names.shrink_to_fit();
        self.tensors.shrink_to_fit();
        self
    }
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Index, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Index;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Index, A::Error> {
                let mut members: Vec<(Box<str>, Option<Box<RawValue>>)> = Vec::new();
                let mut places: HashMap<Box<str>, usize> = HashMap::new();
                let mut map = None;
                while let Some(name) = access.next_key::<Box<str>>()? {
                    let text = if &*name == MAP {
                        map = Some(access.next_value::<WeightMap>()?);
                        None
                    } else {
                        let text = access.next_value::<Box<RawValue>>()?;
                        // What cannot be written again is nested too deep, or no text.
                        let mut json = Json::from_str(text.get());
                        let mut nowhere = Serializer::new(io::sink());
                        let written = Transcoder::new(&mut json).serialize(&mut nowhere);
                        written.map_err(A::Error::custom)?;
                        Some(text)
                    };
                    match places.get(&name).and_then(|at| members.get_mut(*at)) {
                        Some((_, known)) => *known = text,
                        None => {
                            places.insert(name.clone(), members.len());
                            members.push((name, text));
                        }
                    }
                }
                let map = map.ok_or_else(|| A::Error::missing_field(MAP))?;
                Ok(Index { members, map })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WeightMap, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<WeightMap, A::Error> {
                let mut map = WeightMap::default();
                let mut known: HashMap<Box<str>, u32> = HashMap::new();
                let number = |number: usize| u32::try_from(number).map_err(A::Error::custom);
                while let Some((name, file)) = access.next_entry::<String, Box<str>>()? {
                    let next = number(map.files.len())?;
                    let file = *known.entry(file).or_insert_with_key(|file| {
                        map.files.push(file.clone());
                        next
                    });
                    let start = number(map.names.len())?;
                    map.names.push_str(&name);
                    let end = number(map.names.len())?;
                    let name = (start, end);
                    map.tensors.push(Entry { name, file });
                }
                Ok(map.without_repetitions())
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// An index whose files have other names.
struct Renamed<'a> {
    index: &'a Index,
    /// By number.
    files: Vec<String>,
}

impl Serialize for Renamed<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_map(Some(self.index.members.len()))?;
        for (name, text) in &self.index.members {
            match text {
                None => members.serialize_entry(name, &RenamedMap(self))?,
                Some(text) => {
                    let mut json = Json::from_str(text.get());
                    members.serialize_entry(name, &Transcoder::new(&mut json))?;
                }
            }
        }
        members.end()
    }
}

/// The map in it.
struct RenamedMap<'a>(&'a Renamed<'a>);

impl Serialize for RenamedMap<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Renamed { index, files } = self.0;
        let mut entries = serializer.serialize_map(Some(index.map.tensors.len()))?;
        for entry in &index.map.tensors {
            let file = files.get(entry.file as usize);
            entries.serialize_entry(index.map.name(entry), file.map_or("", String::as_str))?;
        }
        entries.end()
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
