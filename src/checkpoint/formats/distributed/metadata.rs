//! The pickle `.metadata`: which tensors there are, how each is cut into boxes,
//! and where those lie (torch/distributed/checkpoint/metadata.py).
//!
//! Objects in it may be shared by any number of others, so that whatever is read
//! once for each reference is bounded by itself.

use std::borrow::Cow;
use std::collections::{HashMap, hash_map};

use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::refusal::{Cause, Refusal, shown, too_large};
use crate::pickle::{CallKind, Object, ObjectId, Pickle};

type Result<T> = std::result::Result<T, Refusal>;

/// Boxes of all tensors.
const MAX_REGIONS: usize = 1_000_000;
/// Properties of one object.
const MAX_FIELDS: usize = 32;
/// Dimensions of one tensor.
const MAX_DIMENSIONS: usize = 64;
/// Steps from dictionary to dictionary to all values.
const MAX_STEPS: usize = 16_000_000;
/// Bytes of one name.
const MAX_NAME: usize = 4096;

pub const METADATA: &str = "torch.distributed.checkpoint.metadata";

/// What `.metadata` says.
pub struct Manifest<'p> {
    pub entries: Vec<(&'p str, Saved<'p>)>,
    /// The keys that lead to what was saved under a name, where they are told.
    pub paths: HashMap<&'p str, Vec<&'p str>>,
    pub locations: HashMap<BoxIndex<'p>, Location<'p>>,
}

/// Something that was saved under a name.
pub enum Saved<'p> {
    Tensor(Cut),
    /// Anything else, pickled by itself.
    Object(Option<Location<'p>>),
}

/// A tensor and the boxes that it is cut into.
pub struct Cut {
    pub dtype: ElementType,
    /// Elements.
    pub shape: Box<[u64]>,
    pub regions: Vec<Region>,
}

/// A box of elements.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct Region {
    /// The first element, along each dimension.
    pub start: Box<[u64]>,
    /// Elements along each dimension.
    pub sizes: Box<[u64]>,
}

impl Region {
    /// Whether it ends after `other` begins, along the first dimension.
    pub fn reaches(&self, other: &Region) -> bool {
        let own = self.start.first().zip(self.sizes.first());
        let other = other.start.first();
        own.zip(other)
            .is_none_or(|((start, size), other)| start + size > *other)
    }

    /// Both lie inside one tensor.
    pub fn overlaps(&self, other: &Region) -> bool {
        let own = self.start.iter().zip(&self.sizes);
        let other = other.start.iter().zip(&other.sizes);
        own.zip(other).all(|((start, size), (other, other_size))| {
            start + size > *other && other + other_size > *start
        })
    }
}

/// Names a box: the tensor and the first element.
pub type BoxIndex<'p> = (&'p str, Box<[u64]>);

/// Where a box lies, or an object.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Location<'p> {
    pub file: &'p str,
    /// Bytes from the start of the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl<'p> Manifest<'p> {
    pub fn read(pickle: &'p Pickle) -> Result<Manifest<'p>> {
        let fields = Properties::of(pickle, pickle.root(), METADATA, "Metadata")?;
        let mut entries = Vec::new();
        let mut free = MAX_REGIONS;
        for (name, value) in pickle.entries(fields.get("state_dict_metadata")?) {
            let name = pickle.as_str(name).ok_or_else(|| broken("a name"))?;
            check_name(name)?;
            let object = Properties::of(pickle, value, METADATA, "BytesStorageMetadata").is_ok();
            let entry = match object {
                true => Saved::Object(None),
                false => Saved::Tensor(Cut::read(pickle, value, &mut free)?),
            };
            entries.push((name, entry));
        }
        let mut locations = HashMap::new();
        let mut objects = HashMap::new();
        for (index, location) in pickle.entries(fields.get("storage_data")?) {
            let index = Properties::of(pickle, index, METADATA, "MetadataIndex")?;
            let name = index.get("fqn").ok().and_then(|name| pickle.as_str(name));
            let name = name.ok_or_else(|| broken("a name"))?;
            check_name(name)?;
            let location = Location::read(pickle, location)?;
            // Objects have no offset.
            let Some(start) = index.get("offset").ok().filter(|id| !is_none(pickle, *id)) else {
                objects.insert(name, location);
                continue;
            };
            match locations.entry((name, size(pickle, start)?)) {
                hash_map::Entry::Vacant(place) => {
                    place.insert(location);
                }
                hash_map::Entry::Occupied(other) if *other.get() == location => {}
                hash_map::Entry::Occupied(_) => {
                    let what = format!("a box of `{}` lies in two places", shown(name));
                    return Err(Refusal::new(Cause::Ambiguous, what));
                }
            }
        }
        for (name, entry) in &mut entries {
            if let Saved::Object(location) = entry {
                *location = objects.get(name).copied();
            }
        }
        let paths = fields.get("planner_data").ok();
        let paths = paths.map(|paths| read_paths(pickle, paths)).transpose()?;
        Ok(Manifest {
            entries,
            paths: paths.unwrap_or_default(),
            locations,
        })
    }
}

