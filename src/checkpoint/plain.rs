//! Pickles without torch's zip container: plain `pickle.dump`, and the streams of
//! old torch versions that begin with one. They are told apart and looked at for
//! dangerous imports; their tensors are not read yet.

use super::refusal::{Cause, Refusal};
use super::sniff::Stream;
use super::{Result, danger};
use crate::pickle::{self, ErrorKind, Limits, Pickle};
use crate::source::Source;

/// How much of a stream is read to find out what its pickles import.
const READ: u64 = 64 << 20;
/// How much is read first, which is enough to tell most files from a pickle.
const FIRST: u64 = 64 << 10;
/// Pickles that are looked at in one stream: a legacy file has four small ones
/// around the one with the objects.
const PICKLES: usize = 8;

/// Bounds for a look at a stream whose objects are not wanted.
fn limits() -> Limits {
    Limits {
        memory: 64 << 20,
        ..Limits::default()
    }
}

/// Whether the head of a file with a protocol mark goes on as a pickle would.
pub fn starts_like_pickle(head: &[u8]) -> bool {
    matches!(head, [0x80, 0..=5, opcode, ..] if pickle::is_opcode(*opcode))
}

/// Whether a file without a protocol mark is a pickle: it can be read as one to
/// its end, or does something when it is loaded, if only until it breaks.
pub fn is_unmarked_pickle(source: &Source) -> Result<bool> {
    for read in [FIRST, READ] {
        let read = source.size().min(read);
        let unread = source.size() - read;
        if let Some(known) = judge(&source.read_at(0, read)?, unread) {
            return Ok(known);
        }
    }
    // No other file goes on as a pickle for so long.
    Ok(true)
}

/// Whether `bytes`, which `unread` more follow, are pickles; None when only
/// those can tell.
fn judge(mut bytes: &[u8], unread: u64) -> Option<bool> {
    for _ in 0..PICKLES {
        let pickle = match pickle::parse(bytes, &limits()) {
            Ok(pickle) => pickle,
            // An import alone is no sign: in a list of words, a `c` before two
            // lines looks like one.
            Err(error) if error.calls > 0 || danger::find(&error.imports).is_some() => {
                return Some(true);
            }
            Err(error) => {
                let decided = match error.kind {
                    ErrorKind::NoStop | ErrorKind::NoNewline => unread == 0,
                    ErrorKind::Truncated { announced, left } => {
                        announced.saturating_sub(left) > unread
                    }
                    ErrorKind::Limit { .. } => return Some(true),
                    _ => true,
                };
                return decided.then_some(false);
            }
        };
        bytes = after(&pickle, bytes).unwrap_or_default();
        let last = unread == 0 && bytes.trim_ascii().is_empty();
        if last || pickle.calls() > 0 || !pickle.imports().is_empty() {
            return Some(true);
        }
    }
    Some(true)
}

/// What follows `pickle` in `bytes`, which begin with it.
fn after<'a>(pickle: &Pickle, bytes: &'a [u8]) -> Option<&'a [u8]> {
    bytes.get(usize::try_from(pickle.end()).ok()?..)
}

/// Why the stream is not converted: an attack by its name, else its format.
pub fn refuse(source: &Source, stream: Stream) -> Result<Refusal> {
    let bytes = source.read_at(0, source.size().min(READ))?;
    if let Some(refusal) = attack(&bytes) {
        return Ok(refusal);
    }
    let what = match stream {
        Stream::Legacy => {
            "this is a checkpoint of the format before torch 1.6, which is not read yet"
        }
        Stream::Tar => {
            "this is a checkpoint of the tar format before torch 0.1.10, which is not read yet"
        }
        Stream::Plain => "this is a plain pickle, not a torch checkpoint; it is not read yet",
    };
    Ok(Refusal::new(Cause::Unsupported, what))
}

/// The first dangerous import of the pickles that follow each other in `bytes`.
fn attack(mut bytes: &[u8]) -> Option<Refusal> {
    for _ in 0..PICKLES {
        match pickle::parse(bytes, &limits()) {
            Ok(pickle) => {
                if let Some(refusal) = danger::find(pickle.imports()) {
                    return Some(refusal);
                }
                bytes = after(&pickle, bytes)?;
            }
            Err(failure) => return danger::find(&failure.imports),
        }
    }
    None
}
