//! `stfs status`.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Value, json};

use super::{Failure, Printable};
use crate::mount::stfs_mounts;

/// Show what the mounts do: open files, bytes served, the cache
#[derive(Args)]
#[command(after_help = "Examples:
  stfs status
  stfs status --json /mnt/models")]
pub struct Arguments {
    /// Where the mount is [default: all mounts of this machine]
    mountpoint: Option<PathBuf>,
    /// As a JSON object, or a list of them
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{path}: {error}. `stfs umount` clears a mount whose process is gone", path = .0.display(), error = .1)]
    Silent(PathBuf, std::io::Error),
    #[error("{}: what the mount says is not understood: it is of another version of stfs", .0.display())]
    Strange(PathBuf),
    #[error("{}: no stfs mount", .0.display())]
    NoMount(PathBuf),
}

/// What the mount at `place` says of itself.
pub fn read(place: &Path) -> Result<Value, Failure> {
    let path = place.join(".stfs/status.json");
    let text = std::fs::read(&path).map_err(|error| Error::Silent(place.to_path_buf(), error))?;
    let status = serde_json::from_slice(&text);
    Ok(status.map_err(|_| Error::Strange(place.to_path_buf()))?)
}

/// The checkpoint behind a file in a mount.
pub fn source_of(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let value = crate::mount::xattr(path, c"user.stfs.source").ok()?;
    Some(std::ffi::OsString::from_vec(value).into())
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mounts = stfs_mounts()?;
    let wanted = match &arguments.mountpoint {
        Some(place) => {
            let absolute = std::path::absolute(place)?;
            let place = place.canonicalize().unwrap_or(absolute);
            if !mounts.contains(&place) {
                return Err(Error::NoMount(place).into());
            }
            vec![place]
        }
        None => mounts,
    };
    let mut reports = Vec::new();
    for place in &wanted {
        let mut report = match read(place) {
            Ok(report) => report,
            // The others are still worth knowing.
            Err(Failure::Failed(error)) if arguments.mountpoint.is_none() => {
                json!({"error": error.to_string()})
            }
            Err(error) => return Err(error),
        };
        if let Some(report) = report.as_object_mut() {
            report.insert("mountpoint".into(), place.to_string_lossy().into());
        }
        reports.push(report);
    }
    if arguments.json {
        let one = arguments.mountpoint.is_some();
        let all = match (one, reports.pop()) {
            (true, Some(report)) => report,
            (_, last) => {
                reports.extend(last);
                Value::Array(reports)
            }
        };
        println!("{all:#}");
    } else if reports.is_empty() {
        println!("no stfs mounts");
    } else {
        reports.iter().for_each(print);
    }
    Ok(())
}

fn print(report: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("none").to_string();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    println!("{}", text(&report["mountpoint"]));
    if let Some(error) = report["error"].as_str() {
        println!("  {error}");
        return;
    }
    println!("  source      {}", text(&report["source"]));
    println!("  process     {}", number(&report["pid"]));
    for tier in ["native", "stream", "promoted"] {
        println!(
            "  {tier:<11} {} opened, {} served",
            number(&report["opens"][tier]),
            BinaryBytes(number(&report["served_bytes"][tier])),
        );
    }
    let plans = &report["plans"];
    println!(
        "  plans       {} from memory, {} from the cache, {} made",
        number(&plans["memory"]),
        number(&plans["record"]),
        number(&plans["checkpoint"]),
    );
    let promotions = &report["promotions"];
    println!(
        "  promotions  {} done, {} failed ({})",
        number(&promotions["done"]),
        number(&promotions["failed"]),
        text(&report["promote"]),
    );
    match number(&promotions["damaged"]) {
        0 => {}
        damaged => println!(
            "  damaged     {damaged} checkpoints: their checksums do not match (the log says which)"
        ),
    }
    match report["cache"].as_object() {
        Some(cache) => println!(
            "  cache       {} files, {} of {} in {}",
            number(&cache["files"]),
            BinaryBytes(number(&cache["bytes"])),
            BinaryBytes(number(&cache["limit_bytes"])),
            text(&report["cache_dir"]),
        ),
        None => println!("  cache       none"),
    }
    if let Some(problem) = report["cache_problem"].as_str() {
        println!("  cache       {}", Printable(problem));
    }
    for file in report["open"].as_array().into_iter().flatten() {
        println!(
            "  open        {:<9} {}",
            text(&file["tier"]),
            text(&file["source"])
        );
    }
}
