//! `stfs ls`.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::{Failure, FileError, Printable, finish, shape};
use crate::convert::{self, Plan};

/// List the tensors of a checkpoint
///
/// Name, dtype, shape and size of every tensor, in the order of the safetensors
/// file that the checkpoint converts to.
#[derive(Args)]
#[command(after_help = "Example:\n  stfs ls pytorch_model.bin")]
pub struct Arguments {
    /// A pickle checkpoint or a .safetensors file
    pub file: PathBuf,
    /// Print JSON: one object with the tensors and what else is in the file
    #[arg(long)]
    pub json: bool,
    /// Take the tensors below this dotted path of the checkpoint, such as `ema`
    #[arg(long, value_name = "KEY")]
    pub root: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.file;
    let reader = convert::open_at(path, arguments.root.as_deref())
        .map_err(|error| FileError::new(path, error))?;
    let plan = reader.plan();
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = match arguments.json {
        true => writeln!(out, "{:#}", describe(arguments, plan)),
        false => table(&mut out, plan, path),
    };
    Ok(finish(written.and_then(|()| out.flush()))?)
}

fn table(out: &mut impl Write, plan: &Plan, file: &Path) -> io::Result<()> {
    let rows: Vec<[String; 4]> = plan
        .tensors()
        .iter()
        .map(|tensor| {
            [
                Printable(&tensor.name).to_string(),
                tensor.dtype.to_string(),
                shape(&tensor.shape),
                tensor.len.to_string(),
            ]
        })
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).min(64)
    };
    let (name, dtype, dims, bytes) = (width(0), width(1), width(2), width(3));
    for row in &rows {
        let [n, d, s, b] = row;
        writeln!(out, "{n:name$}  {d:dtype$}  {s:dims$}  {b:>bytes$}")?;
    }
    for (dropped, kept) in plan.dropped() {
        writeln!(out, "{} is {}", Printable(dropped), Printable(kept))?;
    }
    for entry in plan.left_out() {
        let (path, rule, bytes) = (Printable(&entry.path), entry.rule, entry.bytes);
        writeln!(out, "left out: {path}  {rule}, {bytes} bytes")?;
    }
    let file = file.to_string_lossy();
    for root in plan.roots() {
        let (root, file) = (Printable(quoted(root)), Printable(quoted(&file)));
        writeln!(out, "more weights: stfs ls --root {root} {file}")?;
    }
    for other in plan.others() {
        let (path, kind) = (Printable(&other.path), Printable(&other.kind));
        writeln!(out, "no tensor: {path}  {kind}  {}", Printable(&other.repr))?;
    }
    if plan.unlisted() > 0 {
        writeln!(out, "no tensor: {} values more", plan.unlisted())?;
    }
    let total: u64 = plan.tensors().iter().map(|tensor| tensor.len).sum();
    writeln!(out, "{} tensors, {total} bytes", rows.len())
}

fn describe(arguments: &Arguments, plan: &Plan) -> serde_json::Value {
    let tensors: Vec<_> = plan
        .tensors()
        .iter()
        .map(|tensor| {
            json!({
                "name": tensor.name,
                "dtype": tensor.dtype.to_string(),
                "shape": tensor.shape,
                "bytes": tensor.len,
            })
        })
        .collect();
    let ties: serde_json::Map<_, _> = plan
        .dropped()
        .map(|(dropped, kept)| (dropped.to_string(), kept.into()))
        .collect();
    let left_out = plan.left_out().iter();
    let left_out: Vec<_> = left_out
        .map(|entry| json!({"path": entry.path, "rule": entry.rule.name(), "bytes": entry.bytes}))
        .collect();
    let others: Vec<_> = plan
        .others()
        .iter()
        .map(|other| json!({"path": other.path, "type": other.kind, "repr": other.repr}))
        .collect();
    json!({
        "file": arguments.file.to_string_lossy(),
        "count": tensors.len(),
        "bytes": plan.tensors().iter().map(|tensor| tensor.len).sum::<u64>(),
        "file_bytes": plan.size(),
        "tensors": tensors,
        "tied": ties,
        "left_out": left_out,
        "roots": plan.roots(),
        "others": others,
        "others_unlisted": plan.unlisted(),
    })
}

/// `text` as a shell takes it for one word.
fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |letter: char| letter.is_alphanumeric() || "._-/@%+:,=".contains(letter);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")).into(),
    }
}
