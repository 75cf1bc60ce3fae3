//! Native safetensors files: the header, as safetensors itself reads it.

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::checkpoint::error::Result;
use crate::checkpoint::refusal::{Cause, Refusal};
use crate::source::Source;

/// Longer headers are refused, as every reader does (safetensors/src/tensor.rs).
pub const MAX_HEADER: u64 = 100_000_000;

/// A tensor of a native file.
#[derive(Debug)]
pub struct NativeTensor {
    pub name: String,
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
pub fn native(source: &Source) -> Result<Vec<NativeTensor>> {
    let (metadata, start) = header(source)?;
    let tensors = metadata.offset_keys().into_iter().filter_map(|name| {
        let info = metadata.info(&name)?;
        let (begin, end) = info.data_offsets;
        Some(NativeTensor {
            dtype: info.dtype,
            shape: info.shape.iter().map(|&size| size as u64).collect(),
            offset: start + begin as u64,
            len: (end - begin) as u64,
            name,
        })
    });
    Ok(tensors.collect())
}

/// Names that a native safetensors file has none of its tensors under, each with the
/// tensor that it says stands for it: converters drop all names but one of tied
/// weights, and keep the others in the metadata.
pub fn native_ties(source: &Source) -> Result<Vec<(String, String)>> {
    let (metadata, _) = header(source)?;
    let entries = metadata.metadata().iter().flatten();
    let ties = entries.filter(|(dropped, kept)| {
        *dropped != FORMAT && metadata.info(dropped).is_none() && metadata.info(kept).is_some()
    });
    Ok(ties
        .map(|(dropped, kept)| (dropped.clone(), kept.clone()))
        .collect())
}

/// The header, and where the data begin, in bytes from the start of the file.
fn header(source: &Source) -> Result<(Metadata, u64)> {
    let broken = |what: String| Refusal::new(Cause::Malformed, what);
    if source.size() < 8 {
        return Err(broken("the safetensors file is shorter than its length field".into()).into());
    }
    let mut length = [0; 8];
    source.read_exact_at(&mut length, 0)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length > source.size() - 8 {
        return Err(broken(format!(
            "the safetensors header claims {length} bytes in a file of {}",
            source.size()
        ))
        .into());
    }
    let header = source.read_at(8, length)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| broken(format!("the safetensors header is damaged: {error}")))?;
    let start = 8 + length;
    let data_len = metadata.data_len() as u64;
    if data_len != source.size() - start {
        return Err(broken(format!(
            "the safetensors header describes {data_len} bytes of data, the file holds {}",
            source.size() - start
        ))
        .into());
    }
    Ok((metadata, start))
}
