//! `X.tensors`: a directory with a file for each tensor of one file, or of all
//! shards that an index names.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::output::{Claim, Output};
use super::{rooted, tensor_names};
use crate::cache::Promoted;
use crate::checkpoint::{Content, NameHint};
use crate::convert::{self, Extent, Plan, Planned, Reader, names};
use crate::source::Bytes;
use crate::view::attr::Attr;
use crate::view::context::Context;
use crate::view::error::{Error, Result};
use crate::view::file::{Contents, OpenFile, OpenText, Opened};
use crate::view::folder::{Derived, Folder, SourceEntry, strip_suffix, with};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Children, Form, Home, Listing, Node};
use crate::view::options::Tensors;
use crate::view::origin::{Origin, Sources};
use crate::view::promoter::Wish;
use crate::view::tensor_set::TensorSet;
use crate::view::usage::{InUse, Tier};
use crate::view::xattrs::{self, Xattr};

pub const SUFFIX: &str = ".tensors";

pub const OUTPUT: Output = Output { list, find };

fn list(folder: &Folder, name: &OsStr) -> Result<Vec<Claim>> {
    if folder.context.options().tensors != Tensors::Show {
        return Ok(Vec::new());
    }
    let (rank, of) = match folder.derived(name)? {
        Derived::Converted(base, origin) => (1, Some((base, origin))),
        _ => match native(folder, name)? {
            Some(native) => (1, Some(native)),
            None => (2, disguised(folder, name)?),
        },
    };
    Ok(match of {
        Some((base, origin)) => {
            let name = with(&base, SUFFIX);
            let node = single(folder.path(&name), origin);
            vec![Claim::new(name, rank, node)]
        }
        None => Vec::new(),
    })
}

fn find(folder: &Folder, name: &OsStr) -> Result<Option<Node>> {
    let Some(base) = strip_suffix(name, SUFFIX) else {
        return Ok(None);
    };
    if folder.context.options().tensors == Tensors::Off {
        return Ok(None);
    }
    let of = |origin| Some(single(folder.path(name), origin));
    if let Some((_, origin)) = native(folder, &with(base, names::SAFETENSORS))? {
        return Ok(of(origin));
    }
    if let Some(origin) = folder.converted(base)? {
        return Ok(of(origin));
    }
    for file in folder.scan()?.clone().with_stem(base).chain([base]) {
        if let Some((found, origin)) = disguised(folder, file)?
            && found == base
        {
            return Ok(of(origin));
        }
    }
    Ok(rooted::origin(folder, base)?.and_then(of))
}

/// The file `name`, if it is safetensors and is called so, and its stem.
fn native(folder: &Folder, name: &OsStr) -> Result<Option<(OsString, Arc<Origin>)>> {
    let Some(base) = strip_suffix(name, names::SAFETENSORS) else {
        return Ok(None);
    };
    Ok(safetensors(folder, name)?.map(|origin| (base.to_os_string(), origin)))
}

/// The file `name`, if it is safetensors under the name of a checkpoint, and what its
/// tensors go by: its stem, or its whole name where another file has tensors too that
/// go by that.
fn disguised(folder: &Folder, name: &OsStr) -> Result<Option<(OsString, Arc<Origin>)>> {
    if convert::hint(name) != NameHint::Checkpoint {
        return Ok(None);
    }
    let Some(origin) = safetensors(folder, name)? else {
        return Ok(None);
    };
    let counts = |other: &OsStr| Ok(folder.holds_weights(other)? || is_safetensors(folder, other)?);
    let base = folder.base_among(name, counts)?;
    Ok(Some((base, origin)))
}

/// The file `name`, if it is safetensors that can be read.
fn safetensors(folder: &Folder, name: &OsStr) -> Result<Option<Arc<Origin>>> {
    match folder.find(name)? {
        SourceEntry::File(metadata, content @ Content::Safetensors) => {
            Ok(folder.origin(name, &metadata, content, None).ok())
        }
        _ => Ok(None),
    }
}

/// Whether there is a file `name` that is safetensors and has tensors.
fn is_safetensors(folder: &Folder, name: &OsStr) -> Result<bool> {
    if !folder.scan()?.contains(name) || convert::hint(name) == NameHint::Nothing {
        return Ok(false);
    }
    Ok(matches!(
        folder.find(name)?,
        SourceEntry::File(_, Content::Safetensors)
    ))
}

/// The directory of one file's tensors.
fn single(path: PathBuf, origin: Arc<Origin>) -> Node {
    let attr = origin.attr;
    let set = TensorSet {
        path: path.into(),
        parts: Box::new([origin]),
        places: None,
    };
    directory(Arc::new(set), attr)
}

/// The directory of the tensors of `set`, for whom a file with these attributes is.
pub fn directory(set: Arc<TensorSet>, attr: Attr) -> Node {
    let parts: Vec<_> = set.parts.iter().map(|part| part.id.to_bytes()).collect();
    let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_slice()).collect();
    let key = NodeKey {
        form: "tensors",
        place: Some(set.path.clone()),
        of: Id::of(&parts),
        part: 0,
    };
    Node::new(key, attr.directory(), Directory(set))
}

