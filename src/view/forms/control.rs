//! `.stfs` in the root of the tree: what the mount tells its owner about itself. It
//! can be opened by its name and is not listed; a real file of that name wins.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::view::attr::{Attr, Kind};
use crate::view::context::Context;
use crate::view::error::{Error, Result};
use crate::view::file::{OpenFile, OpenText};
use crate::view::key::{Id, NodeKey};
use crate::view::node::{Form, Listing, Node};
use nix::unistd::{getegid, geteuid};
use serde_json::json;

pub const NAME: &str = ".stfs";

/// The figures for Prometheus.
const METRICS: &str = "metrics";
/// The same and more for `stfs status`.
const STATUS: &str = "status.json";

pub fn directory(context: &Context) -> Result<Node> {
    Ok(Node::new(
        key(NAME, &[]),
        attr(context, 0).directory(),
        Control,
    ))
}

#[derive(Debug)]
struct Control;

impl Form for Control {
    fn lookup(&self, context: &Context, name: &OsStr) -> Result<Node> {
        let text = match name.to_str() {
            Some(METRICS) => context
                .usage()
                .metrics(context.catalog().figures(), context.stock()),
            Some(STATUS) => status(context),
            _ => return Err(Error::NotFound),
        };
        let text: Arc<[u8]> = text.into_bytes().into();
        let attr = attr(context, text.len() as u64);
        let name = if name == METRICS { METRICS } else { STATUS };
        Ok(Node::new(key(name, &text), attr, Figures(text)))
    }

    fn list(&self, context: &Context) -> Result<Listing> {
        let node = |name: &'static str| Ok((name.into(), self.lookup(context, name.as_ref())?));
        Ok(Listing::of(
            [METRICS, STATUS]
                .map(node)
                .into_iter()
                .collect::<Result<_>>()?,
        ))
    }
}

/// As they were when they were looked up.
#[derive(Debug)]
struct Figures(Arc<[u8]>);

impl Form for Figures {
    fn open(&self, _: &Context, _: &Attr) -> Result<OpenFile> {
        Ok(OpenFile::new(OpenText(self.0.clone())))
    }
}

fn key(name: &'static str, text: &[u8]) -> NodeKey {
    NodeKey {
        form: name,
        place: None,
        of: Id::of(&[b"control", text]),
        part: 0,
    }
}

/// For whoever made the mount: names of open files are among what it tells.
fn attr(context: &Context, size: u64) -> Attr {
    let now = SystemTime::now();
    let since = context.since();
    Attr {
        kind: Kind::File,
        size,
        mode: 0o400,
        uid: geteuid().as_raw(),
        gid: getegid().as_raw(),
        atime: now,
        mtime: since,
        ctime: since,
    }
}

fn status(context: &Context) -> String {
    let mut status = context
        .usage()
        .status(context.catalog().figures(), context.stock());
    let promoter = context.promoter();
    let directory = promoter.map(|promoter| promoter.directory().to_string_lossy());
    if let Some(status) = status.as_object_mut() {
        let source = context.location().to_string_lossy().into_owned();
        status.insert("source".into(), source.into());
        status.insert("root".into(), context.options().weights.clone().into());
        status.insert("cache_dir".into(), json!(directory));
        status.insert("cache_problem".into(), context.cache_problem().into());
        let promote = promoter.map(|promoter| format!("{:?}", promoter.policy()).to_lowercase());
        status.insert("promote".into(), json!(promote));
        status.insert("pid".into(), std::process::id().into());
    }
    format!("{status:#}\n")
}
