//! `.stfs` in the root of the tree: what the mount tells about itself. It can be
//! opened by its name and is not listed; a real file of that name wins.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use serde_json::json;

use super::directory::text_node;
use super::node::{Attr, Node, Place, Text};
use super::{Error, Result, View};
use crate::source::Metadata;

pub(super) const NAME: &str = ".stfs";

/// The figures for Prometheus.
const METRICS: &str = "metrics";
/// The same and more for `stfs status`.
const STATUS: &str = "status.json";

impl View {
    pub(super) fn control(&self) -> Result<Node> {
        Ok(Node::new(Place::Control, self.control_attr()?.directory()))
    }

    pub(super) fn control_files(&self) -> Result<Vec<(OsString, Node)>> {
        [METRICS, STATUS]
            .into_iter()
            .map(|name| Ok((name.into(), self.control_file(name.as_ref())?)))
            .collect()
    }

    /// The file `name`, with the figures as they are now.
    pub(super) fn control_file(&self, name: &OsStr) -> Result<Node> {
        let body = match name.to_str() {
            Some(METRICS) => self.usage.metrics(self.figures()),
            Some(STATUS) => self.status(),
            _ => return Err(Error::NotFound),
        };
        let text = Text {
            path: self.source().join(NAME).join(name).into(),
            about: self.source().into(),
            refuses: false,
            body: body.into_bytes().into(),
        };
        Ok(text_node(text, self.control_attr()?))
    }

    fn status(&self) -> String {
        let mut status = self.usage.status(self.figures());
        let promoter = self.promoter.as_ref();
        let directory = promoter.map(|promoter| promoter.directory().to_string_lossy());
        if let Some(status) = status.as_object_mut() {
            status.insert("source".into(), self.source().to_string_lossy().into());
            status.insert("root".into(), self.options.weights.clone().into());
            status.insert("cache_dir".into(), json!(directory));
            let promote =
                promoter.map(|promoter| format!("{:?}", promoter.policy()).to_lowercase());
            status.insert("promote".into(), json!(promote));
            status.insert("pid".into(), std::process::id().into());
        }
        format!("{status:#}\n")
    }

    fn figures(&self) -> Option<super::usage::StoreFigures> {
        self.promoter.as_ref()?.figures()
    }

    /// For whoever may look into the root.
    fn control_attr(&self) -> Result<Attr> {
        let root: &Path = self.source();
        let attr = Attr::of(&Metadata::from(std::fs::metadata(root)?));
        Ok(Attr {
            kind: super::Kind::File,
            mode: 0o444,
            ..attr
        })
    }
}
