//! What is known of the files of a source: what each holds, what becomes of it, the
//! plan of that, and the small files that decide about it. Found out once, however
//! many ask at the same time; remembered in memory, and in records for the next
//! process, under the version of the file, so that a changed file is looked at anew.
//!
//! ```text
//! key       what things are known by
//! memory    values by key, weighed
//! records   the same on disk      prune   and how they are kept few
//! ```

mod key;
mod memory;
mod prune;
mod records;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crate::budget::{Budget, Share};
use crate::cache::{Background, Directory, Name};
use crate::checkpoint::{self, Content, Refusal, Wanted, fingerprint, open_companions, sniff};
use crate::convert::index::Index;
use crate::convert::{self, Files, Parsed, Plan, Reader};
use crate::source::{self, Source, Version};
use memory::{Memory, Weighed};
use records::{Body, Records, Size, Summary};

pub use key::{Circumstances, FileKey, Identity, PlanKey, Subject};
pub use prune::prune_records;

/// Bytes of memory for all that is known.
const BUDGET: usize = 20 << 20;
/// How long what was found out of a file is good for that may change without its
/// stamps moving.
const FRESH: Duration = Duration::from_millis(200);
/// A longer file is no index: huggingface_hub reads none of more than 10 MiB.
const MAX_INDEX: u64 = 16 << 20;

/// Bytes of memory for each byte of an index, to parse it or to write it anew.
const PARSED: u64 = 4;

/// A plan, or why there is none. Both hold for as long as the file stays as it is.
pub type Outcome = Result<Arc<Plan>, Arc<Refusal>>;

/// What became of a checkpoint.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Bytes of the converted file.
    pub size: u64,
    /// What tells its bytes from all others.
    pub identity: Identity,
}

/// What a mount knows of its source.
#[derive(Debug)]
pub struct Catalog {
    memory: Memory<FileKey, Known>,
    /// None without a cache directory.
    records: Option<Records>,
    /// Where in each checkpoint the weights are, if not where the rule finds them.
    root: Option<String>,
    /// Told to each mount, so that what holds for one is not taken for another's.
    mount: u64,
    /// What the memory to find out more is taken from.
    budget: Budget,
    figures: Figures,
}

/// Where plans came from.
#[derive(Debug, Default)]
pub struct Figures {
    pub from_memory: AtomicU64,
    pub from_records: AtomicU64,
    pub made: AtomicU64,
}

/// What is known of one file.
#[derive(Debug, Default)]
struct Known {
    /// Since when the rest is found out, of a file whose version is not settled.
    since: Option<Since>,
    content: Option<Content>,
    /// None inside: nothing tells its content from others.
    identity: Option<Identity>,
    outcome: Option<(Circumstances, Size)>,
    plan: Option<(Circumstances, Arc<Plan>)>,
    /// A record says what `content` and `outcome` say.
    recorded: bool,
    /// The class of model that a `config.json` names.
    architecture: Option<Option<Arc<str>>>,
    index: Option<Option<Arc<Index>>>,
    rendered: Option<(Name, Arc<[u8]>)>,
}

#[derive(Clone, Copy, Debug)]
enum Since {
    /// It might change unnoticed.
    Moving(Instant),
    /// It had settled by then.
    Settled,
}

impl Weighed for Known {
    fn weight(&self) -> usize {
        let plan = self.plan.as_ref().map_or(0, |(_, plan)| plan.weight());
        let index = self.index.iter().flatten().map(|index| index.weight());
        let rendered = self.rendered.as_ref().map_or(0, |(_, text)| text.len());
        plan + index.sum::<usize>() + rendered
    }

    fn shed(&mut self) {
        self.refuse();
        (self.plan, self.index, self.rendered) = (None, None, None);
    }
}

impl Known {
    /// What was found out while the file was read comes before what was planned.
    fn refuse(&mut self) {
        if let Some((circumstances, plan)) = &self.plan
            && let Some(refusal) = plan.refusal()
        {
            self.outcome = Some((*circumstances, Err(Arc::new(refusal))));
            self.recorded = false;
            self.plan = None;
        }
    }

    fn size(&mut self, circumstances: &Circumstances) -> Option<Size> {
        self.refuse();
        let (known, size) = self.outcome.as_ref()?;
        (known == circumstances).then(|| size.clone())
    }

