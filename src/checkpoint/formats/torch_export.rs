//! Archives of torch.export: a program, and beside it the weights, each storage an
//! entry of its own and a JSON file that says which tensor is which part of which
//! (torch/export/pt2_archive/_package.py, torch/_export/serde/schema.py). Before
//! torch 2.7 the state dict was a torch.save archive inside.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::candidate::{Candidate, Holds, Request, Zip};
use super::torch_zip;
use super::zip::{Archive, ZipEntry};
use crate::budget::Share;
use crate::checkpoint::archive::ArchiveEntry;
use crate::checkpoint::contents::{Checkpoint, Contents};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::layout::{Dense, Layout, MAX_RANK, StorageRef};
use crate::checkpoint::ledger::{LeftOut, Rule};
use crate::checkpoint::refusal::{Cause, Refusal, malformed, shown, too_large, unsupported};
use crate::checkpoint::storage::{Backing, Storage, StorageTable};
use crate::checkpoint::tensor::{Lazy, Tensor};
use crate::checkpoint::weights::{Wanted, below};
use crate::source::Span;

/// Longer lists of tensors are refused: those of 100,000 take 50 MiB.
const MAX_CONFIG: u64 = 64 << 20;
/// Bytes of memory for each byte of such a list.
const CONFIG: u64 = 2;
const MAX_TENSORS: usize = 1_000_000;

const WEIGHTS: &str = "_weights_config.json";
const CONSTANTS: &str = "_constants_config.json";
const OLD_WEIGHTS: &str = "serialized_state_dict.pt";
const OLD_CONSTANTS: &str = "serialized_constants.pt";

pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let Zip::Names(names) = file.zip()? else {
        return Ok(None);
    };
    let is_one = |name: &str| {
        let last = name.rsplit('/').next().unwrap_or_default();
        last == "archive_format" || last == OLD_WEIGHTS
    };
    match names.any(is_one) {
        Ok(is_one) => Ok(is_one.then_some(Holds::Pickles)),
        Err(Error::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the weights of an exported program.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    let archive = Archive::read(source.span(), request.share)?;
    let ending = |ending: &str| {
        let mut entries = archive.entries().iter();
        let found = entries.find(|entry| entry.name.ends_with(ending));
        (found, entries.any(|entry| entry.name.ends_with(ending)))
    };
    let (weights, more) = ending(WEIGHTS);
    if more {
        let what = "this is a torch.export archive of several programs";
        return Err(unsupported(what).into());
    }
    if let Some(weights) = weights {
        return Exported::read(&archive, weights, ending(CONSTANTS).0, request);
    }
    match ending(OLD_WEIGHTS).0 {
        Some(weights) => {
            let constants = ending(OLD_CONSTANTS).0;
            read_old(request, weights, constants)
        }
        None => {
            let what = "this is a torch.export archive without the weights of a program";
            Err(unsupported(what).into())
        }
    }
}

/// Reads the state dict in an archive of torch before 2.7.
fn read_old(
    request: &Request,
    weights: &ZipEntry,
    constants: Option<&ZipEntry>,
) -> Result<Checkpoint> {
    let mut checkpoint = inner(request, weights, request.wanted)?;
    let Some(constants) = constants else {
        return Ok(checkpoint);
    };
    let bytes = match inner(request, constants, Wanted::Rule) {
        Ok(constants) => constants
            .tensors
            .iter()
            .map(Tensor::bytes)
            .fold(0, u64::saturating_add),
        Err(Error::Refused(refusal)) if refusal.cause().is_no_weights() => 0,
        Err(Error::Refused(_)) => constants.size,
        Err(error) => return Err(error),
    };
    checkpoint.left_out.extend((bytes > 0).then(|| LeftOut {
        path: "constants".into(),
        rule: Rule::Constant,
        bytes,
    }));
    Ok(checkpoint)
}

/// Reads the torch.save archive that an entry is.
fn inner(request: &Request, weights: &ZipEntry, wanted: Wanted) -> Result<Checkpoint> {
    let Backing::File(start) = weights.storage()?.backing else {
        return Err(
            unsupported("the state dict of this torch.export archive is compressed").into(),
        );
    };
    let cut_off = |_| malformed("the state dict of this torch.export archive is cut off");
    let span = Span::new(request.source, start, weights.size).map_err(cut_off)?;
    torch_zip::read_span(span, wanted, request.share)?.moved(start)
}

/// A list of tensors.
#[derive(Deserialize)]
struct Config {
    config: BTreeMap<String, Payload>,
}

/// A tensor, or an object.
#[derive(Deserialize)]
struct Payload {
    /// The entry with its storage.
    path_name: String,
    #[serde(default)]
    use_pickle: bool,
    tensor_meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    dtype: u32,
    sizes: Vec<Number>,
    strides: Vec<Number>,
    storage_offset: Number,
}

/// A number of the program, where it is one.
#[derive(Deserialize)]
struct Number {
    as_int: Option<u64>,
}

/// The tensors of one archive.
struct Exported<'a> {
    archive: &'a Archive<'a>,
    share: &'a Share,
    contents: Contents,
    table: StorageTable,
    entries: Vec<ArchiveEntry>,
    /// Index and bytes of each storage, by the name of its entry.
    storages: HashMap<String, (u32, u64)>,
}

