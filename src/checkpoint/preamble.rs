//! The pickles that every stream of torch.save before 1.6 begins with.

use super::refusal::{Cause, Refusal, malformed};
use crate::pickle::{Object, Pickle};

/// `0x1950A86A20F9469CFC6C`, as Python writes the number: little-endian.
const MAGIC: &[u8] = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
const VERSION: i64 = 1001;

/// Checks the two pickles that every stream begins with.
pub fn check_start(magic: &Pickle, version: &Pickle) -> std::result::Result<(), Refusal> {
    if !matches!(magic.get(magic.root()), Object::BigInt(number) if **number == *MAGIC) {
        return Err(malformed("it does not begin with torch's magic number"));
    }
    match version.as_int(version.root()) {
        Some(VERSION) => Ok(()),
        _ => Err(Refusal::new(
            Cause::Unsupported,
            "its format has an unknown version",
        )),
    }
}
