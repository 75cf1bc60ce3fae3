//! `stfs cache`: what is kept, and taking it away.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use clap::{Args, Subcommand};
use indicatif::BinaryBytes;
use rayon::prelude::*;
use serde_json::json;

use super::cache_options::CacheOptions;
use super::{Failure, Printable, conversions, say};
use crate::cache::{self, Comparison, Evicted, Item, Name, Store};
use crate::view::View;

/// Files that are checked before what was found is printed.
const AT_ONCE: usize = 64;

/// Look at the cache, check it, empty it
#[derive(Subcommand)]
pub enum Command {
    /// How much is kept, and how much may be
    Status(Common),
    /// The converted files, the least recently used first
    List(Common),
    /// Compare the converted files with what their checkpoints give
    ///
    /// Those that differ are removed. Exit status 1 if there were any.
    Verify(Verify),
    /// Remove everything but the files that are open
    Clear(Common),
    /// Remove single converted files, unless they are open
    Evict(Evict),
}

#[derive(Args)]
pub struct Common {
    #[command(flatten)]
    cache: CacheOptions,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    common: Common,
    /// The dotted path that the files were mounted with
    #[arg(long, value_name = "KEY")]
    root: Option<String>,
}

#[derive(Args)]
pub struct Evict {
    /// Checkpoints as `stfs cache list` prints them, or the names that --json gives
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0} of the converted files were not what they should be")]
    Damaged(usize),
    #[error("{}: not in the cache. `stfs cache list` shows what is", .0.display())]
    Missing(PathBuf),
    #[error("{}: in use. Close the file, or end the mount, and try again", .0.display())]
    InUse(PathBuf),
}

pub fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Status(common) => status(common),
        Command::List(common) => list(common),
        Command::Verify(arguments) => verify(arguments),
        Command::Clear(common) => clear(common),
        Command::Evict(arguments) => evict(arguments),
    }
}

fn status(common: &Common) -> Result<(), Failure> {
    let store = common.cache.store(None)?;
    let usage = store.occupancy()?;
    let shortage = store.shortage().map(|shortage| shortage.to_string());
    let root = store.directory().root();
    if common.json {
        let status = json!({
            "directory": root.to_string_lossy(),
            "files": usage.files,
            "bytes": usage.bytes,
            "limit_bytes": usage.limit,
            "free_bytes": usage.free,
            "shortage": shortage,
        });
        println!("{status:#}");
    } else {
        println!("directory  {}", root.display());
        println!("files      {}", usage.files);
        println!("size       {}", BinaryBytes(usage.bytes));
        println!("limit      {}", BinaryBytes(usage.limit));
        println!("free       {}", BinaryBytes(usage.free));
        if let Some(shortage) = shortage {
            println!("full       {}", Printable(shortage));
        }
    }
    Ok(())
}

fn list(common: &Common) -> Result<(), Failure> {
    let items = common.cache.store(None)?.list()?;
    if common.json {
        let items: Vec<_> = items.iter().map(as_json).collect();
        println!("{:#}", serde_json::Value::Array(items));
        return Ok(());
    }
    for item in items {
        let size = BinaryBytes(item.size).to_string();
        let state = if item.in_use { "in use" } else { "" };
        println!("{size:>12}  {state:<6}  {}", item.source.display());
    }
    Ok(())
}

fn as_json(item: &Item) -> serde_json::Value {
    let since = item.last_used.duration_since(SystemTime::UNIX_EPOCH);
    json!({
        "name": item.name.hex(),
        "source": item.source.to_string_lossy(),
        "root": item.root,
        "bytes": item.size,
        "last_used": since.map_or(0, |since| since.as_secs()),
        "in_use": item.in_use,
    })
}

