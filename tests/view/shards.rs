//! Sharded checkpoints and their indexes.

use stfs::view::{Error, View};

use super::{bytes, find, is_missing, list, names, safetensors_of, support, text, view};

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let map: Vec<String> = entries
        .iter()
        .map(|(tensor, file)| format!("{tensor:?}:{file:?}"))
        .collect();
    format!(
        "{{\"metadata\":{{\"total_size\":12}},\"weight_map\":{{{}}}}}",
        map.join(",")
    )
    .into_bytes()
}

fn shard(directory: &std::path::Path, name: &str, tensors: &[(&str, &[f32])]) {
    support::write(&directory.join(name), &support::named_vectors(tensors));
}

fn raw(view: &View, path: &str) -> Vec<f32> {
    let bytes = bytes(view, path);
    let floats = bytes.chunks_exact(4);
    floats
        .map(|float| f32::from_le_bytes(float.try_into().unwrap()))
        .collect()
}

#[test]
fn all_tensors_stand_together() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    shard(
        root,
        "pytorch_model-00001-of-00002.bin",
        &[("b", &[1.0]), ("d", &[2.0])],
    );
    shard(
        root,
        "pytorch_model-00002-of-00002.bin",
        &[("a", &[3.0]), ("c", &[4.0]), ("d", &[5.0])],
    );
    let map = [
        ("b", "pytorch_model-00001-of-00002.bin"),
        ("d", "pytorch_model-00002-of-00002.bin"),
        ("a", "pytorch_model-00002-of-00002.bin"),
        ("c", "pytorch_model-00002-of-00002.bin"),
    ];
    support::write(&root.join("pytorch_model.bin.index.json"), &index(&map));
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "model-00001-of-00002.safetensors",
            "model-00001-of-00002.tensors",
            "model-00002-of-00002.safetensors",
            "model-00002-of-00002.tensors",
            "model.safetensors.index.json",
            "model.tensors",
        ]
    );
    assert_eq!(names(&view, "model.tensors"), ["a", "b", "c", "d"]);
    assert_eq!(names(&view, "model-00001-of-00002.tensors"), ["b", "d"]);
    // Where both shards have a tensor, the index decides.
    assert_eq!(raw(&view, "model.tensors/d"), [5.0]);
    assert_eq!(raw(&view, "model.tensors/b"), [1.0]);
    assert_eq!(
        text(&view, "model.safetensors.index.json"),
        r#"{
    "metadata": {
        "total_size": 12
    },
    "weight_map": {
        "b": "model-00001-of-00002.safetensors",
        "d": "model-00002-of-00002.safetensors",
        "a": "model-00002-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors"
    }
}"#
    );
    // A shard that is gone takes the whole with it, and nothing else.
    std::fs::remove_file(root.join("pytorch_model-00001-of-00002.bin")).unwrap();
    assert!(is_missing(&view, "model.tensors"));
    assert_eq!(names(&view, "").len(), 3);
}

#[test]
fn variants_have_their_own_index() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    shard(
        root,
        "pytorch_model.fp16-00001-of-00001.bin",
        &[("a", &[1.0])],
    );
    let map = index(&[("a", "pytorch_model.fp16-00001-of-00001.bin")]);
    support::write(&root.join("pytorch_model.bin.index.fp16.json"), &map);
    shard(root, "diffusion_pytorch_model-1.bin", &[("x", &[1.0])]);
    let map = index(&[("x", "diffusion_pytorch_model-1.bin")]);
    support::write(&root.join("diffusion_pytorch_model.bin.index.json"), &map);
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "diffusion_pytorch_model-1.safetensors",
            "diffusion_pytorch_model-1.tensors",
            "diffusion_pytorch_model.safetensors.index.json",
            "diffusion_pytorch_model.tensors",
            "model.fp16-00001-of-00001.safetensors",
            "model.fp16-00001-of-00001.tensors",
            "model.fp16.tensors",
            "model.safetensors.index.fp16.json",
        ]
    );
    assert!(
        text(&view, "model.safetensors.index.fp16.json")
            .contains("model.fp16-00001-of-00001.safetensors")
    );
}

