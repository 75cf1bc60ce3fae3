//! A plan: the header of the converted file, and for each tensor where its
//! bytes come from. Costs names and numbers, never weights.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use safetensors::Dtype;

use super::decoded::Decoding;
use super::extent::{Extent, Stored};
use super::files::Files;
use super::headers::Headers;
use super::tied_weights::TiedNames;
use super::{header, ties};
use crate::checkpoint::{
    Cause, Checkpoint, Checksum, Companion, LeftOut, MAX_HEADER, NativeTensor, Other, Refusal,
    Tensor,
};
use crate::source;

/// Views may make a file larger than its checkpoint, up to this many times ...
const MAX_EXPANSION: u64 = 16;
/// ... or up to this many bytes, whichever is more.
const FREE_EXPANSION: u64 = 1 << 30;

/// How the bytes of one `.safetensors` file are made from its source.
#[derive(Debug)]
pub struct Plan {
    /// Length field and JSON; of a native file nothing, for it is not rewritten.
    header: Box<[u8]>,
    /// In file order, without gaps between them.
    tensors: Box<[Planned]>,
    /// Indices of `tensors`, by name.
    by_name: Box<[u32]>,
    /// Names of exact duplicates and the tensors that stand for them, by name.
    dropped: Box<[(Box<str>, u32)]>,
    others: Box<[Other]>,
    unlisted: u64,
    left_out: Box<[LeftOut]>,
    roots: Box<[String]>,
    /// Other files that bytes come from.
    companions: Box<[Companion]>,
    /// What there is to check of the archives that tensors lie in.
    headers: Headers,
    /// Bytes of tensors that are kept in memory.
    held: usize,
    size: u64,
    /// Bytes of tensors that do not lie in the source as they are.
    computed: u64,
    /// What is decoded of the source, while somebody reads it.
    decoding: Mutex<Weak<Decoding>>,
}

/// A tensor of the converted file.
#[derive(Debug)]
pub struct Planned {
    pub name: Box<str>,
    pub dtype: Dtype,
    /// As the header has it: `F4` counts values, two to a byte.
    pub shape: Box<[u64]>,
    /// Bytes from the start of the converted file.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    pub extent: Extent,
}

impl Plan {
    /// Plans the conversion of a checkpoint from a file of `source_size` bytes.
    /// `tied` says which names its architecture calls tied.
    ///
    /// # Errors
    /// What safetensors cannot say, or what would grow beyond all measure.
    pub fn new(
        checkpoint: Checkpoint,
        source_size: u64,
        tied: Option<TiedNames>,
    ) -> Result<Plan, Refusal> {
        let tensors = &checkpoint.tensors;
        let ties = ties::find(tensors, tied);
        let mut order = ties.kept.clone();
        order.sort_unstable_by(|a, b| {
            let (a, b) = (&tensors[*a], &tensors[*b]);
            b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
        });

        let total = order.iter().try_fold(0_u64, |total, index| {
            total.checked_add(tensors[*index].bytes())
        });
        let companions = checkpoint.companions.iter();
        let sizes = companions.map(|file| file.version.size);
        let source_size = sizes.fold(source_size, u64::saturating_add);
        let most = source_size
            .saturating_mul(MAX_EXPANSION)
            .max(FREE_EXPANSION);
        let total = total.filter(|total| *total <= most).ok_or_else(|| {
            Refusal::new(
                Cause::TooLarge,
                format!(
                    "its tensors are views that expand {source_size} bytes to more than {most}"
                ),
            )
        })?;

        let shapes = order
            .iter()
            .map(|index| header_shape(&tensors[*index]))
            .collect::<Result<Vec<_>, _>>()?;
        let fields: Vec<header::Field> = order
            .iter()
            .zip(&shapes)
            .map(|(index, shape)| header::Field {
                name: &tensors[*index].name,
                dtype: tensors[*index].dtype,
                shape,
                len: tensors[*index].bytes(),
            })
            .collect();
        let mut metadata = BTreeMap::from([("format", "pt")]);
        for (dropped, kept) in &ties.dropped {
            let name = tensors[*dropped].name.as_str();
            metadata.entry(name).or_insert(&tensors[*kept].name);
        }
        for (key, note) in &checkpoint.notes {
            metadata.entry(key).or_insert(note);
        }
        let header = header::write(&metadata, &fields);
        if header.len() as u64 - 8 > MAX_HEADER {
            return Err(Refusal::new(
                Cause::TooLarge,
                "its safetensors header would be longer than readers accept",
            ));
        }

        let storages: Vec<Arc<Stored>> = checkpoint
            .storages
            .iter()
            .map(|storage| Arc::new(Stored::new(storage)))
            .collect();
        let mut start = header.len() as u64;
        let mut planned = Vec::with_capacity(order.len());
        // Where each kept tensor went.
        let mut position = vec![0_u32; tensors.len()];
        for (index, shape) in order.iter().zip(shapes) {
            let tensor = &tensors[*index];
            position[*index] = planned.len() as u32;
            let len = tensor.bytes();
            planned.push(Planned {
                name: tensor.name.as_str().into(),
                dtype: tensor.dtype,
                shape,
                start,
                len,
                extent: extent_of(tensor, &storages)?,
            });
            start += len;
        }
        let mut dropped: Vec<(Box<str>, u32)> = ties
            .dropped
            .iter()
            .map(|(dropped, kept)| (tensors[*dropped].name.as_str().into(), position[*kept]))
            .collect();
        dropped.sort_unstable();
        Ok(Plan {
            size: header.len() as u64 + total,
            computed: planned
                .iter()
                .filter(|tensor| matches!(tensor.extent, Extent::Assembled(_)))
                .map(|tensor| tensor.len)
                .sum(),
            header: header.into(),
            by_name: by_name(&planned),
            tensors: planned.into(),
            dropped: dropped.into(),
            others: checkpoint.others.into(),
            unlisted: checkpoint.unlisted,
            left_out: checkpoint.left_out.into(),
            roots: checkpoint.roots.into(),
            companions: checkpoint.companions.into(),
            headers: Headers::new(checkpoint.entries),
            held: storages.iter().map(|storage| storage.held()).sum(),
            decoding: Mutex::default(),
        })
    }

