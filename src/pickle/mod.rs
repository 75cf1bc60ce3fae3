//! Pickle bytes become inert objects.
//!
//! [`parse`] runs the stack machine of pickle protocols 0 to 5 and keeps what
//! it makes in an arena, where objects name each other by [`ObjectId`]. An
//! import stays a pair of names and a call stays a [`Call`]: nothing is
//! resolved, imported or called. This layer knows nothing of torch.
//!
//! The input may be hostile. Every length is compared with the bytes left
//! before it is used, payloads are borrowed from the input, an object is never
//! copied, and [`Limits`] bounds the rest. Cycles are legal in a pickle: a
//! reader of the arena has to expect them, and any depth of nesting.
//!
//! A pickle within a large file is read with [`parse_at`] through a [`Window`],
//! which reads the opcodes and leaves long payloads where they are
//! ([`Payload::Apart`]). Where raw bytes stand between the opcodes, as in the
//! streams of joblib, a [`Parser`] lets its caller say how many.
//!
//! # Which pickles are accepted
//!
//! Those that `pickle.loads` of CPython accepts, when every import and every
//! call in them succeeds, except for the following, which no pickler writes:
//!
//! * FRAME is enforced: its length fits the input, it ends where an opcode
//!   ends, the next frame does not begin before, and STOP is the last opcode
//!   in it. CPython's three readers (C from bytes, C from a file, Python) each
//!   check another part of this, and so see different pickles in one input.
//! * EXT1, EXT2 and EXT4 (the extension registry is state of a process) and
//!   NEXT_BUFFER and READONLY_BUFFER (the buffers are not in the file) are
//!   refused.
//! * An opcode that changes an object wants an object made for it: APPEND and
//!   APPENDS a list, ADDITEMS a set, SETITEM and SETITEMS a dict, each of them
//!   and BUILD the result of a call, even where there is nothing to add.
//!   CPython would also set items of a list or append to a bytearray.
//! * Text integers are those that both of CPython's unpicklers read alike: no
//!   C octals (`010`), no NUL in the line. Imports are valid Unicode, and
//!   valid UTF-8 where Python-2 strings name them.
//! * The bounds of [`Limits`].
//!
//! The other way round, what the stack holds at STOP besides the root is
//! ignored, marks included, as in CPython; Python-2 strings
//! ([`Object::String8`]) are kept in whatever encoding they are; and what an
//! unknown call makes is taken to be callable, hashable and of any container's
//! interface.

mod error;
mod input;
mod integer;
mod limits;
mod machine;
mod marks;
mod memo;
mod object;
mod objects;
mod opcode;
mod operands;
mod parsed;
mod parser;
mod plain;
mod text;

pub use error::{Error, ErrorKind, ParseError};
pub use input::{ReadAt, Window};
pub use limits::Limits;
pub use marks::Marks;
pub use object::{
    ByteRange, Call, CallKind, Global, Import, Object, ObjectId, Payload, PersistentId, Str,
};
pub use objects::Objects;
pub use parsed::{Pickle, Step};
pub use parser::Parser;
pub use plain::PlainLimits;

use machine::Machine;

/// Reads the first pickle in `input` and stops after its STOP.
///
/// # Errors
///
/// The first opcode that cannot be executed, see [`Error`].
pub fn parse<'a>(input: &'a [u8], limits: &Limits) -> Result<Pickle<'a>, Error> {
    let mut machine = Machine::new(&input, 0, limits);
    loop {
        match machine.resume(&input) {
            Ok(Step::Built(_)) => {}
            Ok(Step::Done(pickle)) => return Ok(pickle),
            Err(ParseError::Pickle(error)) => return Err(error),
            Err(ParseError::Read(never)) => match never {},
        }
    }
}

/// Reads the pickle that begins at byte `offset` of the file behind `window`,
/// and stops after its STOP. Payloads longer than [`Limits::apart`] are not
/// read.
///
/// # Errors
///
/// The first opcode that cannot be executed, or bytes that cannot be read.
pub fn parse_at<'a, R: ReadAt + ?Sized>(
    window: &'a Window<'_, R>,
    offset: u64,
    limits: &Limits,
) -> Result<Pickle<'a>, ParseError<R::Error>> {
    let mut parser = Parser::new(window, offset, limits);
    loop {
        if let Step::Done(pickle) = parser.resume()? {
            return Ok(pickle);
        }
    }
}

/// Whether `byte` is an opcode of protocols 0 to 5.
pub fn is_opcode(byte: u8) -> bool {
    opcode::Opcode::from_byte(byte).is_some()
}
