//! What the tree shows of a directory: names, bytes, attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};
use stfs::source::memory::MemoryTree;
use stfs::view::{Error, Kind, Options, Tensors, View};

use super::{bytes, find, is_missing, list, names, read, safetensors_of, support, text, view};

fn example(name: &str) -> View {
    view(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples/models")
            .join(name),
    )
}

#[test]
fn arrays_of_numbers_are_shown_beside_what_they_turn_into() {
    let array = |descr: &str| {
        let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ()}}\n");
        let len = (text.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\0", &len[..], text.as_bytes(), b"\x07"].concat()
    };
    let dir = tempfile::tempdir().unwrap();
    support::write(&dir.path().join("seven.npy"), &array("|u1"));
    support::write(&dir.path().join("text.npy"), &array("|S1"));
    support::write(&dir.path().join("objects.npy"), &array("|O"));
    let view = view(dir.path());
    assert_eq!(
        names(&view, ""),
        [
            "objects.npy.refused.txt",
            "seven.npy",
            "seven.safetensors",
            "seven.tensors",
            "text.npy",
        ]
    );
    assert!(is_missing(&view, "objects.npy"));
    assert_eq!(bytes(&view, "seven.npy"), array("|u1"));
    assert_eq!(bytes(&view, "seven.tensors/tensor"), b"\x07");
}

#[test]
fn examples_are_shown() {
    assert_eq!(
        names(&example(""), ""),
        [
            "checkpoint.safetensors",
            "checkpoint.tensors",
            "evil.bin.refused.txt",
            "tiny-bert-sharded",
            "tiny-clip-native",
            "tiny-gpt2",
            "tiny-gpt2-lora",
            "tiny-stable-diffusion",
        ]
    );
    assert_eq!(
        names(&example("tiny-gpt2"), ""),
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "model.tensors"
        ]
    );
    assert_eq!(
        names(&example("tiny-gpt2-lora"), ""),
        [
            "adapter_config.json",
            "adapter_model.safetensors",
            "adapter_model.tensors"
        ]
    );
    assert_eq!(
        names(&example("tiny-clip-native"), ""),
        ["config.json", "model.safetensors", "model.tensors"]
    );
    assert_eq!(
        names(&example("tiny-stable-diffusion"), "unet"),
        [
            "config.json",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.tensors"
        ]
    );
    let bert = example("tiny-bert-sharded");
    assert_eq!(
        names(&bert, ""),
        [
            "config.json",
            "model-00001-of-00003.safetensors",
            "model-00001-of-00003.tensors",
            "model-00002-of-00003.safetensors",
            "model-00002-of-00003.tensors",
            "model-00003-of-00003.safetensors",
            "model-00003-of-00003.tensors",
            "model.safetensors.index.json",
            "model.tensors",
        ]
    );
    let listed: usize = (1..=3)
        .map(|number| names(&bert, &format!("model-0000{number}-of-00003.tensors")).len())
        .sum();
    assert_eq!(names(&bert, "model.tensors").len(), listed);
}

#[test]
fn examples_can_be_read_by_safetensors() {
    let gpt2 = bytes(&example("tiny-gpt2"), "model.safetensors");
    let gpt2 = safetensors::SafeTensors::deserialize(&gpt2).unwrap();
    let raw = bytes(
        &example("tiny-gpt2"),
        "model.tensors/transformer.wte.weight",
    );
    assert_eq!(gpt2.tensor("transformer.wte.weight").unwrap().data(), raw);
    let evil = text(&example(""), "evil.bin.refused.txt");
    assert!(
        evil.starts_with("evil.bin is not shown as safetensors: "),
        "{evil}"
    );
    assert!(evil.contains("Do not load it"), "{evil}");
}