    /// The plan of a file that is safetensors already, which is read as it lies.
    pub fn native(tensors: Vec<NativeTensor>, source_size: u64) -> Plan {
        let planned: Vec<Planned> = tensors
            .into_iter()
            .map(|tensor| Planned {
                name: tensor.name,
                dtype: tensor.dtype,
                shape: tensor.shape,
                start: tensor.offset,
                len: tensor.len,
                extent: Extent::Direct(tensor.offset),
            })
            .collect();
        Plan {
            header: Box::default(),
            by_name: by_name(&planned),
            tensors: planned.into(),
            dropped: Box::default(),
            others: Box::default(),
            unlisted: 0,
            left_out: Box::default(),
            roots: Box::default(),
            companions: Box::default(),
            headers: Headers::new(Vec::new()),
            held: 0,
            size: source_size,
            computed: 0,
            decoding: Mutex::default(),
        }
    }

    /// Bytes of the converted file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether most bytes have to be put together or decoded when they are read.
    pub fn is_computed(&self) -> bool {
        self.computed > self.size / 2
    }

    /// Whether there are tensors whose bytes are picked out of what is decoded: to read
    /// one from its first byte to its last, that is needed over and over.
    pub fn gathers_decoded(&self) -> bool {
        let gathers = |tensor: &Planned| match &tensor.extent {
            Extent::Direct(_) => false,
            Extent::Assembled(assembled) => assembled.gathers_decoded(),
        };
        self.tensors.iter().any(gathers)
    }

    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Whether the file is safetensors already and is read as it lies.
    pub fn is_native(&self) -> bool {
        self.header.is_empty()
    }

    /// In file order.
    pub fn tensors(&self) -> &[Planned] {
        &self.tensors
    }

    /// Values of the checkpoint that are no tensors.
    pub fn others(&self) -> &[Other] {
        &self.others
    }

    /// The numbers and texts at the top of the checkpoint, as one JSON object; None
    /// when there are none.
    pub fn values(&self) -> Option<Vec<u8>> {
        let values = self
            .others
            .iter()
            .filter_map(|other| Some((other.path.clone(), other.value.clone()?)));
        let values: serde_json::Map<_, _> = values.collect();
        (!values.is_empty())
            .then(|| format!("{:#}\n", serde_json::Value::Object(values)).into_bytes())
    }

    /// How many more of them there are.
    pub fn unlisted(&self) -> u64 {
        self.unlisted
    }

    /// Tensor bytes of the checkpoint that are not in the file, and by which rule.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Dotted paths of other values of the checkpoint that hold weights.
    pub fn roots(&self) -> &[String] {
        &self.roots
    }

    /// Files in the directory of the source that bytes come from too.
    pub fn companions(&self) -> &[Companion] {
        &self.companions
    }

    /// Fails unless the files are laid out as the plan takes them to be, which planning
    /// may have predicted. It is looked at once, at the first call.
    ///
    /// # Errors
    /// An I/O error of the kind `InvalidData` with a [`Refusal`] inside if they are
    /// not, now and at every later call; any other error says nothing of that.
    pub fn check(&self, files: &Files) -> source::Result<()> {
        self.headers.check(files)
    }

