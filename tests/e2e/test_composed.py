"""What safetensors has no word for: whole modules, quantized, sparse and wide complex tensors, shells around others."""

import json

import oracle
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.register_parameter("nothing", None)
        self.plain_tensor = torch.ones(3)
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        self.first = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight


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


def convert(stfs, directory, value, *options):
    torch.save(value, directory / "m.pt")
    target = directory / "m.safetensors"
    stfs.run("convert", "--force", *options, directory / "m.pt", target)
    header, _ = oracle.header_of(target.read_bytes())
    return load_file(target), header["__metadata__"]


def same(actual, wanted):
    """Names, types, shapes and bits."""
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


def without(state_dict, *names):
    return {name: tensor for name, tensor in state_dict.items() if name not in names}


def test_module(stfs, tmp_path):
    module = Block()
    actual, metadata = convert(stfs, tmp_path, module)
    same(actual, without(module.state_dict(), "tied.weight"))
    left_out = json.loads(metadata.pop("stfs"))["@left_out"]
    assert metadata == {"format": "pt", "tied.weight": "first.weight"}
    assert left_out.keys() == {"attribute of a module that is neither parameter nor buffer", "non-persistent buffer"}


def test_modules_beside_training_state(stfs, tmp_path):
    module, ema = nn.Linear(2, 3), nn.Linear(2, 3)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint = {
        "model": module,
        "ema": ema,
        "epoch": 7,
        "optimizer": {"anything": torch.ones(3)},
        "trainer": {"inner": optimizer.state_dict()},
    }
    wanted = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    wanted |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    actual, _ = convert(stfs, tmp_path, checkpoint)
    same(actual, wanted)
    actual, _ = convert(stfs, tmp_path, checkpoint, "--root", "ema")
    same(actual, ema.state_dict())
    listing = json.loads(stfs.run("ls", "--json", tmp_path / "m.pt").stdout)
    assert {other["path"]: other["type"] for other in listing["others"]} == {"epoch": "int"}
    left_out = {entry["path"]: (entry["rule"], entry["bytes"]) for entry in listing["left_out"]}
    assert left_out == {"optimizer": ("optimizer state", 12), "trainer.inner": ("optimizer state", 80)}


def test_root(stfs, tmp_path):
    value = {"a.b": {"c": torch.arange(3)}, "a": {"b": {"d": torch.arange(4)}}, "l": [{"x": torch.arange(5)}]}
    for root, wanted in [("a.b", {"c": torch.arange(3)}), ("l.0", {"x": torch.arange(5)}),
                         ("l.0.x", {"tensor": torch.arange(5)})]:
        actual, _ = convert(stfs, tmp_path, value, "--root", root)
        same(actual, wanted)
    result = stfs.run("ls", "--root", "nowhere", tmp_path / "m.pt", check=False)
    assert result.returncode == 1 and "nowhere" in result.stderr


def test_root_of_a_mount(tmp_path, mounted):
    torch.save({"model": {"w": torch.arange(2)}, "ema": {"w": torch.arange(3)}}, tmp_path / "m.pt")
    with mounted(tmp_path, "--root", "ema") as mount_point:
        same(load_file(mount_point / "m.safetensors"), {"w": torch.arange(3)})