/// The first table of the design, less what the other modules try.
#[test]
fn rows_of_the_table() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let weights = support::one_vector(&[1.0, 2.0, 3.0]);
    for name in [
        "pytorch_model.bin",
        "pytorch_model.fp16.bin",
        "x.ckpt",
        "y.pth",
        "z.pkl",
    ] {
        support::write(&root.join(name), &weights);
    }
    for name in [
        "optimizer.pt",
        "training_args.bin",
        "rng_state_0.pth",
        "scheduler.bin",
    ] {
        support::write(&root.join(name), b"\x80\x02N.");
    }
    support::write(&root.join("native.safetensors"), &safetensors_of(&[4.0]));
    support::write(&root.join("tokenizer.bin"), b"# no pickle");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    support::write(&root.join("lfs.bin"), pointer);
    support::write(&root.join("no-ending"), &weights);
    std::fs::create_dir(root.join("empty")).unwrap();
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "empty",
            "lfs.bin.refused.txt",
            "model.fp16.safetensors",
            "model.fp16.tensors",
            "model.safetensors",
            "model.tensors",
            "native.safetensors",
            "native.tensors",
            "no-ending.safetensors",
            "no-ending.tensors",
            "tokenizer.bin",
            "x.safetensors",
            "x.tensors",
            "y.safetensors",
            "y.tensors",
            "z.safetensors",
            "z.tensors",
        ]
    );
    assert_eq!(
        bytes(&view, "model.safetensors"),
        safetensors_of(&[1.0, 2.0, 3.0])
    );
    assert!(text(&view, "lfs.bin.refused.txt").contains("git lfs pull"));
    assert!(is_missing(&view, "pytorch_model.bin"));
    assert!(is_missing(&view, "optimizer.safetensors"));
    assert!(is_missing(&view, "optimizer.pt.refused.txt"));
    for odd in ["", ".", "..", "a/b"] {
        let found = view.lookup(&view.root().unwrap(), odd.as_ref());
        assert!(matches!(found, Err(Error::NotFound)));
    }
}

#[test]
fn options_shape_the_tree() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(&root.join("m.pt"), &support::one_vector(&[1.0]));
    support::write(&root.join("n.safetensors"), &safetensors_of(&[2.0]));
    let with = |tensors, show_pickles| {
        let options = Options {
            tensors,
            show_pickles,
            ..Options::default()
        };
        View::new(root, options).unwrap()
    };
    let hidden = with(Tensors::Hide, false);
    assert_eq!(names(&hidden, ""), ["m.safetensors", "n.safetensors"]);
    assert_eq!(bytes(&hidden, "m.tensors/weight"), 1.0_f32.to_le_bytes());
    assert_eq!(bytes(&hidden, "n.tensors/weight"), 2.0_f32.to_le_bytes());
    let off = with(Tensors::Off, false);
    assert_eq!(names(&off, ""), ["m.safetensors", "n.safetensors"]);
    assert!(is_missing(&off, "m.tensors") && is_missing(&off, "n.tensors"));
    let pickles = with(Tensors::Show, true);
    assert_eq!(
        names(&pickles, ""),
        [
            "m.pt",
            "m.safetensors",
            "m.tensors",
            "n.safetensors",
            "n.tensors"
        ]
    );
    assert_eq!(
        bytes(&pickles, "m.pt"),
        std::fs::read(root.join("m.pt")).unwrap()
    );
}

#[test]
fn a_real_file_keeps_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    support::write(
        &root.join("pytorch_model.bin"),
        &support::one_vector(&[1.0]),
    );
    support::write(&root.join("model.safetensors"), &safetensors_of(&[2.0]));
    support::write(&root.join("x.pt"), &support::one_vector(&[3.0]));
    support::write(&root.join("x.tensors/mine"), b"mine");
    let view = view(root);
    assert_eq!(
        names(&view, ""),
        [
            "model.safetensors",
            "model.tensors",
            "x.safetensors",
            "x.tensors"
        ]
    );
    assert_eq!(bytes(&view, "model.tensors/weight"), 2.0_f32.to_le_bytes());
    assert_eq!(names(&view, "x.tensors"), ["mine"]);
}

#[test]
fn names_need_not_be_text() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let write = |name: &[u8], content: &[u8]| {
        std::fs::write(root.join(OsStr::from_bytes(name)), content).unwrap();
    };
    write(b"\xff\xfe.txt", b"plain");
    write(b"\xff.pt", &support::one_vector(&[1.0]));
    write(b"new\nline.pt", b"\x80\x02X");
    let view = view(root);
    let children = list(&view, &view.root().unwrap());
    let children: Vec<&[u8]> = children.iter().map(|(name, _)| name.as_bytes()).collect();
    let expected: [&[u8]; 4] = [
        b"new\nline.pt.refused.txt",
        b"\xff.pt.safetensors",
        b"\xff.pt.tensors",
        b"\xff\xfe.txt",
    ];
    assert_eq!(children, expected);
    assert!(text(&view, "new\nline.pt.refused.txt").starts_with("new\\nline.pt is not"));
}

