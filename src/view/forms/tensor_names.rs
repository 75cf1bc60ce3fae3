//! Tensor names as file names. A name is itself, but for `/`, NUL and `%`, and
//! for the names `.` and `..`, which are percent-encoded. A name too long for a
//! file name is cut and given a hash.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

/// Longest file name, in bytes.
const NAME_MAX: usize = 255;
/// Stands between a cut name and its hash; `%~` is no percent-encoding.
const CUT: &str = "%~";
/// Hexadecimal digits of the hash.
const HASH: usize = 16;

/// The file name of the tensor `name`.
pub fn encode(name: &str) -> Cow<'_, str> {
    let encoded: Cow<str> = match name {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        // An empty name would be no file name.
        "" => "%".into(),
        _ => escape(name),
    };
    if encoded.len() <= NAME_MAX {
        return encoded;
    }
    let room = NAME_MAX - CUT.len() - HASH;
    let mut end = encoded.floor_char_boundary(room);
    // Leave no half of a `%2F`.
    if let Some(percent) = encoded[..end].rfind('%')
        && end - percent < 3
    {
        end = percent;
    }
    let digest = Sha256::digest(name.as_bytes());
    let hash: String = digest
        .iter()
        .take(HASH / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{}{CUT}{hash}", &encoded[..end]).into()
}

fn escape(name: &str) -> Cow<'_, str> {
    const ESCAPED: [char; 3] = ['/', '\0', '%'];
    if !name.contains(ESCAPED) {
        return name.into();
    }
    let mut escaped = String::with_capacity(name.len() + 8);
    for letter in name.chars() {
        if ESCAPED.contains(&letter) {
            escaped.push_str(&format!("%{:02X}", u32::from(letter)));
        } else {
            escaped.push(letter);
        }
    }
    escaped.into()
}

/// The tensor name behind a file name that was not cut; None when no name is
/// encoded like this.
pub fn decode(file_name: &str) -> Option<String> {
    let name = match file_name {
        "%" => String::new(),
        _ => percent_decode_str(file_name)
            .decode_utf8()
            .ok()?
            .into_owned(),
    };
    (encode(&name) == file_name).then_some(name)
}

/// Whether this is the file name of a name that was cut.
pub fn is_cut(file_name: &str) -> bool {
    file_name
        .len()
        .checked_sub(HASH + CUT.len())
        .and_then(|at| file_name.get(at..))
        .is_some_and(|rest| rest.starts_with(CUT))
}
