//! What a mount has done so far, and which files are open: the figures behind
//! `stfs status` and `.stfs/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::cache::Figures;

/// Where the bytes of a file come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// The file is shown as it is.
    Native,
    /// Converted while it is read.
    Stream,
    /// Converted before, and kept.
    Promoted,
}

const TIERS: [Tier; 3] = [Tier::Native, Tier::Stream, Tier::Promoted];

impl Tier {
    pub fn name(self) -> &'static str {
        match self {
            Tier::Native => "native",
            Tier::Stream => "stream",
            Tier::Promoted => "promoted",
        }
    }
}

/// A figure that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Usage {
    tiers: [TierUsage; 3],
    pub promotions: Count,
    pub promotions_failed: Count,
    /// Promoted files whose archives have checksums that do not match.
    pub damaged: Count,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct TierUsage {
    opens: Count,
    /// Bytes that went through this process.
    served: Count,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    files: BTreeMap<u64, (Arc<Path>, Tier)>,
}

/// Figures of the store of promoted files.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stock {
    pub files: u64,
    pub bytes: u64,
    pub limit: u64,
}

impl Usage {
    /// Counts a file that is open for as long as the result lives. `path`: that
    /// of the source file.
    pub fn opened(self: &Arc<Usage>, path: Arc<Path>, tier: Tier) -> InUse {
        self.tiers[tier as usize].opens.add(1);
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.files.insert(number, (path, tier));
        drop(open);
        InUse {
            usage: self.clone(),
            number,
            tier,
        }
    }

    /// The figures as Prometheus reads them:
    /// <https://prometheus.io/docs/instrumenting/exposition_formats/>.
    pub fn metrics(&self, plans: &Figures, store: Option<Stock>) -> String {
        let mut text = Metrics::default();
        let open = self.open_by_tier();
        text.of_tiers("stfs_open_files", "gauge", "Files open now.", |tier| {
            open[tier as usize]
        });
        text.of_tiers("stfs_opens_total", "counter", "Files opened.", |tier| {
            self.tiers[tier as usize].opens.get()
        });
        let help = "Bytes served by the daemon. What the kernel reads by itself (FUSE passthrough) \
                    is not among them.";
        text.of_tiers("stfs_served_bytes_total", "counter", help, |tier| {
            self.tiers[tier as usize].served.get()
        });
        text.head("stfs_plans_total", "counter", "Plans that were asked for.");
        for (from, count) in counts(plans) {
            text.line(&format!("stfs_plans_total{{from=\"{from}\"}}"), count);
        }
        text.head("stfs_promotions_total", "counter", "Promotions that ended.");
        for (result, count) in [
            ("done", &self.promotions),
            ("failed", &self.promotions_failed),
            ("damaged", &self.damaged),
        ] {
            let name = format!("stfs_promotions_total{{result=\"{result}\"}}");
            text.line(&name, count.get());
        }
        if let Some(store) = store {
            text.of(
                "stfs_cache_files",
                "gauge",
                "Promoted files kept.",
                store.files,
            );
            text.of("stfs_cache_bytes", "gauge", "Bytes of them.", store.bytes);
            text.of(
                "stfs_cache_limit_bytes",
                "gauge",
                "Bytes they may have.",
                store.limit,
            );
        }
        text.0
    }

    /// The same, and the open files, for `stfs status`.
    pub fn status(&self, plans: &Figures, store: Option<Stock>) -> Value {
        let open: Vec<Value> = self
            .open()
            .files
            .values()
            .map(|(path, tier)| json!({"source": path.to_string_lossy(), "tier": tier.name()}))
            .collect();
        let of_tiers = |figure: &dyn Fn(Tier) -> u64| -> Value {
            let figures = TIERS.map(|tier| (tier.name().to_string(), figure(tier).into()));
            Value::Object(figures.into_iter().collect())
        };
        let plans = counts(plans).map(|(from, count)| (from.to_string(), count.into()));
        json!({
            "open": open,
            "opens": of_tiers(&|tier| self.tiers[tier as usize].opens.get()),
            "served_bytes": of_tiers(&|tier| self.tiers[tier as usize].served.get()),
            "plans": Value::Object(plans.into_iter().collect()),
            "promotions": {
                "done": self.promotions.get(),
                "failed": self.promotions_failed.get(),
                "damaged": self.damaged.get(),
            },
            "cache": store.map(|store| json!({
                "files": store.files, "bytes": store.bytes, "limit_bytes": store.limit,
            })),
        })
    }

    fn open_by_tier(&self) -> [u64; 3] {
        let mut counts = [0; 3];
        for (_, tier) in self.open().files.values() {
            counts[*tier as usize] += 1;
        }
        counts
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that is open, in the figures.
#[derive(Debug)]
pub struct InUse {
    usage: Arc<Usage>,
    number: u64,
    tier: Tier,
}

impl InUse {
    /// `bytes` of the file went out.
    pub fn served(&self, bytes: u64) {
        self.usage.tiers[self.tier as usize].served.add(bytes);
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.usage.open().files.remove(&self.number);
    }
}

/// Where plans came from, and how many.
fn counts(plans: &Figures) -> [(&'static str, u64); 3] {
    let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
    [
        ("memory", load(&plans.from_memory)),
        ("record", load(&plans.from_records)),
        ("checkpoint", load(&plans.made)),
    ]
}

#[derive(Default)]
struct Metrics(String);

impl Metrics {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0
            .push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, value: u64) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn of(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.head(name, kind, help);
        self.line(name, value);
    }

    fn of_tiers(&mut self, name: &str, kind: &str, help: &str, figure: impl Fn(Tier) -> u64) {
        self.head(name, kind, help);
        for tier in TIERS {
            self.line(&format!("{name}{{tier=\"{}\"}}", tier.name()), figure(tier));
        }
    }
}