    fn outcome(&mut self, circumstances: &Circumstances) -> Option<Outcome> {
        match self.size(circumstances)? {
            Err(refusal) => Some(Err(refusal)),
            Ok(_) => {
                let (known, plan) = self.plan.as_ref()?;
                (known == circumstances).then(|| Ok(plan.clone()))
            }
        }
    }

    fn take_in(&mut self, summary: Summary) {
        self.content = Some(summary.content);
        self.outcome = summary.outcome;
        self.recorded = true;
    }
}

impl Catalog {
    /// `root` is the dotted path of the weights in each checkpoint, if not what the
    /// rule finds; `records` where to keep what is found out, and the thread that
    /// tidies up there.
    pub fn new(
        root: Option<String>,
        records: Option<(Directory, Background)>,
        budget: Budget,
    ) -> Catalog {
        use std::hash::{BuildHasher, RandomState};
        let records =
            records.map(|(directory, thread)| Records::new(directory, root.clone(), thread));
        Catalog {
            memory: Memory::new(BUDGET),
            records,
            root,
            mount: RandomState::new().hash_one(std::process::id()),
            budget,
            figures: Figures::default(),
        }
    }

    pub fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Forgets what is heavy, down to half of what is kept while there is work: until
    /// then what was used last is kept in any case.
    pub fn settle(&self) {
        self.memory.settle();
    }

    /// A number that no other mount has.
    pub fn mount(&self) -> u64 {
        self.mount
    }

    /// What the file holds.
    pub fn content(&self, subject: &Subject) -> source::Result<Content> {
        self.with(subject, |known| {
            if let Some(content) = known.content {
                return Ok(content);
            }
            if let Some(summary) = self.summary(subject) {
                known.take_in(summary);
            } else {
                let hint = convert::hint(subject.name);
                let share = self.budget.share();
                let (content, kept) = look(subject, |source| match sniff(source, hint, &share) {
                    Ok(content) => Ok(content),
                    Err(checkpoint::Error::Source(error)) => Err(error),
                    // Whether a file is a checkpoint is never refused.
                    Err(checkpoint::Error::Refused(_)) => Ok(Content::Other),
                })?;
                match kept {
                    true => known.content = Some(content),
                    false => return Ok(content),
                }
            }
            Ok(known.content.unwrap_or(Content::Other))
        })
    }

    /// Takes note that nothing is made of a checkpoint: the next process need not look
    /// into it to find that out.
    pub fn pass_over(&self, subject: &Subject) {
        self.with(subject, |known| {
            if let Some(content) = known.content
                && !known.recorded
                && subject.version.is_lasting()
            {
                let identity = Identity::Stamps(*subject.version);
                let outcome = None;
                let summary = Summary { content, outcome };
                known.recorded = self.write(subject, &identity, summary, &Body::default());
            }
        });
    }

    /// The class of model that the `config.json` `subject` names, if it names one.
    pub fn architecture(&self, subject: &Subject) -> source::Result<Option<Arc<str>>> {
        self.with(subject, |known| {
            if let Some(known) = &known.architecture {
                return Ok(known.clone());
            }
            let (found, kept) = look(subject, convert::architecture_in)?;
            known.architecture = kept.then(|| found.clone());
            Ok(found)
        })
    }

    /// The index in the file; None when it is none.
    pub fn index(&self, subject: &Subject) -> source::Result<Option<Arc<Index>>> {
        if subject.version.size > MAX_INDEX {
            return Ok(None);
        }
        self.with(subject, |known| {
            if let Some(known) = &known.index {
                return Ok(known.clone());
            }
            let _share = self.share_to_parse(subject)?;
            let (found, kept) = look(subject, |source| {
                let json = source.read_at(0, source.size().min(MAX_INDEX))?;
                Ok(Index::parse(&json).map(Arc::new))
            })?;
            known.index = kept.then(|| found.clone());
            Ok(found)
        })
    }

