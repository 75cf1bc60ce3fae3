//! What a file holds.

use serde::{Deserialize, Serialize};

use super::formats::{Format, Holds};
use super::refusal::{Cause, Refusal};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// A checkpoint, if perhaps a broken one.
    Checkpoint {
        format: Format,
        holds: Holds,
    },
    /// Something else under the name of a checkpoint.
    NotACheckpoint(Intruder),
    Safetensors,
    /// Anything else. Nothing in it is run by a loader of pickles.
    Other,
}

/// What is found in place of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intruder {
    Empty,
    LfsPointer,
    WebPage,
    SevenZip,
    Tar,
    Compressed,
    /// TorchScript before torch 1.4, which kept its modules in JSON.
    OldTorchScript,
    ZipWithoutPickle,
    /// A torch archive without the mark of zip archives.
    HeadlessZip,
}

impl Intruder {
    pub fn refusal(self) -> Refusal {
        let (cause, what) = match self {
            Intruder::Empty => (Cause::NotDownloaded, "the file is empty"),
            Intruder::LfsPointer => (
                Cause::LfsPointer,
                "this is a Git LFS pointer, not the file it points to",
            ),
            Intruder::WebPage => (
                Cause::NotDownloaded,
                "this is a web page (HTML), not a checkpoint: the download went wrong",
            ),
            Intruder::SevenZip => (
                Cause::Unsupported,
                "this is a 7z archive, which torch cannot load either; unpack it to have what is in it \
                 looked at",
            ),
            Intruder::Tar => (
                Cause::Unsupported,
                "this is a tar archive; unpack it to have the checkpoints in it looked at",
            ),
            Intruder::Compressed => (
                Cause::Unsupported,
                "this is a compressed stream, which torch cannot load either; unpack it to have what is \
                 in it looked at",
            ),
            Intruder::OldTorchScript => (
                Cause::Unsupported,
                "this is a TorchScript archive from before torch 1.4, with its modules in a model.json",
            ),
            Intruder::ZipWithoutPickle => (
                Cause::Unsupported,
                "this zip archive holds no checkpoint: there is no data.pkl in it",
            ),
            Intruder::HeadlessZip => (
                Cause::Headless,
                "the first two bytes of this torch archive were replaced by the program that wrote it, \
                 as GPT-SoVITS does, whose own loader puts them back",
            ),
        };
        Refusal::new(cause, what)
    }
}

impl Content {
    /// Whether the file is to be looked at as a checkpoint: converted or refused.
    pub fn is_checkpoint(self) -> bool {
        matches!(
            self,
            Content::Checkpoint { .. } | Content::NotACheckpoint(_)
        )
    }

    /// Whether the file itself is kept out of sight, as checkpoints are in which
    /// code may be hidden.
    pub fn is_hidden(self) -> bool {
        let holds = match self {
            Content::Checkpoint { holds, .. } => holds,
            _ => Holds::Pickles,
        };
        self.is_checkpoint() && holds == Holds::Pickles
    }

    /// Whether tensors lie in other files of the directory too.
    pub fn has_companions(self) -> bool {
        self.format().is_some_and(Format::has_companions)
    }

    /// The container, of a checkpoint.
    pub fn format(self) -> Option<Format> {
        match self {
            Content::Checkpoint { format, .. } => Some(format),
            _ => None,
        }
    }
}
