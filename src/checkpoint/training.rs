//! What training leaves behind that is no weights, known by its structure: the states
//! of optimizers and of generators of random numbers.

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

/// Whether a key at the top of a file is one that trainers keep optimizers' states
/// under.
pub fn is_optimizer_key(key: &str) -> bool {
    OPTIMIZERS.contains(&key)
}

/// What stands behind a key of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    Nothing,
    /// A list, of other containers.
    List,
    /// A mapping, to other containers.
    Mapping,
    /// Anything else, tensors by name among it.
    Other,
}

/// The form of an optimizer's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Optimizer {
    /// `{"state": {0: {...}}, "param_groups": [{...}]}`
    Torch,
    /// fastai's `{"state": [{...}], "hypers": [{...}]}`
    Fastai,
    /// What Adam keeps of one parameter.
    Adam,
    /// The flat groups of DeepSpeed's ZeRO and of apex.
    Flat,
    /// Paddle's, which has the name of a parameter and of a slot in each key.
    Paddle,
}

impl Optimizer {
    /// The form that a mapping with these keys is of, if it is an optimizer's state.
    pub fn of<'k>(
        mut keys: impl ExactSizeIterator<Item = &'k str>,
        behind: impl Fn(&str) -> Behind,
    ) -> Option<Optimizer> {
        /// All but Paddle's have few at their top.
        const MOST_KEYS: usize = 24;
        let is_small = keys.len() <= MOST_KEYS;
        let behind = |key| match is_small {
            true => behind(key),
            false => Behind::Nothing,
        };
        let has = |name| behind(name) != Behind::Nothing;
        let lists = |name| behind(name) == Behind::List;
        if behind("state") == Behind::Mapping && lists("param_groups") {
            Some(Optimizer::Torch)
        } else if lists("state") && lists("hypers") {
            Some(Optimizer::Fastai)
        } else if has("exp_avg") && has("exp_avg_sq") {
            Some(Optimizer::Adam)
        } else if has("single_partition_of_fp32_groups") || has("fp32_from_fp16_params") {
            Some(Optimizer::Flat)
        } else {
            let is_paddles = keys.any(|key| key.ends_with("_beta1_pow_acc_0"));
            is_paddles.then_some(Optimizer::Paddle)
        }
    }

    /// Whether the value behind this key of the mapping is part of it. What else there is
    /// in the mapping is not.
    pub fn has(self, key: &str) -> bool {
        const PADDLES: &[&str] = &[
            "_beta1_pow_acc_0",
            "_beta2_pow_acc_0",
            "_moment1_0",
            "_moment2_0",
        ];
        let keys: &[&str] = match self {
            Optimizer::Torch => &["state", "param_groups", "defaults"],
            Optimizer::Fastai => &["state", "hypers"],
            Optimizer::Adam => &["exp_avg", "exp_avg_sq", "max_exp_avg_sq", "param", "step"],
            Optimizer::Flat => &[
                "base_optimizer_state",
                "fp32_from_fp16_params",
                "optimizer",
                "optimizer_state_dict",
                "single_partition_of_fp32_groups",
            ],
            Optimizer::Paddle => {
                return key == "master_weights" || PADDLES.iter().any(|slot| key.ends_with(slot));
            }
        };
        keys.contains(&key)
    }
}

/// Whether a mapping with these keys may hold the states of all generators, as
/// transformers' Trainer saves them.
pub fn is_rng_states<'k>(keys: impl Iterator<Item = &'k str> + Clone) -> bool {
    const KEYS: &[&str] = &[
        "python", "numpy", "cpu", "cuda", "hpu", "mlu", "mps", "musa", "npu", "xla", "xpu",
    ];
    keys.clone().any(|key| key == "cpu") && keys.clone().all(|key| KEYS.contains(&key))
}

/// Bytes of the states of torch's generators: of the CPU since 0.4, and of devices.
const RNG_SIZES: &[u64] = &[16, 24, 28, 44, 816, 5048, 5056, 824_000, 824_008, 824_016];

/// Whether trainers keep states of generators of random numbers under this key.
pub fn is_rng_key(key: &str) -> bool {
    const NAMES: &[&str] = &[
        "manual_seed",
        "random_seed",
        "random_state",
        "rng_state",
        "rngstate",
    ];
    let key = key.to_ascii_lowercase();
    let last = key.rsplit('.').next().unwrap_or_default();
    let mut words = last.split(|letter: char| !letter.is_ascii_alphanumeric());
    matches!(last, "generator" | "generators")
        || words.any(|word| matches!(word, "rng" | "rngs"))
        || NAMES.iter().any(|name| last.contains(name))
}

/// Whether a vector of so many bytes under a key of [`is_rng_key`] is such a state.
pub fn is_rng_size(len: u64) -> bool {
    RNG_SIZES.contains(&len)
}

/// Bytes of the numbers that numpy's MT19937 keeps, which are more than those of its
/// other generators.
pub const MT19937_LEN: u64 = 2496;

/// Whether numpy calls one of its generators so.
pub fn is_numpy_generator(name: &str) -> bool {
    matches!(name, "MT19937" | "PCG64" | "PCG64DXSM" | "Philox" | "SFC64")
}
