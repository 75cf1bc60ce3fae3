//! What converted files are called.

use crate::checkpoint::PARTS;

/// Endings of checkpoint files.
const ENDINGS: &[&str] = &[
    "bin", "pt", "pth", "ckpt", "pkl", "pickle", "pdparams", "th", "pyth", "joblib", "npy", "npz",
    "pth.tar", "pt.tar", "pt2",
];

/// The ending of converted files, with its dot.
pub const SAFETENSORS: &str = ".safetensors";

/// The file that describes a torch.distributed.checkpoint directory.
pub const METADATA: &str = ".metadata";

/// What the checkpoint in such a directory is called.
pub const MODEL: &str = "model";

/// Whether the name of a file says that it is a checkpoint.
pub fn promises_checkpoint(name: &str) -> bool {
    split_ending(name).is_some()
}

/// The name of a checkpoint's converted form, without `.safetensors`:
/// `pytorch_model.fp16.bin` becomes `model.fp16`, `x.pth` becomes `x`. A name
/// without a known ending stays whole.
pub fn stem(name: &str) -> String {
    match split_ending(name) {
        Some((stem, ending)) if ending.eq_ignore_ascii_case("bin") => rename_model(stem),
        Some((stem, _)) => stem.to_string(),
        // A directory is one checkpoint, and its parts have no names of their own.
        None if name == METADATA => MODEL.to_string(),
        // A pickle under the name of a safetensors file.
        None => name.strip_suffix(SAFETENSORS).unwrap_or(name).to_string(),
    }
}

/// The name of a converted index: `pytorch_model.bin.index.json` becomes
/// `model.safetensors.index.json`, a variant such as `.index.fp16.json` is kept.
/// None for any other file.
pub fn index_name(name: &str) -> Option<String> {
    let (stem, variant) = split_index(name, ".bin")?;
    Some(format!(
        "{}{SAFETENSORS}.index{variant}.json",
        rename_model(stem)
    ))
}

/// The stem of the single file that an index of checkpoints or of safetensors
/// files stands for: `model.safetensors.index.fp16.json` has `model.fp16`.
pub fn indexed_stem(name: &str) -> Option<String> {
    let (stem, variant) = match split_index(name, ".bin") {
        Some((stem, variant)) => (rename_model(stem), variant),
        None => {
            let (stem, variant) = split_index(name, SAFETENSORS)?;
            (stem.to_string(), variant)
        }
    };
    Some(format!("{stem}{variant}"))
}

/// Files that are read as parts of the checkpoint that another one describes.
pub fn is_part(name: &str) -> bool {
    name.ends_with(PARTS)
}

/// Splits a checkpoint's name into stem and ending.
fn split_ending(name: &str) -> Option<(&str, &str)> {
    ENDINGS
        .iter()
        .filter_map(|ending| {
            let at = name.len().checked_sub(ending.len() + 1)?;
            let (stem, rest) = (name.get(..at)?, name.get(at..)?);
            let matches = rest.strip_prefix('.')?.eq_ignore_ascii_case(ending);
            (matches && !stem.is_empty()).then_some((stem, &rest[1..]))
        })
        .max_by_key(|(_, ending)| ending.len())
}

/// Splits `STEM.ENDING.index.VARIANT.json`; the variant keeps its dot.
fn split_index<'a>(name: &'a str, ending: &str) -> Option<(&'a str, &'a str)> {
    let name = name.strip_suffix(".json")?;
    let (stem, variant) = name.split_once(&format!("{ending}.index"))?;
    let valid = variant.is_empty() || variant.starts_with('.');
    (valid && !stem.is_empty()).then_some((stem, variant))
}

/// transformers calls its pickles `pytorch_model` and its safetensors `model`, with a
/// variant or a number behind it. `pytorch_model_ema` is a name of its own.
fn rename_model(stem: &str) -> String {
    match stem.strip_prefix("pytorch_model") {
        Some(rest) if starts_word(rest) || is_numbered(rest) => format!("model{rest}"),
        _ => stem.to_string(),
    }
}

/// Whether `rest` begins with a number: `_1`, or `_00001-of-00072` as BLOOM's shards.
fn is_numbered(rest: &str) -> bool {
    let number = rest.strip_prefix('_');
    let behind = number.map(|number| number.trim_start_matches(|c: char| c.is_ascii_digit()));
    behind.is_some_and(|behind| Some(behind) != number && starts_word(behind))
}

/// Whether a word ends before `rest`.
fn starts_word(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with(['.', '-'])
}
