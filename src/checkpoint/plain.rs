//! Pickles without torch's zip container: plain `pickle.dump`, and the streams of
//! old torch versions that begin with one. They are told apart and looked at for
//! dangerous imports; their tensors are not read yet.

use super::refusal::{Cause, Refusal};
use super::sniff::Stream;
use super::{Result, danger};
use crate::pickle::{self, Limits};
use crate::source::Source;

/// How much of a stream is read to find out what its pickle imports.
const READ: u64 = 64 << 20;

/// Whether the head of a file with a protocol mark goes on as a pickle would.
pub fn starts_like_pickle(head: &[u8]) -> bool {
    matches!(head, [0x80, 0..=5, opcode, ..] if pickle::is_opcode(*opcode))
}

/// Whether a file without a protocol mark is a pickle: it can be read as one to
/// its end, or imports something before it breaks.
pub fn is_unmarked_pickle(source: &Source, head: &[u8]) -> Result<bool> {
    if source.size() > READ || !head.first().is_some_and(|byte| pickle::is_opcode(*byte)) {
        return Ok(false);
    }
    let bytes = source.read_at(0, source.size())?;
    Ok(match pickle::parse(&bytes, &Limits::default()) {
        Ok(pickle) => {
            let rest = bytes.get(pickle.end()..).unwrap_or_default();
            !pickle.imports().is_empty() || rest.trim_ascii().is_empty()
        }
        Err(failure) => !failure.imports.is_empty(),
    })
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
    // A legacy file has four small pickles around the one with the objects.
    for _ in 0..8 {
        match pickle::parse(bytes, &Limits::default()) {
            Ok(pickle) => {
                if let Some(refusal) = danger::find(pickle.imports()) {
                    return Some(refusal);
                }
                bytes = bytes.get(pickle.end()..)?;
            }
            Err(failure) => return danger::find(&failure.imports),
        }
    }
    None
}
