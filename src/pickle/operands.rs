//! Arguments of opcodes out of the input, within the bounds of the frame.

use super::error::{ErrorKind, Stop};
use super::input::Input;
use super::limits::Limits;
use super::object::ByteRange;

/// A cursor over the input.
///
/// [`Operands::hold`] is the only place that reads from the input; the rest takes
/// what is held. An opcode and its argument lie on the same side of a frame's
/// end: arguments are bounded by `end`, which only [`Operands::opcode`] and
/// [`Operands::raw`] move out of a frame.
pub(super) struct Operands<'a> {
    /// What is held of the input from `position` on.
    rest: &'a [u8],
    /// All offsets are from the start of the file.
    position: u64,
    /// End of the frame, or of the input outside of frames.
    /// `position <= end <= input_end`.
    end: u64,
    input_end: u64,
    in_frame: bool,
    start: u64,
    /// Bytes passed over.
    passed: u64,
}

impl<'a> Operands<'a> {
    /// Starts at `start`, or at the end of an input that ends before.
    pub(super) fn new(start: u64, input_end: u64) -> Operands<'a> {
        let start = start.min(input_end);
        Operands {
            rest: &[],
            position: start,
            end: input_end,
            input_end,
            in_frame: false,
            start,
            passed: 0,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes taken so far without those passed over.
    pub(super) fn taken(&self) -> u64 {
        self.position - self.start - self.passed
    }

    /// What is held of the bytes that come next.
    pub(super) fn held(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything up to the end of the input is held.
    pub(super) fn holds_all(&self) -> bool {
        self.rest.len() as u64 == self.input_end - self.position
    }

    /// Holds the next `wanted` bytes, or all up to the end of the input.
    pub(super) fn hold<I: Input<'a>>(
        &mut self,
        input: &I,
        wanted: u64,
        limits: &Limits,
    ) -> Result<(), Stop<I::Error>> {
        let wanted = wanted.min(self.input_end - self.position);
        if (self.rest.len() as u64) < wanted {
            self.rest = input.hold(self.position, wanted, limits)?;
        }
        Ok(())
    }

    /// The byte of the next opcode.
    pub(super) fn opcode(&mut self) -> Result<u8, ErrorKind> {
        if self.position == self.end {
            self.leave_frame();
        }
        let (byte, rest) = self.rest.split_first().ok_or(ErrorKind::NoStop)?;
        self.rest = rest;
        self.position += 1;
        Ok(*byte)
    }

    /// Starts a frame of `length` bytes at the current position.
    pub(super) fn begin_frame(&mut self, length: u64) -> Result<(), ErrorKind> {
        self.end_frame()?;
        let left = self.input_end - self.position;
        if length > left {
            return Err(ErrorKind::Truncated {
                announced: length,
                left,
            });
        }
        self.in_frame = true;
        self.end = self.position + length;
        Ok(())
    }

    /// Fails where a frame has bytes left.
    pub(super) fn end_frame(&self) -> Result<(), ErrorKind> {
        match self.left() {
            left if self.in_frame && left > 0 => Err(ErrorKind::FrameNotEnded { left }),
            _ => Ok(()),
        }
    }

    fn leave_frame(&mut self) {
        self.in_frame = false;
        self.end = self.input_end;
    }

    /// Leaves `len` bytes apart that are no opcodes, after a gap. They lie
    /// outside of frames.
    pub(super) fn raw(&mut self, gap: u64, len: u64) -> Result<ByteRange, ErrorKind> {
        self.end_frame()?;
        self.leave_frame();
        let all = gap.saturating_add(len);
        if all > self.left() {
            return Err(self.too_short(all));
        }
        self.pass(gap);
        self.span(len)
    }

    /// Leaves the next `len` bytes apart.
    pub(super) fn span(&mut self, len: u64) -> Result<ByteRange, ErrorKind> {
        if len > self.left() {
            return Err(self.too_short(len));
        }
        let offset = self.position;
        self.pass(len);
        Ok(ByteRange { offset, len })
    }

    pub(super) fn bytes(&mut self, length: u64) -> Result<&'a [u8], ErrorKind> {
        let within = usize::try_from(length)
            .ok()
            .filter(|_| length <= self.left());
        match within.and_then(|length| self.rest.split_at_checked(length)) {
            Some((bytes, rest)) => {
                self.rest = rest;
                self.position += length;
                Ok(bytes)
            }
            None => Err(self.too_short(length)),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ErrorKind> {
        match self.rest.split_first_chunk() {
            Some((bytes, rest)) if N as u64 <= self.left() => {
                self.rest = rest;
                self.position += N as u64;
                Ok(*bytes)
            }
            _ => Err(self.too_short(N as u64)),
        }
    }

    pub(super) fn u8(&mut self) -> Result<u8, ErrorKind> {
        self.array().map(u8::from_le_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ErrorKind> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ErrorKind> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, ErrorKind> {
        self.array().map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ErrorKind> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length that the format stores signed.
    pub(super) fn signed_length(&mut self) -> Result<u64, ErrorKind> {
        let length = self.i32()?;
        u64::try_from(length).map_err(|_| ErrorKind::NegativeLength(length))
    }

    /// The bytes up to the next newline, which is taken but not returned.
    pub(super) fn line(&mut self) -> Result<&'a [u8], ErrorKind> {
        self.line_within(usize::MAX, "")
    }

    /// A line of `limit` bytes at most; `what` says of what, in the plural.
    pub(super) fn line_within(
        &mut self,
        limit: usize,
        what: &'static str,
    ) -> Result<&'a [u8], ErrorKind> {
        let left = usize::try_from(self.left()).unwrap_or(usize::MAX);
        let longest = left.min(limit.saturating_add(1));
        let window = self.rest.get(..longest).unwrap_or(self.rest);
        match window.iter().position(|&byte| byte == b'\n') {
            Some(length) => {
                let line = &window[..length];
                self.rest = &self.rest[length + 1..];
                self.position += length as u64 + 1;
                Ok(line)
            }
            None if longest < left => Err(ErrorKind::Limit {
                what,
                limit: limit as u64,
            }),
            None => Err(ErrorKind::NoNewline),
        }
    }

    /// Bytes up to the end of the frame or input.
    fn left(&self) -> u64 {
        self.end - self.position
    }

    /// Passes over `length` bytes; there are as many left.
    fn pass(&mut self, length: u64) {
        let held = usize::try_from(length).ok();
        self.rest = held
            .and_then(|length| self.rest.get(length..))
            .unwrap_or_default();
        self.position += length;
        self.passed += length;
    }

    fn too_short(&self, announced: u64) -> ErrorKind {
        let left = self.left();
        if self.in_frame {
            ErrorKind::BeyondFrame { announced, left }
        } else {
            ErrorKind::Truncated { announced, left }
        }
    }
}
