//! The containers that checkpoints come in: one file for each, and a line in the
//! table.

pub mod candidate;
pub mod distributed;
mod legacy;
mod legacy_tar;
mod npy;
mod npz;
mod plain;
pub mod safetensors;
mod torch_export;
mod torch_zip;
pub mod zip;

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::contents::Checkpoint;
use super::error::Result;
use crate::budget::Share;
use crate::source::Source;
use candidate::{Candidate, Request};

pub use candidate::Holds;
pub use plain::shows_pickle;
pub use torch_zip::is_headless;

/// A file is held against these in this order.
static CONTAINERS: &[Container] = &[
    Container::new("torch zip", torch_zip::sniff, torch_zip::read).told_by(torch_zip::fingerprint),
    Container::new("torch export", torch_export::sniff, torch_export::read),
    Container::new("npz", npz::sniff, npz::read),
    Container::new("npy", npy::sniff, npy::read),
    Container::new("distributed", distributed::sniff, distributed::read).with_companions(),
    Container::new("torch stream", legacy::sniff, legacy::read),
    Container::new("torch tar", legacy_tar::sniff, legacy_tar::read),
    Container::new("pickle", plain::sniff, plain::read).or_without_mark(plain::is_unmarked),
];

/// Gives a hash of the contents of a file, if that is cheap.
type TellApart = fn(&Source, &Share) -> Result<Option<[u8; 32]>>;

/// A container.
struct Container {
    /// What it is called, here and in records of the cache.
    name: &'static str,
    /// What a file holds that is of this container.
    sniff: fn(&Candidate) -> Result<Option<Holds>>,
    read: fn(&Request) -> Result<Checkpoint>,
    has_companions: bool,
    fingerprint: Option<TellApart>,
    /// Whether a file that nothing else is known of is of this container: looked at
    /// only if its name promises a checkpoint.
    is_unmarked: Option<fn(&Candidate) -> Result<bool>>,
}

impl Container {
    const fn new(
        name: &'static str,
        sniff: fn(&Candidate) -> Result<Option<Holds>>,
        read: fn(&Request) -> Result<Checkpoint>,
    ) -> Container {
        Container {
            name,
            sniff,
            read,
            has_companions: false,
            fingerprint: None,
            is_unmarked: None,
        }
    }

    const fn told_by(self, fingerprint: TellApart) -> Container {
        Container {
            fingerprint: Some(fingerprint),
            ..self
        }
    }

    const fn with_companions(self) -> Container {
        Container {
            has_companions: true,
            ..self
        }
    }

    const fn or_without_mark(self, is_unmarked: fn(&Candidate) -> Result<bool>) -> Container {
        Container {
            is_unmarked: Some(is_unmarked),
            ..self
        }
    }
}

/// One of the containers. It is written down by its name.
#[derive(Clone, Copy)]
pub struct Format(&'static Container);

impl Format {
    /// The container that the file shows itself to be of, and what it holds.
    pub fn of(file: &Candidate) -> Result<Option<(Format, Holds)>> {
        for container in CONTAINERS {
            if let Some(holds) = (container.sniff)(file)? {
                return Ok(Some((Format(container), holds)));
            }
        }
        Ok(None)
    }

    /// The container that a file is of which shows nothing.
    pub fn of_unmarked(file: &Candidate) -> Result<Option<Format>> {
        for container in CONTAINERS {
            if let Some(is_unmarked) = container.is_unmarked
                && is_unmarked(file)?
            {
                return Ok(Some(Format(container)));
            }
        }
        Ok(None)
    }

    pub fn read(self, input: &Request) -> Result<Checkpoint> {
        (self.0.read)(input)
    }

    /// What tells the file from any other of this container, if that is cheap.
    pub fn fingerprint(self, source: &Source, share: &Share) -> Result<Option<[u8; 32]>> {
        match self.0.fingerprint {
            Some(fingerprint) => fingerprint(source, share),
            None => Ok(None),
        }
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        self.0.name
    }

    /// Whether tensors lie in other files of the directory too.
    pub fn has_companions(self) -> bool {
        self.0.has_companions
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Format) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Format, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = CONTAINERS.iter().find(|container| container.name == name);
        known
            .map(Format)
            .ok_or_else(|| D::Error::custom("no such container"))
    }
}
