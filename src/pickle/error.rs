//! Why a pickle was refused, and where.

use std::fmt;

use super::object::Import;
use crate::budget::TooMuch;

/// A pickle that was refused.
///
/// Displays as `byte 17 (BINUNICODE8): 4294967296 bytes announced, 12 left`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Byte offset of the opcode that failed, from the start of the file.
    pub offset: u64,
    /// Its name as in Python's `pickletools`; `None` where no known opcode stands.
    pub opcode: Option<&'static str>,
    /// What was wrong.
    pub kind: ErrorKind,
    /// Every import up to the failure: a loader that fails at the same place
    /// has already resolved these, and may have called them.
    pub imports: Vec<Import>,
    /// How many calls stand before the failure: a loader that fails at the same
    /// place has made them.
    pub calls: u64,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.opcode {
            Some(opcode) => write!(f, "byte {} ({opcode}): {}", self.offset, self.kind),
            None => write!(f, "byte {}: {}", self.offset, self.kind),
        }
    }
}

impl std::error::Error for Error {}

/// Why there is no pickle where one is read through a [`Window`](super::Window).
#[derive(Debug, thiserror::Error)]
pub enum ParseError<E> {
    /// The bytes are no pickle.
    #[error(transparent)]
    Pickle(#[from] Error),
    /// The bytes could not be read.
    #[error(transparent)]
    Read(E),
}

/// What ends the run of the machine, before the place is added.
pub(super) enum Stop<E> {
    Kind(ErrorKind),
    Read(E),
}

impl<E> From<ErrorKind> for Stop<E> {
    fn from(kind: ErrorKind) -> Stop<E> {
        Stop::Kind(kind)
    }
}

/// What was wrong with a pickle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input ends where an opcode should stand.
    #[error("the pickle ends without STOP")]
    NoStop,
    /// This byte is no opcode of protocols 0 to 5.
    #[error("{0:#04x} is not an opcode")]
    UnknownOpcode(u8),
    /// PROTO announces a protocol that does not exist.
    #[error("protocol {0} is not known (0 to 5 are)")]
    UnknownProtocol(u8),
    /// An argument is longer than the rest of the input.
    #[error("{announced} bytes announced, {left} left")]
    Truncated {
        /// Bytes the argument should have.
        announced: u64,
        /// Bytes left in the input.
        left: u64,
    },
    /// An argument reaches beyond the end of the frame its opcode is in.
    #[error("{announced} bytes announced, {left} left in the frame")]
    BeyondFrame {
        /// Bytes the argument should have.
        announced: u64,
        /// Bytes left in the frame.
        left: u64,
    },
    /// A frame ends in another place than the opcodes in it.
    #[error("the last frame has not been read to its end ({left} left)")]
    FrameNotEnded {
        /// Bytes left in the frame.
        left: u64,
    },
    /// A text argument has no newline before the end of the input or frame.
    #[error("the line does not end")]
    NoNewline,
    /// A signed length is below zero.
    #[error("negative length {0}")]
    NegativeLength(i32),
    /// Fewer objects stand above the topmost mark than the opcode takes.
    #[error("too few objects on the stack")]
    StackUnderflow,
    /// The opcode takes everything above the topmost mark, and there is none.
    #[error("no mark on the stack")]
    NoMark,
    /// A memo entry that was never stored.
    #[error("nothing stored in the memo at {0}")]
    NotInMemo(u64),
    /// A memo index that no memo has.
    #[error("memo index {0} is not between 0 and 2^63 - 1")]
    MemoIndex(String),
    /// A text number with a wrong form (the first bytes of the line).
    #[error("`{0}` is not a number")]
    NotANumber(String),
    /// A decimal fraction too large for 64 bits.
    #[error("`{0}` is too large for a float")]
    FloatOverflow(String),
    /// A Python-2 string without its quotes.
    #[error("the string is not in quotes")]
    NotQuoted,
    /// A backslash escape with a wrong form, at this byte of the text.
    #[error("invalid escape at byte {0} of the text")]
    InvalidEscape(usize),
    /// Text that is not UTF-8.
    #[error("the text is not UTF-8")]
    NotUtf8,
    /// Text that is not ASCII where only ASCII may stand.
    #[error("the text is not ASCII")]
    NotAscii,
    /// An import without a module or without a name.
    #[error("the import has an empty module or name")]
    EmptyName,
    /// A key without a value.
    #[error("an odd number of keys and values")]
    OddItems,
    /// An operand of another type than the opcode works on.
    #[error("{expected} expected, found {found}")]
    Type {
        /// What the opcode works on.
        expected: &'static str,
        /// What stands there.
        found: &'static str,
    },
    /// A dict key or set member that Python cannot hash.
    #[error("{0} cannot be a dict key or set member")]
    Unhashable(&'static str),
    /// An object from the extension registry of the reading process.
    #[error("extension code {0}: the registry of a running process is not part of a file")]
    Extension(i32),
    /// A buffer that travels beside the pickle.
    #[error("the pickle refers to a buffer outside of itself")]
    OutOfBand,
    /// Raw bytes for an object that has some.
    #[error("raw bytes follow the same object twice")]
    RawTwice,
    /// A bound of [`Limits`](super::Limits).
    #[error("more than {limit} {what}")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// More memory than there is for one file, see [`Limits::share`](super::Limits::share).
    #[error(transparent)]
    Memory(#[from] TooMuch),
}