    /// The text of the index in the file with other names of files, which `names` is a
    /// hash of: the last one that `render` made for these, if it is still there.
    pub fn rendered(
        &self,
        subject: &Subject,
        names: &Name,
        render: impl FnOnce(&Index) -> Vec<u8>,
    ) -> source::Result<Option<Arc<[u8]>>> {
        let known = self.with(subject, |known| known.rendered.clone());
        if let Some((_, text)) = known.filter(|(known, _)| known == names) {
            return Ok(Some(text));
        }
        let Some(index) = self.index(subject)? else {
            return Ok(None);
        };
        let share = self.share_to_parse(subject)?;
        let text: Arc<[u8]> = render(&index).into();
        // Whoever has the entry may be waiting for it.
        drop(share);
        self.with(subject, |known| {
            known.rendered = Some((*names, text.clone()));
        });
        Ok(Some(text))
    }

    /// What an index takes while it is read or written.
    fn share_to_parse(&self, subject: &Subject) -> source::Result<Share> {
        let share = self.budget.share();
        match share.take(subject.version.size.saturating_mul(PARSED)) {
            Ok(()) => Ok(share),
            Err(much) => Err(io::Error::new(io::ErrorKind::OutOfMemory, much).into()),
        }
    }

    /// What becomes of the checkpoint `subject`, or why nothing does.
    pub fn converted(
        &self,
        subject: &Subject,
        key: &PlanKey,
    ) -> source::Result<Result<Converted, Arc<Refusal>>> {
        let circumstances = key.circumstances();
        self.with(subject, |known| {
            if known.outcome.is_none() && known.content.is_none() {
                known.content = Some(key.content);
            }
            let size = match known.size(&circumstances) {
                Some(size) => size,
                None => {
                    let outcome = self.find_out(subject, key, known, &circumstances)?;
                    outcome.map(|plan| plan.size())
                }
            };
            let identity = match known.identity {
                Some(identity) => identity,
                None => self.identify(subject, key, None, &self.budget.share())?,
            };
            known.identity = Some(identity);
            if let Err(refusal) = &size
                && !known.recorded
            {
                // It may have been found while the file was read.
                let outcome = Err(Refusal::clone(refusal));
                self.learn(subject, key, &identity, known, &outcome, &Body::default());
            }
            Ok(size.map(|size| Converted { size, identity }))
        })
    }

    /// The plan of the checkpoint `subject`, made again if it was forgotten.
    pub fn plan(&self, subject: &Subject, key: &PlanKey) -> source::Result<Outcome> {
        let circumstances = key.circumstances();
        self.with(subject, |known| {
            if let Some(outcome) = known.outcome(&circumstances) {
                self.figures.from_memory.fetch_add(1, Ordering::Relaxed);
                return Ok(outcome);
            }
            self.find_out(subject, key, known, &circumstances)
        })
    }

    /// Reads the checkpoint `subject` as its converted form.
    ///
    /// # Errors
    /// [`source::Error::Changed`] when it, or one of its companions, is another file
    /// now, or nothing that can be converted any more.
    pub fn reader(&self, subject: &Subject, key: &PlanKey) -> source::Result<Reader> {
        let source = open(subject)?;
        let plan = match subject.version.settled {
            true => self.plan(subject, key)?.ok(),
            // What was found out before it was opened may be of other bytes.
            false => {
                let (outcome, _) = self.read(&source, subject, key, &self.budget.share())?;
                outcome.map(Arc::new).ok()
            }
        };
        let plan = plan.ok_or(source::Error::Changed)?;
        let companions = open_companions(plan.companions(), subject.directory)?;
        Ok(Reader::new(Files::new(source, companions), plan))
    }

    /// What the converted form of a checkpoint is called where it is kept. Another
    /// version of stfs may make other bytes, and calls its file something else.
    pub fn converted_name(&self, key: &PlanKey, identity: &Identity) -> Name {
        let root = self.root.as_deref();
        let only = key.file.root.as_deref();
        Name::of(&[
            b"converted",
            env!("CARGO_PKG_VERSION").as_bytes(),
            &identity.to_bytes(),
            key.circumstances().as_bytes(),
            format!("{:?}", key.content).as_bytes(),
            &[u8::from(root.is_some())],
            root.unwrap_or_default().as_bytes(),
            &[u8::from(only.is_some())],
            only.unwrap_or_default().as_bytes(),
        ])
    }

