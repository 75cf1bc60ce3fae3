//! `stfs warm`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;

use super::cache_options::CacheOptions;
use super::conversions::{self, Conversion};
use super::interruption::Interruption;
use super::progress::progress_bar;
use super::{Failure, say};
use crate::cache::{self, Name, Promotion, Store};
use crate::view;

/// Convert checkpoints ahead of time and keep them whole in the cache
///
/// Every mount with the same cache directory then shows them at native speed. What
/// is there already is left as it is.
#[derive(Args)]
#[command(after_help = "Examples:
  stfs warm ./models
  stfs warm /mnt/models/gpt2/model.safetensors")]
pub struct Arguments {
    /// Checkpoints, directories of them, or either in a mount
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    cache: CacheOptions,
    /// Take the tensors below this dotted path of each checkpoint, such as `ema`
    #[arg(long, value_name = "KEY")]
    root: Option<String>,
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

/// Longer than a file can be new, on another machine too.
const PATIENCE: Duration = Duration::from_secs(40);

/// Why a checkpoint was not converted.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "is being written, or was changed in the future by the clock of this machine. Try again \
         later"
    )]
    Unsettled,
    #[error(transparent)]
    View(#[from] view::Error),
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("{0} of {1} could not be converted")]
struct Incomplete(usize, usize);

#[derive(Debug, thiserror::Error)]
#[error(
    "{0} of the converted files did not stay: others needed their room. They do not fit into \
     the cache together; `stfs cache status` says how much it may take, --cache-size changes that"
)]
struct Displaced(usize);

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut work: Vec<(Store, Vec<Conversion>)> = Vec::new();
    for path in &arguments.paths {
        let found = conversions::find(path, arguments.root.as_deref())?;
        let store = arguments.cache.store(found.cache_dir.as_deref())?;
        work.push((store, found.conversions));
    }
    let interruption = Interruption::watch()?;
    let all = || work.iter().flat_map(|(_, conversions)| conversions);
    let (count, total) = (all().count(), all().map(|conversion| conversion.size).sum());
    let bar = progress_bar(total, !arguments.quiet);
    let (mut failed, mut before) = (0, 0);
    let mut made = Vec::new();
    for (store, conversions) in &work {
        let mut room = has_room(store, conversions);
        for (number, conversion) in conversions.iter().enumerate() {
            let promoted = match room || is_there(store, conversion) {
                true => {
                    bar.set_message(conversion.source().display().to_string());
                    let done = |done| bar.set_position(before + done);
                    let promoted = promote(store, conversion, &interruption, done);
                    interruption.check()?;
                    Some(promoted)
                }
                // That there is no room has been said.
                false => None,
            };
            match promoted {
                Some(Ok((promotion, name))) => {
                    tell(arguments.quiet, &bar, conversion, promotion);
                    made.push((store, name));
                }
                Some(Err(error)) => {
                    failed += 1;
                    bar.suspend(|| say(format!("{}: {error}", conversion.source().display())));
                    if matches!(&error, Error::Cache(error) if error.is_shortage()) {
                        room = bar.suspend(|| has_room(store, &conversions[number + 1..]));
                    }
                }
                None => failed += 1,
            }
            before += conversion.size;
            bar.set_position(before);
        }
    }
    bar.finish_and_clear();
    let displaced = made
        .iter()
        .filter(|(store, name)| store.peek(name).is_none());
    match (failed, displaced.count()) {
        (0, 0) => Ok(()),
        (0, displaced) => Err(Displaced(displaced).into()),
        (failed, displaced) => {
            if displaced > 0 {
                say(Displaced(displaced));
            }
            Err(Incomplete(failed, count).into())
        }
    }
}

fn is_there(store: &Store, conversion: &Conversion) -> bool {
    store.peek(&conversion.name).is_some()
}

/// Whether some of what is not there yet could get in. Says why not.
fn has_room(store: &Store, conversions: &[Conversion]) -> bool {
    let missing = conversions.iter().filter(|it| !is_there(store, it));
    let Some(smallest) = missing.clone().min_by_key(|it| it.size) else {
        return true;
    };
    match store.check_room(smallest.size) {
        Err(error) if error.is_shortage() => {
            let others = match missing.count() - 1 {
                0 => String::new(),
                others => format!(". Nor do {others} others, which take as much or more"),
            };
            say(format!("{}: {error}{others}", smallest.source().display()));
            false
        }
        // What else there is to say is said of each.
        _ => true,
    }
}

/// Converts a checkpoint, and says what that is called: it may have settled meanwhile.
fn promote(
    store: &Store,
    conversion: &Conversion,
    interruption: &Interruption,
    mut done: impl FnMut(u64),
) -> Result<(Promotion, Name), Error> {
    // What is kept of a file that was written just now could not be told from what
    // is written into it next.
    let since = Instant::now();
    let mut settled;
    let mut conversion = conversion;
    while !conversion.view.is_settled(&conversion.node) && interruption.check().is_ok() {
        if since.elapsed() > PATIENCE {
            return Err(Error::Unsettled);
        }
        thread::sleep(Duration::from_millis(100));
        settled = conversion.again().ok_or(Error::Unsettled)?;
        conversion = &settled;
    }
    let reader = conversion.view.reader(&conversion.node)?;
    let mut step = |bytes| {
        done(bytes);
        match interruption.check() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    let (name, provenance) = (&conversion.name, &conversion.provenance);
    let promotion = store.promote(name, provenance, &reader, &mut step)?;
    Ok((promotion, *name))
}

fn tell(quiet: bool, bar: &ProgressBar, conversion: &Conversion, promotion: Promotion) {
    let about = |what: &str| say(format!("{}: {what}", conversion.source().display()));
    if let Some(warning) = promotion.warning() {
        bar.suspend(|| about(&warning));
    }
    let what = match promotion {
        Promotion::Made(_) => "converted",
        Promotion::Already => "was there",
    };
    if !quiet {
        bar.suspend(|| about(what));
    }
}
