//! `.stfs` in the root of the tree: what the mount tells its owner about itself. It
//! can be opened by its name and is not listed; a real file of that name wins.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use nix::unistd::{getegid, geteuid};
use serde_json::json;

use super::{Form, Node, Result, View};
use crate::view::Error;
use crate::view::file::{OpenFile, OpenText};
use crate::view::listing::Listing;
use crate::view::node::{Attr, Id, Kind, NodeKey};

pub const NAME: &str = ".stfs";

/// The figures for Prometheus.
const METRICS: &str = "metrics";
/// The same and more for `stfs status`.
const STATUS: &str = "status.json";

pub fn directory(view: &View) -> Result<Node> {
    Ok(Node::new(
        key(NAME, &[]),
        attr(view, 0).directory(),
        Control,
    ))
}

#[derive(Debug)]
struct Control;

impl Form for Control {
    fn lookup(&self, view: &View, name: &OsStr) -> Result<Node> {
        let text = match name.to_str() {
            Some(METRICS) => view.usage().metrics(view.catalog().figures(), view.stock()),
            Some(STATUS) => status(view),
            _ => return Err(Error::NotFound),
        };
        let text: Arc<[u8]> = text.into_bytes().into();
        let attr = attr(view, text.len() as u64);
        let name = if name == METRICS { METRICS } else { STATUS };
        Ok(Node::new(key(name, &text), attr, Figures(text)))
    }

    fn list(&self, view: &View) -> Result<Listing> {
        let node = |name: &'static str| Ok((name.into(), self.lookup(view, name.as_ref())?));
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
    fn open(&self, _: &View, _: &Attr) -> Result<OpenFile> {
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
fn attr(view: &View, size: u64) -> Attr {
    let now = SystemTime::now();
    let since = view.since();
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

fn status(view: &View) -> String {
    let mut status = view.usage().status(view.catalog().figures(), view.stock());
    let promoter = view.promoter();
    let directory = promoter.map(|promoter| promoter.directory().to_string_lossy());
    if let Some(status) = status.as_object_mut() {
        let source = view.location().to_string_lossy().into_owned();
        status.insert("source".into(), source.into());
        status.insert("root".into(), view.options().weights.clone().into());
        status.insert("cache_dir".into(), json!(directory));
        let promote = promoter.map(|promoter| format!("{:?}", promoter.policy()).to_lowercase());
        status.insert("promote".into(), json!(promote));
        status.insert("pid".into(), std::process::id().into());
    }
    format!("{status:#}\n")
}
