//! Files of the tree, open for reading.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::node::Text;
use super::{Error, Result};
use crate::convert::{Data, Planned, Reader};
use crate::source::{Bytes, Source};

/// A file open for reading. Reads may run from many threads at once.
pub struct OpenFile(Open);

pub(super) enum Open {
    Plain(Source),
    Converted(Reader),
    Tensor(Reader, usize),
    Text(Arc<Text>),
}

impl OpenFile {
    pub(super) fn new(open: Open) -> OpenFile {
        OpenFile(open)
    }

    /// The source file, when its bytes are this file's bytes from first to last:
    /// the kernel may then read it by itself.
    pub fn backing(&self) -> Option<&File> {
        match &self.0 {
            Open::Plain(source) => Some(source.file()),
            _ => None,
        }
    }

    /// Whether pages of earlier opens of the same node are still right. Those of
    /// a plain file are as old as its attributes, with which the kernel drops them.
    pub fn keep_cache(&self) -> bool {
        true
    }

    /// The stretches that a loader touches when it makes the tensors of the file:
    /// its header, and the first byte of each tensor. In order, and without those
    /// that would have to be computed.
    pub fn touched(&self) -> Vec<Range<u64>> {
        let Open::Converted(reader) = &self.0 else {
            return Vec::new();
        };
        let plan = reader.plan();
        let header = plan.header().len() as u64;
        let lies_there =
            |tensor: &&Planned| tensor.len > 0 && matches!(tensor.data, Data::Range(_));
        let starts = plan.tensors().iter().filter(lies_there);
        std::iter::once(0..header)
            .chain(starts.map(|tensor| tensor.start..tensor.start + 1))
            .collect()
    }

    /// Bytes `[offset, offset + len)`, cut at the end of the file and nowhere else.
    ///
    /// # Errors
    /// [`Error::Io`] when the source behind a derived file changed: its bytes are
    /// gone.
    pub fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        Ok(match &self.0 {
            Open::Plain(source) => Bytes::Owned(read_plain(source, offset, len)?),
            Open::Converted(reader) => reader.read(offset, len)?,
            Open::Tensor(reader, index) => reader.read_tensor(*index, offset, len)?,
            Open::Text(text) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.body.len());
                let end = start.saturating_add(len).min(text.body.len());
                Bytes::Owned(text.body[start..end].to_vec())
            }
        })
    }
}

/// A plain file has the size that it has now.
fn read_plain(source: &Source, offset: u64, len: usize) -> Result<Vec<u8>> {
    use std::io::ErrorKind;
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; len];
    let mut filled = 0;
    while filled < len {
        match source
            .file()
            .read_at(&mut buffer[filled..], offset + filled as u64)
        {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Io(error)),
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}
