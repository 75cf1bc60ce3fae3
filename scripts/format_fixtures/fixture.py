"""A fixture: a file, and FILE.expected.json, which says what a conversion of it must hold.

    about     what the file is
    loader    what found the tensors in it
    root      the path whose tensors these are, where one is asked for (`--root`)
    weights   the path whose tensors these are, where it is the one value that holds weights, or the one taken first
    tensors   name, safetensors' name of the dtype, shape, and SHA-256 of the bytes, row by row, little-endian
    tied      the names that are not written because another stands for the very same tensor: name -> that one
    refused   instead of the two above: words that the reason for not converting the file must contain
    inert     whether such a file holds no pickle, so that it may be shown as it is

Names are dotted paths; `state_dict` at the top is unwrapped; modules give their state dict; optimizers' states are
left out, as is everything that is no tensor. What safetensors has no word for is written with other tensors:

    complex128      F64, with one more dimension: real and imaginary part
    quantized       the integers as NAME, and NAME.scale, NAME.zero_point
    sparse          NAME.indices, NAME.values, or NAME.crow_indices, NAME.col_indices, NAME.values and the like
    subclasses      of tensors without data of their own: NAME.ATTRIBUTE for each tensor among the attributes
"""

import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

try:
    import torch
except ImportError:
    torch = None

OPTIMIZERS = {
    "last_optimizer_state",
    "optim",
    "optim_state_dict",
    "optimizer",
    "optimizer_state",
    "optimizer_state_dict",
    "optimizer_states",
    "optimizers",
}

TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float4_e2m1fn_x2": "F4",
}

NUMPY_DTYPES = {
    "f8": "F64",
    "f4": "F32",
    "f2": "F16",
    "i8": "I64",
    "i4": "I32",
    "i2": "I16",
    "i1": "I8",
    "u8": "U64",
    "u4": "U32",
    "u2": "U16",
    "u1": "U8",
    "b1": "BOOL",
    "c8": "C64",
}


class Fixtures:
    """The directory that a writer fills, and what the names of its files start with."""

    def __init__(self, loader):
        self.directory = Path(sys.argv[1])
        self.prefix = sys.argv[2]
        self.loader = loader

    def path(self, name):
        return self.directory / f"{self.prefix}-{name}"

    def expect(self, name, about, loaded, root=None, weights=None, called=None):
        """`loaded` is what the format's loader makes of the file called `name`; the tensor at `weights` is `called` so."""
        named = named_tensors(loaded, root or weights)
        tensors, tied = describe([(called, tensor) for _, tensor in named] if called else named)
        assert tensors, f"{name} holds no tensors"
        entry = {"about": about, "loader": self.loader}
        if root is not None:
            entry["root"] = root
        if weights is not None:
            entry["weights"] = weights
        self._write(f"{name}.{root}" if root else name, name, {**entry, "tensors": tensors, "tied": tied})

    def refuse(self, name, about, *words, inert=False):
        """The file called `name` must not be converted; the reason says `words`."""
        self._write(name, name, {"about": about, "refused": list(words), "inert": inert})

    def _write(self, stem, name, entry):
        assert self.path(name).exists(), self.path(name)
        entry = {"file": self.path(name).name, **entry}
        text = json.dumps(entry, indent=1)
        # One line for each tensor.
        for tensor in entry.get("tensors", []):
            text = text.replace(json.dumps(tensor, indent=1).replace("\n", "\n  "), json.dumps(tensor))
        self.path(f"{stem}.expected.json").write_text(text + "\n")


def named_tensors(loaded, root=None):
    """Pairs of a name and a tensor or array."""
    if root is not None:
        for key in root.split("."):
            loaded = loaded[key if isinstance(loaded, dict) else int(key)]
    elif isinstance(loaded, dict):
        inner = loaded.get("state_dict")
        if isinstance(inner, dict) or is_module(inner):
            loaded = inner
    if is_tensor(loaded):
        return [("tensor", loaded)]
    return list(walk(loaded, "", top=True))


