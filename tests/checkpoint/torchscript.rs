//! TorchScript archives. The sources are as torch 2.15 prints them, and the names
//! those that `torch.jit.load(...).state_dict()` has.

use std::fs;

use stfs::checkpoint::Cause;
use stfs::convert;

use super::archive::Archive;
use super::opcodes::{
    NONE, TRUE, build, call, dict, floats, global, list, new, pickle, rebuild, storage, text,
    tuple, view,
};
use super::{read, refused};

const SOURCE: &str = r#"class Net(Module):
  __parameters__ = ["weight", "none", ]
  __buffers__ = ["mean", "maybe", ]
  weight : Tensor
  none : NoneType
  mean : Tensor
  maybe : Optional[Tensor]
  training : bool
  plain : Tensor
  tensors : List[Tensor]
  holder : __torch__.Holder
  __annotations__["0"] = __torch__.blocks.Block
  def forward(self: __torch__.Net,
    x: Tensor) -> Tensor:
    __parameters__ = ["plain"]
    return x
class Holder:
  inner : Tensor
  def __init__(self: __torch__.Holder) -> NoneType:
    return None
"#;

const BLOCK: &str = r#"class Block(Module):
  __parameters__ = ["bias", ]
  __buffers__ = []
  bias : Tensor
"#;

fn object(module: &str, class: &str, attributes: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let attributes: Vec<_> = attributes
        .iter()
        .map(|(name, value)| (text(name), value.clone()))
        .collect();
    build(new(global(module, class), &[]), dict(&attributes))
}

fn block() -> Vec<u8> {
    object("__torch__.blocks", "Block", &[("bias", floats())])
}

fn net() -> Vec<u8> {
    let tensors = call(
        global("torch.jit._pickle", "build_tensorlist"),
        &[list(&[floats()])],
    );
    object(
        "__torch__",
        "Net",
        &[
            ("weight", floats()),
            ("none", NONE.to_vec()),
            ("mean", floats()),
            ("maybe", floats()),
            ("training", TRUE.to_vec()),
            ("plain", floats()),
            ("tensors", tensors),
            (
                "holder",
                object("__torch__", "Holder", &[("inner", floats())]),
            ),
            ("0", block()),
        ],
    )
}

/// An archive of the object, the sources by their paths below `code/`, and a
/// pickle of constants.
fn archive(object: Vec<u8>, sources: &[(&str, &str)], constants: Vec<u8>) -> Archive {
    let mut archive = Archive::torch(&pickle(object), &[("0", &[0; 16])]);
    for (path, source) in sources {
        archive.push(&format!("model/code/{path}"), source.as_bytes());
    }
    archive.push("model/constants.pkl", &pickle(constants));
    archive
}

fn names(archive: &Archive) -> Vec<String> {
    let seen = read(&archive.bytes()).unwrap();
    seen.into_iter().map(|tensor| tensor.name).collect()
}

/// Kept and dropped names: all tensors here share one storage.
fn all_names(archive: &Archive) -> (Vec<String>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    fs::write(&path, archive.bytes()).unwrap();
    let reader = convert::open(&path).unwrap();
    let plan = reader.plan();
    let kept = plan.tensors().iter().map(|tensor| tensor.name.to_string());
    let dropped = plan.dropped().map(|(name, _)| name.to_string());
    let mut names: Vec<String> = kept.chain(dropped).collect();
    names.sort();
    let left_out = plan.left_out().iter().map(|entry| entry.path.clone());
    (names, left_out.collect())
}

#[test]
fn the_class_tells_what_is_state() {
    let sources = [("__torch__.py", SOURCE), ("__torch__/blocks.py", BLOCK)];
    let (names, left_out) = all_names(&archive(net(), &sources, tuple(&[])));
    assert_eq!(names, ["0.bias", "mean", "weight"]);
    assert_eq!(left_out, ["maybe", "plain", "tensors", "holder"]);
}

