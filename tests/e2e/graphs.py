"""Random object graphs of real torch, what Python reaches in them, and whether stfs accounts for all of it.

A `Maker` builds one graph from a seed: containers nested in each other down to tensors that share storages, are views
of one another or occur twice. `save` writes it as torch or joblib would, `reach` walks what the original library loads
from the file, and `check` holds what stfs makes of it against that: every tensor is served bit for bit, is a duplicate
of one that is, is left out by a rule that is named, or the file is refused.

Half of the graphs are of the profile "supported": nothing in them may be refused. The others have a few of `EXOTIC`
besides.

    tests/e2e/graphs.py --count 2000 --seed 7 --stfs target/release/stfs --keep /tmp/failures
    tests/e2e/graphs.py --seed 7 --only 31
"""

import argparse
import collections
import contextlib
import copyreg
import dataclasses
import enum
import functools
import gc
import json
import os
import pickle
import random
import re
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections import ChainMap, Counter, OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from pathlib import Path

import joblib
import numpy
import oracle
import torch
from safetensors.torch import save as safetensors_bytes
from state_dicts import DTYPES, PACKED
from torch import nn

FORMATS = ["zip", "legacy", "pickle", "joblib"]
SUFFIXES = {"zip": ".pt", "legacy": ".pth", "pickle": ".pkl", "joblib": ".joblib"}
PROFILES = ["supported", "exotic"]

DEEPEST = 6
MOST_TENSORS = 24
TIMEOUT_S = 60


# Classes of a user's program. A pickle names them by this module.


class Mapping(dict):
    """A dict that can have attributes."""


class Ordered(OrderedDict):
    pass


class Default(defaultdict):
    pass


class Sequence(list):
    pass


class Row(tuple):
    """A tuple that can have attributes."""


Point = namedtuple("Point", "f0 f1")


@dataclasses.dataclass
class Record:
    f0: object
    f1: object


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    f0: object
    f1: object


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    f0: object
    f1: object


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlottedRecord:
    f0: object
    f1: object


