//! `X@ROOT`: one value of a checkpoint with several sets of weights, by its dotted path.
//! Found by name alone; no listing has it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::tensor_names;
use crate::view::error::Result;
use crate::view::folder::{Folder, Outcome};
use crate::view::origin::Origin;
use crate::view::scan::stem;

/// What `base` names: the file by the stem of its converted form or by as much of its
/// name as there is, the value by its path, written as the names of tensors are.
pub fn find(folder: &Folder, base: &OsStr) -> Result<Outcome> {
    let Some(text) = base.to_str() else {
        return Ok(Outcome::Nothing);
    };
    for (at, _) in text.match_indices('@') {
        let (file, root) = text.split_at(at);
        let root: Arc<str> = match tensor_names::decode(&root[1..]) {
            Some(root) if !root.is_empty() => root.into(),
            _ => continue,
        };
        for name in named(folder, file)? {
            let outcome = folder.outcome_at(&name, &root)?;
            if !matches!(outcome, Outcome::Nothing) {
                return Ok(outcome);
            }
        }
    }
    Ok(Outcome::Nothing)
}

/// The same, where it can be converted.
pub fn origin(folder: &Folder, base: &OsStr) -> Result<Option<Arc<Origin>>> {
    Ok(match find(folder, base)? {
        Outcome::Converted(origin) => Some(origin),
        Outcome::Nothing | Outcome::Refused(..) => None,
    })
}

/// The files whose converted form has the stem `text`, and those whose names go on
/// after it with an ending.
fn named(folder: &Folder, text: &str) -> Result<Vec<OsString>> {
    let scan = folder.scan()?;
    let whole = OsStr::new(text);
    let goes_on = |name: &&OsStr| {
        let rest = name.as_bytes().strip_prefix(text.as_bytes());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
    };
    let shorter = stem(whole);
    let longer = scan.with_stem(&shorter).filter(goes_on);
    let mut names: Vec<OsString> = Vec::new();
    for name in scan.with_stem(whole).chain(longer) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_os_string());
        }
    }
    Ok(names)
}
