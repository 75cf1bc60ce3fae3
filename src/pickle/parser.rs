//! Reading a pickle in steps, for streams that carry more than opcodes.

use super::error::{ParseError, Stop};
use super::input::{ReadAt, Window};
use super::limits::Limits;
use super::machine::Machine;
use super::object::{ByteRange, Import, ObjectId};
use super::objects::Objects;
use super::parsed::Step;

/// Reads one pickle and pauses after every BUILD, which is where joblib puts the
/// bytes of an array.
pub struct Parser<'a, 'l, 's, R: ReadAt + ?Sized> {
    window: &'a Window<'s, R>,
    machine: Machine<'a, 'l>,
}

impl<'a, 'l, 's, R: ReadAt + ?Sized> Parser<'a, 'l, 's, R> {
    /// At byte `offset` of the file, where a pickle begins.
    pub fn new(
        window: &'a Window<'s, R>,
        offset: u64,
        limits: &'l Limits<'l>,
    ) -> Parser<'a, 'l, 's, R> {
        Parser {
            window,
            machine: Machine::new(&window, offset, limits),
        }
    }

    /// Executes opcodes up to the next BUILD, or to STOP.
    ///
    /// # Errors
    ///
    /// The first opcode that cannot be executed, or bytes that cannot be read.
    /// Either ends the pickle.
    pub fn resume(&mut self) -> Result<Step<'a>, ParseError<R::Error>> {
        self.machine.resume(&self.window)
    }

    /// The offset of what comes next, from the start of the file.
    pub fn offset(&self) -> u64 {
        self.machine.position()
    }

    /// The objects made so far.
    pub fn objects(&self) -> &Objects<'a> {
        self.machine.objects()
    }

    /// The imports so far.
    pub fn imports(&self) -> &[Import] {
        self.machine.imports()
    }

    /// The next byte, which may be no opcode; `None` at the end of the file.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn peek(&mut self) -> Result<Option<u8>, ParseError<R::Error>> {
        let peeked = self.machine.peek(&self.window);
        peeked.map_err(|stop| self.failure(stop))
    }

    /// Says that the next `gap` bytes are padding and the `len` bytes after them
    /// belong to the object just built, which [`Objects::raw`] then knows. The
    /// pickle goes on behind them.
    ///
    /// # Errors
    ///
    /// The file or the frame does not end there, or the object has raw bytes.
    pub fn claim(
        &mut self,
        built: ObjectId,
        gap: u64,
        len: u64,
    ) -> Result<ByteRange, ParseError<R::Error>> {
        let claimed = self.machine.claim(built, gap, len);
        claimed.map_err(|kind| self.failure(kind.into()))
    }

    fn failure(&mut self, stop: Stop<R::Error>) -> ParseError<R::Error> {
        self.machine.failure(stop)
    }
}
