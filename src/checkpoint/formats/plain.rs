//! Plain `pickle.dump`, as detectron2, Caffe2 and Paddle keep arrays in, and joblib
//! nearly so; and how to tell a pickle from other files.

use super::candidate::{Candidate, Holds, Request};
use crate::budget::Share;
use crate::checkpoint::contents::Checkpoint;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::layout::StorageRef;
use crate::checkpoint::objects::{Follows, SavedStorage, Storages, Torch, follows};
use crate::checkpoint::refusal::{Cause, Refusal};
use crate::checkpoint::storage::StorageTable;
use crate::checkpoint::{stream, verdict, walk};
use crate::pickle::{self, ErrorKind, Limits, Parser, Pickle, Step, Window};
use crate::source::{Found, Source};

/// How much of a stream is read to find out what its pickles import.
const READ: u64 = 64 << 20;
/// How much is read first, which is enough to tell most files from a pickle.
const FIRST: u64 = 64 << 10;
/// Pickles that are looked at in one stream: a legacy file has four small ones
/// around the one with the objects.
const PICKLES: usize = 8;

/// Bounds for a look at a stream whose objects are not wanted.
fn limits(share: &Share) -> Limits<'_> {
    Limits {
        memory: 64 << 20,
        ..Limits::sharing(share)
    }
}

pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    Ok(shows_pickle(file)?.then_some(Holds::Pickles))
}

/// Whether a file shows itself to be a pickle, whatever its name promises.
pub fn shows_pickle(file: &Candidate) -> Result<bool> {
    Ok(file.is_marked_pickle() || file.is_doubtfully_marked() && is_unmarked(file)?)
}

/// Whether a file without a protocol mark is a pickle: protocols 0 and 1 have none.
/// It is one if it can be read as one to its end, or does something when it is
/// loaded, if only until it breaks.
pub fn is_unmarked(file: &Candidate) -> Result<bool> {
    let source = file.source;
    for read in [FIRST, READ] {
        let read = source.size().min(read);
        let unread = source.size() - read;
        let judged = file.share.returning(|| {
            file.share.take(read)?;
            Result::Ok(judge(&source.read_at(0, read)?, unread, file.share))
        });
        match judged {
            Ok(Some(known)) => return Ok(known),
            // What takes so much is not shown as it is.
            Err(Error::Refused(_)) => return Ok(true),
            Ok(None) => {}
            Err(error) => return Err(error),
        }
    }
    // No other file goes on as a pickle for so long.
    Ok(true)
}

/// Whether `bytes`, which `unread` more follow, are pickles; None when only
/// those can tell.
fn judge(mut bytes: &[u8], unread: u64, share: &Share) -> Option<bool> {
    for _ in 0..PICKLES {
        let pickle = match pickle::parse(bytes, &limits(share)) {
            Ok(pickle) => pickle,
            // An import alone is no sign: in a list of words, a `c` before two
            // lines looks like one.
            Err(error) if error.calls > 0 || verdict::find(&error.imports).is_some() => {
                return Some(true);
            }
            Err(error) => {
                let decided = match error.kind {
                    ErrorKind::NoStop | ErrorKind::NoNewline => unread == 0,
                    ErrorKind::Truncated { announced, left } => {
                        announced.saturating_sub(left) > unread
                    }
                    ErrorKind::Limit { .. } | ErrorKind::Memory(_) => return Some(true),
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

/// Reads the checkpoint in a pickle.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    let window = stream::window(source);
    let share = request.share;
    let pickle = parse(&window, share)?;
    if let Some(attack) = verdict::find_in(&pickle) {
        return Err(attack.into());
    }
    refuse_more(request, pickle.end())?;
    if pickle.has_persistent() && is_unpacked(request) {
        return Err(Refusal::new(
            Cause::Unpacked,
            "this is a part of an archive of torch.save that was unpacked, as Safari does with \
             downloads: its storages are files of their own beside it",
        )
        .into());
    }
    let mut torch = Torch::new(&pickle, Nowhere(source));
    let contents = walk::read(&mut torch, request.wanted, share)?;
    Ok(contents.with(torch.into_storages()))
}

/// Whether beside the file lies what lies beside the pickle in an archive of
/// torch.save.
fn is_unpacked(request: &Request) -> bool {
    let find = |name: &str| request.directory.stat(name.as_ref());
    matches!(find("version"), Ok(Found::File(_))) && matches!(find("data"), Ok(Found::Directory(_)))
}

/// Reads the pickle at the start of a file, and where joblib put the bytes of
/// arrays between its opcodes.
fn parse<'a>(window: &'a Window<'a, Source>, share: &Share) -> Result<Pickle<'a>> {
    let limits = Limits::sharing(share);
    let mut parser = Parser::new(window, 0, &limits);
    loop {
        let built = match parser.resume().map_err(stream::refuse)? {
            Step::Done(pickle) => return Ok(pickle),
            Step::Built(built) => built,
        };
        let behind = follows(parser.objects(), built);
        let attack = |refusal| verdict::find(parser.imports()).unwrap_or(refusal);
        let (gap, len) = match behind.map_err(attack)? {
            None => continue,
            Some(Follows::Bytes {
                len,
                aligned: false,
            }) => (0, len),
            Some(Follows::Bytes { len, aligned: true }) => {
                // A byte says how many follow it.
                let padding = parser.peek().map_err(stream::refuse)?.unwrap_or(0);
                (1 + u64::from(padding), len)
            }
            Some(Follows::Pickle) => {
                let start = parser.offset();
                let inner = pickle::parse_at(window, start, &limits).map_err(stream::refuse)?;
                if let Some(attack) = verdict::find_in(&inner) {
                    return Err(attack.into());
                }
                (0, inner.end() - start)
            }
        };
        parser.claim(built, gap, len).map_err(stream::refuse)?;
    }
}

/// Refuses what follows a pickle, but for blanks: it would be left out.
fn refuse_more(request: &Request, end: u64) -> Result<()> {
    let (source, share) = (request.source, request.share);
    let rest = source.size().saturating_sub(end);
    share.take(rest.min(READ))?;
    let bytes = source.read_at(end, rest.min(READ))?;
    if bytes.trim_ascii().is_empty() && rest <= READ {
        return Ok(());
    }
    let more = || {
        let what =
            format!("{rest} bytes follow the pickle: perhaps it is one of several in this file");
        Refusal::new(Cause::Unsupported, what)
    };
    Err(attack(&bytes, share).unwrap_or_else(more).into())
}

/// A pickle without a container has no storages beside it, only some inside.
struct Nowhere<'a>(&'a Source);

impl Storages for Nowhere<'_> {
    const PARTS: usize = 5;

    fn source(&self) -> Option<&Source> {
        Some(self.0)
    }

    fn resolve(
        &mut self,
        _: &mut StorageTable,
        _: &SavedStorage,
    ) -> std::result::Result<StorageRef, Refusal> {
        Err(Refusal::new(
            Cause::Malformed,
            "its storage is not in the file, which is a pickle without a container",
        ))
    }
}

/// The first dangerous import of the pickles that follow each other in `bytes`.
fn attack(mut bytes: &[u8], share: &Share) -> Option<Refusal> {
    for _ in 0..PICKLES {
        match pickle::parse(bytes, &limits(share)) {
            Ok(pickle) => {
                if let Some(refusal) = verdict::find(pickle.imports()) {
                    return Some(refusal);
                }
                bytes = after(&pickle, bytes)?;
            }
            Err(failure) => return verdict::find(&failure.imports),
        }
    }
    None
}