/// The keys that lead to each value, as far as they are texts: `{name: (key, ...)}`. A
/// list gives indices, which stand in the name as they would here.
fn read_paths<'p>(pickle: &'p Pickle, id: ObjectId) -> Result<HashMap<&'p str, Vec<&'p str>>> {
    let mut left = MAX_STEPS;
    let mut paths = HashMap::new();
    for (name, keys) in pickle.entries(id) {
        let (Some(name), Some(keys)) = (pickle.as_str(name), pickle.as_tuple(keys)) else {
            continue;
        };
        left = (left.checked_sub(keys.len()))
            .ok_or_else(|| too_large("its tensors lie in too many dictionaries"))?;
        check_name(name)?;
        // The steps are parts of the name, which is all of them joined with dots.
        let mut rest = name;
        let steps = keys.iter().enumerate().map(|(at, key)| {
            let text = match pickle.as_int(*key) {
                Some(number) => Cow::Owned(number.to_string()),
                None => Cow::Borrowed(pickle.as_str(*key)?),
            };
            if at > 0 {
                rest = rest.strip_prefix('.')?;
            }
            let tail = rest.strip_prefix(&*text)?;
            let step = &rest[..rest.len() - tail.len()];
            rest = tail;
            Some(step)
        });
        let steps: Option<Vec<&str>> = steps.collect();
        if let Some(steps) = steps.filter(|steps| !steps.is_empty())
            && rest.is_empty()
        {
            paths.insert(name, steps);
        }
    }
    Ok(paths)
}

impl Cut {
    fn read(pickle: &Pickle, id: ObjectId, free: &mut usize) -> Result<Cut> {
        let fields = Properties::of(pickle, id, METADATA, "TensorStorageMetadata")?;
        let properties = fields.get("properties")?;
        let state = object(pickle, properties, METADATA, "TensorProperties")
            .and_then(|state| pickle.as_tuple(state?)?.first());
        let dtype = state.and_then(|dtype| match pickle.global(*dtype)? {
            ("torch", name) => ElementType::of_dtype_name(name),
            _ => None,
        });
        let Object::List(chunks) = pickle.get(fields.get("chunks")?) else {
            return Err(broken("a list of boxes"));
        };
        // One list may be shared by all tensors.
        *free = (free.checked_sub(chunks.len()))
            .ok_or_else(|| too_large("its tensors are cut into too many boxes"))?;
        let regions = chunks.iter().map(|chunk| {
            let chunk = Properties::of(pickle, *chunk, METADATA, "ChunkStorageMetadata")?;
            Ok(Region {
                start: size(pickle, chunk.get("offsets")?)?,
                sizes: size(pickle, chunk.get("sizes")?)?,
            })
        });
        Ok(Cut {
            dtype: dtype.ok_or_else(|| broken("a type of tensor"))?,
            shape: size(pickle, fields.get("size")?)?,
            regions: regions.collect::<Result<_>>()?,
        })
    }
}

