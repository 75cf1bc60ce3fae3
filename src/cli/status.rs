//! `stfs status`.

use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::{Map, Value};

use super::{Failure, Printable};
use crate::mount::{self, Mount, State};

/// Show what the mounts do: whether they live, open files, bytes served, the cache
///
/// A mount is live, dead (its process is gone), stopped (its process is, as by Ctrl-Z),
/// not answering, or another user's who keeps you out. This takes two seconds at most.
#[derive(Args)]
#[command(
    after_help = "Exit status: 0 when all mounts that were asked for live, else 1.

Examples:
  stfs status
  stfs status --json /mnt/models"
)]
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
    let wanted = match &arguments.mountpoint {
        Some(path) => {
            let place = mount::locate(path)?;
            let mount = mount::mount_at(&place)?;
            let mount = mount.filter(Mount::is_stfs);
            vec![mount.ok_or(Error::NoMount(place))?]
        }
        None => mount::stfs_mounts()?,
    };
    let states = mount::states(&wanted)?;
    let all_live = states
        .iter()
        .all(|(state, _)| matches!(state, State::Live(_)));
    let reports = wanted.iter().zip(states);
    let mut reports: Vec<_> = reports
        .map(|(mount, (state, pid))| report(mount, state, pid))
        .collect();
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
    match all_live {
        true => Ok(()),
        false => Err(Failure::No),
    }
}

/// What a mount says of itself, and how it is.
fn report(mount: &Mount, state: State, pid: Option<i32>) -> Value {
    let place = mount.point.to_string_lossy();
    let mut report = Map::new();
    report.insert("source".into(), mount.source.to_string_lossy().into());
    report.insert("pid".into(), pid.into());
    let (word, why) = match state {
        State::Live(said) => match serde_json::from_slice::<Map<_, _>>(&said) {
            Ok(said) => {
                report.extend(said);
                ("live", None)
            }
            Err(_) => {
                let why = Error::Strange(mount.point.clone());
                ("live", Some(why.to_string()))
            }
        },
        State::Dead => {
            let why = format!("its process is gone. Run: stfs umount {place}");
            ("dead", Some(why))
        }
        State::Stopped => {
            let why = format!(
                "its process was stopped. Let it go on, or run: stfs umount --force {place}"
            );
            ("stopped", Some(why))
        }
        State::NotAnswering(None) => {
            let why = format!(
                "it or its source is busy or hangs. To end it: stfs umount --force {place}"
            );
            ("not answering", Some(why))
        }
        State::NotAnswering(Some(error)) => ("not answering", Some(error.to_string())),
        State::AnotherUsers => ("another user's", Some("it does not let you in".to_owned())),
    };
    report.insert("mountpoint".into(), place.into());
    report.insert("state".into(), word.into());
    if let Some(why) = why {
        report.insert("error".into(), why.into());
    }
    Value::Object(report)
}

fn print(report: &Value) {
    let text = |value: &Value| Printable(value.as_str().unwrap_or("none")).to_string();
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    println!("{}", text(&report["mountpoint"]));
    match report["error"].as_str() {
        Some(why) => println!(
            "  state       {}: {}",
            text(&report["state"]),
            Printable(why)
        ),
        None => println!("  state       {}", text(&report["state"])),
    }
    println!("  source      {}", text(&report["source"]));
    if let Some(pid) = report["pid"].as_u64() {
        println!("  process     {pid}");
    }
    if !report["error"].is_null() {
        return;
    }
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