#[test]
fn a_native_index_has_its_tensors_too() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("model-1.safetensors"), &safetensors_of(&[7.0]));
    let map = index(&[("weight", "model-1.safetensors")]);
    support::write(&root.join("model.safetensors.index.json"), &map);
    // An index of checkpoints that are not there.
    let other = index(&[("weight", "pytorch_model-1.bin")]);
    support::write(&root.join("pytorch_model.bin.index.json"), &other);
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "model-1.safetensors",
            "model-1.tensors",
            "model.safetensors.index.json",
            "model.tensors"
        ]
    );
    assert_eq!(bytes(&view, "model.safetensors.index.json"), map);
    assert_eq!(raw(&view, "model.tensors/weight"), [7.0]);
}

#[test]
fn a_single_file_beats_the_shards() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    shard(root, "pytorch_model-1.bin", &[("shard", &[1.0])]);
    support::write(
        &root.join("pytorch_model.bin.index.json"),
        &index(&[("shard", "pytorch_model-1.bin")]),
    );
    shard(root, "pytorch_model.bin", &[("single", &[2.0])]);
    let view = view(root);
    assert_eq!(names(&view, "model.tensors"), ["single"]);
    // A broken one does not.
    let broken = b"\x08\0\0\0\0\0\0\0{\"a\":1} ";
    std::fs::remove_file(root.join("pytorch_model.bin")).unwrap();
    support::write(&root.join("model.safetensors"), broken);
    assert_eq!(names(&view, "model.tensors"), ["shard"]);
    assert!(names(&view, "").contains(&"model.tensors".to_string()));
    assert_eq!(bytes(&view, "model.safetensors"), broken);
}

#[test]
fn no_file_name_in_an_index_leads_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("source");
    for place in ["out", "source/sub", "source"] {
        shard(&directory.path().join(place), "x.bin", &[("a", &[1.0])]);
    }
    std::os::unix::fs::symlink(".", root.join("loop")).unwrap();
    let absolute = directory.path().join("out/x.bin");
    // Each with what it is called in the derived index.
    let names_in_index = [
        ("../out/x.bin", "../out/x.safetensors"),
        (absolute.to_str().unwrap(), "/out/x.safetensors"),
        ("sub/../x.bin", "sub/../x.safetensors"),
        ("sub//x.bin", "sub//x.safetensors"),
        ("./x.bin", "./x.safetensors"),
        ("/x.bin", "\"/x.safetensors"),
        ("loop/x.bin", "loop/x.safetensors"),
        ("x.bin/x.bin", "x.bin/x.safetensors"),
        ("gone/pytorch_model-1.bin", "gone/model-1.safetensors"),
        ("sub/no.bin", "sub/no.safetensors"),
        ("", "\".safetensors"),
        (".", "..safetensors"),
        ("..", "...safetensors"),
        ("sub/..", "sub/...safetensors"),
        ("sub/", "sub/.safetensors"),
        ("sub", "sub.safetensors"),
        ("a\\u0000b", "a\\u0000b.safetensors"),
        ("a\\u0000b/x.bin", "a\\u0000b/x.safetensors"),
        ("no.bin", "no.safetensors"),
    ];
    for (number, (name, _)) in names_in_index.iter().enumerate() {
        let json = format!("{{\"weight_map\":{{\"a\":\"{name}\"}}}}");
        support::write(
            &root.join(format!("m{number}.bin.index.json")),
            json.as_bytes(),
        );
    }
    let view = view(&root);
    let listed = names(&view, "");
    // Besides them x and its tensors, the subfolder, and why the link is not followed.
    assert_eq!(listed.len(), names_in_index.len() + 4, "{listed:?}");
    for (number, (name, derived)) in names_in_index.iter().enumerate() {
        assert!(is_missing(&view, &format!("m{number}.tensors")), "{name}");
        let index = text(&view, &format!("m{number}.safetensors.index.json"));
        assert!(index.contains(&format!("{derived}\"")), "{name}: {index}");
    }
}

/// The files that the index at `path` names, and the tensors in each.
fn named(view: &View, path: &str) -> Vec<(String, Vec<String>)> {
    let index: serde_json::Value = serde_json::from_slice(&bytes(view, path)).unwrap();
    let mut files: std::collections::BTreeMap<String, Vec<String>> = Default::default();
    for (tensor, file) in index["weight_map"].as_object().unwrap() {
        let file = file.as_str().unwrap().to_string();
        files.entry(file).or_default().push(tensor.clone());
    }
    files.into_iter().collect()
}

