//! Why a checkpoint is not converted, in words for the person who has it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::budget::TooMuch;

/// A checkpoint refused as a whole: what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    cause: Cause,
    what: String,
}

/// The kinds of reasons; each has its own remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The bytes are not the model's: a pointer, an error page, a part of the file.
    NotDownloaded,
    /// A Git LFS pointer.
    LfsPointer,
    /// Being written at the moment.
    Changing,
    /// Cannot be read with the rights of the process.
    Unreadable,
    /// A container or an object that is not read.
    Unsupported,
    /// Readers disagree on what the file says.
    Ambiguous,
    /// Made to run code when loaded.
    Dangerous,
    /// Contradicts itself or its format.
    Malformed,
    /// Says something that safetensors cannot.
    Inexpressible,
    /// Stays above a limit that keeps hostile files cheap.
    TooLarge,
    /// Holds no tensors.
    NoTensors,
    /// Is what an optimizer left behind.
    OptimizerState,
    /// Has nothing at the path that was asked for.
    NoSuchRoot,
    /// Is a file of a directory that is one checkpoint.
    InDirectory,
    /// Is no checkpoint, and not in the place of one.
    OtherKind,
    /// Is a part that one of several processes wrote.
    Part,
    /// Has keys that are no names of tensors.
    Names,
    /// A torch archive whose first bytes were replaced.
    Headless,
    /// A torch archive packed again with names that only Windows understands.
    Backslashes,
    /// A part of a torch archive that was unpacked.
    Unpacked,
    /// A link that leads where it is not followed.
    Blocked,
    /// A link that leads back to itself.
    Circular,
    /// Takes more memory than one file may take here.
    Memory,
    /// What leads into the mount itself, or may.
    Younger,
}

impl Cause {
    /// Whether it holds for as long as the file stays as it is, whoever looks at it, with
    /// whatever memory.
    pub fn is_lasting(self) -> bool {
        !matches!(self, Cause::Changing | Cause::Unreadable | Cause::Memory)
    }

    /// Whether there is nothing in the file that could be weights.
    pub fn is_no_weights(self) -> bool {
        matches!(self, Cause::NoTensors | Cause::OptimizerState)
    }
}

impl Refusal {
    pub fn new(cause: Cause, what: impl Into<String>) -> Refusal {
        Refusal {
            cause,
            what: what.into(),
        }
    }

    /// The same reason, said of one tensor.
    pub fn of_tensor(self, name: &str) -> Refusal {
        Refusal {
            cause: self.cause,
            what: format!("tensor `{}`: {}", shown(name), self.what),
        }
    }

    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// What to do about it: one or two sentences.
    pub fn remedy(&self) -> &'static str {
        match self.cause {
            Cause::NotDownloaded => "Download the file again.",
            Cause::LfsPointer => "Run `git lfs pull` in the repository to fetch the file itself.",
            Cause::Changing => {
                "Look again when it has been written; nothing needs to be remounted."
            }
            Cause::Unreadable => {
                "Give the user who mounted it the right to read the file, or mount as another user."
            }
            Cause::Unsupported => {
                "Ask whoever made it for the weights as safetensors. Loading it yourself would run \
                 whatever code it names."
            }
            Cause::Ambiguous => {
                "Do not trust the file: what a reader sees depends on the reader. Get it again from a \
                 source you trust, as safetensors if you can."
            }
            Cause::Dangerous => {
                "Do not load it: it is made to run code on the machine that loads it. Get the weights \
                 from a source you trust, as safetensors."
            }
            Cause::Malformed => {
                "Download the file again; if it stays like this, ask whoever made it for a whole one."
            }
            Cause::Inexpressible => {
                "Ask whoever made it to convert these tensors to a type that safetensors has before \
                 saving them."
            }
            Cause::TooLarge => {
                "If the file is what it should be, ask whoever made it to save its tensors as contiguous \
                 copies, or as safetensors."
            }
            Cause::Part => {
                "Have the parts of all ranks put together by whoever made them: the scripts that do, \
                 such as DeepSpeed's, load them, which runs whatever code they name."
            }
            Cause::Names => {
                "Ask whoever made it to save it under keys that are text, and differ from each other \
                 when they are joined with dots."
            }
            Cause::NoSuchRoot => "`stfs ls` without `--root` says what there is.",
            Cause::InDirectory => {
                "Ask for the `.metadata`; a mount shows the directory as one file."
            }
            Cause::OtherKind => "Nothing needs to be done: a mount shows it as it is.",
            Cause::OptimizerState => "Nothing needs to be done: training leaves such files behind.",
            Cause::NoTensors => "Nothing needs to be done unless it was meant to hold weights.",
            Cause::Headless => {
                "Put them back in a copy of the file, and it is read: \
                 `printf PK | dd of=COPY conv=notrunc`."
            }
            Cause::Backslashes => {
                "Unpack it and pack its folder again with `zip -0 -r model.pth FOLDER`, or download the \
                 original."
            }
            Cause::Unpacked => {
                "Pack the folder again, from the one around it, with `zip -0 -r model.pth FOLDER`, or \
                 download the file again with unpacking turned off."
            }
            Cause::Blocked => {
                "Put what it leads to into the mounted directory, or mount it for yourself alone."
            }
            Cause::Memory => {
                "If the file is what it should be, mount with a larger `--memory`: one file may take half \
                 of it."
            }
            Cause::Circular => "Remove the link, or let it lead to the file that it is meant for.",
            Cause::Younger => {
                "If it is another mount, make this one again, after it; if it is this one, nothing needs \
                 to be done."
            }
        }
    }
}

/// `text` from a file as a message shows it: control characters escaped, and
/// cut after a line or so.
pub fn shown(text: &str) -> String {
    const MAX: usize = 120;
    let mut chars = text.chars();
    let mut shown: String = chars
        .by_ref()
        .take(MAX)
        .flat_map(char::escape_debug)
        .collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

impl From<TooMuch> for Refusal {
    fn from(much: TooMuch) -> Refusal {
        Refusal::new(Cause::Memory, much.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Refusal {}

/// Contradicts itself or its format.
pub fn malformed(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Malformed, what)
}

/// Is a container or an object that is not read.
pub fn unsupported(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Unsupported, what)
}

/// Is above a limit that keeps hostile files cheap.
pub fn too_large(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::TooLarge, what)
}

/// Is something else to another reader.
pub fn ambiguous(what: impl Into<String>) -> Refusal {
    Refusal::new(Cause::Ambiguous, what)
}