impl<'a> Exported<'a> {
    fn read(
        archive: &'a Archive<'a>,
        weights: &ZipEntry,
        constants: Option<&ZipEntry>,
        request: &Request<'a>,
    ) -> Result<Checkpoint> {
        let wanted = request.wanted;
        let mut exported = Exported {
            archive,
            share: request.share,
            contents: Contents::default(),
            table: StorageTable::default(),
            entries: Vec::new(),
            storages: HashMap::new(),
        };
        exported.check_byte_order(weights)?;
        let config = exported.config(weights)?;
        let root = match wanted {
            Wanted::Rule => None,
            Wanted::Exactly(root) => Some(root),
            Wanted::Preferred(root) => {
                let mut names = config.keys();
                names
                    .any(|name| below(name, root).is_some())
                    .then_some(root)
            }
        };
        exported.contents.root = root.map(str::to_string);
        for (name, payload) in &config {
            let path = match root {
                Some(root) => below(name, root),
                None => Some(name.as_str()),
            };
            let Some(path) = path else { continue };
            let layout = exported.layout(weights, payload);
            let layout = layout.map_err(|refusal| refusal.of_tensor(name))?;
            exported.contents.add(path, layout)?;
        }
        if let Some(constants) = constants {
            exported.leave_out(constants)?;
        }
        if exported.contents.tensors.is_empty() {
            return Err(match wanted {
                Wanted::Exactly(root) => Refusal::new(
                    Cause::NoSuchRoot,
                    format!("it has nothing at `{}`, which was asked for", shown(root)),
                ),
                _ => Refusal::new(Cause::NoTensors, "it holds no tensors"),
            }
            .into());
        }
        Ok(Checkpoint {
            entries: exported.entries,
            ..exported.contents.with(exported.table.into())
        })
    }

    /// What the JSON file `entry` lists.
    fn config(&self, entry: &ZipEntry) -> Result<BTreeMap<String, Payload>> {
        let text = self
            .archive
            .fetch(&[(entry, entry.whole(MAX_CONFIG)?)])?
            .pop();
        let text = entry.inflate(text.unwrap_or_default(), self.share)?;
        self.share
            .take((text.len() as u64).saturating_mul(CONFIG))?;
        let config: Config = serde_json::from_slice(&text).map_err(|error| {
            malformed(format!("the list of its tensors cannot be read: {error}"))
        })?;
        match config.config.len() <= MAX_TENSORS {
            true => Ok(config.config),
            false => Err(too_large("it has too many tensors").into()),
        }
    }

    fn check_byte_order(&self, weights: &ZipEntry) -> Result<()> {
        let root = weights.name.split('/').next().unwrap_or_default();
        let Some(entry) = self.archive.entry(&format!("{root}/byteorder")) else {
            return Ok(());
        };
        let order = self.archive.fetch(&[(entry, entry.whole(16)?)])?.pop();
        match entry
            .inflate(order.unwrap_or_default(), self.share)?
            .as_slice()
        {
            b"little" => Ok(()),
            _ => Err(unsupported("it was written on a big-endian machine").into()),
        }
    }

    fn layout(
        &mut self,
        config: &ZipEntry,
        payload: &Payload,
    ) -> std::result::Result<Layout, Refusal> {
        let (false, Some(meta)) = (payload.use_pickle, &payload.tensor_meta) else {
            return Err(unsupported(
                "it is of a tensor subclass, which is pickled by itself",
            ));
        };
        let element = ElementType::of_export_number(meta.dtype);
        let element = element.ok_or_else(|| unsupported("its dtype is unknown"))?;
        let number = |number: &Number| {
            number
                .as_int
                .ok_or_else(|| malformed("one of its sizes is no number from 0"))
        };
        if meta.sizes.len() > MAX_RANK || meta.strides.len() > MAX_RANK {
            return Err(too_large("it has too many dimensions"));
        }
        let (index, len) = self.storage(config, &payload.path_name)?;
        let dense = Dense {
            storage: StorageRef {
                index,
                start: 0,
                len,
                swap: false,
            },
            element,
            offset: number(&meta.storage_offset)?,
            sizes: meta
                .sizes
                .iter()
                .map(number)
                .collect::<std::result::Result<_, _>>()?,
            strides: meta
                .strides
                .iter()
                .map(number)
                .collect::<std::result::Result<_, _>>()?,
            lazy: Lazy::default(),
        };
        dense.layout()
    }

    /// The storage in the entry `name` beside `config`.
    fn storage(
        &mut self,
        config: &ZipEntry,
        name: &str,
    ) -> std::result::Result<(u32, u64), Refusal> {
        if let Some(known) = self.storages.get(name) {
            return Ok(*known);
        }
        let entry = self.beside(config, name);
        let entry = entry.ok_or_else(|| {
            malformed(format!(
                "its storage `{}` is missing in the archive",
                shown(name)
            ))
        })?;
        let storage: Storage = entry.storage()?;
        self.entries.push(ArchiveEntry::of(entry));
        let known = (self.table.add(storage)?, entry.size);
        self.storages.insert(name.to_string(), known);
        Ok(known)
    }

    fn beside(&self, config: &ZipEntry, name: &str) -> Option<&'a ZipEntry> {
        let (folder, _) = config.name.rsplit_once('/')?;
        self.archive.entry(&format!("{folder}/{name}"))
    }

    /// Constants are of the program: literals, attributes, buffers that are not to be
    /// saved.
    fn leave_out(&mut self, constants: &ZipEntry) -> Result<()> {
        for (name, payload) in self.config(constants)? {
            if payload.tensor_meta.is_none() {
                continue;
            }
            let entry = self.beside(constants, &payload.path_name);
            self.contents.left_out.push(LeftOut {
                path: name,
                rule: Rule::Constant,
                bytes: entry.map_or(0, |entry| entry.size),
            });
        }
        Ok(())
    }
}