#[test]
fn shards_may_lie_in_subfolders() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let shards = root.join("deep/shards");
    shard(root, "pytorch_model-1.bin", &[("a", &[1.0])]);
    shard(&shards, "pytorch_model-2.bin", &[("b", &[2.0])]);
    // One with a rival, one whose converted form is there, one that is no pickle.
    shard(&shards, "r.pt", &[("c", &[3.0])]);
    shard(&shards, "r.ckpt", &[("c", &[-3.0])]);
    shard(&shards, "pytorch_model-4.bin", &[("d", &[-4.0])]);
    let native = |name: &str, number: f32| {
        support::write(&shards.join(name), &safetensors_of(&[number]));
    };
    native("model-4.safetensors", 4.0);
    native("pytorch_model-5.bin", 5.0);
    let map = [
        ("a", "pytorch_model-1.bin"),
        ("b", "deep/shards/pytorch_model-2.bin"),
        ("c", "deep/shards/r.pt"),
        ("weight", "deep/shards/pytorch_model-5.bin"),
    ];
    support::write(&root.join("pytorch_model.bin.index.json"), &index(&map));
    let taken = index(&[("weight", "deep/shards/pytorch_model-4.bin")]);
    support::write(&root.join("taken.bin.index.json"), &taken);
    let view = view(root);
    let expected = [
        ("deep/shards/model-2.safetensors", "b"),
        ("deep/shards/pytorch_model-5.bin", "weight"),
        ("deep/shards/r.pt.safetensors", "c"),
        ("model-1.safetensors", "a"),
    ];
    let expected = expected.map(|(file, tensor)| (file.to_string(), vec![tensor.to_string()]));
    assert_eq!(named(&view, "model.safetensors.index.json"), expected);
    assert_eq!(
        named(&view, "taken.safetensors.index.json")[0].0,
        "deep/shards/model-4.safetensors"
    );
    for (file, tensors) in expected {
        let bytes = bytes(&view, &file);
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(parsed.names(), tensors, "{file}");
    }
    assert_eq!(names(&view, "model.tensors"), ["a", "b", "c", "weight"]);
    for (tensor, number) in [("a", 1.0), ("b", 2.0), ("c", 3.0), ("weight", 5.0)] {
        assert_eq!(raw(&view, &format!("model.tensors/{tensor}")), [number]);
    }
}

#[test]
fn a_native_index_may_name_subfolders_too() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("s/1.safetensors"), &safetensors_of(&[7.0]));
    let map = index(&[("weight", "s/1.safetensors")]);
    support::write(&root.join("model.safetensors.index.json"), &map);
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        ["model.safetensors.index.json", "model.tensors", "s"]
    );
    assert_eq!(raw(&view, "model.tensors/weight"), [7.0]);
}

#[test]
fn what_changes_in_a_subfolder_is_seen_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let shards = root.join("shards");
    let map = [("a", "shards/x.pt")];
    let whole = root.join("pytorch_model.bin.index.json");
    support::write(&whole, &index(&map));
    let view = view(root);
    let shown = |names_of: &str| named(&view, "model.safetensors.index.json")[0].0 == names_of;
    let stands_alone = || view.stands_alone(&view.root().unwrap());
    assert!(shown("shards/x.safetensors"));
    assert!(is_missing(&view, "model.tensors"));
    let before = find(&view, "model.safetensors.index.json").unwrap();

    shard(&shards, "x.pt", &[("a", &[1.0])]);
    assert_eq!(raw(&view, "model.tensors/a"), [1.0]);
    // A rival of the shard.
    shard(&shards, "x.ckpt", &[("b", &[1.0])]);
    assert!(shown("shards/x.pt.safetensors"));
    let after = find(&view, "model.safetensors.index.json").unwrap();
    assert!(before.key() != after.key());
    assert!(find(&view, "shards/x.pt.safetensors").is_ok());
    std::fs::remove_file(shards.join("x.ckpt")).unwrap();
    assert!(shown("shards/x.safetensors"));
    shard(&shards, "new", &[("a", &[2.0])]);
    std::fs::rename(shards.join("new"), shards.join("x.pt")).unwrap();
    assert_eq!(raw(&view, "model.tensors/a"), [2.0]);
    std::fs::remove_dir_all(&shards).unwrap();
    assert!(is_missing(&view, "model.tensors"));

    // So the directory of the index is no measure of what is shown in it.
    assert!(!stands_alone());
    support::write(&whole, &index(&[("a", "x.pt")]));
    assert!(stands_alone());
}

