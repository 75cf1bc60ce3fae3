"""What torch.save makes of tensors and modules, in the zip format and the one before it."""

import io
import math
import pickle
import zipfile
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import torch
from torch import nn

import detector
from fixture import Fixtures

VERSION = torch.__version__.split("+")[0]
FIXTURES = Fixtures(f"torch.load(weights_only=False) of torch {VERSION}")
NEW = VERSION.startswith("2")


def save(name, value, about, legacy):
    # The record names hold the name of the file.
    torch.save(value, FIXTURES.path(name), _use_new_zipfile_serialization=not legacy)
    FIXTURES.expect(name, about, load(FIXTURES.path(name)))


def load(file):
    return torch.load(file, weights_only=False) if NEW else torch.load(file)


def plain():
    model = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), words=nn.Embedding(7, 2)))
    return model.state_dict()


def sharing():
    """Tensors that share storages in every way, and tensors whose elements do not follow each other."""
    base = torch.arange(24, dtype=torch.float32)
    grid = torch.randn(3, 4)
    weight = nn.Parameter(torch.randn(2, 3))
    image = torch.randn(2, 3, 2, 2)
    return {
        "tied.b": base,
        "tied.a": base,
        "tied.view": base.view(24),
        "reshaped": base.view(4, 6),
        "half.first": base[:12],
        "half.second": base[12:],
        "overlapping": base[6:18],
        "every_third": base[1::3],
        "grid": grid,
        "transposed": grid.t(),
        "column": grid[:, 1],
        "expanded": grid[:1].expand(5, 4),
        "windows": base.as_strided((5, 4), (2, 1), 3),
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "parameter": weight,
        "parameter.again": weight,
        "parameter.row": weight.detach()[1],
        "requires_grad": torch.ones(2, requires_grad=True),
        "scalar": torch.tensor(1.5),
        "scalar.view": base[7],
        "empty": torch.empty(0),
        "empty.of_three": torch.empty(3, 0, 2),
        "empty.view": base[:0],
    }


def dtypes(legacy):
    names = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    names += ["complex64", "complex128"]
    # Newer dtypes have no storage class; torch writes them in the legacy format too, but cannot load them from it.
    if NEW and not legacy:
        names += ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]
        names += ["float8_e8m0fnu", "float4_e2m1fn_x2"]
    tensors = {}
    for name in names:
        dtype = getattr(torch, name)
        size = torch.empty(0, dtype=dtype).element_size()
        pattern = torch.arange(6 * size, dtype=torch.uint8) * 37
        if name == "bool":
            pattern %= 2
        # torch 1.13 takes views of another size at the last dimension of a tensor with one.
        tensors[name] = pattern.view(dtype).view(2, 3)
        tensors[f"{name}.column"] = tensors[name][:, 1]
        if name != "float4_e2m1fn_x2":
            tensors[f"{name}.scalar"] = tensors[name][1, 2]
    return tensors


def nonfinite():
    bits = torch.tensor([0x7FC00000, 0x7F800001, -0x800000, -0x80000000], dtype=torch.int32)
    return {"nan": bits.view(torch.float32), "inf": torch.tensor([math.inf, -math.inf, 0.0, -0.0])}


