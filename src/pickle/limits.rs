//! What one pickle may cost at most.

/// Bounds on the work and memory of one [`parse`](super::parse).
///
/// Memory is linear in the input with or without them: every opcode makes at
/// most two objects, and no opcode copies what an earlier one made. They bound
/// the factor. The defaults leave room for a checkpoint of a million tensors
/// (about 30 opcodes, 20 objects and 6 memo entries each).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Opcodes executed.
    pub opcodes: u64,
    /// Objects in the arena, about 40 bytes each before what they hold.
    pub objects: usize,
    /// Objects on the stack at one time.
    pub stack: usize,
    /// Marks on the stack at one time: the depth of unfinished containers.
    pub marks: usize,
    /// Memo entries.
    pub memo: usize,
    /// Bytes of a text line that holds a number.
    pub number_line: usize,
    /// Bytes of one integer, in two's complement.
    pub long_bytes: usize,
    /// Bytes of the module or the name of one import.
    pub name: usize,
    /// Distinct imports.
    pub imports: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            opcodes: 128 << 20,
            objects: 32 << 20,
            stack: 16 << 20,
            marks: 1 << 20,
            memo: 8 << 20,
            number_line: 4 << 10,
            long_bytes: 1 << 10,
            name: 1 << 10,
            imports: 16 << 10,
        }
    }
}
