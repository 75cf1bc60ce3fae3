//! Storages as persistent ids name them:
//! `("storage", class, key, location, elements)`, with the view in streams from
//! before torch 1.6 (torch/serialization.py, `persistent_id`).

use super::wrapper::NO_DATA;
use crate::checkpoint::dtype::ElementType;
use crate::checkpoint::refusal::{Refusal, malformed, shown, unsupported};
use crate::pickle::{Object, ObjectId, PersistentId, Pickle};

/// Bytes of a storage's key, which torch makes of digits.
const MAX_KEY: usize = 1024;

/// A storage that the pickle refers to.
pub struct SavedStorage<'p> {
    pub key: &'p str,
    pub element: ElementType,
    /// Elements of the whole storage.
    pub elements: u64,
    /// The part of it that is meant: the part's own key, then elements.
    pub view: Option<(&'p str, u64, u64)>,
}

/// The storage behind a persistent id of `parts` parts; None when the object is
/// no persistent id, or that of a module's class.
pub fn saved_storage<'p>(
    pickle: &'p Pickle,
    id: ObjectId,
    parts: usize,
) -> Result<Option<SavedStorage<'p>>, Refusal> {
    let Object::Persistent(PersistentId::Object(tuple)) = pickle.get(id) else {
        return Ok(None);
    };
    let items = pickle.as_tuple(*tuple).unwrap_or_default();
    let kind = items.first().and_then(|kind| short_text(pickle, *kind));
    let (head, view) = match (kind, items) {
        // ("module", class, source file, source)
        (Some("module"), [_, _, _, _]) if parts == 6 => return Ok(None),
        (Some("storage"), [_, head @ ..]) if items.len() == parts => {
            head.split_at_checked(4).unwrap_or_default()
        }
        _ => return Err(malformed("a persistent id is no storage")),
    };
    let [class, own_key, location, elements] = head else {
        return Err(malformed("a persistent id is no storage"));
    };
    if short_text(pickle, *location) == Some("meta") {
        return Err(unsupported(NO_DATA));
    }
    let Some((_module, class)) = pickle.global(*class) else {
        return Err(malformed("the class of a storage is no class"));
    };
    let element = ElementType::of_storage_class(class)
        .ok_or_else(|| unsupported(format!("a storage of the unknown class `{}`", shown(class))))?;
    let key =
        |id| short_text(pickle, id).ok_or_else(|| malformed("a storage's key is no short text"));
    let count = |id| {
        let count = pickle
            .as_int(id)
            .and_then(|count| u64::try_from(count).ok());
        count.ok_or_else(|| malformed("a storage's size is not a number from 0"))
    };
    let view = match view {
        [view] if !matches!(pickle.get(*view), Object::None) => match pickle.as_tuple(*view) {
            Some([own_key, offset, size]) => Some((key(*own_key)?, count(*offset)?, count(*size)?)),
            _ => return Err(malformed("the view of a storage is no view")),
        },
        _ => None,
    };
    Ok(Some(SavedStorage {
        key: key(*own_key)?,
        element,
        elements: count(*elements)?,
        view,
    }))
}

/// The text of a short string, without a look at the whole of a long one.
fn short_text<'p>(pickle: &'p Pickle, id: ObjectId) -> Option<&'p str> {
    let len = match pickle.get(id) {
        Object::Str(text) => text.as_bytes()?.len(),
        Object::String8(bytes) => bytes.as_bytes()?.len(),
        _ => return None,
    };
    (len <= MAX_KEY).then(|| pickle.as_str(id)).flatten()
}