def composed():
    """Tensors that safetensors has no words for."""
    torch.manual_seed(3)
    values = torch.randn(3, 4)
    coo = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2], [1, 0, 3]]), torch.tensor([1.0, 2.0, 3.0]), (3, 4))
    tensors = {
        "dense": values,
        "qint8": torch.quantize_per_tensor(values, 0.1, 3, torch.qint8),
        "quint8": torch.quantize_per_tensor(values, 0.25, 128, torch.quint8),
        "qint32": torch.quantize_per_tensor(values, 0.001, 0, torch.qint32),
        "per_channel": torch.quantize_per_channel(
            values, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64), torch.tensor([1, 2, 3]), 0, torch.qint8
        ),
        "per_channel_float": torch.quantize_per_channel(
            values, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.5, 2.0, 3.0]), 0, torch.quint8
        ),
        "quantized_column": torch.quantize_per_tensor(values, 0.1, 3, torch.qint8)[:, 1],
        "coo": coo,
        "coo_coalesced": coo.coalesce(),
        "coo_hybrid": torch.sparse_coo_tensor(torch.tensor([[1, 0]]), torch.randn(2, 3), (2, 3)),
        "csr": torch.sparse_csr_tensor(
            torch.tensor([0, 2, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([1.0, 2.0, 3.0]), size=(3, 3)
        ),
        "complex128": torch.randn(2, 3, dtype=torch.complex128),
        "complex128.transposed": torch.randn(2, 3, dtype=torch.complex128).t(),
    }
    if NEW:
        dense = torch.eye(4)
        tensors["csc"] = dense.to_sparse_csc()
        tensors["bsr"] = dense.to_sparse_bsr((2, 2))
        tensors["bsc"] = dense.to_sparse_bsc((2, 2))
    return tensors


def lazy():
    """Tensors that are to be conjugated or negated when they are read."""
    tensors = {}
    for name in ["complex64", "complex128"]:
        number = torch.randn(2, 3, dtype=getattr(torch, name))
        tensors[name] = number
        tensors[f"{name}.conj"] = number.conj()
        tensors[f"{name}.conj_column"] = number.conj()[:, 1]
        # Saved alone: torch refuses one storage under two dtypes.
        tensors[f"{name}.imag_of_conj"] = torch.randn(2, 3, dtype=number.dtype).conj().imag
    tensors["neg"] = torch._neg_view(torch.tensor([1.0, -2.0, 0.0, math.nan]))
    return tensors


def yolo():
    """The layout of ultralytics' checkpoints."""
    torch.manual_seed(4)
    return {
        "epoch": -1,
        "best_fitness": None,
        "model": detector.Detector().half(),
        "ema": detector.Detector().half(),
        "updates": None,
        "optimizer": None,
        "train_args": {"task": "detect", "imgsz": 640, "lr0": 0.01},
        "train_results": {"epoch": [1, 2], "metrics/mAP50(B)": [0.1, 0.2]},
        "date": "2024-01-02T03:04:05",
        "version": "8.0.0",
    }


def with_optimizer():
    model = nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "others": [{"name": "head", "weights": (torch.ones(1), torch.zeros(2))}, optimizer.state_dict()],
        "args": Namespace(lr=0.1, betas=(0.9, 0.999)),
        "shape": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        3: torch.full((2,), 3.0),
    }