#[derive(Debug)]
struct Directory(Arc<TensorSet>);

impl Form for Directory {
    fn lookup(&self, context: &Context, name: &OsStr) -> Result<Node> {
        let name = name.to_str().ok_or(Error::NotFound)?;
        TensorListing::open(context.sources(), &self.0)?.find(name)
    }

    fn list(&self, context: &Context) -> Result<Listing> {
        Ok(Listing::many(TensorListing::open(
            context.sources(),
            &self.0,
        )?))
    }

    fn home(&self) -> Option<Home> {
        self.0.parts.first().map(|part| part.home())
    }
}

/// The tensors of several files together. Where two files have a tensor
/// of the same name, the one that the index gives it to counts.
pub fn merge(path: PathBuf, parts: Vec<(Arc<Origin>, Arc<Plan>, Vec<&str>)>) -> Arc<TensorSet> {
    let mut owners = HashMap::new();
    for (part, (_, _, tensors)) in parts.iter().enumerate() {
        owners.extend(tensors.iter().map(|name| (*name, part)));
    }
    let mut found: Vec<(&str, bool, u32, u32)> = Vec::new();
    for (part, (_, plan, _)) in parts.iter().enumerate() {
        for (index, tensor) in plan.sorted() {
            let foreign = owners.get(&*tensor.name) != Some(&part);
            found.push((&tensor.name, foreign, part as u32, index as u32));
        }
    }
    found.sort_unstable();
    found.dedup_by(|later, earlier| later.0 == earlier.0);
    let places = found
        .into_iter()
        .map(|(_, _, part, index)| (part, index))
        .collect();
    Arc::new(TensorSet {
        path: path.into(),
        places: Some(places),
        parts: parts.into_iter().map(|(origin, ..)| origin).collect(),
    })
}

/// A tensor directory with the plans behind it.
struct TensorListing {
    set: Arc<TensorSet>,
    plans: Vec<Arc<Plan>>,
}

/// The file with the numbers and texts beside the tensors. It is found by its
/// name alone: what is listed are tensors. A tensor of that name wins.
const VALUES: &str = ".other.json";

impl Children for TensorListing {
    fn len(&self) -> usize {
        match (&self.set.places, self.plans.first()) {
            (Some(places), _) => places.len(),
            (None, Some(plan)) => plan.tensors().len(),
            (None, None) => 0,
        }
    }

    /// The `rank`th tensor by name.
    fn entry(&self, rank: usize) -> Option<(OsString, Node)> {
        let (part, index) = match &self.set.places {
            Some(places) => places.get(rank).copied()?,
            None => (0, self.plans.first()?.nth(rank)?.0 as u32),
        };
        let tensor = self.tensor(part, index)?;
        let name = tensor_names::encode(&tensor.name).into_owned();
        Some((name.into(), self.node(part, index)?))
    }
}

impl TensorListing {
    fn open(sources: &Sources, set: &Arc<TensorSet>) -> Result<TensorListing> {
        let plans = set
            .parts
            .iter()
            .map(|origin| sources.plan(origin))
            .collect::<Result<_>>()?;
        Ok(TensorListing {
            set: set.clone(),
            plans,
        })
    }

    /// The node of the tensor with this file name. Names of exact duplicates are
    /// found too, and the file of values, though not listed.
    fn find(&self, file_name: &str) -> Result<Node> {
        let place = match tensor_names::decode(file_name) {
            Some(name) => self.find_name(&name),
            None if tensor_names::is_cut(file_name) => self.find_cut(file_name),
            None => None,
        };
        let node = place.and_then(|(part, index)| self.node(part, index));
        let values = || (file_name == VALUES).then(|| self.values()).flatten();
        node.or_else(values).ok_or(Error::NotFound)
    }

    fn find_name(&self, name: &str) -> Option<(u32, u32)> {
        if let Some(places) = &self.set.places {
            let by_name = |place: &(u32, u32)| {
                self.tensor(place.0, place.1)
                    .map_or("", |tensor| &tensor.name)
                    .cmp(name)
            };
            if let Ok(rank) = places.binary_search_by(by_name) {
                return places.get(rank).copied();
            }
        }
        let found = |(part, plan): (usize, &Arc<Plan>)| {
            plan.find(name).map(|index| (part as u32, index as u32))
        };
        self.plans.iter().enumerate().find_map(found)
    }

    fn find_cut(&self, file_name: &str) -> Option<(u32, u32)> {
        self.plans.iter().enumerate().find_map(|(part, plan)| {
            let tensor = plan.tensors().iter().position(|tensor| {
                tensor.name.len() > file_name.len() / 3
                    && tensor_names::encode(&tensor.name) == file_name
            })?;
            Some((part as u32, tensor as u32))
        })
    }

