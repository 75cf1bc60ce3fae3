//! What training leaves behind that is no weights, known by its structure: the states
//! of optimizers and of generators of random numbers.

use crate::pickle::{Object, ObjectId, Pickle};

/// Keys that trainers keep optimizers' states under: torch's examples, Lightning,
/// fairseq, DeepSpeed, apex.
const OPTIMIZERS: &[&str] = &[
    "last_optimizer_state",
    "optim",
    "optim_state_dict",
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "optimizers",
];

/// More keys than a state of an optimizer has at its top.
const MOST_KEYS: usize = 24;

/// Whether a key at the top of a file, or beside its weights, is one that trainers
/// keep optimizers' states under.
pub fn is_optimizer_key(key: &str) -> bool {
    OPTIMIZERS.contains(&key)
}

/// Whether a mapping with these keys is an optimizer's state: torch's
/// `{"state": ..., "param_groups": [...]}`, fastai's `{"state": [...], "hypers": [...]}`,
/// the flat groups of DeepSpeed's ZeRO, or what Adam keeps of one parameter. `is_list`
/// tells whether a list may stand behind a key.
pub fn is_optimizer<'k>(
    keys: impl ExactSizeIterator<Item = &'k str> + Clone,
    is_list: impl Fn(&str) -> bool,
) -> bool {
    let has = |name| keys.clone().any(|key| key == name);
    let lists = |name| has(name) && is_list(name);
    let both = |a, b| has(a) && has(b);
    // Paddle's has them for each parameter.
    let is_paddle = |key: &str| key.ends_with("_beta1_pow_acc_0") || key.ends_with("_moment1_0");
    if keys.len() > MOST_KEYS {
        return keys.clone().any(is_paddle);
    }
    keys.clone().any(is_paddle)
        || (has("state") && lists("param_groups")
            || lists("state") && lists("hypers")
            || both("exp_avg", "exp_avg_sq")
            || has("single_partition_of_fp32_groups")
            || has("fp32_from_fp16_params"))
}

/// Whether a mapping with these keys holds the states of all generators, as transformers'
/// Trainer saves them.
pub fn is_rng_states<'k>(mut keys: impl ExactSizeIterator<Item = &'k str>) -> bool {
    const KEYS: &[&str] = &[
        "python", "numpy", "cpu", "cuda", "hpu", "mlu", "mps", "musa", "npu", "xla", "xpu",
    ];
    keys.len() > 1 && keys.all(|key| KEYS.contains(&key))
}

/// Bytes of the states of torch's generators: of the CPU since 0.4, and of devices.
const RNG_SIZES: &[u64] = &[16, 24, 28, 44, 816, 5048, 5056, 824_000, 824_008, 824_016];

/// Whether trainers keep states of generators of random numbers under this key.
pub fn is_rng_key(key: &str) -> bool {
    const WORDS: &[&str] = &[
        "generator",
        "generators",
        "random",
        "rng",
        "rngs",
        "seed",
        "seeds",
    ];
    let key = key.to_ascii_lowercase();
    let mut words = key.split(|letter: char| !letter.is_ascii_alphanumeric());
    words.any(|word| WORDS.contains(&word)) || key.contains("rng_state") || key.contains("rngstate")
}

/// Whether a tensor under a key of [`is_rng_key`] is such a state: `shape` of bytes.
pub fn is_rng_size(shape: &[u64]) -> bool {
    matches!(shape, [len] if RNG_SIZES.contains(len))
}

/// Whether the object is the state of one of numpy's generators:
/// `("MT19937", keys, position, ...)`, or `{"bit_generator": ..., "state": ...}`.
pub fn is_numpy_rng(pickle: &Pickle, id: ObjectId) -> bool {
    const GENERATORS: &[&str] = &["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"];
    let is_name = |id: ObjectId| {
        let name = pickle.as_str(id);
        name.is_some_and(|name| GENERATORS.contains(&name))
    };
    match pickle.get(id) {
        Object::Tuple(items) => matches!(**items, [name, _, _, ..] if is_name(name)),
        Object::List(items) => matches!(**items, [name, _, _, ..] if is_name(name)),
        Object::Dict(items) if items.len() <= MOST_KEYS => items
            .iter()
            .any(|(key, value)| pickle.as_str(*key) == Some("bit_generator") && is_name(*value)),
        _ => false,
    }
}