#[test]
fn a_derived_name_may_be_too_long_for_the_source() {
    let directory = tempfile::tempdir().unwrap();
    let name = "x".repeat(250);
    let path = directory.path().join(format!("{name}.pt"));
    support::write(&path, &support::one_vector(&[1.0]));
    let view = view(directory.path());
    let expected = [format!("{name}.safetensors"), format!("{name}.tensors")];
    assert_eq!(names(&view, ""), expected);
    assert!(is_missing(&view, &"y".repeat(300)));
}

#[test]
fn tensor_names_become_file_names() {
    let directory = tempfile::tempdir().unwrap();
    let long = "l".repeat(300);
    let other = format!("{}m", "l".repeat(299));
    let cases = [
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("", "%"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("a\0b", "a%00b"),
        ("\u{e9}\n ", "\u{e9}\n "),
    ];
    let vectors: Vec<(&str, &[f32])> = cases
        .iter()
        .map(|(name, _)| *name)
        .chain([long.as_str(), other.as_str()])
        .map(|name| (name, [1.0].as_slice()))
        .collect();
    support::write(
        &directory.path().join("m.pt"),
        &support::named_vectors(&vectors),
    );
    let view = view(directory.path());
    let tensors = find(&view, "m.tensors").unwrap();
    let listed: Vec<(String, Vec<u8>)> = {
        let listing = view.list(&tensors).unwrap();
        (0..listing.len())
            .map(|rank| {
                let (name, node) = listing.entry(rank).unwrap();
                let found = view.lookup(&tensors, &name).unwrap();
                assert!(found.key() == node.key(), "{name:?}");
                let xattrs = view.xattrs(&node).unwrap();
                let original = xattrs.into_iter().find(|(key, _)| *key == "user.stfs.name");
                (name.to_str().unwrap().to_string(), original.unwrap().1)
            })
            .collect()
    };
    assert_eq!(listed.len(), vectors.len());
    for (name, file_name) in cases {
        assert!(
            listed.contains(&(file_name.to_string(), name.as_bytes().to_vec())),
            "{name:?}"
        );
    }
    for name in [&long, &other] {
        let (file_name, _) = listed
            .iter()
            .find(|(_, original)| original == name.as_bytes())
            .unwrap();
        assert!(file_name.len() <= 255 && file_name.starts_with("llll"));
    }
    for absent in ["a%2fb", "%2e", "a%", "%zz", "llll"] {
        assert!(matches!(
            view.lookup(&tensors, absent.as_ref()),
            Err(Error::NotFound)
        ));
    }
}

#[test]
fn attributes_are_the_sources_own_without_write_bits() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.pt");
    support::write(&path, &support::one_vector(&[1.0, 2.0]));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
    let modified = std::time::SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    std::fs::File::open(&path)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    let view = view(directory.path());
    let attr = |path: &str| view.attr(&find(&view, path).unwrap()).unwrap();
    let converted = attr("m.safetensors");
    assert_eq!((converted.mode, converted.mtime), (0o440, modified));
    assert_eq!(converted.size, safetensors_of(&[1.0, 2.0]).len() as u64);
    let tensors = attr("m.tensors");
    assert_eq!(
        (tensors.kind, tensors.mode, tensors.mtime),
        (Kind::Directory, 0o550, modified)
    );
    let tensor = attr("m.tensors/weight");
    assert_eq!(
        (tensor.size, tensor.mode, tensor.mtime),
        (8, 0o440, modified)
    );

    let weight = find(&view, "m.tensors/weight").unwrap();
    let source = path.canonicalize().unwrap();
    let expected: [(&str, &[u8]); 4] = [
        ("user.stfs.dtype", b"F32"),
        ("user.stfs.name", b"weight"),
        ("user.stfs.shape", b"[2]"),
        ("user.stfs.source", source.as_os_str().as_bytes()),
    ];
    let xattrs = view.xattrs(&weight).unwrap();
    assert!(
        xattrs
            .iter()
            .map(|(name, value)| (*name, value.as_slice()))
            .eq(expected)
    );
    let converted = view.xattrs(&find(&view, "m.safetensors").unwrap()).unwrap();
    assert_eq!(
        converted,
        [
            ("user.stfs.source", source.as_os_str().as_bytes().to_vec()),
            ("user.stfs.tier", b"stream".to_vec()),
        ]
    );
}

#[test]
fn unreadable_files_are_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.pt");
    support::write(&path, &support::one_vector(&[1.0]));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let look = || {
        // Root may read everything; this thread is somebody else where it can be.
        setfsuid(Uid::from_raw(65534));
        let view = view(directory.path());
        assert_eq!(names(&view, ""), ["m.pt.refused.txt"]);
        assert!(text(&view, "m.pt.refused.txt").contains("cannot be read"));
    };
    std::thread::scope(|scope| scope.spawn(look).join().unwrap());
}

