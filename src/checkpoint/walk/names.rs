//! What values are called: the dotted path to each.

use std::borrow::Cow;

use super::Walk;
use crate::checkpoint::describe::describe;
use crate::checkpoint::objects::{Label, Storages};
use crate::checkpoint::refusal::{Cause, Refusal, shown, too_large};
use crate::pickle::{Object, ObjectId, Pickle, Str};

impl<'p, S: Storages> Walk<'_, 'p, S> {
    /// Appends `label` to the path. False when the key has no textual form and
    /// nothing that matters lies behind it.
    pub(super) fn step_into(
        &mut self,
        label: &Label,
        child: ObjectId,
        nested: bool,
    ) -> Result<bool, Refusal> {
        let Some(text) = self.text_of(label) else {
            let pickle = self.torch.pickle();
            let Label::Key(key) = label else {
                return Ok(false);
            };
            if matches!(pickle.get(*key), Object::Str(Str::Apart(_))) {
                return Err(too_large("one of its names is longer than any file name"));
            }
            if self.reaches_bytes(child)? || self.reaches_bytes(*key)? {
                let (kind, repr) = (describe(pickle, *key).0, key_text(pickle, *key));
                let place = match self.path.is_empty() {
                    true => String::new(),
                    false => format!(" below `{}`", shown(&self.path)),
                };
                return Err(Refusal::new(
                    Cause::Names,
                    format!(
                        "a tensor{place} has the key {repr}, of type {kind}, which is neither \
                         Unicode text nor a whole number"
                    ),
                ));
            }
            return Ok(false);
        };
        if nested {
            self.path.push('.');
        }
        self.path.push_str(&text);
        Ok(true)
    }

    /// The text of a label; None when it has none.
    pub(super) fn text_of(&self, label: &Label) -> Option<Cow<'p, str>> {
        let pickle = self.torch.pickle();
        Some(match label {
            Label::Index(index) => index.to_string().into(),
            Label::Name(name) => (*name).into(),
            Label::Key(key) => match (pickle.as_str(*key), pickle.as_int(*key)) {
                (Some(text), _) => text.into(),
                (None, Some(number)) => number.to_string().into(),
                (None, None) => return None,
            },
        })
    }
}

/// A key that is no text, as Python would show it, about: the parts of a tuple, and
/// what an object of another class was made from.
fn key_text(pickle: &Pickle, key: ObjectId) -> String {
    const PARTS: usize = 4;
    let simple = |id: ObjectId| match pickle.get(id) {
        Object::Call(_) => "...".to_string(),
        _ => describe(pickle, id).1,
    };
    let several = |items: &[ObjectId]| {
        let shown = items.iter().take(PARTS).map(|item| simple(*item));
        let shown: Vec<String> = shown.collect();
        let more = if items.len() > PARTS { ", ..." } else { "" };
        format!("({}{more})", shown.join(", "))
    };
    match pickle.get(key) {
        Object::Tuple(items) => several(items),
        Object::Call(call) => {
            let (class, _) = describe(pickle, key);
            let args = pickle.as_tuple(call.args).unwrap_or_default();
            format!("{class}{}", several(args))
        }
        _ => simple(key),
    }
}
