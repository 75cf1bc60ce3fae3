//! Arguments of opcodes out of the input, within the bounds of the frame.

use super::error::ErrorKind;

/// A cursor over the input.
///
/// An opcode and its argument lie on the same side of a frame's end: reads are
/// bounded by `end`, which only [`Reader::opcode`] moves out of a frame.
pub(super) struct Reader<'a> {
    input: &'a [u8],
    position: usize,
    /// End of the frame, or of the input outside of frames.
    /// `position <= end <= input.len()`.
    end: usize,
    in_frame: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(input: &'a [u8]) -> Reader<'a> {
        Reader {
            input,
            position: 0,
            end: input.len(),
            in_frame: false,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The byte of the next opcode.
    pub(super) fn opcode(&mut self) -> Result<u8, ErrorKind> {
        if self.position == self.end {
            self.in_frame = false;
            self.end = self.input.len();
        }
        let byte = *self.input.get(self.position).ok_or(ErrorKind::NoStop)?;
        self.position += 1;
        Ok(byte)
    }

    /// Starts a frame of `length` bytes at the current position.
    pub(super) fn begin_frame(&mut self, length: u64) -> Result<(), ErrorKind> {
        self.end_frame()?;
        let left = self.input.len() - self.position;
        match usize::try_from(length) {
            Ok(length) if length <= left => {
                self.in_frame = true;
                self.end = self.position + length;
                Ok(())
            }
            _ => Err(ErrorKind::Truncated {
                announced: length,
                left,
            }),
        }
    }

    /// Fails where a frame has bytes left.
    pub(super) fn end_frame(&mut self) -> Result<(), ErrorKind> {
        match self.end - self.position {
            left if self.in_frame && left > 0 => Err(ErrorKind::FrameNotEnded { left }),
            _ => Ok(()),
        }
    }

    pub(super) fn bytes(&mut self, length: u64) -> Result<&'a [u8], ErrorKind> {
        let rest = &self.input[self.position..self.end];
        match usize::try_from(length) {
            Ok(length) if length <= rest.len() => {
                self.position += length;
                Ok(&rest[..length])
            }
            _ => Err(self.too_short(length)),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ErrorKind> {
        match self.input[self.position..self.end].first_chunk() {
            Some(bytes) => {
                self.position += N;
                Ok(*bytes)
            }
            None => Err(self.too_short(N as u64)),
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
        let rest = &self.input[self.position..self.end];
        let window = &rest[..rest.len().min(limit.saturating_add(1))];
        match window.iter().position(|&byte| byte == b'\n') {
            Some(length) => {
                self.position += length + 1;
                Ok(&rest[..length])
            }
            None if window.len() < rest.len() => Err(ErrorKind::Limit {
                what,
                limit: limit as u64,
            }),
            None => Err(ErrorKind::NoNewline),
        }
    }

    fn too_short(&self, announced: u64) -> ErrorKind {
        let left = self.end - self.position;
        if self.in_frame {
            ErrorKind::BeyondFrame { announced, left }
        } else {
            ErrorKind::Truncated { announced, left }
        }
    }
}