#[test]
fn pipes_are_left_out() {
    let directory = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("m.pt")).unwrap();
    assert!(names(&view(directory.path()), "").is_empty());
}

#[test]
fn an_open_file_gives_the_old_bytes_or_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.pt");
    let old: Vec<f32> = (0..5000).map(|n| n as f32).collect();
    let new: Vec<f32> = old.iter().map(|value| -value).collect();
    support::write(&path, &support::one_vector(&old));
    let view = view(directory.path());
    let node = find(&view, "m.safetensors").unwrap();
    let file = view.open(&node).unwrap();

    // Replaced: the old file lives on for whoever has it open.
    let temporary = directory.path().join("new");
    support::write(&temporary, &support::one_vector(&new));
    std::fs::rename(&temporary, &path).unwrap();
    assert_eq!(read(&file).unwrap(), safetensors_of(&old));
    assert!(matches!(view.open(&node), Err(Error::Stale)));
    let node = find(&view, "m.safetensors").unwrap();
    let file = view.open(&node).unwrap();
    assert_eq!(read(&file).unwrap(), safetensors_of(&new));

    // Truncated: an error, and no zeros.
    let source = std::fs::File::options().write(true).open(&path).unwrap();
    source.set_len(100).unwrap();
    assert!(read(&file).is_err());
    let tensor = view.lookup(
        &find(&view, "").unwrap_or(view.root().unwrap()),
        "m.tensors".as_ref(),
    );
    assert!(matches!(tensor, Err(Error::NotFound)));
    assert!(find(&view, "m.pt.refused.txt").is_ok());
    std::fs::remove_file(&path).unwrap();
    assert!(is_missing(&view, "m.pt.refused.txt"));
}

#[test]
fn many_tensors_are_planned_once() {
    const COUNT: u32 = 100_000;
    let names: Vec<String> = (0..COUNT).map(|number| format!("t{number:06}")).collect();
    let tensors: Vec<support::Tensor> = (0..COUNT)
        .zip(&names)
        .map(|(offset, name)| support::Tensor {
            name,
            storage: 0,
            offset,
            shape: &[1],
            strides: &[1],
        })
        .collect();
    let storage = support::Storage::floats((0..COUNT).map(|number| number as f32));
    let tree = MemoryTree::new();
    tree.write("m.pt", support::checkpoint(&tensors, &[storage]));
    let view = View::over(tree.root(), Options::default());
    let directory = find(&view, "m.tensors").unwrap();
    let listing = view.list(&directory).unwrap();
    assert_eq!(listing.len(), COUNT as usize);
    for rank in [0, 1, 77_777, 99_999] {
        let (name, node) = listing.entry(rank).unwrap();
        assert_eq!(*name, *names[rank]);
        let content = read(&view.open(&node).unwrap()).unwrap();
        assert_eq!(content, (rank as f32).to_le_bytes());
    }
    let before = tree.reads();
    for (rank, name) in names.iter().enumerate().take(1000) {
        let listing = view.list(&directory).unwrap();
        assert!(listing.entry(rank).is_some());
        view.lookup(&directory, name.as_ref()).unwrap();
    }
    assert_eq!(tree.reads(), before);
}

/// A second listing, and lookups after it, look at no content again.
#[test]
fn many_checkpoints_are_looked_at_once() {
    let tree = MemoryTree::new();
    let content = support::one_vector(&[1.0]);
    for number in 0..2000 {
        tree.write(format!("m{number:04}.pt"), content.as_slice());
    }
    let view = View::over(tree.root(), Options::default());
    let root = view.root().unwrap();
    assert_eq!(view.list(&root).unwrap().len(), 4000);
    let before = tree.reads();
    assert_eq!(view.list(&root).unwrap().len(), 4000);
    for number in 0..2000 {
        view.lookup(&root, format!("m{number:04}.safetensors").as_ref())
            .unwrap();
    }
    assert_eq!(tree.reads(), before);
}

#[test]
fn concurrent_lookups_find_the_same_node() {
    let directory = tempfile::tempdir().unwrap();
    support::write(&directory.path().join("m.pt"), &support::one_vector(&[1.0]));
    let view = view(directory.path());
    let find = || find(&view, "m.tensors/weight").unwrap();
    let nodes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16).map(|_| scope.spawn(find)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(nodes.iter().all(|node| node.key() == nodes[0].key()));
}
