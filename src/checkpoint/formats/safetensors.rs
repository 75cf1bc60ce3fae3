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

/// The tensors of a native safetensors file, in the order of their bytes.
pub fn native(source: &Source) -> Result<Vec<NativeTensor>> {
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