#[test]
fn without_a_list_of_buffers_every_tensor_is_one() {
    let source = SOURCE.replace("__buffers__", "__constants__");
    let sources = [
        ("__torch__.py", source.as_str()),
        ("__torch__/blocks.py", BLOCK),
    ];
    let (names, _) = all_names(&archive(net(), &sources, tuple(&[])));
    assert_eq!(names, ["0.bias", "mean", "plain", "weight"]);
}

#[test]
fn sources_may_differ_in_case_only() {
    let other = BLOCK.replace("bias", "other");
    let sources = [
        ("__torch__/blocks.py", BLOCK),
        ("__torch__/Blocks.py", other.as_str()),
    ];
    assert_eq!(names(&archive(block(), &sources, tuple(&[]))), ["bias"]);
    let twice = [
        ("__torch__/blocks.py", BLOCK),
        ("__torch__/blocks.py", other.as_str()),
    ];
    let why = refused(
        &archive(block(), &twice, tuple(&[])).bytes(),
        Cause::Ambiguous,
    );
    assert!(why.contains("two entries"), "{why}");
}

#[test]
fn a_module_without_tensors_is_an_empty_file() {
    let source = "class Empty(Module):\n  __parameters__ = []\n  __buffers__ = []\n";
    let empty = object("__torch__", "Empty", &[("training", TRUE.to_vec())]);
    let sources = [("__torch__.py", source)];
    let seen = names(&archive(empty.clone(), &sources, tuple(&[])));
    assert!(seen.is_empty(), "{seen:?}");
    // Frozen: what was its state is in its constants.
    let constant = rebuild(&view(storage("FloatStorage", "0", 4), 0, &[4], &[1]));
    let frozen = archive(empty, &sources, tuple(&[constant]));
    let why = refused(&frozen.bytes(), Cause::Unsupported);
    assert!(why.contains("frozen"), "{why}");
}

#[test]
fn refuses_what_only_code_can_tell() {
    let source = format!(
        "{BLOCK}  def __setstate__(self: __torch__.blocks.Block,\n    state: Tensor) -> NoneType:\n"
    );
    for object in [
        block(),
        build(
            new(global("__torch__.blocks", "Block"), &[]),
            tuple(&[floats()]),
        ),
    ] {
        let archive = archive(object, &[("__torch__/blocks.py", &source)], tuple(&[]));
        let why = refused(&archive.bytes(), Cause::Unsupported);
        assert!(why.contains("`__torch__.blocks.Block`"), "{why}");
    }
}

#[test]
fn refuses_archives_of_no_module() {
    let no_source = archive(block(), &[], tuple(&[]));
    refused(&no_source.bytes(), Cause::Unsupported);
    let sources = [("__torch__.py", SOURCE)];
    let holder = object("__torch__", "Holder", &[("inner", floats())]);
    refused(
        &archive(holder, &sources, tuple(&[])).bytes(),
        Cause::Unsupported,
    );
    let state_dict = dict(&[(text("w"), floats())]);
    refused(
        &archive(state_dict, &sources, tuple(&[])).bytes(),
        Cause::Unsupported,
    );
}

#[test]
fn refuses_modules_in_json_by_their_name() {
    let mut old = Archive::default();
    old.push("model/model.json", b"{}");
    old.push("model/attributes.pkl", b"\x80\x02].");
    old.push("model/code/model.py", b"op_version_set = 1\n");
    let why = refused(&old.bytes(), Cause::Unsupported);
    assert!(why.contains("TorchScript"), "{why}");
    // What `torch.export.save` writes is something else.
    let mut export = Archive::default();
    export.push("net/data/weights/weight_0", &[0; 8]);
    export.push("net/models/model.json", b"{}");
    export.push("net/archive_format", b"pt2");
    let why = refused(&export.bytes(), Cause::Unsupported);
    assert!(!why.contains("TorchScript"), "{why}");
}
