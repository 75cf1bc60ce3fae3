"""Random state dicts: every dtype of safetensors, odd names, and every way in which tensors share storage."""

import random
from collections import OrderedDict

import torch

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
    torch.complex64,
]

# safetensors counts the elements of this dtype in pairs and has no half pair: it cannot be a scalar.
PACKED = torch.float4_e2m1fn_x2

ODD_NAMES = [
    "",
    " ",
    ".",
    "..",
    "...",
    "../../etc/passwd",
    "/absolute",
    "a/b",
    "trailing/",
    "a//b",
    "%2F",
    "100%",
    "nul\0inside",
    "tab\tand\nnewline",
    "\x01\x02\x1f\x7f",
    'quote"quote',
    "back\\slash",
    "\u00e9\u00df",
    "e\u0301",
    "\u91cd\u307f",
    "\U0001f600",
    "\u2028\u2029",
    "\ufeffbom",
    "format",
    ".hidden",
    "-rf",
    "*?[x]",
    "$(echo)",
    "data.pkl",
    "model.safetensors",
    "x" * 255,
    "x" * 256,
    "\u91cd" * 86,
    "y" * 3000,
]


def random_state_dict(seed, tied_names=()):
    """What one torch.save gets: a dict, sometimes wrapped, nested or with values that are no tensors.

    `tied_names` are names that ties prefer to use.
    """
    rng = random.Random(f"state dict {seed}")
    maker = _Maker(rng, tied_names)
    state_dict = maker.flat()
    style = rng.random()
    if style < 0.12:
        return {"state_dict": state_dict, "epoch": rng.randrange(100)}
    if style < 0.20:
        return {**state_dict, "step": 7, "note": "text", "nothing": None}
    if style < 0.28:
        nested = {"inner": _Maker(rng, ()).flat(names=["u", "v", "w"]), "list": [maker.fresh(), "text", maker.fresh()]}
        return {**state_dict, "nested": nested}
    if style < 0.5:
        return OrderedDict(state_dict)
    return state_dict


class _Maker:
    def __init__(self, rng, tied_names):
        self.rng = rng
        self.tied_names = list(tied_names)
        self.generator = torch.Generator().manual_seed(rng.getrandbits(32))

    def flat(self, names=None):
        names = names or self.names()
        state_dict = {}
        for name in names:
            state_dict[name] = self.tensor(list(state_dict.values()))
        return state_dict

    def names(self):
        count = self.rng.randint(1, 9)
        names = set(self.rng.sample(self.tied_names, min(len(self.tied_names), self.rng.randint(0, 3))))
        while len(names) < count:
            if self.rng.random() < 0.35:
                names.add(self.rng.choice(ODD_NAMES))
            else:
                names.add(f"layer{self.rng.randrange(12)}.{self.rng.choice(['weight', 'bias', 'A_log', 'Weight'])}")
        names = sorted(names)
        self.rng.shuffle(names)
        return names

    def tensor(self, earlier):
        kind = self.rng.random()
        if earlier and kind < 0.18:
            return self.rng.choice(earlier)
        if earlier and kind < 0.28:
            return self.view(self.rng.choice(earlier))
        tensor = self.fresh()
        if kind < 0.42:
            return self.view(tensor)
        if kind < 0.48 and (tensor.is_floating_point() or tensor.is_complex()):
            return torch.nn.Parameter(tensor)
        return tensor

    def fresh(self):
        dtype = self.rng.choice(DTYPES)
        shape = [self.rng.randint(1, 6) for _ in range(self.rng.randint(0, 4))]
        if dtype is PACKED and not shape:
            shape = [3]
        if shape and self.rng.random() < 0.08:
            shape[self.rng.randrange(len(shape))] = 0
        return self.values(dtype, shape)

    def values(self, dtype, shape):
        size = torch.empty(0, dtype=dtype).element_size()
        if dtype is torch.bool:
            return torch.randint(0, 2, shape, generator=self.generator).bool()
        if dtype.is_floating_point and size > 1 and self.rng.random() < 0.85:
            return torch.randn(shape, generator=self.generator).to(dtype)
        # Any bit pattern at all, NaN with their payloads among them.
        count = torch.Size(shape).numel()
        pattern = torch.randint(0, 256, [count * size], dtype=torch.uint8, generator=self.generator)
        return pattern.view(dtype).view(shape)

    def view(self, tensor):
        """Another view of the same storage, of the same dtype."""
        # torch cannot load a float8 tensor that requires a gradient and is no Parameter.
        tensor = tensor.detach()
        if tensor.dim() == 0:
            return tensor.expand(3) if tensor.dtype is not PACKED else tensor
        first = tensor.shape[0]
        views = [
            lambda: tensor[first // 2 :],
            lambda: tensor[: max(first // 2, 1)],
            lambda: tensor[:: self.rng.randint(1, 3)],
            lambda: tensor.transpose(0, -1),
            lambda: tensor.permute(*reversed(range(tensor.dim()))),
            lambda: tensor.unsqueeze(0).expand(self.rng.randint(1, 4), *tensor.shape),
            lambda: tensor.narrow(-1, 0, max(tensor.shape[-1] - 1, 0)),
            lambda: tensor.unsqueeze(0),
            lambda: tensor[:0],
        ]
        return self.rng.choice(views)()
