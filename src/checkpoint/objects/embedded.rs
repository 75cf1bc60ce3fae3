//! Storages that were pickled without torch.save: each is a legacy stream of its
//! own inside a byte string (torch/storage.py, `_load_from_bytes`).

use std::borrow::Cow;

use super::array::{ArrayBytes, latin1};
use super::saved::{SavedStorage, saved_storage};
use super::torch::{Storages, Torch, TypedStorage};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::Error;
use crate::checkpoint::layout::StorageRef;
use crate::checkpoint::preamble::{self, PlainPickle};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, unsupported};
use crate::checkpoint::storage::{Backing, Codec, Encoded, Storage};
use crate::checkpoint::stream;
use crate::pickle::{Call, Payload, Pickle, Str};

/// How much of a stream is looked at for its pickles, which are small.
const HEAD: u64 = 16 << 10;

/// What the head of a stream says of the storage in it.
struct StreamHead {
    element: ElementType,
    /// Bytes of the stream before the elements.
    start: u64,
    /// Bytes of the elements.
    len: u64,
}

impl<S: Storages> Torch<'_, S> {
    /// The storage that `_load_from_bytes` makes of its argument.
    pub(super) fn embedded(&mut self, call: &Call) -> Result<TypedStorage, Refusal> {
        let args = self.pickle.as_tuple(call.args);
        let Some([bytes]) = args else {
            return Err(malformed(
                "a storage is loaded from too few or too many arguments",
            ));
        };
        let (head, mut storage) = match self.data(*bytes)? {
            ArrayBytes::Bytes(Payload::Here(bytes)) => {
                (bytes.to_vec(), Storage::in_memory(&**bytes))
            }
            ArrayBytes::Bytes(Payload::Apart(span)) => (
                self.head(span.offset, span.len)?,
                Storage::in_file(span.offset, span.len),
            ),
            ArrayBytes::Latin1(Str::Apart(span)) => {
                let mut text = self.head(span.offset, span.len)?;
                // The last letter may be cut in two.
                let whole = match std::str::from_utf8(&text) {
                    Ok(text) => text.len(),
                    Err(error) => error.valid_up_to(),
                };
                text.truncate(whole);
                let encoded = Encoded {
                    offset: span.offset,
                    len: span.len,
                    codec: Codec::Latin1,
                };
                let text = String::from_utf8(text).unwrap_or_default();
                let storage = Storage {
                    backing: Backing::Decoded(encoded),
                    len: 0,
                };
                (latin1(&Str::Utf8(text.into()))?, storage)
            }
            ArrayBytes::Latin1(text) => {
                let bytes = latin1(text)?;
                (bytes.clone(), Storage::in_memory(bytes))
            }
            ArrayBytes::Empty => return Err(malformed("a storage is loaded from nothing")),
        };
        let found = read_head(&head)?;
        let end = found.start.checked_add(found.len);
        let end = end.ok_or_else(|| malformed("a storage's size is beyond all bounds"))?;
        match storage.backing {
            Backing::Decoded(_) => storage.len = end,
            _ if storage.len != end => {
                return Err(malformed("a storage has another size than it should"));
            }
            _ => {}
        }
        Ok(TypedStorage {
            storage: StorageRef {
                index: self.table.add(storage)?,
                start: found.start,
                len: found.len,
                swap: false,
            },
            element: found.element,
        })
    }

    fn head(&self, offset: u64, len: u64) -> Result<Vec<u8>, Refusal> {
        let source = self.storages.source();
        let source =
            source.ok_or_else(|| unsupported("its storage is kept in a pickled byte string"))?;
        let head = source.read_at(offset, len.min(HEAD));
        head.map_err(|error| Refusal::new(Cause::Changing, error.to_string()))
    }
}

/// Reads the five pickles of a stream that holds one storage, and its count of
/// elements.
fn read_head(head: &[u8]) -> Result<StreamHead, Refusal> {
    let mut rest = head;
    let mut next = || -> Result<(Pickle<'_>, &[u8]), Refusal> {
        let pickle = stream::parse_small(rest).map_err(Error::into_refusal)?;
        let end = usize::try_from(pickle.end()).ok();
        let split = end.and_then(|end| rest.split_at_checked(end));
        let (bytes, behind) = split.unwrap_or((rest, &[]));
        rest = behind;
        Ok((pickle, bytes))
    };
    let plain = |(pickle, bytes): (Pickle, _)| {
        PlainPickle::new(&pickle, head.len() as u64, || {
            Ok::<_, Refusal>(Cow::Borrowed(bytes))
        })
    };
    preamble::check_start(&plain(next()?)?, &plain(next()?)?)?;
    let _machine = next()?;
    let (object, _) = next()?;
    let keys = plain(next()?)?;
    let saved = saved_storage(&object, object.root(), 6)?;
    let Some(SavedStorage {
        key,
        element,
        elements,
        view: None,
    }) = saved
    else {
        return Err(malformed("a storage is loaded from something else"));
    };
    let keys: Option<Vec<String>> = keys.list();
    let listed = keys.is_some_and(|keys| matches!(&*keys, [only] if only == key));
    let count = rest.first_chunk().copied().map(u64::from_le_bytes);
    if !listed || count != Some(elements) {
        return Err(malformed("a storage has another size than it should"));
    }
    let len = elements.checked_mul(element.size());
    Ok(StreamHead {
        element,
        start: (head.len() - rest.len()) as u64 + 8,
        len: len.ok_or_else(|| malformed("a storage's size is beyond all bounds"))?,
    })
}
