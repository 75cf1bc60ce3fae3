//! What files are called.

use stfs::convert::names::{index_name, indexed_stem, promises_checkpoint, stem};

#[test]
fn stems() {
    let cases = [
        ("pytorch_model.bin", "model"),
        ("pytorch_model-00001-of-00002.bin", "model-00001-of-00002"),
        ("pytorch_model.fp16.bin", "model.fp16"),
        (
            "pytorch_model.fp16-00001-of-00002.bin",
            "model.fp16-00001-of-00002",
        ),
        ("pytorch_model.BIN", "model"),
        ("pytorch_model_00001-of-00072.bin", "model_00001-of-00072"),
        ("pytorch_model_1.bin", "model_1"),
        ("pytorch_model_1.fp16.bin", "model_1.fp16"),
        ("pytorch_model_1.pt", "pytorch_model_1"),
        ("pytorch_model_fp16.bin", "pytorch_model_fp16"),
        ("pytorch_model_8bit.bin", "pytorch_model_8bit"),
        ("pytorch_model_.bin", "pytorch_model_"),
        ("pytorch_model1.bin", "pytorch_model1"),
        ("pytorch_model.pt", "pytorch_model"),
        ("pytorch_model_ema.bin", "pytorch_model_ema"),
        ("pytorch_models.bin", "pytorch_models"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model"),
        (
            "diffusion_pytorch_model.fp16.bin",
            "diffusion_pytorch_model.fp16",
        ),
        ("open_clip_pytorch_model.bin", "open_clip_pytorch_model"),
        ("adapter_model.bin", "adapter_model"),
        ("x.ckpt", "x"),
        ("x.pt", "x"),
        ("x.pth", "x"),
        ("x.pth.tar", "x"),
        ("x.pkl", "x"),
        ("x.pdparams", "x"),
        ("x.npy", "x"),
        ("x.npz", "x"),
        ("v1.5-pruned.ckpt", "v1.5-pruned"),
        ("x.y", "x.y"),
        ("x", "x"),
        (".bin", ".bin"),
        ("x.safetensors", "x"),
        ("\u{e9}.pt", "\u{e9}"),
    ];
    for (name, expected) in cases {
        assert_eq!(stem(name), expected, "{name}");
    }
}

#[test]
fn indexes() {
    let cases = [
        (
            "pytorch_model.bin.index.json",
            Some("model.safetensors.index.json"),
            Some("model"),
        ),
        (
            "pytorch_model.bin.index.fp16.json",
            Some("model.safetensors.index.fp16.json"),
            Some("model.fp16"),
        ),
        (
            "pytorch_model_1.bin.index.json",
            Some("model_1.safetensors.index.json"),
            Some("model_1"),
        ),
        (
            "diffusion_pytorch_model.bin.index.json",
            Some("diffusion_pytorch_model.safetensors.index.json"),
            Some("diffusion_pytorch_model"),
        ),
        ("model.safetensors.index.json", None, Some("model")),
        (
            "model.safetensors.index.fp16.json",
            None,
            Some("model.fp16"),
        ),
        ("model.bin.indexes.json", None, None),
        (".bin.index.json", None, None),
        ("pytorch_model.bin.index", None, None),
        ("model_index.json", None, None),
        ("config.json", None, None),
    ];
    for (name, derived, stem) in cases {
        assert_eq!(index_name(name).as_deref(), derived, "{name}");
        assert_eq!(indexed_stem(name).as_deref(), stem, "{name}");
    }
}

#[test]
fn promises() {
    for name in ["a.bin", "a.PT", "a.pth.tar", "a.b.ckpt", "a.pt2"] {
        assert!(promises_checkpoint(name), "{name}");
    }
    for name in [
        "bin",
        ".bin",
        "a.bins",
        "a.safetensors",
        "a.json",
        "a.bin.json",
    ] {
        assert!(!promises_checkpoint(name), "{name}");
    }
}
