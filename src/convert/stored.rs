//! Storages, ready to be read by ranges. What has to be decoded is decoded as a
//! whole, once, into a temporary file without a name.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::read::DeflateDecoder;

use super::files::Files;
use super::tiled::Tiled;
use crate::checkpoint::{Codec, Encoded, Place, Storage};
use crate::source::{Error, Result, Source};

/// Bytes read or written at a time while decoding.
const PIECE: usize = 1 << 20;

/// A storage of the files that a plan was made from.
#[derive(Debug)]
pub enum Stored {
    File(u64),
    Memory(Arc<[u8]>),
    Decoded(Decoded),
    Chain(Vec<(u64, Stored)>),
    /// In a companion, from this byte on.
    Companion(u32, u64),
    Tiled(Tiled),
}

/// A stretch of the source, and what it decodes to once somebody has read it.
#[derive(Debug)]
pub struct Decoded {
    encoded: Encoded,
    /// Bytes, decoded.
    len: u64,
    /// Held while it is being decoded: whoever else wants it waits.
    file: Mutex<Option<Arc<File>>>,
}

impl Stored {
    pub fn new(storage: &Storage) -> Stored {
        match &storage.place {
            Place::File(offset) => Stored::File(*offset),
            Place::Companion { file, offset } => Stored::Companion(*file, *offset),
            Place::Tiles(tiling) => Stored::Tiled(Tiled::new(tiling)),
            Place::Memory(bytes) => Stored::Memory(bytes.clone()),
            Place::Decoded(encoded) => Stored::Decoded(Decoded {
                encoded: *encoded,
                len: storage.len,
                file: Mutex::new(None),
            }),
            Place::Chain(links) => Stored::Chain(
                links
                    .iter()
                    .map(|link| (link.len, Stored::new(link)))
                    .collect(),
            ),
        }
    }

    /// Bytes of it that are kept in memory.
    pub fn held(&self) -> usize {
        match self {
            Stored::Memory(bytes) => bytes.len(),
            Stored::Chain(links) => links.iter().map(|(_, link)| link.held()).sum(),
            Stored::Tiled(tiled) => tiled.held(),
            Stored::File(_) | Stored::Companion(..) | Stored::Decoded(_) => 0,
        }
    }

    /// Fills `buffer` with the bytes of the storage from `offset` on.
    pub fn read_exact_at(&self, files: &Files, buffer: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Stored::File(start) => files
                .main()
                .read_exact_at(buffer, start.saturating_add(offset)),
            Stored::Companion(file, start) => files
                .companion(*file)?
                .read_exact_at(buffer, start.saturating_add(offset)),
            Stored::Tiled(tiled) => tiled.read_exact_at(files, buffer, offset),
            Stored::Memory(bytes) => {
                let span = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get(start..start.checked_add(buffer.len())?));
                buffer.copy_from_slice(span.ok_or_else(|| past_end(offset, bytes.len() as u64))?);
                Ok(())
            }
            Stored::Decoded(decoded) => {
                let file = decoded.file(files.main())?;
                Ok(file.read_exact_at(buffer, offset)?)
            }
            Stored::Chain(links) => {
                let mut buffer = buffer;
                let mut skip = offset;
                for (len, link) in links {
                    if skip >= *len {
                        skip -= len;
                        continue;
                    }
                    let here = (len - skip).min(buffer.len() as u64) as usize;
                    let (head, rest) = buffer.split_at_mut(here);
                    link.read_exact_at(files, head, skip)?;
                    (buffer, skip) = (rest, 0);
                }
                match buffer.is_empty() {
                    true => Ok(()),
                    false => Err(past_end(offset, offset - skip)),
                }
            }
        }
    }
}

impl Decoded {
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
        let encoded = BufReader::with_capacity(PIECE, Stretch::new(source, &self.encoded));
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

pub fn past_end(wanted: u64, size: u64) -> Error {
    Error::PastEnd { wanted, size }
}

fn damaged(what: &str) -> Error {
    let what = format!("encoded data {what}");
    Error::Io(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// A stretch of the source, read from its start to its end.
struct Stretch<'a> {
    source: &'a Source,
    offset: u64,
    left: u64,
}

impl<'a> Stretch<'a> {
    fn new(source: &'a Source, encoded: &Encoded) -> Stretch<'a> {
        Stretch {
            source,
            offset: encoded.offset,
            left: encoded.len,
        }
    }
}

impl Read for Stretch<'_> {
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