    /// Why the checkpoint is refused although there is a plan: its files turned out not
    /// to be laid out as they were taken to be, when they were first read.
    pub fn refusal(&self) -> Option<Refusal> {
        self.headers.refusal()
    }

    /// What some of the bytes that tensors lie in should be, by their archive.
    pub fn checksums(&self) -> impl Iterator<Item = Checksum<'_>> {
        self.headers.checksums()
    }

    /// Tensors by name, in byte order.
    pub fn sorted(&self) -> impl ExactSizeIterator<Item = (usize, &Planned)> {
        self.by_name
            .iter()
            .map(|index| (*index as usize, &self.tensors[*index as usize]))
    }

    /// The `rank`th tensor by name.
    pub fn nth(&self, rank: usize) -> Option<(usize, &Planned)> {
        let index = *self.by_name.get(rank)? as usize;
        Some((index, self.tensors.get(index)?))
    }

    /// The index of the tensor called `name`, which may be the name of a dropped
    /// duplicate.
    pub fn find(&self, name: &str) -> Option<usize> {
        let by_name = self
            .by_name
            .binary_search_by(|index| (*self.tensors[*index as usize].name).cmp(name));
        if let Ok(rank) = by_name {
            return Some(self.by_name[rank] as usize);
        }
        let rank = self
            .dropped
            .binary_search_by(|(dropped, _)| (**dropped).cmp(name))
            .ok()?;
        Some(self.dropped[rank].1 as usize)
    }

    /// Names of exact duplicates, each with the name that stands for it.
    pub fn dropped(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.dropped
            .iter()
            .map(|(name, kept)| (&**name, &*self.tensors[*kept as usize].name))
    }

    /// What all who read by the plan at the same time decode, which goes with the last
    /// of them.
    pub(super) fn decoding(&self) -> Arc<Decoding> {
        let mut shared = self.decoding.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(decoding) = shared.upgrade() {
            return decoding;
        }
        let decoding = Arc::default();
        *shared = Arc::downgrade(&decoding);
        decoding
    }

    /// Bytes of memory that the plan takes, about.
    pub fn weight(&self) -> usize {
        let tensors = self.tensors.iter().map(|tensor| {
            let assembled = match &tensor.extent {
                Extent::Direct(_) => 0,
                Extent::Assembled(_) => 64 + 16 * tensor.shape.len(),
            };
            size_of::<Planned>() + 4 + tensor.name.len() + 8 * tensor.shape.len() + assembled
        });
        let dropped = self.dropped.iter().map(|(name, _)| name.len() + 24);
        let others = self
            .others
            .iter()
            .map(|other| other.path.len() + other.kind.len() + other.repr.len() + 72);
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|entry| entry.path.len() + size_of::<LeftOut>());
        let roots = self.roots.iter().map(|root| root.len() + 24);
        self.header.len()
            + self.held
            + self.headers.weight()
            + tensors.sum::<usize>()
            + dropped.sum::<usize>()
            + others.sum::<usize>()
            + left_out.sum::<usize>()
            + roots.sum::<usize>()
    }
}

fn by_name(tensors: &[Planned]) -> Box<[u32]> {
    let mut indices: Box<[u32]> = (0..tensors.len() as u32).collect();
    indices.sort_unstable_by(|a, b| tensors[*a as usize].name.cmp(&tensors[*b as usize].name));
    indices
}

fn extent_of(tensor: &Tensor, storages: &[Arc<Stored>]) -> Result<Extent, Refusal> {
    // Where a tensor without elements begins was not checked, and matters to nobody.
    if tensor.shape.contains(&0) {
        return Ok(Extent::Direct(0));
    }
    let storage = storages
        .get(tensor.storage as usize)
        .ok_or_else(|| Refusal::new(Cause::Malformed, "a storage is missing"))?;
    Ok(Extent::new(tensor, storage))
}

/// safetensors counts the values of `F4`, of which torch packs two into an element.
fn header_shape(tensor: &Tensor) -> Result<Box<[u64]>, Refusal> {
    let mut shape = tensor.shape.clone();
    if tensor.dtype == Dtype::F4 {
        let last = shape.last_mut().and_then(|last| {
            *last = last.checked_mul(2)?;
            Some(())
        });
        last.ok_or_else(|| {
            Refusal::new(
                Cause::Inexpressible,
                "it has no dimension, but packs two values",
            )
            .of_tensor(&tensor.name)
        })?;
    }
    Ok(shape)
}