fn verify(arguments: &Verify) -> Result<(), Failure> {
    let store = arguments.common.cache.store(None)?;
    let mut damaged = 0;
    let mut report = Vec::new();
    let views = Mutex::default();
    let check = |item| check(&store, item, arguments.root.as_deref(), &views);
    for items in store.list()?.chunks(AT_ONCE) {
        let found: Vec<_> = items.par_iter().map(check).collect();
        for (item, found) in items.iter().zip(found) {
            let state = match found? {
                Some(Comparison::Same) => "sound",
                Some(Comparison::Missing) => "gone",
                Some(Comparison::Differs(_)) => {
                    damaged += 1;
                    store.evict(&item.name)?;
                    "differs"
                }
                // Nothing that a mount would show is made from it any more.
                None => "unknown",
            };
            if arguments.common.json {
                let mut entry = as_json(item);
                entry["verdict"] = state.into();
                report.push(entry);
            } else {
                println!("{state:<8}  {}", item.source.display());
            }
        }
    }
    if arguments.common.json {
        println!("{:#}", serde_json::Value::Array(report));
    }
    match damaged {
        0 => Ok(()),
        _ => Err(Error::Damaged(damaged).into()),
    }
}

/// None when the checkpoint of `item` is gone, another one by now, or was converted
/// with other options.
fn check(
    store: &Store,
    item: &Item,
    root: Option<&str>,
    views: &Mutex<HashMap<PathBuf, Arc<View>>>,
) -> Result<Option<Comparison>, Failure> {
    let Some(directory) = item.source.parent() else {
        return Ok(None);
    };
    let view = {
        let mut views = views.lock().unwrap_or_else(PoisonError::into_inner);
        match views.entry(directory.into()) {
            Entry::Occupied(view) => view.get().clone(),
            Entry::Vacant(place) => match conversions::view_of(directory, root.map(str::to_string))
            {
                Ok(view) => place.insert(view).clone(),
                Err(_) => return Ok(None),
            },
        }
    };
    match conversions::conversion(&view, &item.source, item.root.as_deref()) {
        Ok(conversion) if conversion.name == item.name => {
            let reader = view.reader(&conversion.node)?;
            Ok(Some(store.verify(&item.name, &reader)?))
        }
        _ => Ok(None),
    }
}

fn clear(common: &Common) -> Result<(), Failure> {
    let store = common.cache.store(None)?;
    let cleared = store.clear()?;
    cache::prune_records(store.directory(), 0)?;
    if common.json {
        let report = json!({
            "files": cleared.files, "bytes": cleared.bytes, "in_use": cleared.in_use,
        });
        println!("{report:#}");
    } else {
        println!(
            "{} files, {} removed",
            cleared.files,
            BinaryBytes(cleared.bytes)
        );
        if cleared.in_use > 0 {
            say(format!("{} files are in use and stay", cleared.in_use));
        }
    }
    Ok(())
}

fn evict(arguments: &Evict) -> Result<(), Failure> {
    let store = arguments.common.cache.store(None)?;
    let items = store.list()?;
    let mut removed = Vec::new();
    for file in &arguments.files {
        let name = file.to_str().and_then(Name::from_hex);
        let path = file.canonicalize().unwrap_or_else(|_| file.clone());
        let is =
            |item: &&Item| name == Some(item.name) || item.source == *file || item.source == path;
        let wanted: Vec<&Item> = items.iter().filter(is).collect();
        if wanted.is_empty() {
            return Err(Error::Missing(file.clone()).into());
        }
        for item in wanted {
            match store.evict(&item.name)? {
                Evicted::Removed(bytes) => {
                    removed.push(json!({"name": item.name.hex(), "bytes": bytes}));
                    if !arguments.common.json {
                        println!("{} removed", BinaryBytes(bytes));
                    }
                }
                Evicted::InUse => return Err(Error::InUse(file.clone()).into()),
                Evicted::Missing => {}
            }
        }
    }
    if arguments.common.json {
        println!("{:#}", serde_json::Value::Array(removed));
    }
    Ok(())
}
