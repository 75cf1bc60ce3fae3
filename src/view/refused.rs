//! What `NAME.refused.txt` says.

use std::ffi::OsStr;

use crate::checkpoint::Refusal;

/// One paragraph: which file, why, and what to do.
pub fn text(name: &OsStr, refusal: &Refusal) -> String {
    let name = name.to_string_lossy();
    format!(
        "{} is not shown as safetensors: {}. {}\n",
        name.escape_debug(),
        refusal,
        refusal.remedy()
    )
}
