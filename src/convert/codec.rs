//! Decodes a stretch of the source piece by piece. A [`Decoder`] is a value: a copy of
//! it goes on from where it was made, as often as that is needed.

use std::io;

use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use crate::checkpoint::{Codec, Encoded};
use crate::source::{Error, Result, Source};

/// Encoded bytes read at a time.
const PIECE: u64 = 128 << 10;
/// Deflate takes two bits at least for 258 bytes.
const MAX_INFLATED: u64 = 1032;

/// How far a stretch was decoded, and all that it takes to go on.
#[derive(Clone)]
pub struct Decoder {
    /// Encoded bytes that were taken in.
    at: u64,
    state: State,
}

#[derive(Clone)]
enum State {
    Inflate(Box<InflateState>),
    /// Nothing follows.
    Inflated,
    Latin1,
}

impl Decoder {
    /// At the start of the stretch `encoded`, which is said to decode to `len` bytes.
    ///
    /// # Errors
    /// It cannot be so many.
    pub fn new(encoded: &Encoded, len: u64) -> Result<Decoder> {
        let (state, most) = match encoded.codec {
            Codec::Deflate => (
                State::Inflate(InflateState::new_boxed(DataFormat::Raw)),
                encoded.len.saturating_mul(MAX_INFLATED),
            ),
            Codec::Latin1 => (State::Latin1, encoded.len),
        };
        match len <= most {
            true => Ok(Decoder { at: 0, state }),
            false => Err(ends_too_early()),
        }
    }

    /// Fills `out` with the bytes that come next.
    pub fn fill(&mut self, input: &mut Input, out: &mut [u8]) -> Result<()> {
        match self.read(input, out)? == out.len() {
            true => Ok(()),
            false => Err(ends_too_early()),
        }
    }

    /// Makes sure that no bytes come next.
    pub fn finish(&mut self, input: &mut Input) -> Result<()> {
        match self.read(input, &mut [0])? {
            0 => Ok(()),
            _ => Err(damaged("goes on after its end")),
        }
    }

    /// Fills `out` as far as there are bytes, and says how many they are.
    fn read(&mut self, input: &mut Input, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() {
            let rest = &mut out[filled..];
            let (taken, given) = match &mut self.state {
                State::Inflated => break,
                State::Inflate(state) => {
                    let encoded = input.at(self.at, 1)?;
                    let done = inflate(state, encoded, rest, MZFlush::None);
                    match done.status {
                        Ok(MZStatus::StreamEnd) => self.state = State::Inflated,
                        Ok(_) | Err(MZError::Buf) => {}
                        Err(_) => return Err(damaged("is not what deflating gives")),
                    }
                    (done.bytes_consumed, done.bytes_written)
                }
                State::Latin1 => letters(input.at(self.at, 2)?, rest)?,
            };
            self.at = self.at.saturating_add(taken as u64);
            filled += given;
            if (taken, given) == (0, 0) && !matches!(self.state, State::Inflated) {
                break;
            }
        }
        Ok(filled)
    }
}

/// The bytes that UTF-8 text stands for, letter by letter. Says how many were taken in
/// and given out. Text of more than one byte may end in the middle of a letter.
fn letters(text: &[u8], out: &mut [u8]) -> Result<(usize, usize)> {
    let (mut rest, mut given) = (text, 0);
    for place in out {
        (*place, rest) = match rest {
            [byte @ ..=0x7f, rest @ ..] => (*byte, rest),
            [lead @ (0xc2 | 0xc3), last @ 0x80..=0xbf, rest @ ..] => {
                ((lead & 0x03) << 6 | (last & 0x3f), rest)
            }
            [] => break,
            [0xc2 | 0xc3] if text.len() > 1 => break,
            _ => return Err(damaged("is text beyond Latin-1")),
        };
        given += 1;
    }
    Ok((text.len() - rest.len(), given))
}

/// The bytes of a stretch of the source, some of which are at hand.
pub struct Input<'a> {
    source: &'a Source,
    encoded: Encoded,
    piece: Vec<u8>,
    /// Where `piece` begins in the stretch.
    start: u64,
}

impl<'a> Input<'a> {
    pub fn new(source: &'a Source, encoded: Encoded) -> Input<'a> {
        Input {
            source,
            encoded,
            piece: Vec::new(),
            start: 0,
        }
    }

    pub fn source(&self) -> &'a Source {
        self.source
    }

    /// Bytes of the stretch from `at` on: `least` of them or more, unless it ends before.
    fn at(&mut self, at: u64, least: usize) -> Result<&[u8]> {
        let left = self.encoded.len.saturating_sub(at);
        let skip = at.checked_sub(self.start).map(usize::try_from);
        let known = match skip {
            Some(Ok(skip)) => self.piece.len().saturating_sub(skip),
            _ => 0,
        };
        if known < least && (known as u64) < left {
            let mut piece = std::mem::take(&mut self.piece);
            piece.resize(left.min(PIECE) as usize, 0);
            let from = self.encoded.offset.saturating_add(at);
            self.source.read_exact_at(&mut piece, from)?;
            (self.piece, self.start) = (piece, at);
            return Ok(&self.piece);
        }
        Ok(&self.piece[self.piece.len() - known..])
    }
}

fn ends_too_early() -> Error {
    damaged("ends too early")
}

fn damaged(what: &str) -> Error {
    let what = format!("encoded data {what}");
    Error::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}