impl<'p> Location<'p> {
    fn read(pickle: &'p Pickle, id: ObjectId) -> Result<Location<'p>> {
        const MODULE: &str = "torch.distributed.checkpoint.filesystem";
        let fields = Properties::of(pickle, id, MODULE, "_StorageInfo")?;
        let number = |name| {
            let number = pickle.as_int(fields.get(name)?);
            let number = number.and_then(|number| u64::try_from(number).ok());
            number.ok_or_else(|| broken("a place of a box"))
        };
        if let Ok(transforms) = fields.get("transform_descriptors")
            && !is_none(pickle, transforms)
        {
            return Err(Refusal::new(
                Cause::Unsupported,
                "its boxes are compressed or changed in another way by an extension",
            ));
        }
        let file = pickle.as_str(fields.get("relative_path")?);
        let file = file.filter(|name| is_part(name)).ok_or_else(|| {
            Refusal::new(
                Cause::Unsupported,
                "its metadata name a file that is not in the same directory",
            )
        })?;
        Ok(Location {
            file,
            offset: number("offset")?,
            len: number("length")?,
        })
    }
}

/// The ending of the files with boxes.
pub const PARTS: &str = ".distcp";

/// Whether `name` names a file with boxes in the same directory.
fn is_part(name: &str) -> bool {
    name.ends_with(PARTS) && !name.contains(['/', '\0'])
}

/// The attributes of one object.
struct Properties<'p> {
    pickle: &'p Pickle<'p>,
    entries: Vec<(ObjectId, ObjectId)>,
}

impl<'p> Properties<'p> {
    /// Those of the object `id`, which is of the class `module.name`.
    fn of(
        pickle: &'p Pickle<'p>,
        id: ObjectId,
        module: &str,
        name: &str,
    ) -> Result<Properties<'p>> {
        let state = object(pickle, id, module, name).ok_or_else(|| broken(name))?;
        let entries = match state.map(|state| pickle.get(state)) {
            None => Vec::new(),
            Some(Object::Dict(items)) if items.len() <= MAX_FIELDS => items.clone(),
            Some(_) => return Err(broken(name)),
        };
        Ok(Properties { pickle, entries })
    }

    fn get(&self, name: &str) -> Result<ObjectId> {
        let mut entries = self.entries.iter().rev();
        let found = entries.find(|(key, _)| self.pickle.as_str(*key) == Some(name));
        found.map(|(_, value)| *value).ok_or_else(|| broken(name))
    }
}

/// The state of the object `id` if it has one; None unless it is of the class
/// `module.name`.
fn object(pickle: &Pickle, id: ObjectId, module: &str, name: &str) -> Option<Option<ObjectId>> {
    let call = pickle.as_call(id)?;
    let is_one =
        call.kind == CallKind::NewObj && pickle.global(call.callable) == Some((module, name));
    match *call.state {
        [] if is_one => Some(None),
        [state] if is_one => Some(Some(state)),
        _ => None,
    }
}

/// A `torch.Size`.
fn size(pickle: &Pickle, id: ObjectId) -> Result<Box<[u64]>> {
    let sizes = pickle.as_call(id).and_then(|call| {
        let is_size = pickle.global(call.callable) == Some(("torch", "Size"));
        match pickle.as_tuple(call.args)? {
            [sizes] if is_size => pickle.as_tuple(*sizes),
            _ => None,
        }
    });
    let sizes = sizes.filter(|sizes| sizes.len() <= MAX_DIMENSIONS);
    let sizes = sizes.and_then(|sizes| {
        let sizes = sizes.iter();
        sizes
            .map(|size| u64::try_from(pickle.as_int(*size)?).ok())
            .collect()
    });
    sizes.ok_or_else(|| broken("a size"))
}

fn check_name(name: &str) -> Result<()> {
    match name.len() <= MAX_NAME {
        true => Ok(()),
        false => Err(too_large("a name in its metadata is too long")),
    }
}

fn is_none(pickle: &Pickle, id: ObjectId) -> bool {
    matches!(pickle.get(id), Object::None)
}

fn broken(what: &str) -> Refusal {
    let what = format!(
        "its metadata are not those of a distributed checkpoint: {what} is missing or broken"
    );
    Refusal::new(Cause::Malformed, what)
}
