"""TorchScript archives: the names and values of `torch.jit.load(...).state_dict()`."""

import json
from typing import Dict, List, Optional, Tuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("saved", torch.zeros(2))
        self.register_buffer("unsaved", torch.ones(2), persistent=False)
        self.plain = torch.ones(4)

    def forward(self, x):
        return self.norm(self.linear(x)) + self.plain[0] + self.saved[0] + self.unsaved[0]


class Model(nn.Module):
    tensors: List[torch.Tensor]
    named: Dict[str, torch.Tensor]
    maybe: Optional[torch.Tensor]

    def __init__(self):
        super().__init__()
        self.first, self.second = Block(), Block()
        self.again = self.first
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.layers[1].weight = self.layers[0].weight
        self.convolution = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.ReLU())
        self.slice = nn.Parameter(torch.arange(10.0)[2:6])
        self.narrow = nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16).t())
        self.register_parameter("nothing", None)
        self.register_buffer("absent", None)
        self.register_buffer("maybe", torch.ones(2))
        self.tensors, self.named, self.pair = [torch.ones(2)], {"x": torch.ones(1)}, (1, torch.ones(1))
        self.numbers, self.floats, self.flags, self.text = [1, 2], [1.0], [True], "text"

    def forward(self, x):
        y = self.first(x) + self.second(x).sum() + self.again(x) + self.narrow.float().sum() + self.slice[0]
        for layer in self.layers:
            y = y + layer(x).sum()
        return y + self.tensors[0][0] + self.named["x"] + self.pair[1] + self.numbers[0]


def compiled(how):
    model = Model().eval()
    return torch.jit.script(model) if how == "script" else torch.jit.trace(model, torch.ones(2, 2))


def check(stfs, path):
    target = path.with_suffix(".safetensors")
    stfs.run("convert", "--force", path, target)
    actual = load_file(target)
    listing = json.loads(stfs.run("ls", "--json", path).stdout)
    for name, kept in listing["tied"].items():
        actual[name] = actual[kept]
    wanted = torch.jit.load(path).state_dict()
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert actual[name].dtype == tensor.dtype and torch.equal(actual[name], tensor), name
    return listing


@pytest.mark.parametrize("how", ["script", "trace"])
def test_modules(how, stfs, tmp_path):
    compiled(how).save(tmp_path / "m.pt")
    check(stfs, tmp_path / "m.pt")


def test_tensors_left_out_are_told_of(stfs, tmp_path):
    compiled("script").save(tmp_path / "m.pt")
    left_out = check(stfs, tmp_path / "m.pt")["left_out"]
    assert {entry["path"].rsplit(".", 1)[-1] for entry in left_out} >= {"plain", "maybe"}
    assert all(entry["bytes"] for entry in left_out)


def test_root(stfs, tmp_path):
    module = compiled("script")
    module.save(tmp_path / "m.pt")
    stfs.run("convert", "--root", "first.norm", tmp_path / "m.pt", tmp_path / "m.safetensors")
    actual, wanted = load_file(tmp_path / "m.safetensors"), module.first.norm.state_dict()
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], tensor) for name, tensor in wanted.items())


def test_module_without_tensors(stfs, tmp_path):
    torch.jit.script(nn.ReLU()).save(tmp_path / "m.pt")
    check(stfs, tmp_path / "m.pt")


def test_mounted(tmp_path, mounted):
    module = compiled("trace")
    (tmp_path / "models").mkdir()
    module.save(tmp_path / "models" / "m.pt")
    with mounted(tmp_path / "models") as mount_point:
        actual = {name: tensor.clone() for name, tensor in load_file(mount_point / "m.safetensors").items()}
        wanted = module.state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in actual.items())
        assert {tensor.data_ptr() for tensor in wanted.values()} == {wanted[name].data_ptr() for name in actual}


class OwnForm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x):
        return x + self.weight


@pytest.mark.parametrize("module, word", [
    (lambda: torch.jit.freeze(compiled("script")), "constants"),
    (lambda: torch.jit.script(OwnForm()), "OwnForm"),
], ids=["frozen", "own-form"])
def test_refused(module, word, stfs, tmp_path):
    module().save(tmp_path / "m.pt")
    result = stfs.run("ls", tmp_path / "m.pt", check=False)
    assert result.returncode == 1 and word in result.stderr