def test_quantized(stfs, tmp_path):
    whole = torch.quantize_per_tensor(torch.randn(3, 4), 0.1, 2, torch.qint8)
    wide = torch.quantize_per_tensor(torch.randn(5), 0.5, 0, torch.qint32)
    channels = torch.quantize_per_channel(
        torch.randn(3, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 0, torch.quint8
    )
    actual, metadata = convert(stfs, tmp_path, {"whole": whole, "wide": wide, "channels": channels})
    wanted = {
        "channels": channels.int_repr(),
        "channels.scale": channels.q_per_channel_scales(),
        "channels.zero_point": channels.q_per_channel_zero_points(),
    }
    for name, tensor in [("whole", whole), ("wide", wide)]:
        wanted[name] = tensor.int_repr()
        wanted[f"{name}.scale"] = torch.tensor(tensor.q_scale(), dtype=torch.float64)
        wanted[f"{name}.zero_point"] = torch.tensor(tensor.q_zero_point())
    same(actual, wanted)
    assert json.loads(metadata["stfs"]) == {
        "whole": {"dtype": "qint8", "qscheme": "per_tensor_affine"},
        "wide": {"dtype": "qint32", "qscheme": "per_tensor_affine"},
        "channels": {"dtype": "quint8", "qscheme": "per_channel_affine", "axis": 0},
    }


def test_sparse(stfs, tmp_path):
    dense = torch.zeros(4, 6)
    dense[1, 2], dense[3, 5] = 3, 4
    coo, csr, csc, bsr = dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((2, 3))
    actual, metadata = convert(stfs, tmp_path, {"coo": coo, "csr": csr, "csc": csc, "bsr": bsr})
    same(actual, {
        "coo.indices": coo._indices(), "coo.values": coo._values(),
        "csr.crow_indices": csr.crow_indices(), "csr.col_indices": csr.col_indices(), "csr.values": csr.values(),
        "csc.ccol_indices": csc.ccol_indices(), "csc.row_indices": csc.row_indices(), "csc.values": csc.values(),
        "bsr.crow_indices": bsr.crow_indices(), "bsr.col_indices": bsr.col_indices(), "bsr.values": bsr.values(),
    })
    assert json.loads(metadata["stfs"])["bsr"] == {"layout": "sparse_bsr", "shape": [4, 6]}


def test_complex(stfs, tmp_path):
    value = torch.randn(3, 4, dtype=torch.complex128)
    actual, metadata = convert(stfs, tmp_path, {"z": value, "t": value.t(), "conj": value.conj(), "one": value[1, 2]})
    same(actual, {
        "z": torch.view_as_real(value),
        "t": torch.view_as_real(value.t()),
        "conj": torch.view_as_real(value.conj().resolve_conj()),
        "one": torch.view_as_real(value[1, 2]),
    })
    assert set(json.loads(metadata["stfs"])) == {"z", "t", "conj", "one"}


def test_shell(stfs, tmp_path):
    low, high = torch.randn(3), torch.randn(3)
    actual, _ = convert(stfs, tmp_path, {"w": Shell(low, high)})
    same(actual, {"w.low": low, "w.high": high})


@pytest.mark.parametrize("value", [
    torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    torch.empty(3, device="meta"),
], ids=["nested", "meta"])
def test_refused(value, stfs, tmp_path):
    torch.save({"w": value}, tmp_path / "m.pt")
    result = stfs.run("ls", tmp_path / "m.pt", check=False)
    assert result.returncode == 1 and "`w`" in result.stderr


def test_values_beside_tensors(tmp_path, mounted):
    """Numbers and texts at the top can be read; deeper ones are shown by `stfs ls`."""
    value = {"w": torch.ones(2), "epoch": 7, "lr": 0.5, "name": "x\n\u00e9", "ok": True, "deep": {"n": 1}, "none": None}
    torch.save(value, tmp_path / "m.pt")
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    with mounted(tmp_path) as mount_point:
        tensors = mount_point / "m.tensors"
        # What is listed are tensors.
        assert [path.name for path in tensors.iterdir()] == ["w"]
        values = json.loads((tensors / ".other.json").read_text())
        assert values == {"epoch": 7, "lr": 0.5, "name": "x\n\u00e9", "ok": True}
        assert [path.name for path in (mount_point / "plain.tensors").iterdir()] == ["w"]
        assert not (mount_point / "plain.tensors" / ".other.json").exists()


def test_optimizer_is_not_shown(stfs, tmp_path, mounted):
    """Whatever it is called: nobody looks for weights in it."""
    module = torch.nn.Linear(2, 2)
    torch.save(torch.optim.SGD(module.parameters()).state_dict(), tmp_path / "last.pt")
    torch.save(module.state_dict(), tmp_path / "model.pt")
    with mounted(tmp_path) as mount_point:
        assert sorted(path.name for path in mount_point.iterdir()) == ["model.safetensors", "model.tensors"]
        assert not (mount_point / "last.pt.refused.txt").exists()
    result = stfs.run("ls", tmp_path / "last.pt", check=False)
    assert result.returncode == 1 and "optimizer" in result.stderr