    /// What is known of the file, which what `work` finds out is added to.
    fn with<T>(&self, subject: &Subject, work: impl FnOnce(&mut Known) -> T) -> T {
        self.memory.with(&subject.key(), |known| {
            let stale = match known.since {
                _ if subject.version.settled => false,
                Some(Since::Settled) => false,
                Some(Since::Moving(since)) => since.elapsed() > FRESH,
                None => true,
            };
            if stale {
                let since = match subject.version.settles_by(SystemTime::now()) {
                    true => Since::Settled,
                    false => Since::Moving(Instant::now()),
                };
                *known = Known {
                    since: Some(since),
                    ..Known::default()
                };
            }
            work(known)
        })
    }

    /// What a record says of a file whose stamps hold.
    fn summary(&self, subject: &Subject) -> Option<Summary> {
        let records = self.records.as_ref()?;
        let identity = Identity::Stamps(*subject.version);
        let name = || records.name(&identity, subject);
        subject
            .version
            .is_lasting()
            .then(name)
            .and_then(|name| records.summary(&name))
    }

    fn write(&self, subject: &Subject, identity: &Identity, summary: Summary, body: &Body) -> bool {
        // The head of the file says as much.
        let worth = !matches!(summary.content, Content::NotACheckpoint(_));
        let records = self.records.as_ref().filter(|_| worth);
        records.is_some_and(|records| {
            let name = records.name(identity, subject);
            records.write(&name, &summary, body)
        })
    }

    /// Makes the plan, or loads it.
    fn find_out(
        &self,
        subject: &Subject,
        key: &PlanKey,
        known: &mut Known,
        circumstances: &Circumstances,
    ) -> source::Result<Outcome> {
        let count = |figure: &AtomicU64| figure.fetch_add(1, Ordering::Relaxed);
        // Of a file whose stamps hold nothing is read for this.
        let mut opened = None;
        if !key.is_lasting() {
            opened = Some(open(subject)?);
        }
        let share = self.budget.share();
        let identity = self.identify(subject, key, opened.as_ref(), &share)?;
        known.identity = Some(identity);
        let outcome = match self.load(subject, key, &identity, known, circumstances, &share) {
            Some(outcome) => {
                count(&self.figures.from_records);
                outcome
            }
            None => {
                let source = match opened {
                    Some(source) => source,
                    None => open(subject)?,
                };
                count(&self.figures.made);
                let (outcome, body) = self.read(&source, subject, key, &share)?;
                self.learn(subject, key, &identity, known, &outcome, &body);
                outcome
            }
        };
        let outcome = outcome.map(Arc::new).map_err(Arc::new);
        let size = outcome.as_ref().map(|plan| plan.size());
        known.outcome = Some((*circumstances, size.map_err(Arc::clone)));
        if let Ok(plan) = &outcome {
            known.plan = Some((*circumstances, plan.clone()));
        }
        Ok(outcome)
    }

    /// What tells the bytes of the file from all others. `source` is the open file,
    /// if it is open.
    fn identify(
        &self,
        subject: &Subject,
        key: &PlanKey,
        source: Option<&Source>,
        share: &Share,
    ) -> source::Result<Identity> {
        let mount = Identity::Mount(self.mount, *subject.version);
        if key.is_lasting() {
            return Ok(Identity::Stamps(*subject.version));
        }
        // One file alone is summed up, and only where somebody can find it again.
        let address = match key.companions.is_empty() && subject.version.settled {
            true => subject.directory.address(subject.name),
            false => None,
        };
        let Some(address) = address else {
            return Ok(mount);
        };
        let opened;
        let source = match source {
            Some(source) => source,
            None => {
                opened = open(subject)?;
                &opened
            }
        };
        match share.returning(|| fingerprint(source, key.content, share)) {
            Ok(Some(sum)) => {
                // Bytes of tensors that were changed in place leave the sum what it was.
                let Version { modified, size, .. } = subject.version;
                let times = [modified.0, modified.1].map(i64::to_le_bytes);
                let stamps = [times.as_flattened(), &size.to_le_bytes()].concat();
                let parts = [&b"content"[..], &address, &sum, &stamps];
                Ok(Identity::Content(Name::of(&parts)))
            }
            // What is wrong with it is found out when it is planned.
            Ok(None) | Err(checkpoint::Error::Refused(_)) => Ok(mount),
            Err(checkpoint::Error::Source(error)) => Err(error),
        }
    }

