//! What one pickle may cost at most.

use super::error::ErrorKind;
use crate::budget::Share;

/// Bounds on the work and memory of one [`parse`](super::parse) or
/// [`parse_at`](super::parse_at).
///
/// The defaults leave room for a checkpoint of half a million tensors (about 26
/// opcodes, 130 bytes and 1 KiB of memory each).
#[derive(Debug, Clone)]
pub struct Limits<'s> {
    /// Opcodes executed.
    pub opcodes: u64,
    /// Bytes of memory for the objects, the stack and the memo. The shorter the
    /// pickle, the less it gets: 32 MiB and 24 bytes for each byte of its own,
    /// payloads left apart not counted. This is looked at after each opcode, so
    /// that one vector may have grown beyond.
    pub memory: u64,
    /// Bytes of a text line that holds a number.
    pub number_line: usize,
    /// Bytes of one integer, in two's complement.
    pub long_bytes: usize,
    /// Bytes of the module or the name of one import.
    pub name: usize,
    /// Distinct imports.
    pub imports: usize,
    /// Bytes of the file that a [`Window`](super::Window) keeps.
    pub held: u64,
    /// Bytes of the longest payload that is read through a
    /// [`Window`](super::Window); longer ones are left
    /// [apart](super::Payload::Apart).
    pub apart: u64,
    /// Memory is taken from this too, before the pickle has it.
    pub share: Option<&'s Share>,
}

impl Default for Limits<'_> {
    fn default() -> Self {
        Limits {
            opcodes: 128 << 20,
            memory: 512 << 20,
            number_line: 4 << 10,
            long_bytes: 1 << 10,
            name: 1 << 10,
            imports: 16 << 10,
            held: 256 << 20,
            apart: 4 << 10,
            share: None,
        }
    }
}

impl<'s> Limits<'s> {
    /// The default ones, with memory from `share`.
    pub fn sharing(share: &'s Share) -> Limits<'s> {
        Limits {
            share: Some(share),
            ..Limits::default()
        }
    }

    /// Takes `bytes` of memory.
    pub(super) fn take(&self, bytes: u64) -> Result<(), ErrorKind> {
        match self.share.map(|share| share.take(bytes)) {
            Some(Err(much)) => Err(much.into()),
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Bytes of memory for a pickle of which `read` bytes have been executed.
    ///
    /// Of what picklers write, lists of two-byte integers take most for their
    /// length: a slot and an object, 16 times their three bytes.
    pub(super) fn memory_after(&self, read: u64) -> u64 {
        const ANY: u64 = 32 << 20;
        const FOR_EACH_BYTE: u64 = 24;
        self.memory
            .min(read.saturating_mul(FOR_EACH_BYTE).saturating_add(ANY))
    }
}