def walk(value, prefix, top=False):
    if is_module(value):
        value = value.state_dict()
    if is_tensor(value):
        yield prefix, value
        return
    if isinstance(value, dict):
        if {"state", "param_groups"} <= value.keys():
            return
        items = [(key, item) for key, item in value.items() if not (top and key in OPTIMIZERS)]
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from walk(item, str(key) if top else f"{prefix}.{key}")


def is_module(value):
    return torch is not None and isinstance(value, torch.nn.Module)


def is_tensor(value):
    return isinstance(value, np.ndarray) or torch is not None and isinstance(value, torch.Tensor)


def describe(named):
    """What the JSON says of the tensors, and which of them are the same as another."""
    tensors, classes = [], defaultdict(list)
    for whole_name, whole in named:
        for name, value in parts(whole_name, whole):
            dtype, shape, data, identity = plain(value)
            digest = hashlib.sha256(data).hexdigest()
            tensors.append({"name": name, "dtype": dtype, "shape": shape, "sha256": digest})
            if data:
                classes[identity].append(name)
    names = [tensor["name"] for tensor in tensors]
    assert len(names) == len(set(names)), names
    tied = {name: min(same) for same in classes.values() for name in same if name != min(same)}
    tensors = [tensor for tensor in tensors if tensor["name"] not in tied]
    return sorted(tensors, key=lambda tensor: tensor["name"]), dict(sorted(tied.items()))


def parts(name, value):
    """A tensor as the tensors that say it."""
    if isinstance(value, np.ndarray):
        return [(name, value)]
    value = value.detach()
    if value.is_quantized:
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            scale = torch.tensor(value.q_scale(), dtype=torch.float64)
            zero_point = torch.tensor(value.q_zero_point(), dtype=torch.int64)
        else:
            scale, zero_point = value.q_per_channel_scales(), value.q_per_channel_zero_points()
        return [(name, value.int_repr()), (f"{name}.scale", scale), (f"{name}.zero_point", zero_point)]
    if value.layout is not torch.strided:
        return [(f"{name}.{part}", getter()) for part, getter in sparse_parts(value)]
    if hasattr(type(value), "__tensor_flatten__"):
        attributes, _ = value.__tensor_flatten__()
        return [(f"{name}.{attribute}", getattr(value, attribute)) for attribute in attributes]
    return [(name, value)]


def sparse_parts(tensor):
    layout = str(tensor.layout).removeprefix("torch.")
    if layout == "sparse_coo":
        return [("indices", tensor._indices), ("values", tensor._values)]
    if layout in ("sparse_csr", "sparse_bsr"):
        return [("crow_indices", tensor.crow_indices), ("col_indices", tensor.col_indices), ("values", tensor.values)]
    return [("ccol_indices", tensor.ccol_indices), ("row_indices", tensor.row_indices), ("values", tensor.values)]


def plain(value):
    """dtype, shape, bytes, and something that is equal for the same view of the same memory."""
    if isinstance(value, np.ndarray):
        address = value.__array_interface__["data"][0]
        identity = (address, value.dtype.str, value.shape, value.strides)
        value = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).reshape(value.shape)
        data = value.tobytes()
        shape = list(value.shape)
        if value.dtype.str[1:] == "c16":
            return "F64", [*shape, 2], data, identity
        return NUMPY_DTYPES[value.dtype.str[1:]], shape, data, identity

    dtype = str(value.dtype).removeprefix("torch.")
    strides = tuple(stride for size, stride in zip(value.shape, value.stride()) if size > 1)
    address = value.untyped_storage().data_ptr() if hasattr(value, "untyped_storage") else value.storage().data_ptr()
    lazy = (value.is_conj(), value.is_neg())
    identity = (address, dtype, value.storage_offset(), tuple(value.shape), strides, lazy)
    value = value.resolve_conj().resolve_neg()
    shape = list(value.shape)
    if dtype == "complex128":
        dtype, shape, value = "float64", [*shape, 2], torch.view_as_real(value)
    if dtype == "float4_e2m1fn_x2":
        shape[-1] *= 2
    # Integers of the same size: not every dtype has a copy kernel.
    same_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    data = b""
    if value.numel():
        data = value.view(same_size[value.element_size()]).contiguous().numpy().tobytes()
    return TORCH_DTYPES[dtype], shape, data, identity