    /// The plan as far as records tell, or why there is none.
    fn load(
        &self,
        subject: &Subject,
        key: &PlanKey,
        identity: &Identity,
        known: &mut Known,
        circumstances: &Circumstances,
        share: &Share,
    ) -> Option<Result<Plan, Refusal>> {
        let records = self.records.as_ref().filter(|_| identity.is_lasting())?;
        let name = records.name(identity, subject);
        if !known.recorded {
            known.take_in(records.summary(&name)?);
        }
        let size = known.size(circumstances);
        if let Some(Err(refusal)) = size {
            return Some(Err(Refusal::clone(&refusal)));
        }
        let (checkpoint, body) = match records.checkpoint(&name, share) {
            Ok(found) => found?,
            Err(much) => return Some(Err(much.into())),
        };
        if !checkpoint.companions.iter().all(|file| key.has(file)) {
            return None;
        }
        let parsed = Parsed::Checkpoint(checkpoint);
        let outcome = parsed.plan(subject.version.size, key.architecture.as_deref());
        if size.is_none() {
            self.learn(subject, key, identity, known, &outcome, &body);
        }
        Some(outcome)
    }

    /// Plans the conversion of an open file, from what is in it.
    fn read(
        &self,
        source: &Source,
        subject: &Subject,
        key: &PlanKey,
        share: &Share,
    ) -> source::Result<(Result<Plan, Refusal>, Body)> {
        let mut body = Body::default();
        let wanted = match (subject.root, &self.root) {
            (Some(root), _) => Wanted::Exactly(root),
            (None, Some(root)) => Wanted::Preferred(root),
            (None, None) => Wanted::Rule,
        };
        let outcome = match convert::read(source, key.content, subject.directory, wanted, share) {
            Ok(parsed) => {
                if let Parsed::Checkpoint(checkpoint) = &parsed {
                    if !checkpoint.companions.iter().all(|file| key.has(file)) {
                        return Err(source::Error::Changed);
                    }
                    if self.records.is_some() {
                        body = Body::of(checkpoint);
                    }
                }
                parsed.plan(source.size(), key.architecture.as_deref())
            }
            Err(checkpoint::Error::Refused(refusal)) => Err(refusal),
            Err(checkpoint::Error::Source(error)) => return Err(error),
        };
        Ok((outcome, body))
    }

    /// Writes down what became of a file that was settled when it was looked at, and
    /// has had the same version ever since.
    fn learn(
        &self,
        subject: &Subject,
        key: &PlanKey,
        identity: &Identity,
        known: &mut Known,
        outcome: &Result<Plan, Refusal>,
        body: &Body,
    ) {
        let size = match outcome {
            Ok(plan) => Ok(plan.size()),
            Err(refusal) if refusal.cause().is_lasting() => Err(Arc::new(refusal.clone())),
            Err(_) => return,
        };
        if !identity.is_lasting() || !key.is_settled() {
            return;
        }
        let summary = Summary {
            content: key.content,
            outcome: Some((key.circumstances(), size)),
        };
        let same = known.recorded && known.outcome == summary.outcome;
        if !same || !body.is_empty() {
            known.recorded = self.write(subject, identity, summary, body);
        }
    }
}

/// Opens the file, which has to be the one that was found.
fn open(subject: &Subject) -> source::Result<Source> {
    let source = subject.directory.open(subject.name);
    let source = source.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => source::Error::Changed,
        _ => source::Error::Io(error),
    })?;
    match source.version().same_stamps(subject.version) {
        true => Ok(source),
        false => Err(source::Error::Changed),
    }
}

/// What the file says, and whether it had its version all the while.
fn look<V>(
    subject: &Subject,
    find_out: impl FnOnce(&Source) -> source::Result<V>,
) -> source::Result<(V, bool)> {
    let source = subject.directory.open(subject.name)?;
    let value = find_out(&source)?;
    let version: &Version = source.version();
    let kept = version.same_stamps(subject.version) && source.check_version().is_ok();
    Ok((value, kept))
}
