//! Directories of torch.distributed.checkpoint: a pickle `.metadata` that says
//! how each tensor is cut into boxes, and files `__RANK_NUMBER.distcp` in which
//! each box is a torch.save archive of its own
//! (torch/distributed/checkpoint/metadata.py, filesystem.py).

mod metadata;
mod tree;

use std::collections::{HashMap, HashSet};

use super::candidate::{Candidate, Holds, Request};
use super::torch_zip;
use crate::budget::Share;
use crate::checkpoint::archive::ArchiveEntry;
use crate::checkpoint::companions::Companion;
use crate::checkpoint::contents::{Checkpoint, Contents, Other};
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::ledger::{LeftOut, Rule};
use crate::checkpoint::refusal::{Cause, Refusal, shown, too_large};
use crate::checkpoint::storage::{Backing, Storage, StorageTable, Tile, Tiling};
use crate::checkpoint::stream;
use crate::checkpoint::tensor::{Lazy, Tensor};
use crate::checkpoint::training;
use crate::checkpoint::weights::{self, Values, Wanted};
use crate::source::{self, Source, Span, Tree};
use metadata::{BoxIndex, Cut, Location, Manifest, Region, Saved};
use tree::{StateDict, TOP};

pub use metadata::PARTS;

/// Longer metadata are refused: 100,000 boxes take 30 MiB.
const MAX_METADATA: u64 = 256 << 20;
/// Bytes of memory for each box besides its numbers and its name.
const BOX: usize = 1 << 10;
/// Objects that are looked into for tensors.
const MAX_OBJECTS: usize = 10_000;
/// Pairs of boxes that are compared to see whether they overlap.
const MAX_PAIRS: u64 = 1 << 28;

/// The first thing that the pickle imports is a name of this module.
pub fn sniff(file: &Candidate) -> Result<Option<Holds>> {
    let is_one = file.is_marked_pickle() && file.shows(metadata::METADATA.as_bytes());
    Ok(is_one.then_some(Holds::Pickles))
}

/// Reads the checkpoint whose `.metadata` is the file, and whose boxes lie in its
/// companions. The names are those of the state dict that was saved.
pub fn read(request: &Request) -> Result<Checkpoint> {
    let source = request.source;
    if source.size() > MAX_METADATA {
        return Err(too_large("its metadata are too long").into());
    }
    request.share.take(source.size())?;
    let bytes = source.read_at(0, source.size())?;
    let pickle = stream::parse(&bytes, request.share)?;
    let manifest = Manifest::read(&pickle)?;
    let mut tree = StateDict::of(&manifest)?;
    let picked = weights::pick(&mut tree, TOP, request.wanted)?;
    let mut parts = Assembler {
        directory: request.directory,
        share: request.share,
        locations: &manifest.locations,
        used: HashSet::new(),
        files: Vec::new(),
        checkpoint: Checkpoint::default(),
        contents: Contents::default(),
        table: StorageTable::default(),
        names: HashSet::new(),
        pairs: 0,
        objects: 0,
    };
    if !picked.asked {
        for beside in &picked.beside {
            let at_top = beside.holder == TOP;
            parts.pass_by(&mut tree, beside.value, &beside.path, at_top)?;
        }
    }
    let name = picked.name.as_deref().unwrap_or("tensor");
    parts.walk(&tree, picked.value, name)?;
    if !picked.path.is_empty() && (picked.path != "state_dict" || picked.asked) {
        parts.contents.root = Some(picked.path);
    }
    parts.finish()
}

/// A file beside the metadata.
struct BoxFile {
    file: Companion,
    source: Source,
    /// Bytes that no box has claimed.
    left: u64,
}

/// The tensors, put together from the files beside `.metadata`.
struct Assembler<'a> {
    directory: &'a dyn Tree,
    share: &'a Share,
    locations: &'a HashMap<BoxIndex<'a>, Location<'a>>,
    /// Boxes that were read.
    used: HashSet<BoxIndex<'a>>,
    files: Vec<BoxFile>,
    checkpoint: Checkpoint,
    contents: Contents,
    table: StorageTable,
    names: HashSet<String>,
    /// What was spent of [`MAX_PAIRS`].
    pairs: u64,
    /// What was spent of [`MAX_OBJECTS`].
    objects: usize,
}

