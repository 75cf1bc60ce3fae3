//! Native safetensors files: the header, accepted as safetensors itself accepts it
//! (safetensors/src/tensor.rs), and read without being held as a whole.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, BufReader, Read};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use crate::budget::{Share, TooMuch};
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::refusal::{Cause, Refusal, shown};
use crate::source::{self, Source};

/// Longer headers are refused, as every reader does (safetensors/src/tensor.rs).
pub const MAX_HEADER: u64 = 100_000_000;
/// How much of a header is read at a time.
const PIECE: usize = 1 << 20;
/// Bytes of memory for a tensor, until it is planned, besides its name and its shape.
const TENSOR: usize = 192;

/// A tensor of a native file.
#[derive(Debug)]
pub struct NativeTensor {
    pub name: Box<str>,
    pub dtype: Dtype,
    /// As the header says it.
    pub shape: Box<[u64]>,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The metadata entry that every converter writes; it names no tensor.
const FORMAT: &str = "format";

/// The tensors of a native safetensors file, in the order of their bytes.
pub fn native(source: &Source, share: &Share) -> Result<Vec<NativeTensor>> {
    Ok(header(source, share)?.tensors)
}

/// Names that a native safetensors file has none of its tensors under, each with the
/// tensor that it says stands for it: converters drop all names but one of tied
/// weights, and keep the others in the metadata.
pub fn native_ties(source: &Source, share: &Share) -> Result<Vec<(String, String)>> {
    let Header { metadata, tensors } = header(source, share)?;
    let names: HashSet<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    let entries = metadata.into_iter().flatten();
    let ties = entries.filter(|(dropped, kept)| {
        dropped != FORMAT && !names.contains(dropped.as_str()) && names.contains(kept.as_str())
    });
    Ok(ties.collect())
}

/// What a header says.
struct Header {
    metadata: Option<HashMap<String, String>>,
    /// In the order of their bytes.
    tensors: Vec<NativeTensor>,
}

fn broken(what: String) -> Error {
    Refusal::new(Cause::Malformed, what).into()
}

fn header(source: &Source, share: &Share) -> Result<Header> {
    if source.size() < 8 {
        return Err(broken(
            "the safetensors file is shorter than its length field".into(),
        ));
    }
    let mut length = [0; 8];
    source.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > source.size() - 8 {
        return Err(broken(format!(
            "the safetensors header claims {length} bytes in a file of {}",
            source.size()
        )));
    }
    let start = 8 + length;
    let text = Text {
        source,
        at: 8,
        end: start,
    };
    let members = Members {
        start,
        share,
        too_much: Cell::new(None),
    };
    let mut json = serde_json::Deserializer::from_reader(BufReader::with_capacity(PIECE, text));
    let read = members.deserialize(&mut json);
    let read = read.and_then(|header| json.end().map(|()| header));
    let mut header = match (read, members.too_much.get()) {
        (_, Some(much)) => return Err(much.into()),
        (Ok(header), None) => header,
        (Err(error), None) if error.is_io() => return Err(unread(error.into()).into()),
        (Err(error), None) => {
            return Err(broken(format!(
                "the safetensors header is damaged: {error}"
            )));
        }
    };
    header.forget_repetitions();
    let tensors = &mut header.tensors;
    tensors.sort_by_key(|tensor| (tensor.offset, tensor.len));
    let end = end_of(tensors, start)?;
    if end != source.size() {
        return Err(broken(format!(
            "the safetensors header describes {} bytes of data, the file holds {}",
            end - start,
            source.size() - start
        )));
    }
    Ok(header)
}

/// The bytes from the start of the file to the end of the last tensor. Each begins where
/// the one before ends, and has the bytes that its shape takes.
fn end_of(tensors: &[NativeTensor], start: u64) -> Result<u64> {
    tensors.iter().try_fold(start, |begin, tensor| {
        let damaged = |what| {
            let name = shown(&tensor.name);
            broken(format!(
                "the safetensors header is damaged: tensor `{name}` {what}"
            ))
        };
        if tensor.offset != begin {
            return Err(damaged("does not begin where the one before it ends"));
        }
        let mut sizes = tensor.shape.iter();
        let elements = sizes.try_fold(1_u64, |elements, size| elements.checked_mul(*size));
        let bits = elements.and_then(|all| all.checked_mul(tensor.dtype.bitsize() as u64));
        match bits {
            Some(bits) if bits % 8 == 0 && bits / 8 == tensor.len => begin
                .checked_add(tensor.len)
                .ok_or_else(|| damaged("ends beyond all bounds")),
            _ => Err(damaged("has more or fewer bytes than its shape takes")),
        }
    })
}

impl Header {
    /// Of tensors of one name the last one counts.
    fn forget_repetitions(&mut self) {
        let tensors = &mut self.tensors;
        let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
        let name = |at: &u32| tensors.get(*at as usize).map(|tensor| &tensor.name);
        order.sort_by(|a, b| name(a).cmp(&name(b)));
        let mut earlier = Vec::new();
        for pair in order.windows(2) {
            if let [a, b] = pair
                && name(a) == name(b)
            {
                earlier.push(*a);
            }
        }
        earlier.sort_unstable();
        let mut at = 0;
        tensors.retain(|_| {
            at += 1;
            earlier.is_empty() || earlier.binary_search(&(at - 1)).is_err()
        });
    }
}

/// Reads the members of a header.
struct Members<'s> {
    /// Bytes from the start of the file to the data.
    start: u64,
    share: &'s Share,
    /// Why it ended.
    too_much: Cell<Option<TooMuch>>,
}

impl Members<'_> {
    fn tensor<E: serde::de::Error>(
        &self,
        name: Box<str>,
        info: TensorInfo,
    ) -> std::result::Result<NativeTensor, E> {
        let taken = (TENSOR + name.len() + size_of_val(&*info.shape)) as u64;
        if let Err(much) = self.share.take(taken) {
            self.too_much.set(Some(much));
            return Err(E::custom(much));
        }
        let (begin, end) = info.data_offsets;
        let len = end.checked_sub(begin);
        let offset = self.start.checked_add(begin as u64);
        let (Some(len), Some(offset)) = (len, offset) else {
            return Err(E::custom("a tensor ends before it begins"));
        };
        Ok(NativeTensor {
            name,
            dtype: info.dtype,
            shape: info.shape.iter().map(|&size| size as u64).collect(),
            offset,
            len: len as u64,
        })
    }
}

impl<'de> DeserializeSeed<'de> for &Members<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<Header, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Members<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object from names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        const METADATA: &str = "__metadata__";
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<Box<str>>()? {
            if &*name != METADATA {
                let info = map.next_value()?;
                tensors.push(self.tensor(name, info)?);
            } else if metadata.replace(map.next_value()?).is_some() {
                return Err(A::Error::duplicate_field(METADATA));
            }
        }
        Ok(Header {
            metadata: metadata.flatten(),
            tensors,
        })
    }
}

/// The bytes of a header.
struct Text<'s> {
    source: &'s Source,
    /// Bytes from the start of the file to what was not read yet, and to its end.
    at: u64,
    end: u64,
}

impl Read for Text<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (self.end - self.at).min(buffer.len() as u64);
        let buffer = &mut buffer[..len as usize];
        let read = self.source.read_exact_at(buffer, self.at);
        read.map_err(io::Error::other)?;
        self.at += len;
        Ok(buffer.len())
    }
}

/// Why a header could not be read.
fn unread(error: io::Error) -> source::Error {
    match error.downcast() {
        Ok(error) => error,
        Err(error) => source::Error::Io(error),
    }
}