/// Whoever may not enter the subfolder reads nothing of it in the folder above.
#[test]
fn shards_in_a_private_subfolder_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    shard(&root.join("open/private"), "x.bin", &[("a", &[1.0])]);
    let map = index(&[("a", "open/private/x.bin")]);
    support::write(&root.join("pytorch_model.bin.index.json"), &map);
    let view = view(root);
    let mode = |name: &str| {
        let node = find(&view, name).unwrap();
        view.attr(&node).unwrap().mode
    };
    for (of_directory, of_index, of_tensors) in [
        (0o755, 0o444, 0o555),
        (0o711, 0o444, 0o555),
        (0o750, 0o440, 0o550),
        (0o700, 0o400, 0o500),
    ] {
        let rights = std::fs::Permissions::from_mode(of_directory);
        std::fs::set_permissions(root.join("open/private"), rights).unwrap();
        assert_eq!(mode("model.safetensors.index.json"), of_index);
        assert_eq!(mode("model.tensors"), of_tensors);
    }
}

#[test]
fn of_two_indexes_for_one_name_the_first_that_is_one_counts() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("model.bin.index.json"), b"{}");
    support::write(
        &root.join("pytorch_model.bin.index.json"),
        &index(&[("a", "pytorch_model-1.bin")]),
    );
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        ["model.bin.index.json", "model.safetensors.index.json"]
    );
}

#[test]
fn files_that_keep_their_name_keep_it_in_the_index() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("a.safetensors"), &safetensors_of(&[1.0]));
    support::write(&root.join("b.dat"), b"something else");
    support::write(&root.join("c.pt"), &support::one_vector(&[1.0]));
    support::write(&root.join("c.ckpt"), &support::one_vector(&[2.0]));
    let map = [("a", "a.safetensors"), ("b", "b.dat"), ("c", "c.ckpt")];
    support::write(&root.join("pytorch_model.bin.index.json"), &index(&map));
    let index = text(&view(root), "model.safetensors.index.json");
    for name in ["\"a.safetensors\"", "\"b.dat\"", "\"c.ckpt.safetensors\""] {
        assert!(index.contains(name), "{index}");
    }
}

#[test]
fn dropped_duplicates_are_found_but_not_listed() {
    let directory = tempfile::tempdir().unwrap();
    let tied = support::tied(&["lm_head.weight", "emb.weight"], &[1.0, 2.0]);
    support::write(&directory.path().join("m.pt"), &tied);
    let view = view(directory.path());
    let tensors = find(&view, "m.tensors").unwrap();
    assert_eq!(list(&view, &tensors).len(), 1);
    let kept = find(&view, "m.tensors/emb.weight").unwrap();
    let dropped = find(&view, "m.tensors/lm_head.weight").unwrap();
    assert!(kept.key() == dropped.key());
    assert!(matches!(
        view.lookup(&tensors, "other".as_ref()),
        Err(Error::NotFound)
    ));
}

#[test]
fn a_replaced_shard_is_seen_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let put = |name: &str, content: &[u8]| {
        let temporary = root.join("temporary");
        support::write(&temporary, content);
        std::fs::rename(&temporary, root.join(name)).unwrap();
    };
    put(
        "pytorch_model-1.bin",
        &support::named_vectors(&[("a", &[1.0])]),
    );
    put(
        "pytorch_model-2.bin",
        &support::named_vectors(&[("b", &[2.0])]),
    );
    let map = [("a", "pytorch_model-1.bin"), ("b", "pytorch_model-2.bin")];
    put("pytorch_model.bin.index.json", &index(&map));
    let view = view(root);
    let first = find(&view, "model.tensors").unwrap();
    assert!(first.key() == find(&view, "model.tensors").unwrap().key());

    put(
        "pytorch_model-2.bin",
        &support::named_vectors(&[("b", &[3.0]), ("c", &[4.0, 5.0])]),
    );
    let second = find(&view, "model.tensors").unwrap();
    assert!(first.key() != second.key());
    assert_eq!(names(&view, "model.tensors"), ["a", "b", "c"]);
    assert_eq!(raw(&view, "model.tensors/b"), [3.0]);
    let old = view.lookup(&first, "b".as_ref()).unwrap();
    assert!(matches!(view.open(&old), Err(Error::Stale)));

    put("pytorch_model.bin.index.json", &index(&map[..1]));
    assert_eq!(names(&view, "model.tensors"), ["a"]);
    put("pytorch_model-1.bin", b"\x80\x02N.");
    assert!(is_missing(&view, "model.tensors"));
}