impl<'a> Assembler<'a> {
    /// Adds the tensors at and below `start`, by their paths from there. One that is
    /// `start` itself is called `name`.
    fn walk(&mut self, tree: &StateDict<'a>, start: usize, name: &str) -> Result<()> {
        let mut pending = vec![(start, String::new())];
        while let Some((node, path)) = pending.pop() {
            let form = tree.optimizer(node);
            match tree.saved(node) {
                Some((saved_as, Saved::Tensor(cut))) => {
                    let path = match path.is_empty() {
                        true => name,
                        false => &path,
                    };
                    let added = self.add(path, saved_as, cut);
                    added.map_err(|error| match error {
                        Error::Refused(refusal) => refusal.of_tensor(saved_as).into(),
                        error => error,
                    })?;
                }
                Some((saved_as, Saved::Object(location))) => {
                    self.object(&path, saved_as, *location)?;
                }
                None => {}
            }
            for child in tree.children(node).iter().rev() {
                let key = tree.key(*child);
                let below = match path.is_empty() {
                    true => key.to_string(),
                    false => format!("{path}.{key}"),
                };
                let is_slot = form.is_some_and(|form| form.has(key));
                let rule = match is_slot {
                    true => Some(Rule::OptimizerState),
                    false => rule_for(tree, *child, node == TOP),
                };
                match rule {
                    Some(rule) => self.leave_out(tree, *child, &below, rule),
                    None => pending.push((*child, below)),
                }
            }
        }
        Ok(())
    }

