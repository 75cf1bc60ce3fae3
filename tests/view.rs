//! The tree over a source directory, without a mount.

#[allow(dead_code)]
#[path = "checkpoint/archive.rs"]
mod archive;
#[path = "view/disguised.rs"]
mod disguised;
#[path = "view/faults.rs"]
mod faults;
#[path = "view/links.rs"]
mod links;
#[path = "view/memory.rs"]
mod memory;
#[path = "view/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "checkpoint/opcodes.rs"]
mod opcodes;
#[path = "view/records.rs"]
mod records;
#[path = "view/records_damaged.rs"]
mod records_damaged;
#[path = "view/roots.rs"]
mod roots;
#[path = "view/shards.rs"]
mod shards;
mod support;
#[path = "view/tree.rs"]
mod tree;
#[path = "view/words.rs"]
mod words;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::SystemTime;

use stfs::view::{Attr, Error, Kind, Node, OpenFile, Options, View};

/// Every byte of an open file, read in pieces of an odd size.
fn read(file: &OpenFile) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    loop {
        let piece = support::owned(file.read(all.len() as u64, 4099)?);
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend(piece);
    }
}

fn view(source: &Path) -> View {
    View::new(source, Options::default()).unwrap()
}

/// The node at a path below the root.
fn find(view: &View, path: &str) -> Result<Node, Error> {
    path.split('/')
        .try_fold(view.root()?, |node, name| view.lookup(&node, name.as_ref()))
}

fn bytes(view: &View, path: &str) -> Vec<u8> {
    let node = find(view, path).unwrap_or_else(|error| panic!("{path}: {error}"));
    read(&view.open(&node).unwrap()).unwrap()
}

fn text(view: &View, path: &str) -> String {
    String::from_utf8(bytes(view, path)).unwrap()
}

fn is_missing(view: &View, path: &str) -> bool {
    matches!(find(view, path), Err(Error::NotFound))
}

/// The children of a directory, each checked to be what a lookup finds, of the
/// size that its attributes say.
fn list(view: &View, directory: &Node) -> Vec<(OsString, Node)> {
    let listing = view.list(directory).unwrap();
    let mut children: Vec<(OsString, Node)> = Vec::new();
    for index in 0..listing.len() {
        let (name, node) = listing.entry(index).unwrap();
        let found = view.lookup(directory, &name);
        let found = found.unwrap_or_else(|error| panic!("{name:?} is listed: {error}"));
        assert!(found.key() == node.key(), "{name:?} has two keys");
        // Reading moves the access time.
        let attr = |node| Attr {
            atime: SystemTime::UNIX_EPOCH,
            ..view.attr(node).unwrap()
        };
        assert_eq!(attr(&found), attr(&node), "{name:?}");
        if node.kind() == Kind::File {
            let content = read(&view.open(&found).unwrap()).unwrap();
            assert_eq!(
                content.len() as u64,
                view.attr(&node).unwrap().size,
                "{name:?}"
            );
        }
        if let Some((last, _)) = children.last() {
            assert!(last.as_os_str() < &*name, "{name:?} is out of order");
        }
        children.push((name.into_owned(), node));
    }
    assert!(listing.entry(listing.len()).is_none());
    children
}

fn names(view: &View, path: &str) -> Vec<String> {
    let directory = match path {
        "" => view.root().unwrap(),
        _ => find(view, path).unwrap(),
    };
    let text = |name: &OsStr| name.to_string_lossy().into_owned();
    list(view, &directory)
        .iter()
        .map(|(name, _)| text(name))
        .collect()
}

/// What safetensors itself makes of one vector called `weight`.
fn safetensors_of(values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![values.len()], &data);
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize([("weight", view.unwrap())], Some(metadata)).unwrap()
}
