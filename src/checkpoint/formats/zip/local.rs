//! Local headers: where the data of an entry begins. torch's own archives are laid
//! out so regularly that this can be told without a look at them.

use std::ops::Range;

use super::directory::{Listed, Method};
use super::fields::Fields;
use crate::checkpoint::refusal::{Cause, Refusal, malformed, shown};

pub const LOCAL: [u8; 4] = *b"PK\x03\x04";

/// Bytes of a header before the name.
const FIXED: u64 = 30;

/// Where the data of `entry` begins if its archive was laid out by torch
/// (caffe2/serialize/inline_container.cc, `getPadding`; miniz.c,
/// `mz_zip_writer_add_mem_ex_v2`): the last extra field of the header pads the data
/// to a multiple of 64, and a descriptor follows the data where a flag says so. None
/// unless the data then end exactly where the next thing begins: a header, or the
/// directory, at `next`.
pub fn predict(entry: &Listed, next: u64) -> Option<u64> {
    const ALIGNMENT: u64 = 64;
    const PADDING: u64 = 4;
    const NARROW: u64 = u32::MAX as u64;
    // The field of 64-bit numbers, which has those that do not fit into 32.
    let wide = match (entry.size >= NARROW, entry.header >= NARROW) {
        (false, false) => 0,
        (true, false) => 4 + 16,
        (false, true) => 4 + 8,
        (true, true) => 4 + 16 + 8,
    };
    // Its sizes are as wide as those in the header.
    let descriptor = match (entry.has_descriptor, wide) {
        (false, _) => 0,
        (true, 0) => 16,
        (true, _) => 24,
    };
    let unpadded = entry
        .header
        .checked_add(FIXED + entry.name.len() as u64 + wide + PADDING)?;
    let data = unpadded.checked_next_multiple_of(ALIGNMENT)?;
    let end = data.checked_add(entry.stored_size)?;
    (end.checked_add(descriptor) == Some(next)).then_some(data)
}

/// The header at `header`, as far as the name in it, which is `name`. It has to lie
/// inside the `size` bytes of its file.
pub fn range(header: u64, name: &str, size: u64) -> Result<Range<u64>, Refusal> {
    let end = header.saturating_add(FIXED + name.len() as u64);
    match end <= size {
        true => Ok(header..end),
        false => Err(missing(name)),
    }
}

/// How many bytes there are from the start of `bytes`, the header of the entry
/// `name`, to the data. The header has to agree on what is there.
pub fn len(bytes: &[u8], name: &str, method: Method) -> Result<u64, Refusal> {
    let mut fields = Fields(bytes);
    if fields.take(4).ok() != Some(&LOCAL) {
        return Err(missing(name));
    }
    fields.take(2)?;
    let found = Method::of(fields.u16()?, fields.u16()?);
    fields.take(16)?;
    let name_len = fields.u16()?;
    let extra_len = fields.u16()?;
    if found != method
        || usize::from(name_len) != name.len()
        || fields.0.get(..name.len()) != Some(name.as_bytes())
    {
        return Err(Refusal::new(
            Cause::Ambiguous,
            format!(
                "entry `{}` of the zip archive has another name or method in its local header",
                shown(name)
            ),
        ));
    }
    Ok(FIXED + u64::from(name_len) + u64::from(extra_len))
}

/// As [`len`], of an entry whose data were predicted to begin after `predicted` bytes.
pub fn check(bytes: &[u8], name: &str, method: Method, predicted: u64) -> Result<(), Refusal> {
    match len(bytes, name, method)? == predicted {
        true => Ok(()),
        false => Err(Refusal::new(
            Cause::Ambiguous,
            format!(
                "entry `{}` of the zip archive does not lie where torch puts it",
                shown(name)
            ),
        )),
    }
}

fn missing(name: &str) -> Refusal {
    malformed(format!(
        "entry `{}` of the zip archive has no local header",
        shown(name)
    ))
}
