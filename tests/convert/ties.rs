//! Which names of tied tensors stay: convert.py's choices (safetensors 0.8.0
//! with torch 2.15), and what is kept where it would lose something.

use std::collections::HashSet;

use safetensors::Dtype;
use stfs::checkpoint::Tensor;
use stfs::convert::{self, Plan};

use super::{contiguous, one_storage, support};

/// The names kept, in byte order, and each dropped name with the one that stands
/// for it.
type Outcome = (Vec<String>, Vec<(String, String)>);

fn outcome(tensors: Vec<Tensor>, tied: &[&str]) -> Outcome {
    let tied: HashSet<String> = tied.iter().map(|name| name.to_string()).collect();
    let plan = Plan::new(one_storage(1 << 20, tensors), 1 << 20, Some(&tied)).unwrap();
    outcome_of(&plan)
}

fn outcome_of(plan: &Plan) -> Outcome {
    let kept = plan.sorted().map(|(_, tensor)| tensor.name.to_string());
    let dropped = plan
        .dropped()
        .map(|(name, kept)| (name.to_string(), kept.to_string()));
    (kept.collect(), dropped.collect())
}

fn expect(tensors: Vec<Tensor>, tied: &[&str], kept: &[&str], dropped: &[(&str, &str)]) {
    let (got_kept, got_dropped) = outcome(tensors, tied);
    assert_eq!(got_kept, kept);
    let dropped: Vec<(String, String)> = dropped
        .iter()
        .map(|(name, kept)| (name.to_string(), kept.to_string()))
        .collect();
    assert_eq!(got_dropped, dropped);
}

fn whole(name: &str) -> Tensor {
    contiguous(name, Dtype::F32, &[4, 8], 0)
}

fn strided(name: &str, shape: &[u64], strides: &[u64], offset: u64) -> Tensor {
    Tensor {
        strides: strides.into(),
        ..contiguous(name, Dtype::F32, shape, offset)
    }
}

#[test]
fn a_tied_pair_keeps_the_first_name() {
    let pair = || vec![whole("lm_head.weight"), whole("emb.weight")];
    let head = ("lm_head.weight", "emb.weight");
    let embedding = ("emb.weight", "lm_head.weight");
    expect(pair(), &[], &["emb.weight"], &[head]);
    expect(pair(), &["emb.weight"], &["lm_head.weight"], &[embedding]);
    expect(
        pair(),
        &["emb.weight", "lm_head.weight"],
        &["emb.weight"],
        &[head],
    );
    // Patterns are compared as they are written.
    expect(pair(), &["emb\\.weight"], &["emb.weight"], &[head]);
}

#[test]
fn many_names_of_one_tensor() {
    let tensors = ["d", "b", "c", "a"].map(whole).to_vec();
    let dropped = [("a", "c"), ("b", "c"), ("d", "c")];
    expect(tensors, &["a", "b"], &["c"], &dropped);
}

#[test]
fn names_are_ordered_by_code_points() {
    let tensors = ["\u{ff21}", "\u{1f600}", "z", "Z", "_"].map(whole).to_vec();
    let (kept, _) = outcome(tensors, &[]);
    assert_eq!(kept, ["Z"]);
}

#[test]
fn views_that_differ_are_all_kept() {
    let slice = contiguous("slice", Dtype::F32, &[8], 32);
    expect(vec![whole("full"), slice], &[], &["full", "slice"], &[]);
    let halves = vec![
        contiguous("a", Dtype::F32, &[16], 0),
        contiguous("b", Dtype::F32, &[16], 64),
    ];
    expect(halves, &[], &["a", "b"], &[]);
    let overlapping = vec![
        contiguous("a", Dtype::F32, &[16], 0),
        contiguous("b", Dtype::F32, &[16], 32),
    ];
    expect(overlapping, &[], &["a", "b"], &[]);
    let transposed = strided("t", &[8, 4], &[1, 8], 0);
    expect(vec![whole("w"), transposed], &[], &["t", "w"], &[]);
    let flat = contiguous("flat", Dtype::F32, &[32], 0);
    expect(vec![whole("w"), flat], &[], &["flat", "w"], &[]);
    let other_type = contiguous("i", Dtype::I32, &[4, 8], 0);
    expect(vec![whole("f"), other_type], &[], &["f", "i"], &[]);
    let expanded = strided("e", &[4, 8], &[0, 1], 0);
    expect(vec![whole("w"), expanded], &[], &["e", "w"], &[]);
    let mut negative = whole("n");
    negative.lazy.negate = true;
    expect(vec![whole("w"), negative], &[], &["n", "w"], &[]);
}

