//! Storages that have to be decoded before they can be read by ranges: each as a
//! whole, once, into a temporary file without a name.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::DeflateDecoder;

use crate::checkpoint::{Codec, Encoded};
use crate::source::{Error, Result, Source};

/// Bytes read or written at a time while decoding.
const PIECE: usize = 1 << 20;

/// A stretch of the source, and what it decodes to once somebody has read it.
#[derive(Debug)]
pub struct Decoded {
    encoded: Encoded,
    /// Bytes, decoded.
    len: u64,
    /// Held while it is being decoded: whoever else wants it waits.
    file: Mutex<Option<Arc<File>>>,
}

impl Decoded {
    /// `encoded` decodes to `len` bytes.
    pub fn new(encoded: Encoded, len: u64) -> Decoded {
        Decoded {
            encoded,
            len,
            file: Mutex::new(None),
        }
    }

    /// Fills `buffer` with the bytes of the storage from `offset` on.
    pub fn read_exact_at(&self, source: &Source, buffer: &mut [u8], offset: u64) -> Result<()> {
        Ok(self.file(source)?.read_exact_at(buffer, offset)?)
    }

    fn file(&self, source: &Source) -> Result<Arc<File>> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*file {
            return Ok(file.clone());
        }
        let made = Arc::new(self.decode(source)?);
        // What was decoded is the old file only if that is still there.
        source.check()?;
        Ok(file.insert(made).clone())
    }

    fn decode(&self, source: &Source) -> Result<File> {
        let encoded = BufReader::with_capacity(PIECE, EncodedBytes::new(source, &self.encoded));
        let mut decoder: Box<dyn Read> = match self.encoded.codec {
            Codec::Deflate => Box::new(DeflateDecoder::new(encoded)),
            Codec::Latin1 => Box::new(Latin1(encoded)),
        };
        let mut file = tempfile::tempfile()?;
        let mut piece = vec![0; PIECE];
        let mut left = self.len;
        while left > 0 {
            let most = left.min(PIECE as u64) as usize;
            let read = decoder.read(&mut piece[..most])?;
            if read == 0 {
                return Err(damaged("ends too early"));
            }
            file.write_all(&piece[..read])?;
            left -= read as u64;
        }
        match decoder.read(&mut piece[..1])? {
            0 => Ok(file),
            _ => Err(damaged("goes on after its end")),
        }
    }
}

fn damaged(what: &str) -> Error {
    let what = format!("encoded data {what}");
    Error::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// A stretch of the source, read from its start to its end.
struct EncodedBytes<'a> {
    source: &'a Source,
    offset: u64,
    left: u64,
}

impl<'a> EncodedBytes<'a> {
    fn new(source: &'a Source, encoded: &Encoded) -> EncodedBytes<'a> {
        EncodedBytes {
            source,
            offset: encoded.offset,
            left: encoded.len,
        }
    }
}

impl Read for EncodedBytes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.left.min(buffer.len() as u64);
        self.source
            .read_exact_at(&mut buffer[..len as usize], self.offset)
            .map_err(io::Error::other)?;
        self.offset += len;
        self.left -= len;
        Ok(len as usize)
    }
}

/// The bytes that UTF-8 text stands for, letter by letter.
struct Latin1<R>(R);

impl<R: Read> Read for Latin1<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "text beyond Latin-1");
        let mut next = || {
            let mut byte = [0];
            self.0
                .read(&mut byte)
                .map(|read| (read == 1).then_some(byte[0]))
        };
        let mut filled = 0;
        for place in buffer {
            *place = match next()? {
                None => break,
                Some(byte @ ..=0x7f) => byte,
                Some(lead @ (0xc2 | 0xc3)) => match next()? {
                    Some(rest @ 0x80..=0xbf) => (lead & 0x03) << 6 | (rest & 0x3f),
                    _ => return Err(invalid()),
                },
                Some(_) => return Err(invalid()),
            };
            filled += 1;
        }
        Ok(filled)
    }
}