class Plain:
    """An object with whatever attributes it is given."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def method(self):
        return self


class Slotted:
    __slots__ = ("s0", "s1")

    def __init__(self, first, second):
        self.s0, self.s1 = first, second


class SlottedWithDict(Slotted):
    """Slots of a base class beside attributes of its own."""

    def __init__(self, first, second, attribute):
        super().__init__(first, second)
        self.a0 = attribute


class Attrs:
    """What the attrs library makes of a class with slots: its state is a dict all the same."""

    __slots__ = ("s0", "s1")

    def __init__(self, first, second):
        self.s0, self.s1 = first, second

    def __getstate__(self):
        return {name: getattr(self, name) for name in Attrs.__slots__}

    def __setstate__(self, state):
        for name, value in state.items():
            setattr(self, name, value)


class TupleState:
    def __init__(self, first, second):
        self.first, self.second = first, second

    def __getstate__(self):
        return ("version", self.first, self.second)

    def __setstate__(self, state):
        _, self.first, self.second = state


class ListState(TupleState):
    def __getstate__(self):
        return [self.first, self.second]

    def __setstate__(self, state):
        self.first, self.second = state


class TensorState:
    """An object whose whole state is one value."""

    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return self.value

    def __setstate__(self, state):
        self.value = state


class Reduced:
    """Rebuilt by a function from its arguments, as the networks of StyleGAN are."""

    def __init__(self, *parts, **named):
        self.parts, self.named = parts, named

    def __reduce__(self):
        return rebuild, (self.parts, self.named)


def rebuild(parts, named):
    return Reduced(*parts, **named)


class Everything:
    """A reducer that uses all that a reducer can give: arguments, state, list items and dictionary items."""

    def __init__(self, argument):
        self.argument, self.list_items, self.dict_items = argument, [], []

    def append(self, item):
        self.list_items.append(item)

    def extend(self, items):
        self.list_items.extend(items)

    def __setitem__(self, key, value):
        self.dict_items.append((key, value))

    def __reduce_ex__(self, protocol):
        state = {"extra": self.extra}
        return Everything, (self.argument,), state, iter(self.list_items), iter(self.dict_items)


class SetBy:
    """An object whose state a function puts in place."""

    def __init__(self):
        self.content = None

    def __reduce__(self):
        return copyreg.__newobj__, (SetBy,), self.content, None, None, put_content


def put_content(target, state):
    target.content = state


def combine(*arguments, **keywords):
    return arguments, keywords


class Color(enum.Enum):
    RED = 1
    GREEN = "green"


class Tagged(torch.Tensor):
    """A tensor that is of a class of its own and may have attributes."""


class Shell(torch.Tensor):
    """A tensor whose values are kept in two others."""

    @staticmethod
    def __new__(cls, low, high):
        return torch.Tensor._make_wrapper_subclass(cls, low.shape, dtype=low.dtype)

    def __init__(self, low, high):
        self.low, self.high = low, high

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


class Grid(numpy.ndarray):
    """An array of a class of its own."""


class Net(nn.Module):
    """A module that a program made: parameters, buffers and submodules, and attributes that are none of these."""

    def __init__(self):
        super().__init__()
        self.width = 3
        self.name = "net"


# Making graphs

# What a graph of the profile "exotic" draws a few of. In front of each, how it comes into the graph.
KEYS = ["bool, None and float keys", "bytes keys", "tuple keys", "enum keys", "numpy's keys", "keys with tensors"]
CONTAINERS = [
    "counter",
    "list subclass",
    "tuple subclass",
    "chain map",
    "user dict and list",
    "tuple state",
    "list state",
    "tensor state",
    "reducer",
    "reducer of everything",
    "state setter",
    "method",
    "attributes of an ordered dict",
    "default factory",
    "struct sequence",
    "packed sequence",
    "self-reference",
]
LEAVES = [
    "tensor with attributes",
    "parameter with attributes",
    "tensor subclass",
    "shell",
    "array subclass",
    "array of objects",
    "complex128",
    "quantized",
    "sparse",
    "gradient",
]
SHAPES_OF_THE_TOP = ["colliding keys", "optimizer object"]
EXOTIC = KEYS + CONTAINERS + LEAVES + SHAPES_OF_THE_TOP

ARRAY_TYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1", "c8"]


@functools.cache
def dtypes_with_storages():
    """The dtypes that torch can read from anything else than its zip archives."""
    readable = []
    for dtype in DTYPES:
        with contextlib.suppress(AttributeError):
            pickle.loads(pickle.dumps(torch.empty(1, dtype=dtype)))
            readable.append(dtype)
    return readable


class Maker:
    """Builds one graph for a format. `value` is the result, `exotic` what of `EXOTIC` is in it."""

    def __init__(self, seed, profile, file_format):
        self.rng = random.Random(f"graph {seed}")
        self.dtypes = DTYPES if file_format == "zip" else dtypes_with_storages()
        self.generator = torch.Generator().manual_seed(self.rng.getrandbits(32))
        self.tensors = []
        self.contents = set()
        self.names = 0
        self.allowed = set(self.rng.sample(EXOTIC, self.rng.randint(1, 3))) if profile == "exotic" else set()
        self.exotic = set()
        self.value = self.top()

    def chance(self, probability):
        return self.rng.random() < probability

    def has(self, feature, probability):
        """Whether to put `feature` here."""
        if feature in self.allowed and self.chance(probability):
            self.exotic.add(feature)
            return True
        return False

    # The value of the file

    def top(self):
        value = self.body()
        if self.has("colliding keys", 0.9):
            return {"k.x": self.fresh(), "k": {"x": self.fresh()}, "rest": value}
        if self.has("optimizer object", 0.9):
            model = self.linear()
            optimizer = self.adam() if self.chance(0.5) else torch.optim.SGD(model.parameters())
            return {"model": model, "rest": value, "trainer": {"optimizer": optimizer}}
        style = self.rng.random()
        if style < 0.3:
            return value
        if style < 0.42:
            return {"state_dict": self.flat(), "epoch": 3, "rest": value}
        if style < 0.5:
            return {"state_dict": self.flat(), "state_dict_ema": self.flat()}
        if style < 0.56:
            return {"params": self.flat(), "params_ema": self.flat()}
        if style < 0.62:
            return {self.rng.choice(["params", "params_ema", "model", "module", "net"]): self.flat(), "iter": 7}
        if style < 0.68:
            name = self.rng.choice(["optimizer", "optimizer_state_dict", "optim", "opt"])
            return {"model": self.flat(), name: self.adam().state_dict(), "epoch": 1}
        if style < 0.72:
            return {"app": {"model": self.flat(), "optim": self.adam().state_dict()}}
        if style < 0.76:
            return {"model": self.flat(), "opt": {"state": [{"avg": self.fresh()}], "hypers": [{"lr": 0.1}]}}
        if style < 0.8:
            return {"model": value, "rng_state": self.random_state()}
        if style < 0.82:
            return {
                "string_to_token": {"*": torch.tensor(265)},
                "string_to_param": {"*": self.values(torch.float32, [2, 5])},
                "name": "word",
                "step": 10,
            }
        if style < 0.84:
            return self.rng.choice([self.adam().state_dict(), {"rng": self.random_state()}, {"epoch": 1, "note": "x"}])
        return {"model": value, "ema": self.body(), "epoch": 2}

    def flat(self):
        return {name: self.tensor() for name in self.keys(self.rng.randint(1, 4))}

    def body(self):
        """Mostly a dictionary, as files mostly are."""
        return self.dictionary(1) if self.chance(0.5) else self.item(1)

    def adam(self):
        parameters = [nn.Parameter(self.values(torch.float32, [2, 3])) for _ in range(2)]
        optimizer = torch.optim.Adam(parameters)
        for parameter in parameters:
            parameter.grad = self.values(torch.float32, [2, 3])
        optimizer.step()
        return optimizer

    def random_state(self):
        state = {
            "random_rng_state": random.Random(self.rng.random()).getstate(),
            "np_rng_state": numpy.random.RandomState(self.rng.getrandbits(32)).get_state(),
            "torch_rng_state": torch.Generator().manual_seed(self.rng.getrandbits(32)).get_state(),
        }
        return self.rng.choice([state, [state], state["torch_rng_state"], state["np_rng_state"]])

    # Containers

    def item(self, depth):
        if depth >= DEEPEST or len(self.tensors) >= MOST_TENSORS or self.chance(0.12 + 0.06 * depth):
            return self.leaf()
        return self.container(depth)

    def container(self, depth):
        exotic = [feature for feature in CONTAINERS if feature in self.allowed]
        if exotic and self.chance(0.5):
            feature = self.rng.choice(exotic)
            self.exotic.add(feature)
            return self.exotic_container(feature, depth + 1)
        return self.rng.choice(self.SUPPORTED)(self, depth + 1)

    def items(self, depth, most=3):
        return [self.item(depth) for _ in range(self.rng.randint(0 if self.chance(0.1) else 1, most))]

    def keys(self, count):
        keys = []
        for _ in range(count):
            self.names += 1
            style = self.rng.random()
            if style < 0.7:
                keys.append(f"k{self.names}")
            elif style < 0.85:
                keys.append(f"layer{self.names}.weight")
            else:
                keys.append(self.names)
        return [self.exotic_key(key) for key in keys]

    def exotic_key(self, key):
        if self.has("bool, None and float keys", 0.4):
            return self.rng.choice([True, False, None, 0.5, float(self.names), -self.names])
        if self.has("bytes keys", 0.4):
            return str(key).encode()
        if self.has("tuple keys", 0.4):
            return self.rng.choice([(key, 1), ("a", str(key)), (key,), ()])
        if self.has("enum keys", 0.4):
            return self.rng.choice(list(Color))
        if self.has("numpy's keys", 0.4):
            return self.rng.choice([numpy.str_(key), numpy.int64(self.names), numpy.float32(self.names)])
        if self.has("keys with tensors", 0.3):
            return self.rng.choice([self.tensor(), (self.tensor(), 1), frozenset([self.tensor()])])
        return key

    def pairs(self, depth):
        values = self.items(depth)
        return list(zip(self.keys(len(values)), values, strict=True))

    def dictionary(self, depth):
        return dict(self.pairs(depth))

    def with_attributes(self, value, depth):
        """Attributes of their own names: they are never called like an item."""
        for number in range(self.rng.randint(0, 2)):
            setattr(value, f"a{number}", self.item(depth))
        return value

    def ordered(self, depth):
        value = OrderedDict(self.pairs(depth))
        if self.chance(0.3):
            value._metadata = OrderedDict({"": {"version": 1}})
        return value

    def mapping(self, depth):
        return self.with_attributes(Mapping(self.pairs(depth)), depth)

    def ordered_subclass(self, depth):
        return self.with_attributes(Ordered(self.pairs(depth)), depth)

    def default(self, depth):
        return defaultdict(self.rng.choice([None, list, dict, int]), self.pairs(depth))

    def default_subclass(self, depth):
        return self.with_attributes(Default(self.rng.choice([None, list]), self.pairs(depth)), depth)

    def list(self, depth):
        return self.items(depth)

    def tuple(self, depth):
        return tuple(self.items(depth))

    def named_tuple(self, depth):
        return Point(self.item(depth), self.item(depth))

    def deque(self, depth):
        return deque(self.items(depth), maxlen=self.rng.choice([None, None, 5]))

    def hashable(self):
        """What a set can hold. Tensors are told apart by who they are."""
        style = self.rng.random()
        if style < 0.5:
            return self.tensor()
        if style < 0.8:
            return (self.rng.randrange(9), self.tensor())
        return self.rng.choice([Point("x", self.tensor()), frozenset([self.tensor()]), "text", 5])

    def set(self, depth):
        return {self.hashable() for _ in range(self.rng.randint(1, 3))}

    def frozenset(self, depth):
        return frozenset(self.hashable() for _ in range(self.rng.randint(1, 3)))

    def namespace(self, depth):
        return types.SimpleNamespace(**{f"a{n}": item for n, item in enumerate(self.items(depth))})

    def plain(self, depth):
        return self.with_attributes(Plain(), depth)

    def record(self, depth):
        kind = self.rng.choice([Record, FrozenRecord, SlottedRecord, FrozenSlottedRecord])
        return kind(self.item(depth), self.item(depth))

    def slotted(self, depth):
        return Slotted(self.item(depth), self.item(depth))

    def slotted_with_dict(self, depth):
        return SlottedWithDict(self.item(depth), self.item(depth), self.item(depth))

    def attrs(self, depth):
        return Attrs(self.item(depth), self.item(depth))

    def partial(self, depth):
        keywords = {f"w{n}": item for n, item in enumerate(self.items(depth, 2))}
        return functools.partial(combine, *self.items(depth, 2), **keywords)

    def module(self, depth):
        style = self.rng.random()
        if style < 0.2:
            return self.linear()
        if style < 0.3:
            norm = nn.BatchNorm1d(4)
            for name in ["weight", "bias"]:
                setattr(norm, name, nn.Parameter(self.values(torch.float32, [4])))
            norm.running_mean, norm.running_var = (self.values(torch.float32, [4]) for _ in range(2))
            norm.num_batches_tracked = torch.tensor(self.rng.getrandbits(40))
            return norm
        if style < 0.45:
            return nn.Sequential(self.linear(), nn.ReLU(), self.linear())
        if style < 0.55:
            return nn.ParameterList([self.parameter() for _ in range(2)])
        if style < 0.65:
            return nn.ParameterDict({f"k{n}": self.parameter() for n in range(2)})
        if style < 0.72:
            return nn.ModuleDict({"m0": self.linear(), "m1": self.module(depth + 1)})
        return self.net(depth)

    def linear(self):
        linear = nn.Linear(2, 3, bias=self.chance(0.6))
        linear.weight = nn.Parameter(self.values(torch.float32, [3, 2]))
        if linear.bias is not None:
            linear.bias = nn.Parameter(self.values(torch.float32, [3]))
        return linear

    def net(self, depth):
        net = Net()
        net.w = self.parameter()
        if self.chance(0.6):
            net.register_buffer("saved", self.fresh())
        if self.chance(0.3):
            net.register_buffer("unsaved", self.fresh(), persistent=False)
        if self.chance(0.3):
            net.register_parameter("nothing", None)
        if self.chance(0.6):
            net.layer = self.linear()
        if self.chance(0.3):
            net.tied = nn.Linear(2, 3)
            net.tied.weight = net.tied.bias = net.w
        # None of these is in the state dict.
        if self.chance(0.2):
            net.plain = self.tensor()
        if self.chance(0.2):
            net.layers = [self.linear()]
        if self.chance(0.15):
            net.options = {"k0": self.item(depth + 1)}
        if self.chance(0.3) and depth < DEEPEST:
            net.inner = self.module(depth + 1)
        return net

    SUPPORTED = [
        dictionary,
        dictionary,
        ordered,
        ordered,
        mapping,
        ordered_subclass,
        default,
        default_subclass,
        list,
        list,
        tuple,
        named_tuple,
        deque,
        set,
        frozenset,
        namespace,
        plain,
        record,
        slotted,
        slotted_with_dict,
        attrs,
        partial,
        module,
        module,
        module,
    ]

    def exotic_container(self, feature, depth):
        match feature:
            case "counter":
                return Counter(dict(self.pairs(depth)))
            case "list subclass":
                return self.with_attributes(Sequence(self.items(depth)), depth)
            case "tuple subclass":
                return self.with_attributes(Row(self.items(depth)), depth)
            case "chain map":
                return ChainMap(self.dictionary(depth), self.dictionary(depth))
            case "user dict and list":
                return UserDict(self.dictionary(depth)) if self.chance(0.5) else UserList(self.items(depth))
            case "tuple state":
                return TupleState(self.item(depth), self.item(depth))
            case "list state":
                return ListState(self.item(depth), self.item(depth))
            case "tensor state":
                return TensorState(self.tensor())
            case "reducer":
                return Reduced(self.tensor(), *self.items(depth, 2), a0=self.item(depth))
            case "reducer of everything":
                value = Everything(self.item(depth))
                value.extra = self.item(depth)
                value.list_items = self.items(depth)
                value.dict_items = self.pairs(depth)
                return value
            case "state setter":
                value = SetBy()
                value.content = {"k0": self.item(depth)}
                return value
            case "method":
                return self.plain(depth).method
            case "attributes of an ordered dict":
                return self.with_attributes(OrderedDict(self.pairs(depth)), depth)
            case "default factory":
                return defaultdict(functools.partial(combine, self.tensor()), self.pairs(depth))
            case "struct sequence":
                return torch.max(self.values(torch.float32, [3, 4]), 0)
            case "packed sequence":
                return nn.utils.rnn.pack_sequence([self.values(torch.float32, [n, 2]) for n in (3, 2)])
            case "self-reference":
                return self.circle(depth)
        raise ValueError(feature)

    def circle(self, depth):
        """A list, a dictionary or an object that contains itself."""
        style = self.rng.randrange(4)
        if style == 0:
            value = self.items(depth)
            value.append(value)
        elif style == 1:
            value = self.dictionary(depth)
            value["self"] = [value]
        elif style == 2:
            value = self.plain(depth)
            value.me = value
        else:
            # Common among modules, and no circle of what a state dict names.
            value = self.net(depth)
            object.__setattr__(value, "owner", [value])
        return value

    # Leaves

    def leaf(self):
        exotic = [feature for feature in LEAVES if feature in self.allowed]
        if exotic and self.chance(0.4):
            feature = self.rng.choice(exotic)
            self.exotic.add(feature)
            return self.exotic_leaf(feature)
        style = self.rng.random()
        if style < 0.15:
            return self.rng.choice(
                [None, 7, 0.5, True, "text", b"bytes", 1 << 70, torch.float16, torch.device("cpu"), torch.Size([2, 3])]
                + [slice(1, 2), numpy.float32(2.5), numpy.int64(3), range(3), Color.RED, 2 + 1j, Plain, combine]
            )
        if style < 0.27:
            return self.array()
        if style < 0.4:
            return self.parameter()
        return self.tensor()

    def tensor(self):
        """A new tensor, or one that has to do with an earlier one."""
        kind = self.rng.random()
        if self.tensors and kind < 0.12:
            return self.rng.choice(self.tensors)
        if self.tensors and kind < 0.18:
            # The same elements by another tensor.
            return self.rng.choice(self.tensors).detach()[...]
        if self.tensors and kind < 0.3:
            return self.view(self.rng.choice(self.tensors))
        tensor = self.fresh()
        return self.view(tensor) if kind > 0.8 else tensor

    def parameter(self):
        if self.tensors and self.chance(0.1):
            # Tied.
            parameters = [tensor for tensor in self.tensors if isinstance(tensor, nn.Parameter)]
            if parameters:
                return self.rng.choice(parameters)
        dtype = self.rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])
        values = self.values(dtype, [self.rng.randint(1, 4), 3])
        if self.chance(0.2):
            values = values.t()
        return self.kept(nn.Parameter(values, requires_grad=dtype.is_floating_point and self.chance(0.8)))

    def kept(self, tensor):
        self.tensors.append(tensor)
        return tensor

    def fresh(self):
        dtype = self.rng.choice(self.dtypes)
        style = self.rng.random()
        if style < 0.08 and dtype is not PACKED:
            shape = []
        elif style < 0.14:
            shape = self.rng.choice([[0], [2, 0], [0, 3]])
        else:
            shape = [self.rng.randint(1, 5) for _ in range(self.rng.randint(1, 3))]
            size = torch.Size(shape).numel() * (1 if dtype is torch.bool else 8 * dtype.itemsize)
            shape[0] *= 1 if size >= 48 else -(-48 // size)
        tensor = self.values(dtype, shape)
        if dtype.is_floating_point and dtype.itemsize > 1 and self.chance(0.1):
            tensor.requires_grad_()
        return self.kept(tensor)

    def values(self, dtype, shape):
        """Values that occur nowhere else in the graph, where there are enough of them."""
        for _ in range(20):
            tensor = self.random_values(dtype, shape)
            content = (str(dtype), tuple(shape), oracle.raw_bytes(tensor))
            if content not in self.contents:
                break
        self.contents.add(content)
        return tensor

    def random_values(self, dtype, shape):
        if dtype is torch.bool:
            return torch.randint(0, 2, shape, generator=self.generator).bool()
        if dtype.is_floating_point and dtype.itemsize > 1 and self.chance(0.85):
            return torch.randn(shape, generator=self.generator).to(dtype)
        # Any bit pattern at all, NaN with their payloads among them.
        count = torch.Size(shape).numel()
        pattern = torch.randint(0, 256, [count * dtype.itemsize], dtype=torch.uint8, generator=self.generator)
        return pattern.view(dtype).view(shape)

    def view(self, tensor):
        """Another view of the same storage."""
        tensor = tensor.detach()
        if tensor.dim() == 0:
            return tensor if tensor.dtype is PACKED else tensor.expand(3)
        first = tensor.shape[0]
        views = [
            lambda: tensor[first // 2 :],
            lambda: tensor[: max(first // 2, 1)],
            lambda: tensor[:: self.rng.randint(1, 3)],
            lambda: tensor.transpose(0, -1),
            lambda: tensor.unsqueeze(0).expand(self.rng.randint(1, 4), *tensor.shape),
            lambda: tensor.narrow(-1, 0, max(tensor.shape[-1] - 1, 0)),
            lambda: tensor.unsqueeze(0),
            lambda: tensor.conj() if tensor.is_complex() else tensor[-1:],
            lambda: torch._neg_view(tensor) if tensor.dtype is torch.float32 else tensor[:0],
        ]
        return self.kept(self.rng.choice(views)())

    def array(self):
        kind = numpy.dtype(self.rng.choice(ARRAY_TYPES))
        shape = self.rng.choice([(), (0,), (2, 0), (17,), (3, 5), (3, 5), (2, 3, 4)])
        count = max(int(numpy.prod(shape)), 0)
        raw = bytes(self.rng.randrange(2 if kind.kind == "b" else 256) for _ in range(count * kind.itemsize))
        array = numpy.frombuffer(raw, kind).reshape(shape).copy()
        style = self.rng.random()
        if style < 0.2:
            return numpy.asfortranarray(array)
        if style < 0.4:
            # The same numbers in the other byte order.
            return array.astype(kind.newbyteorder(">"))
        if style < 0.5 and array.ndim:
            return array[::-1]
        return array

    def exotic_leaf(self, feature):
        match feature:
            case "tensor with attributes":
                tensor = self.fresh()
                tensor.note = self.tensor()
                return tensor
            case "parameter with attributes":
                parameter = self.parameter()
                parameter.quant_state = {"absmax": self.tensor(), "blocksize": 64}
                return parameter
            case "tensor subclass":
                tensor = self.values(torch.float32, [3, 2]).as_subclass(Tagged)
                if self.chance(0.5):
                    tensor.note = self.tensor()
                return tensor
            case "shell":
                return Shell(self.values(torch.float32, [3]), self.values(torch.float32, [3]))
            case "array subclass":
                return self.array().view(Grid)
            case "array of objects":
                array = numpy.empty(2, dtype=object)
                array[0], array[1] = self.tensor(), "text"
                return array
            case "complex128":
                return self.values(torch.complex128, [2, 3])
            case "quantized":
                return torch.quantize_per_tensor(self.values(torch.float32, [3, 4]), 0.01, 2, torch.qint8)
            case "sparse":
                dense = self.values(torch.float32, [3, 4])
                return self.rng.choice([dense.to_sparse, dense.to_sparse_csr])()
            case "gradient":
                # torch saves no gradients; whoever reads the file must not expect them.
                parameter = nn.Parameter(self.values(torch.float32, [2, 2]))
                parameter.grad = self.values(torch.float32, [2, 2])
                return parameter
        raise ValueError(feature)


# Saving and loading


def protocols(file_format):
    return range(2, 6) if file_format in ("zip", "legacy") else range(6)


def save(value, path, file_format, protocol):
    """Writes the file. False if Python cannot save this value so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            match file_format:
                case "zip":
                    torch.save(value, path, pickle_protocol=protocol)
                case "legacy":
                    torch.save(value, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
                case "pickle":
                    path.write_bytes(pickle.dumps(value, protocol))
                case "joblib":
                    joblib.dump(value, path, compress=0, protocol=protocol)
            # Not all that can be written can be read: an object that is in its own arguments, say.
            load(path, file_format)
        except Exception:
            return False
    return True


def load(path, file_format):
    """What the original library makes of the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match file_format:
            case "zip" | "legacy":
                return torch.load(path, weights_only=False)
            case "pickle":
                return pickle.loads(path.read_bytes())
            case "joblib":
                return joblib.load(path)
    raise ValueError(file_format)


# What there is in a loaded graph

OPTIMIZER = "optimizer state"
RNG = "RNG state"
NON_PERSISTENT = "non-persistent buffer"
GRADIENT = "gradient"
ATTRIBUTE = "attribute of a module that is neither parameter nor buffer"
OTHER_SET = "another set of weights"
TOKEN = "token of an embedding"
RULES = {OPTIMIZER, RNG, NON_PERSISTENT, GRADIENT, ATTRIBUTE, OTHER_SET, TOKEN}

# What stands under one of these at the top of a file is an optimizer's.
OPTIMIZER_NAMES = {
    "optimizer",
    "optimizers",
    "optimizer_states",
    "optimizer_state_dict",
    "optimizer_state",
    "last_optimizer_state",
    "optim",
    "optim_state_dict",
}

ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    range,
    slice,
    enum.Enum,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.Generator,
    torch.UntypedStorage,
    torch.TypedStorage,
    numpy.generic,
    numpy.dtype,
)


class Reached:
    """All tensors of a graph by their content. `required` have one path at least on which no rule lies: content to
    path. `excused` have none: content to a path and the rules on all of them."""

    def __init__(self, value):
        self.required, self.excused = {}, {}
        self._kept = {}
        edges = deque([(value, "", frozenset())])
        excused = deque()
        while edges or excused:
            if edges:
                node, path, rules = edges.popleft()
            else:
                node, path, rules = excused.popleft()
            if isinstance(node, ATOMS):
                continue
            _, ways = self._kept.setdefault(id(node), (node, set()))
            if rules in ways:
                continue
            ways.add(rules)
            for content in contents(node):
                self._found(content, path, rules)
            for label, child, rule in children(node, at_the_top=not path):
                below = rules | {rule} if rule else rules
                (excused if below else edges).append((child, f"{path}.{label}" if path else str(label), below))

    def _found(self, content, path, rules):
        if not rules:
            self.required.setdefault(content, path)
        elif content not in self.required:
            self.excused.setdefault(content, (path, set()))[1].update(rules)


def children(node, at_the_top):
    """What hangs on an object: label, value, and the rule by which it is no weight of the file, if there is one."""
    if isinstance(node, nn.Module):
        yield from children_of_module(node)
        return
    if isinstance(node, torch.Tensor):
        for name, value in vars(node).items():
            yield name, value, None
        if node.layout is torch.strided and type(node) is not Shell and node.is_leaf and node.grad is not None:
            yield "grad", node.grad, GRADIENT
        return
    if isinstance(node, numpy.ndarray):
        if node.dtype.hasobject:
            for index, value in enumerate(node.ravel()):
                yield index, value, None
        yield from attributes(node)
        return
    if isinstance(node, dict):
        rule = OPTIMIZER if is_optimizer(node) else None
        is_embedding = at_the_top and {"string_to_token", "string_to_param"} <= node.keys()
        for key, value in node.items():
            named = at_the_top and isinstance(key, str) and key in OPTIMIZER_NAMES
            token = is_embedding and key == "string_to_token"
            label = key if isinstance(key, (str, int)) else f"<{type(key).__name__}>"
            yield label, value, OPTIMIZER if named else TOKEN if token else rule
            yield f"key {label}", key, rule
        yield "default_factory", getattr(node, "default_factory", None), None
    elif isinstance(node, (list, tuple, deque)):
        for index, value in enumerate(node):
            yield index, value, RNG if is_random_state(value) else None
    elif isinstance(node, (set, frozenset)):
        for index, value in enumerate(node):
            yield index, value, None
    elif isinstance(node, functools.partial):
        yield from [("func", node.func, None), ("args", node.args, None), ("keywords", node.keywords, None)]
    elif isinstance(node, types.MethodType):
        yield from [("__self__", node.__self__, None), ("__func__", node.__func__, None)]
    elif isinstance(node, torch.optim.Optimizer):
        # The parameters in its groups are those of a model.
        for name, value in vars(node).items():
            yield name, value, OPTIMIZER
        return
    yield from attributes(node)
    if not isinstance(node, (dict, list, tuple, deque, set, frozenset, functools.partial, types.MethodType)):
        # Whatever else it may hold on to.
        for index, value in enumerate(gc.get_referents(node)):
            yield f"referent {index}", value, None


def children_of_module(module):
    for name, value in module._parameters.items():
        yield name, value, None
    for name, value in module._buffers.items():
        yield name, value, NON_PERSISTENT if name in module._non_persistent_buffers_set else None
    for name, value in module._modules.items():
        yield name, value, None
    for name, value in vars(module).items():
        if name not in ("_parameters", "_buffers", "_modules"):
            yield name, value, ATTRIBUTE


def attributes(node):
    for name, value in getattr(node, "__dict__", {}).items():
        yield name, value, None
    for kind in type(node).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            with contextlib.suppress(AttributeError):
                yield name, getattr(node, name), None


def is_optimizer(node):
    return {"state", "param_groups"} <= node.keys() or (
        {"state", "hypers"} <= node.keys() and isinstance(node["state"], list)
    )


def is_random_state(value):
    """numpy's array of a Mersenne twister, which stands in a tuple of its own."""
    return isinstance(value, numpy.ndarray) and value.dtype == numpy.uint32 and value.shape == (624,)


# The size of torch's own random state on a CPU.
TORCH_RANDOM_STATE = (torch.uint8, torch.Generator().get_state().shape)


def contents(node):
    """The tensors that represent an object in a safetensors file, each by dtype, shape and bytes."""
    if isinstance(node, numpy.ndarray):
        if node.dtype.kind in "biufc" and node.dtype.itemsize <= 16:
            little = numpy.ascontiguousarray(node).astype(node.dtype.newbyteorder("<"))
            yield content_of(torch.from_numpy(little.view(numpy.ndarray).reshape(node.shape)))
    elif isinstance(node, Shell):
        return
    elif isinstance(node, torch.Tensor):
        node = node.detach()
        if node.is_quantized:
            yield content_of(node.int_repr())
            yield content_of(torch.tensor(node.q_scale(), dtype=torch.float64))
            yield content_of(torch.tensor(node.q_zero_point()))
        elif node.layout is torch.sparse_coo:
            yield from map(content_of, [node._indices(), node._values()])
        elif node.layout is torch.sparse_csr:
            yield from map(content_of, [node.crow_indices(), node.col_indices(), node.values()])
        elif node.dtype is torch.complex128:
            yield content_of(torch.view_as_real(node.resolve_conj()))
        else:
            yield content_of(node.as_subclass(torch.Tensor))


def content_of(tensor):
    name, packed = safetensors_type(tensor.dtype)
    shape = list(tensor.shape)
    if packed:
        shape[-1] *= 2
    return name, tuple(shape), oracle.raw_bytes(tensor)


@functools.cache
def safetensors_type(dtype):
    """What safetensors calls a dtype, and whether it counts two elements to a byte."""
    pair = torch.zeros(2 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    header, _ = oracle.header_of(safetensors_bytes({"t": pair}))
    return header["t"]["dtype"], header["t"]["shape"] == [4]


# What stfs makes of a file


def served(data):
    """The contents in a safetensors file, each with one of its names."""
    header, start = oracle.header_of(data)
    header.pop("__metadata__", None)
    return {
        (info["dtype"], tuple(info["shape"]), data[slice(*(start + at for at in info["data_offsets"]))]): name
        for name, info in header.items()
    }


class Program:
    """The program under test."""

    def __init__(self, binary, directory):
        self.binary = binary
        self.directory = Path(directory)
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(self.directory / "cache")}

    def run(self, *arguments):
        return subprocess.run(
            [self.binary, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )

    def convert(self, path, *options):
        """The converted bytes, or the words in place of them."""
        target = self.directory / "converted.safetensors"
        target.unlink(missing_ok=True)
        result = self.run("convert", *options, path, target)
        if result.returncode == 0:
            return target.read_bytes(), None
        if target.exists():
            raise Broken(f"exit {result.returncode}, and yet there is a file: {result.stderr}")
        if result.returncode != 1 or len(result.stderr.split()) < 6:
            raise Broken(f"exit {result.returncode} and no words: {result.stderr}")
        return None, result.stderr

    def left_out(self, path, *options):
        result = self.run("ls", "--json", *options, path)
        if result.returncode != 0:
            raise Broken(f"`ls --json` of what `convert` converts: {result.stderr}")
        left_out = json.loads(result.stdout).get("left_out", [])
        for entry in left_out:
            if entry["rule"] not in RULES or entry["bytes"] < 0 or not entry["path"]:
                raise Broken(f"no rule that is written down: {entry}")
        return left_out


class Broken(Exception):
    """stfs breaks a promise."""


CONVERTED, REFUSED, SILENT, FAILED, NOT_SAVED = "converted", "refused", "silent", "failed", "not saved"
# Another set of weights is refused, and the one that the file stands for is not.
PARTLY = "partly refused"

SAYS_THERE_ARE_NONE = re.compile(r"\bholds? (nothing but|.*\bno (tensors|weights))")
COLLISION = re.compile(r"two tensors are called|same name")


class Outcome:
    def __init__(self, verdict, text=""):
        self.verdict, self.text = verdict, text

    def kind(self):
        """The text without what is of this file alone."""
        text = re.sub(r"^stfs: \S+: ", "", self.text.strip())
        return re.sub(r"`[^`]*`|\d+", "_", text)


def check(program, path, file_format):
    """Holds what stfs makes of a file against what its own library loads from it."""
    reached = Reached(load(path, file_format))
    try:
        data, words = program.convert(path)
        if data is None:
            return without_weights(reached, words) if SAYS_THERE_ARE_NONE.search(words) else Outcome(REFUSED, words)
        words = account(program, path, reached, served(data))
    except Broken as broken:
        return Outcome(FAILED, str(broken))
    except subprocess.TimeoutExpired:
        return Outcome(FAILED, f"no answer in {TIMEOUT_S} s")
    return Outcome(CONVERTED) if words is None else Outcome(PARTLY, words)


def without_weights(reached, words):
    weights = {content: path for content, path in reached.required.items() if not is_random(content)}
    others = {rule for _, rules in reached.excused.values() for rule in rules} - {OPTIMIZER, RNG}
    if weights:
        return Outcome(FAILED, f"silent about {describe(weights)}: {words}")
    if others:
        return Outcome(FAILED, f"silent about what is left out as {sorted(others)}: {words}")
    return Outcome(SILENT, words)


def account(program, path, reached, found):
    """Raises `Broken` unless each tensor of the graph is served, or is left out by a rule that is named. The words of
    one of the other sets of weights that is refused when it is asked for, if there is one."""
    invented = [name for content, name in found.items() if not is_known(reached, content)]
    if invented:
        raise Broken(f"served, and not in the file: {invented[:5]}")
    missing = {content: where for content, where in reached.required.items() if content not in found}
    excused = {content: why for content, why in reached.excused.items() if content not in found}
    if not missing and not excused:
        return None
    left_out = program.left_out(path)
    rules = {entry["rule"] for entry in left_out}
    roots = [entry["path"] for entry in left_out if entry["rule"] == OTHER_SET]
    refused = {root: words for root in roots if (words := add_other_set(program, path, root, reached, found, rules))}
    said = f"; left out are {[(entry['path'], entry['rule']) for entry in left_out][:5]}"
    lost = {
        content: where
        for content, where in missing.items()
        if content not in found
        and not (is_random(content) and RNG in rules)
        and not any(is_below(where, root) for root in refused)
    }
    if lost:
        raise Broken(f"lost: {describe(lost)}{said}")
    unlisted = {
        content: f"{where} ({' or '.join(sorted(why))})"
        for content, (where, why) in excused.items()
        if content not in found and not why & rules and not any(is_below(where, root) for root in refused)
    }
    if unlisted:
        raise Broken(f"unlisted: {describe(unlisted)}{said}")
    return next(iter(refused.values()), None)


def add_other_set(program, path, root, reached, found, rules):
    """Adds what is served of another set of weights to `found`, and the rules by which something is left out of it.
    The words, if that set is refused."""
    data, words = program.convert(path, "--root", root)
    if data is None:
        return words
    others = served(data)
    invented = [name for content, name in others.items() if not is_known(reached, content)]
    if invented:
        raise Broken(f"served of {root}, and not in the file: {invented[:5]}")
    found.update(others)
    rules.update(entry["rule"] for entry in program.left_out(path, "--root", root))
    return None


def is_below(where, root):
    return where == root or where.startswith(f"{root}.")


def is_known(reached, content):
    return content in reached.required or content in reached.excused


def is_random(content):
    """A state of a random number generator, by its looks: names differ from program to program."""
    return content[:2] in ((safetensors_type(TORCH_RANDOM_STATE[0])[0], tuple(TORCH_RANDOM_STATE[1])), ("U32", (624,)))


def describe(tensors):
    few = [f"{dtype}{list(shape)} at {where}" for (dtype, shape, _), where in list(tensors.items())[:4]]
    return f"{len(tensors)} tensors: " + ", ".join(few)


# Many graphs


def profile_of(index):
    return PROFILES[index % 2]


def run_one(program, seed, index, file_format, directory):
    """One graph in one format: the `Maker`, what came of it (None if Python cannot save it so), and the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maker = Maker(f"{seed} {index}", profile_of(index), file_format)
    protocol = random.Random(f"{seed} {index} {file_format}").choice(protocols(file_format))
    path = Path(directory) / f"{seed}-{index}-{protocol}{SUFFIXES[file_format]}"
    if not save(maker.value, path, file_format, protocol):
        # Slots need protocol 2; what torch or numpy cannot save at all is skipped.
        path.unlink(missing_ok=True)
        path = path.with_name(f"{seed}-{index}-2{SUFFIXES[file_format]}")
        if protocol >= 2 or not save(maker.value, path, file_format, 2):
            path.unlink(missing_ok=True)
            return maker, None, path
    return maker, check(program, path, file_format), path


class Statistics:
    def __init__(self):
        self.verdicts = {profile: Counter() for profile in PROFILES}
        self.refusals = {profile: Counter() for profile in PROFILES}
        self.features = {feature: Counter() for feature in EXOTIC}
        self.failures = []
        self.examples = {}

    def add(self, seed, index, file_format, maker, outcome, path):
        profile = profile_of(index)
        verdict = outcome.verdict if outcome else NOT_SAVED
        self.verdicts[profile][verdict] += 1
        for feature in maker.exotic:
            self.features[feature][verdict] += 1
        if verdict in (REFUSED, PARTLY):
            self.refusals[profile][outcome.kind()] += 1
            self.examples.setdefault((profile, outcome.kind()), f"{index} {file_format}")
        if verdict == FAILED:
            self.failures.append(
                f"graph {index} ({profile}: {', '.join(sorted(maker.exotic)) or 'nothing exotic'}) as {file_format}, "
                f"{path.name}: {outcome.text.strip()}\n    python tests/e2e/graphs.py --seed {seed} --only {index}"
            )

    def unwarranted(self):
        """Refusals of what is supported, but for names that collide."""
        return {kind: n for kind, n in self.refusals["supported"].items() if not COLLISION.search(kind)}

    def report(self):
        lines = []
        for profile in PROFILES:
            lines.append(f"{profile}: {dict(self.verdicts[profile])}")
            for kind, count in self.refusals[profile].most_common():
                lines.append(f"    refused {count:5}  {kind:.150}  (graph {self.examples[profile, kind]})")
        for feature, verdicts in self.features.items():
            if verdicts:
                lines.append(f"    {feature:32} {dict(verdicts)}")
        return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Holds stfs against random object graphs of real torch.")
    parser.add_argument("--stfs", default="target/release/stfs", help="the program under test")
    parser.add_argument("--count", type=int, default=200, help="how many graphs; each is saved in all formats")
    parser.add_argument("--seed", default=str(time.time_ns()), help="what the graphs are drawn from")
    parser.add_argument("--only", type=int, help="one graph of that seed, and its files are kept")
    parser.add_argument("--format", choices=FORMATS, action="append", help="one format instead of all")
    parser.add_argument("--profile", choices=PROFILES, help="one profile instead of both")
    parser.add_argument("--keep", type=Path, help="where the files of failures stay")
    arguments = parser.parse_args()

    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="graphs-"))
    keep.mkdir(parents=True, exist_ok=True)
    indices = range(arguments.count) if arguments.only is None else [arguments.only]
    statistics = Statistics()
    with tempfile.TemporaryDirectory() as directory:
        program = Program(Path(arguments.stfs).resolve(), directory)
        for index in indices:
            if arguments.profile not in (None, profile_of(index)):
                continue
            for file_format in arguments.format or FORMATS:
                maker, outcome, path = run_one(program, arguments.seed, index, file_format, keep)
                statistics.add(arguments.seed, index, file_format, maker, outcome, path)
                if arguments.only is not None:
                    print(file_format, path, outcome and (outcome.verdict, outcome.text))
                elif outcome is None or outcome.verdict != FAILED:
                    path.unlink(missing_ok=True)
    print(f"seed {arguments.seed}")
    print(statistics.report())
    for failure in statistics.failures:
        print(failure)
    print(f"{len(statistics.failures)} failures" + (f", their files in {keep}" if statistics.failures else ""))
    return 1 if statistics.failures or statistics.unwarranted() else 0


if __name__ == "__main__":
    # Pickles name the classes by the module's own name.
    import graphs

    sys.exit(graphs.main())