#[test]
fn strides_of_single_elements_make_no_difference() {
    let tensors = vec![
        strided("b", &[1, 8], &[8, 1], 0),
        strided("a", &[1, 8], &[1, 1], 0),
    ];
    expect(tensors, &[], &["a"], &[("b", "a")]);
}

#[test]
fn tensors_without_elements_share_nothing() {
    let empty = |name| contiguous(name, Dtype::F32, &[0, 8], 0);
    expect(vec![empty("b"), empty("a")], &[], &["a", "b"], &[]);
}

#[test]
fn dropped_names_are_found() {
    let tensors = vec![whole("a"), whole("b"), contiguous("c", Dtype::I64, &[1], 0)];
    let plan = Plan::new(one_storage(1 << 20, tensors), 1 << 20, None).unwrap();
    assert_eq!(plan.find("b"), plan.find("a"));
    assert_ne!(plan.find("a"), plan.find("c"));
    assert_eq!(plan.find("d"), None);
}

/// The names of one tensor in checkpoints of these classes, and the one that
/// convert.py keeps under transformers 5.23.0.
#[test]
fn architectures_decide() {
    let cases: &[(&str, &[&str], &str)] = &[
        (
            "GPT2LMHeadModel",
            &["lm_head.weight", "transformer.wte.weight"],
            "transformer.wte.weight",
        ),
        (
            "LlamaForCausalLM",
            &["lm_head.weight", "model.embed_tokens.weight"],
            "model.embed_tokens.weight",
        ),
        (
            "OPTForCausalLM",
            &["lm_head.weight", "model.decoder.embed_tokens.weight"],
            "model.decoder.embed_tokens.weight",
        ),
        (
            "BloomForCausalLM",
            &["lm_head.weight", "transformer.word_embeddings.weight"],
            "transformer.word_embeddings.weight",
        ),
        (
            "RobertaForMaskedLM",
            &[
                "lm_head.decoder.weight",
                "roberta.embeddings.word_embeddings.weight",
            ],
            "roberta.embeddings.word_embeddings.weight",
        ),
        (
            "T5ForConditionalGeneration",
            &[
                "decoder.embed_tokens.weight",
                "encoder.embed_tokens.weight",
                "lm_head.weight",
                "shared.weight",
            ],
            "shared.weight",
        ),
        (
            "GPTNeoXForCausalLM",
            &["embed_out.weight", "gpt_neox.embed_in.weight"],
            "embed_out.weight",
        ),
        (
            "BertForMaskedLM",
            &[
                "bert.embeddings.word_embeddings.weight",
                "cls.predictions.decoder.weight",
            ],
            "bert.embeddings.word_embeddings.weight",
        ),
        (
            "NoSuchModel",
            &["lm_head.weight", "model.embed_tokens.weight"],
            "lm_head.weight",
        ),
    ];
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pytorch_model.bin");
    let config = directory.path().join("config.json");
    for (architecture, names, kept) in cases {
        support::write(&path, &support::tied(names, &[1.0, 2.0]));
        std::fs::write(
            &config,
            format!("{{\"architectures\":[\"{architecture}\"]}}"),
        )
        .unwrap();
        let reader = convert::open(&path).unwrap();
        let (got, dropped) = outcome_of(reader.plan());
        assert_eq!(got, [*kept], "{architecture}");
        assert_eq!(dropped.len(), names.len() - 1);
        assert!(dropped.iter().all(|(_, stands)| stands == kept));
    }
    for broken in [
        "",
        "{",
        "[]",
        "{\"architectures\":[]}",
        "{\"architectures\":[1]}",
    ] {
        std::fs::write(&config, broken).unwrap();
        support::write(
            &path,
            &support::tied(&["model.embed_tokens.weight", "lm_head.weight"], &[1.0]),
        );
        let reader = convert::open(&path).unwrap();
        assert_eq!(outcome_of(reader.plan()).0, ["lm_head.weight"], "{broken}");
    }
}
