//! What is known of the files of the source without looking into them: lately
//! found out by this process, or written down by an earlier one.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::cache::{Body, Key, Recent, Records, Size, Subject, Summary};
use crate::checkpoint::{Content, Refusal};
use crate::convert::{Parsed, Plan};

/// Files that are remembered. They outlive their plans: a listing needs no more.
const FILES: NonZeroUsize = NonZeroUsize::new(1 << 16).unwrap();

pub(super) struct Facts {
    records: Option<Records>,
    files: Recent<Subject, Fact>,
    sizes: Recent<Key, Size>,
}

#[derive(Clone)]
struct Fact {
    summary: Arc<Summary>,
    standing: Standing,
}

/// What a fact has to do with the records.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// A record says the same.
    Recorded,
    /// It may be written down.
    Settled,
    /// The file may since have changed without getting another identity.
    Unsettled,
}

impl Facts {
    pub fn new(records: Option<Records>) -> Facts {
        Facts {
            records,
            files: Recent::new(FILES),
            sizes: Recent::new(FILES),
        }
    }

    /// Whether anything outlives this process.
    pub fn last(&self) -> bool {
        self.records.is_some()
    }

    /// What the file holds.
    pub fn content(&self, subject: &Subject) -> Option<Content> {
        Some(self.fact(subject)?.summary.content)
    }

    /// Remembers what a file was found to hold. `settled`: it was so, before
    /// anybody looked.
    pub fn learn_content(&self, subject: Subject, content: Content, settled: bool) {
        let summary = Summary {
            content,
            outcome: None,
        };
        let fact = Fact {
            summary: Arc::new(summary),
            standing: match settled {
                true => Standing::Settled,
                false => Standing::Unsettled,
            },
        };
        self.files.put(subject, fact);
    }

    /// Writes down what a checkpoint is that nothing is made of: the next process
    /// need not look into it to find that out.
    pub fn record_content(&self, subject: &Subject) {
        if let Some(records) = &self.records
            && let Some(Fact { summary, standing }) = self.files.get(subject)
            && standing == Standing::Settled
            && records.write(subject, &summary, &Body::default())
        {
            let standing = Standing::Recorded;
            self.files.put(*subject, Fact { summary, standing });
        }
    }

    /// The size of what the file turns into, or why it turns into nothing.
    pub fn size(&self, subject: &Subject, key: &Key) -> Option<Size> {
        if let Some(size) = self.sizes.get(key) {
            return Some(size);
        }
        let summary = self.fact(subject)?.summary;
        let size = summary.size(&key.circumstances())?.clone();
        self.sizes.put(key.clone(), size.clone());
        Some(size)
    }

    pub fn learn_size(&self, key: &Key, size: Size) {
        self.sizes.put(key.clone(), size);
    }

    /// The plan for `key`, or why there is none, as far as records tell.
    pub fn plan(&self, subject: &Subject, key: &Key) -> Option<Result<Plan, Refusal>> {
        let records = self.records.as_ref()?;
        let fact = self.fact(subject)?;
        if fact.standing != Standing::Recorded {
            return None;
        }
        let known = fact.summary.size(&key.circumstances());
        if let Some(Err(refusal)) = known {
            return Some(Err(Refusal::clone(refusal)));
        }
        let (checkpoint, body) = records.checkpoint(subject)?;
        if !checkpoint.companions.iter().all(|file| key.has(file)) {
            return None;
        }
        let parsed = Parsed::Checkpoint(checkpoint);
        let outcome = parsed.plan(key.identity.size, key.architecture.as_deref());
        if known.is_none() {
            self.record(subject, key, fact.summary.content, &outcome, &body);
        }
        Some(outcome)
    }

    /// Writes down what became of a file that was settled when it was opened, and
    /// has had the same identity ever since.
    pub fn record(
        &self,
        subject: &Subject,
        key: &Key,
        content: Content,
        outcome: &Result<Plan, Refusal>,
        body: &Body,
    ) {
        // The content may have been told before the file was settled.
        let known = self.files.get(subject);
        let known = known.filter(|fact| fact.standing != Standing::Unsettled);
        let (Some(records), Some(known)) = (&self.records, known) else {
            return;
        };
        let size = match outcome {
            Ok(plan) => Ok(plan.size()),
            Err(refusal) if refusal.cause().is_lasting() => Err(Arc::new(refusal.clone())),
            Err(_) => return,
        };
        let summary = Summary {
            content,
            outcome: Some((key.circumstances(), size)),
        };
        let recorded = known.standing == Standing::Recorded && *known.summary == summary;
        if recorded && body.is_empty() {
            return;
        }
        if records.write(subject, &summary, body) {
            let fact = Fact {
                summary: Arc::new(summary),
                standing: Standing::Recorded,
            };
            self.files.put(*subject, fact);
        }
    }

    /// What is known of the file, from its record if need be.
    fn fact(&self, subject: &Subject) -> Option<Fact> {
        if let Some(fact) = self.files.get(subject) {
            return Some(fact);
        }
        let summary = self.records.as_ref()?.summary(subject)?;
        let fact = Fact {
            summary: Arc::new(summary),
            standing: Standing::Recorded,
        };
        self.files.put(*subject, fact.clone());
        Some(fact)
    }
}