def arrays():
    """numpy arrays between tensors. Numbers of numpy are numbers, not tensors."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "tensor": torch.ones(2),
        "array": array,
        "array.fortran": np.asfortranarray(array),
        "array.again": array,
        "best": np.float64(0.5),
        "step": np.int64(7),
    }


def attributes():
    """Parameters with attributes, as Megatron's and DeepSpeed's have them."""
    weight = nn.Parameter(torch.randn(2, 3))
    weight.tensor_model_parallel = True
    weight.partition_dim = 0
    plain = torch.randn(3)
    plain.note = {"ds_id": 1}
    return {"weight": weight, "plain": plain}


class DeviceTensor:
    """A tensor that was saved on a device that torch moves to numpy first: XLA, and others in their time."""

    def __init__(self, array, dtype):
        self.arguments = (array, dtype, "cpu", False)

    def __reduce__(self):
        return torch._utils._rebuild_device_tensor_from_numpy, self.arguments


def deflate(name, source, about):
    """`source` unpacked and packed again with compression, as users do by hand."""
    with zipfile.ZipFile(FIXTURES.path(source)) as old:
        with zipfile.ZipFile(FIXTURES.path(name), "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.namelist():
                new.writestr(zipfile.ZipInfo(entry), old.read(entry), zipfile.ZIP_DEFLATED)
    FIXTURES.expect(name, about, load(FIXTURES.path(name)))


def source_without_path(module_class):
    """Legacy files hold the source of each class of module, where it is found."""
    if module_class.__module__.startswith("torch."):
        raise OSError("not found")
    lines, number, path = find_source(module_class)
    return lines, number, path.rsplit("/", 1)[-1]


find_source = torch.serialization.get_source_lines_and_file
torch.serialization.get_source_lines_and_file = source_without_path


def main():
    for container in ["zip", "legacy"]:
        legacy = container == "legacy"
        torch.manual_seed(1)
        save(f"{container}-plain.bin", plain(), "the state dict of a model", legacy)
        save(f"{container}-sharing.pt", sharing(), "ties, views, strides, scalars, empty tensors", legacy)
        save(f"{container}-dtypes.pt", dtypes(legacy), "every dtype", legacy)
        save(f"{container}-composed.pt", composed(), "quantized, sparse and complex tensors", legacy)
        save(f"{container}-module.pt", detector.Detector(), "a module: nested, tied, unsaved buffers", legacy)
        if legacy == NEW:
            # The rest once for each version: in the format that it is known for.
            continue
        save(f"{container}-yolo.pt", yolo(), "two modules and more, as ultralytics writes them", legacy)
        save(f"{container}-nonfinite.pt", nonfinite(), "NaN with payloads, infinities, negative zero", legacy)
        save(f"{container}-tensor.pt", torch.arange(6).view(2, 3), "one tensor", legacy)
        save(f"{container}-sequence.pt", [torch.ones(1), (torch.zeros(2), "x")], "a list with a tuple in it", legacy)
        save(f"{container}-sequential.pt", nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), "a module", legacy)
        wrapped = {"state_dict": nn.Linear(2, 1), "ema": torch.ones(1)}
        save(f"{container}-state-dict-module.pt", wrapped, "a module as `state_dict`", legacy)
        save(f"{container}-optimizer.pt", with_optimizer(), "weights beside an optimizer and other values", legacy)
        save(f"{container}-attributes.pt", attributes(), "tensors with attributes", legacy)
        save(f"{container}-arrays.pt", arrays(), "numpy arrays beside tensors", legacy)
        if NEW:
            save(f"{container}-lazy.pt", lazy(), "conjugate and negative bits", legacy)

    for protocol in [0, 2, 3, 4, 5] if NEW else [2, 4]:
        name = f"pickle{protocol}.pkl"
        tensors = {key: sharing()[key] for key in ["grid", "transposed", "half.second", "parameter", "scalar", "empty"]}
        tensors["half"] = torch.arange(3).half()
        FIXTURES.path(name).write_bytes(pickle.dumps({"model": tensors, "epoch": 3}, protocol))
        loaded = pickle.loads(FIXTURES.path(name).read_bytes())
        about = f"tensors in pickle.dump of protocol {protocol}: a torch stream for each storage"
        FIXTURES.expect(name, about, loaded, weights="model")

    if NEW:
        buffer = io.BytesIO()
        torch.save(plain(), buffer, pickle_protocol=4)
        FIXTURES.path("protocol4.bin").write_bytes(buffer.getvalue())
        FIXTURES.expect("protocol4.bin", "a state dict in a pickle of protocol 4", load(FIXTURES.path("protocol4.bin")))
        subclass()
        grid = np.arange(6, dtype=np.float32).reshape(2, 3)
        device = {"plain": DeviceTensor(grid, torch.float32), "transposed": DeviceTensor(grid.T, torch.float32)}
        save("zip-device-arrays.pt", device, "device tensors kept as numpy arrays", legacy=False)
        deflate("deflated-plain.bin", "zip-plain.bin", "a zip archive packed again with compression")
        deflate("deflated-sharing.pt", "zip-sharing.pt", "shared and strided tensors in deflated records")
        deflate("deflated-dtypes.pt", "zip-dtypes.pt", "every dtype in deflated records")
        deflate("deflated-composed.pt", "zip-composed.pt", "quantized, sparse and complex tensors in deflated records")


def subclass():
    import quantized_tensor

    weight = quantized_tensor.QuantizedTensor(torch.arange(6, dtype=torch.int8).view(2, 3), torch.ones(2, 1))
    value = {"plain": torch.ones(2), "weight": weight, "parameter": nn.Parameter(weight, requires_grad=False)}
    save("zip-subclass.pt", value, "tensors of a subclass that wraps other tensors, as torchao's", legacy=False)


main()