    /// Takes note of a value that the way to the weights leads past.
    fn pass_by(
        &mut self,
        tree: &mut StateDict<'a>,
        node: usize,
        path: &str,
        at_top: bool,
    ) -> Result<()> {
        if let Some(rule) = rule_for(tree, node, at_top) {
            self.leave_out(tree, node, path, rule);
        } else if !tree.holds_weights(&(None, node), false)? && tree.tensors(node).next().is_some()
        {
            self.leave_out(tree, node, path, Rule::OptimizerState);
        } else if tree.tensors(node).next().is_some() {
            self.leave_out(tree, node, path, Rule::OtherRoot);
            self.contents.roots.push(path.to_string());
        } else {
            for object in tree.below(node) {
                if let Some((saved_as, Saved::Object(location))) = tree.saved(object) {
                    self.object(saved_as, saved_as, *location)?;
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, tree: &StateDict<'a>, node: usize, path: &str, rule: Rule) {
        let bytes = tree.tensors(node).map(|tensor| match tree.saved(tensor) {
            Some((_, Saved::Tensor(cut))) => {
                let shape = cut.shape.iter();
                shape.fold(cut.dtype.size(), |bytes, size| bytes.saturating_mul(*size))
            }
            _ => 0,
        });
        let bytes = bytes.fold(0, u64::saturating_add);
        self.contents.left_out.push(LeftOut {
            path: path.to_string(),
            rule,
            bytes,
        });
    }

    /// Takes note of an object, which must hold no tensors.
    fn object(&mut self, path: &str, name: &str, location: Option<Location<'a>>) -> Result<()> {
        self.contents.others.push(Other {
            path: shown(path),
            kind: "object".into(),
            repr: "left out".into(),
            value: None,
        });
        let Some(location) = location else {
            return Ok(());
        };
        self.objects += 1;
        if self.objects > MAX_OBJECTS {
            return Err(too_large("it has too many objects that are no tensors").into());
        }
        let file = self.file(location.file)?;
        let part = &self.files[file as usize];
        let span = Span::new(&part.source, location.offset, location.len).map_err(|_| {
            let what = "it lies past the end of its file: the file was cut off";
            Refusal::new(Cause::Malformed, what).of_tensor(name)
        })?;
        let found = (self.share).returning(|| torch_zip::read_span(span, Wanted::Rule, self.share));
        match found {
            Ok(found) if found.tensors.is_empty() => Ok(()),
            Ok(_) => Err(Refusal::new(
                Cause::Unsupported,
                format!(
                    "`{}` was saved as one object, with tensors inside that would be lost",
                    shown(name)
                ),
            )
            .into()),
            Err(Error::Refused(refusal)) => match refusal.cause() {
                Cause::NoTensors => Ok(()),
                Cause::OptimizerState => {
                    self.contents.left_out.push(LeftOut {
                        path: path.to_string(),
                        rule: Rule::OptimizerState,
                        bytes: location.len,
                    });
                    Ok(())
                }
                _ => Err(refusal.of_tensor(name).into()),
            },
            Err(error) => Err(error),
        }
    }

    fn finish(mut self) -> Result<Checkpoint> {
        let no_tensors = |what| Err(Refusal::new(Cause::NoTensors, what).into());
        if self.contents.tensors.is_empty() {
            let mut rules = self.contents.left_out.iter();
            return match rules.find(|entry| !entry.rule.is_no_weights()) {
                Some(entry) => Err(Refusal::new(
                    Cause::Unsupported,
                    format!("all of its tensors would be left out: {}", entry.rule),
                )
                .into()),
                None if self.contents.left_out.is_empty() => no_tensors("it holds no tensors"),
                None => {
                    no_tensors("it holds nothing but the states of optimizers and random numbers")
                }
            };
        }
        for part in &self.files {
            part.source.check_version()?;
        }
        self.checkpoint.companions = self.files.into_iter().map(|part| part.file).collect();
        let Checkpoint {
            companions,
            entries,
            ..
        } = self.checkpoint;
        Ok(Checkpoint {
            companions,
            entries,
            ..self.contents.with(self.table.into())
        })
    }

    /// Adds a tensor under the name `path`, which was saved as `name`.
    fn add(&mut self, path: &str, name: &'a str, cut: &Cut) -> Result<()> {
        self.check(cut)?;
        if path == "__metadata__" || !self.names.insert(path.to_string()) {
            let what = "its name is taken in safetensors files, or by another tensor";
            return Err(Refusal::new(Cause::Inexpressible, what).into());
        }
        let ElementType::Plain(dtype) = cut.dtype else {
            let what = "it is of a type that is not read from distributed checkpoints";
            return Err(Refusal::new(Cause::Unsupported, what).into());
        };
        for region in &cut.regions {
            let numbers = region.start.len() + cut.shape.len() * 4;
            self.share
                .take((BOX + path.len() + name.len() + numbers * 8) as u64)?;
        }
        let mut tiles = Vec::with_capacity(cut.regions.len());
        for region in &cut.regions {
            tiles.push(self.tile(name, region, cut.dtype)?);
        }
        tiles.sort_by(|a, b| a.start.cmp(&b.start));
        let (tensor, storage) = match tiles.len() {
            1 => {
                let Tile {
                    tensor, storage, ..
                } = tiles.remove(0);
                (tensor, storage)
            }
            _ => whole(dtype, cut, tiles)?,
        };
        self.contents.tensors.push(Tensor {
            name: path.to_string(),
            storage: self.table.add(storage)?,
            ..tensor
        });
        Ok(())
    }

    /// The boxes must cover the tensor, each element once.
    fn check(&mut self, cut: &Cut) -> std::result::Result<(), Refusal> {
        let malformed = |what: &str| Err(Refusal::new(Cause::Malformed, what));
        let volume = |sizes: &[u64]| {
            let mut sizes = sizes.iter();
            sizes.try_fold(1_u64, |volume, size| volume.checked_mul(*size))
        };
        let mut covered = Some(0_u64);
        for Region { start, sizes } in &cut.regions {
            let inside = start.len() == cut.shape.len()
                && sizes.len() == cut.shape.len()
                && (start.iter().zip(sizes).zip(&cut.shape)).all(|((start, size), whole)| {
                    start.checked_add(*size).is_some_and(|end| end <= *whole)
                });
            if !inside {
                return malformed("a box of it reaches past its end");
            }
            covered = covered.and_then(|covered| covered.checked_add(volume(sizes)?));
        }
        if covered.is_none() || covered != volume(&cut.shape) {
            return malformed("its boxes do not cover it once");
        }
        // Swept along the first dimension: a box is compared with those that
        // begin before it ends.
        let regions = cut.regions.iter();
        let mut regions: Vec<&Region> = regions
            .filter(|region| !region.sizes.contains(&0))
            .collect();
        regions.sort_unstable();
        for (at, region) in regions.iter().enumerate() {
            let later = regions.get(at + 1..).unwrap_or_default();
            for other in later.iter().take_while(|other| region.reaches(other)) {
                self.pairs += 1;
                if self.pairs > MAX_PAIRS {
                    return Err(too_large("it is cut into too many boxes"));
                }
                if region.overlaps(other) {
                    return malformed("its boxes overlap");
                }
            }
        }
        Ok(())
    }

    /// The box `region` of `name`, which is an archive of one tensor.
    fn tile(&mut self, name: &'a str, region: &Region, dtype: ElementType) -> Result<Tile> {
        let malformed = |what| Error::from(Refusal::new(Cause::Malformed, what));
        let index = (name, region.start.clone());
        let location = self.locations.get(&index);
        let location = location.filter(|_| self.used.insert(index));
        let location = location.ok_or_else(|| malformed("the place of a box of it is missing"))?;
        let file = self.file(location.file)?;
        let part = &mut self.files[file as usize];
        let span = Span::new(&part.source, location.offset, location.len).map_err(|_| {
            malformed("a box of it lies past the end of its file: the file was cut off")
        })?;
        // Reading all boxes costs no more than reading the files once.
        part.left = (part.left.checked_sub(location.len))
            .ok_or_else(|| malformed("its boxes share bytes of one file"))?;
        let Checkpoint {
            mut tensors,
            mut storages,
            notes,
            entries,
            ..
        } = (self.share).returning(|| torch_zip::read_span(span, Wanted::Rule, self.share))?;
        let (Some(tensor), None, true) = (tensors.pop(), tensors.pop(), notes.is_empty()) else {
            return Err(malformed("a box of it is more than a tensor"));
        };
        if ElementType::Plain(tensor.dtype) != dtype || tensor.shape != region.sizes {
            return Err(malformed(
                "a box of it has another type or size than its metadata say",
            ));
        }
        let storage = storages.get_mut(tensor.storage as usize);
        let storage = storage.ok_or_else(|| malformed("a storage is missing"))?;
        let Backing::File(offset) = storage.backing else {
            let what = "a box of it is compressed";
            return Err(Refusal::new(Cause::Unsupported, what).into());
        };
        // The headers lie in the archive of the box.
        let start = span.start();
        let entries = entries.into_iter().map(|entry| ArchiveEntry {
            companion: Some(file),
            header: start.saturating_add(entry.header),
            data: start.saturating_add(entry.data),
            ..entry
        });
        self.checkpoint.entries.extend(entries);
        let backing = Backing::Companion {
            file,
            offset: span.start() + offset,
        };
        Ok(Tile {
            start: region.start.clone(),
            tensor,
            storage: Storage {
                backing,
                len: storage.len,
            },
        })
    }

    /// The file `name` beside the metadata.
    fn file(&mut self, name: &str) -> Result<u32> {
        let known = self.files.iter().position(|part| part.file.name == name);
        if let Some(known) = known {
            return Ok(known as u32);
        }
        let source = self.directory.open(name.as_ref());
        let source = source.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::from(Refusal::new(
                Cause::NotDownloaded,
                format!("the file `{}` beside it is missing", shown(name)),
            )),
            _ => source::Error::Io(error).into(),
        })?;
        let file = Companion {
            name: name.to_string(),
            version: *source.version(),
        };
        let left = source.size();
        self.files.push(BoxFile { file, source, left });
        Ok(self.files.len() as u32 - 1)
    }
}

/// The row-major tensor that `tiles` are put together to.
fn whole(
    dtype: safetensors::Dtype,
    cut: &Cut,
    tiles: Vec<Tile>,
) -> std::result::Result<(Tensor, Storage), Refusal> {
    let mut strides = vec![1; cut.shape.len()];
    let mut row = ElementType::Plain(dtype).size();
    let mut stride = 1_u64;
    for (axis, size) in cut.shape.iter().enumerate().rev() {
        strides[axis] = stride;
        let next = (stride.checked_mul(*size)).zip(row.checked_mul(*size));
        (stride, row) = next.ok_or_else(|| too_large("its size is beyond all bounds"))?;
    }
    let tensor = Tensor {
        name: String::new(),
        dtype,
        shape: cut.shape.clone(),
        strides: strides.into(),
        storage: 0,
        offset: 0,
        lazy: Lazy::default(),
    };
    let tiling = Tiling {
        shape: cut.shape.clone(),
        tiles: tiles.into(),
    };
    let storage = Storage {
        backing: Backing::Tiles(tiling),
        len: row,
    };
    Ok((tensor, storage))
}

/// The rule by which a value is left out for the name that it goes by. `top` when it
/// stands beside weights, where trainers put theirs.
fn rule_for(tree: &StateDict, node: usize, top: bool) -> Option<Rule> {
    let key = tree.key(node);
    if top && training::is_optimizer_key(key) {
        return Some(Rule::OptimizerState);
    }
    (training::is_rng_key(key) && tree.is_rng(node)).then_some(Rule::RngState)
}
