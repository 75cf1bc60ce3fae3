//! Which names of tied tensors stay: convert.py's choices (safetensors 0.8.0
//! with torch 2.15), what is kept where it would lose something, and where one of
//! two transformers releases would not find the name.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::Dtype;
use serde_json::Value;
use stfs::checkpoint::Tensor;
use stfs::convert::{self, Parsed, Plan, TiedNames, Ties};

use super::{contiguous, one_storage, support};

/// The names kept, in byte order, and each dropped name with the one that stands
/// for it.
type Outcome = (Vec<String>, Vec<(String, String)>);

fn outcome(tensors: Vec<Tensor>, tied: &[&str]) -> Outcome {
    let newest = Ties {
        tied: tied.iter().map(|name| name.to_string()).collect(),
        ..Ties::default()
    };
    let tied = TiedNames {
        newest: &newest,
        older: None,
    };
    let plan = Plan::new(one_storage(1 << 20, tensors), 1 << 20, Some(tied)).unwrap();
    outcome_of(&plan)
}

/// The name that stays of tensors of a model of this class that are one.
fn kept<'a>(class: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let tensors = names.into_iter().map(whole).collect();
    let checkpoint = Parsed::Checkpoint(one_storage(1 << 20, tensors));
    let plan = checkpoint.plan(1 << 20, Some(class)).unwrap();
    outcome_of(&plan).0.remove(0)
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

const SEQ2SEQ: &[&str] = &[
    "lm_head.weight",
    "model.decoder.embed_tokens.weight",
    "model.encoder.embed_tokens.weight",
    "model.shared.weight",
];

/// The names of one tensor in checkpoints of these classes, and one from which
/// transformers 4.57.0 and 5.23.0 both find all of them: tried with models of these
/// classes, of which only that name was saved.
#[test]
fn architectures_decide() {
    let cases: &[(&str, &[&str], &str)] = &[
        (
            "M2M100ForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        (
            "MBartForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        (
            "NllbMoeForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        (
            "PLBartForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        (
            "BigBirdPegasusForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        (
            "BartForConditionalGeneration",
            SEQ2SEQ,
            "model.shared.weight",
        ),
        ("MarianMTModel", SEQ2SEQ, "model.shared.weight"),
        (
            "BartForSequenceClassification",
            &SEQ2SEQ[1..],
            "model.decoder.embed_tokens.weight",
        ),
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
            "gpt_neox.embed_in.weight",
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

/// What a release of transformers says of each class: the names that it calls tied,
/// and those that it says they are tied to.
fn table(release: &str) -> BTreeMap<String, [BTreeSet<String>; 2]> {
    let path = format!(
        "{}/src/convert/tied_weights/transformers-{release}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let json = std::fs::read_to_string(path).unwrap();
    let classes: BTreeMap<String, Value> = serde_json::from_str(&json).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_string();
    let names = |value: Value| match &value {
        Value::Array(tied) => [tied.iter().map(text).collect(), BTreeSet::new()],
        Value::Object(tied) => [
            tied.keys().cloned().collect(),
            tied.values().map(text).collect(),
        ],
        _ => panic!("{value}"),
    };
    classes
        .into_iter()
        .map(|(class, value)| (class, names(value)))
        .collect()
}

#[test]
fn a_name_that_no_release_ties_stays() {
    let (newest, older) = (table("5.23.0"), table("4.57.0"));
    let classes: BTreeSet<&String> = newest.keys().chain(older.keys()).collect();
    assert!(classes.len() > 400);
    for class in classes {
        let tied = |table: &BTreeMap<String, [BTreeSet<String>; 2]>| {
            let known = table.get(class).cloned();
            known.map(|[tied, _]| tied).unwrap_or_default()
        };
        let (by_newest, by_older) = (tied(&newest), tied(&older));
        let all: BTreeSet<&str> = by_newest
            .iter()
            .chain(&by_older)
            .map(String::as_str)
            .collect();

        // Last in byte order, and still the one.
        let free = "~";
        let with = |more: &[&'static str]| [all.iter().copied().collect(), more.to_vec()].concat();
        assert_eq!(kept(class, with(&[free])), free, "{class}");
        assert_eq!(kept(class, with(&["0", free])), "0", "{class}");

        // Of names that some release ties, one that the newest leaves alone.
        let left = all
            .iter()
            .find(|name| newest.contains_key(class) && !by_newest.contains(**name));
        let expected = left.or(all.first());
        if let Some(expected) = expected {
            assert_eq!(kept(class, with(&[])), **expected, "{class}");
        }

        // The one that the newest ties the others to, where the other knows the
        // class too.
        let sources = newest.get(class).map(|[_, sources]| sources.clone());
        let sources = sources.unwrap_or_default();
        let source = sources
            .iter()
            .find(|name| !all.contains(name.as_str()) && older.contains_key(class));
        if let Some(source) = source {
            let names = all.iter().copied().chain(["!", source]);
            assert_eq!(kept(class, names), *source, "{class}");
        }
    }
}