    /// The numbers and texts beside the tensors of one file.
    fn values(&self) -> Option<Node> {
        let ([origin], [plan]) = (&*self.set.parts, &*self.plans) else {
            return None;
        };
        let text: Arc<[u8]> = plan.values()?.into();
        let key = NodeKey {
            form: "values",
            place: None,
            of: origin.id,
            part: 0,
        };
        let attr = origin.attr.sized(text.len() as u64);
        let about = origin.location.clone();
        Some(Node::new(key, attr, Values { about, text }))
    }

    fn tensor(&self, part: u32, index: u32) -> Option<&Planned> {
        self.plans.get(part as usize)?.tensors().get(index as usize)
    }

    fn node(&self, part: u32, index: u32) -> Option<Node> {
        let origin = self.set.parts.get(part as usize)?.clone();
        let attr = origin.attr.sized(self.tensor(part, index)?.len);
        let key = NodeKey {
            form: "tensor",
            place: None,
            of: origin.id,
            part: index.into(),
        };
        let index = index as usize;
        Some(Node::new(key, attr, Tensor { origin, index }))
    }
}

/// One tensor of a file, by its index in the plan.
#[derive(Debug)]
struct Tensor {
    origin: Arc<Origin>,
    index: usize,
}

impl Form for Tensor {
    /// A tensor is read from the promoted file, where there is one: what had to be
    /// computed has been computed then.
    fn open(&self, context: &Context, _: &Attr) -> Result<OpenFile> {
        let Tensor { origin, index } = self;
        let opened = |tier| context.usage().opened(origin.location.clone(), tier);
        if let Some(promoted) = context.promoted(origin) {
            let plan = context.sources().plan(origin)?;
            let tensor = plan.tensors().get(*index).ok_or(Error::Stale)?;
            return Ok(OpenFile::new(PromotedTensor {
                promoted,
                start: tensor.start,
                len: tensor.len,
                in_use: opened(Tier::Promoted),
            }));
        }
        Ok(OpenFile::new(StreamedTensor {
            reader: context.sources().ranges(origin)?,
            index: *index,
            in_use: opened(Tier::Stream),
            wish: context.wish(origin),
            settled: origin.key.is_settled(),
        }))
    }

    fn home(&self) -> Option<Home> {
        Some(self.origin.home())
    }

    fn xattrs(&self, context: &Context) -> Result<Vec<Xattr>> {
        let plan = context.sources().plan(&self.origin)?;
        let tensor = plan.tensors().get(self.index).ok_or(Error::Stale)?;
        let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
        let shape = format!("[{}]", shape.join(", "));
        Ok(vec![
            ("user.stfs.dtype", tensor.dtype.to_string().into_bytes()),
            ("user.stfs.name", tensor.name.as_bytes().to_vec()),
            ("user.stfs.shape", shape.into_bytes()),
            xattrs::source(&self.origin.location),
        ])
    }
}

struct StreamedTensor {
    reader: Reader,
    index: usize,
    in_use: InUse,
    wish: Wish,
    settled: bool,
}

impl Opened for StreamedTensor {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let plan = self.reader.plan();
        let tensor = plan.tensors().get(self.index);
        let gathered = tensor.is_some_and(|tensor| matches!(tensor.extent, Extent::Assembled(_)));
        if plan.is_computed() && gathered {
            // What is computed now is not to be computed again.
            self.wish.make();
        }
        let bytes = self.reader.read_tensor(self.index, offset, len)?;
        self.in_use.served(bytes.len() as u64);
        Ok(bytes)
    }

    fn is_near(&self) -> bool {
        self.reader.source().is_near()
    }

    fn is_at_hand(&self, _: u64, _: usize) -> bool {
        let tensor = self.reader.plan().tensors().get(self.index);
        let lies_there = |tensor: &Planned| matches!(tensor.extent, Extent::Direct(_));
        self.is_near() && tensor.is_none_or(lies_there)
    }

    fn contents(&self) -> Option<Contents> {
        self.settled.then_some(Contents::OF_NODE)
    }
}

struct PromotedTensor {
    promoted: Promoted,
    /// Bytes from the start of the promoted file, and bytes.
    start: u64,
    len: u64,
    in_use: InUse,
}

impl Opened for PromotedTensor {
    fn read(&self, offset: u64, len: usize) -> Result<Bytes<'_>> {
        let bytes = self.promoted.read(self.start, self.len, offset, len)?;
        self.in_use.served(bytes.len() as u64);
        Ok(bytes)
    }

    fn is_near(&self) -> bool {
        self.promoted.source().is_near()
    }
}

/// The numbers and texts beside the tensors of a file.
#[derive(Debug)]
struct Values {
    /// The checkpoint, for people.
    about: Arc<Path>,
    text: Arc<[u8]>,
}

impl Form for Values {
    fn open(&self, _: &Context, _: &Attr) -> Result<OpenFile> {
        Ok(OpenFile::new(OpenText(self.text.clone())))
    }

    fn xattrs(&self, _: &Context) -> Result<Vec<Xattr>> {
        Ok(vec![xattrs::source(&self.about)])
    }
}
