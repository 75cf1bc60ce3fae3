//! `stfs warm`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;

use super::cache_options::CacheOptions;
use super::conversions::{self, Conversion};
use super::progress::progress_bar;
use super::{Failure, say};
use crate::cache::{Promotion, Store};

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

#[derive(Debug, thiserror::Error)]
#[error(
    "is being written, or was changed in the future by the clock of this machine. Try again later"
)]
struct Unsettled;

#[derive(Debug, thiserror::Error)]
#[error("{0} of {1} could not be converted")]
struct Incomplete(usize, usize);

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut work: Vec<(Store, Vec<Conversion>)> = Vec::new();
    for path in &arguments.paths {
        let found = conversions::find(path, arguments.root.as_deref())?;
        let store = arguments.cache.store(found.cache_dir.as_deref())?;
        work.push((store, found.conversions));
    }
    let all = || work.iter().flat_map(|(_, conversions)| conversions);
    let (count, total) = (all().count(), all().map(|conversion| conversion.size).sum());
    let bar = progress_bar(total, !arguments.quiet);
    let (mut failed, mut before) = (0, 0);
    for (store, conversions) in &work {
        for conversion in conversions {
            bar.set_message(conversion.source().display().to_string());
            match promote(store, conversion, |done| bar.set_position(before + done)) {
                Ok(promotion) => tell(arguments.quiet, &bar, conversion, promotion),
                Err(error) => {
                    failed += 1;
                    bar.suspend(|| say(format!("{}: {error}", conversion.source().display())));
                }
            }
            before += conversion.size;
            bar.set_position(before);
        }
    }
    bar.finish_and_clear();
    match failed {
        0 => Ok(()),
        _ => Err(Incomplete(failed, count).into()),
    }
}

fn promote(
    store: &Store,
    conversion: &Conversion,
    mut done: impl FnMut(u64),
) -> Result<Promotion, Box<dyn std::error::Error>> {
    // What is kept of a file that was written just now could not be told from what
    // is written into it next.
    let since = Instant::now();
    let mut settled;
    let mut conversion = conversion;
    while !conversion.view.is_settled(&conversion.node) {
        if since.elapsed() > PATIENCE {
            return Err(Unsettled.into());
        }
        thread::sleep(Duration::from_millis(100));
        settled = conversion.again().ok_or(Unsettled)?;
        conversion = &settled;
    }
    let reader = conversion.view.reader(&conversion.node)?;
    let mut step = |bytes| {
        done(bytes);
        ControlFlow::Continue(())
    };
    Ok(store.promote(&conversion.name, &conversion.provenance, &reader, &mut step)?)
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
