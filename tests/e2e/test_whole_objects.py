"""Files that no walk over dictionaries reads: their tensors lie in arguments, beside code, or in other ranks' files."""

import os
import pickle
import socket
import subprocess
import sys
import types
import zipfile

import pytest
import torch
from conftest import refusal
from torch import nn
from written import contents, converted, is_refused, wanted

pytestmark = pytest.mark.filterwarnings("ignore")


# NVlabs' persistence.py, which StyleGAN2-ada and StyleGAN3 save their networks with: an object is rebuilt from its
# source text and its state, and both are an argument.

PERSISTENCE = '''
import torch

class EasyDict(dict):
    def __getattr__(self, name):
        return self[name]

def _reconstruct_persistent_obj(meta):
    meta = EasyDict(meta)
    module = Module.__new__(Module)
    module.__dict__.update(meta.state)
    return module

class Module(torch.nn.Module):
    def __reduce__(self):
        fields = {"type": "class", "version": 6, "module_src": "class Module: pass", "class_name": "Module"}
        return _reconstruct_persistent_obj, (EasyDict(fields, state=dict(self.__dict__)),)
'''


@pytest.fixture
def persistence(monkeypatch):
    module = types.ModuleType("torch_utils.persistence")
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    exec(PERSISTENCE, module.__dict__)
    return module


def network(persistence):
    generator = persistence.Module()
    generator.synthesis = persistence.Module()
    generator.synthesis.weight = nn.Parameter(torch.randn(3, 4))
    generator.synthesis.register_buffer("noise", torch.randn(2))
    generator.synthesis.register_buffer("filter", torch.randn(5), persistent=False)
    generator.mapping = nn.Linear(2, 3)
    return generator


@pytest.mark.parametrize("protocol", range(2, 6))
def test_network_with_its_source(protocol, persistence, stfs, tmp_path):
    generator, average = network(persistence), network(persistence)
    snapshot = {"G": generator, "G_ema": average, "training_set_kwargs": persistence.EasyDict(resolution=8)}
    (tmp_path / "network-snapshot.pkl").write_bytes(pickle.dumps(snapshot, protocol))
    outcome = converted(stfs, tmp_path / "network-snapshot.pkl")
    if is_refused(outcome, "G"):
        return
    # Names are free where there is no class to ask for a state dict.
    expected = wanted({"G": generator.state_dict(), "G_ema": average.state_dict()})
    assert contents(outcome) == contents(expected)


def test_network_with_its_source_beside_a_tensor(persistence, stfs, tmp_path):
    value = {"G_ema": network(persistence), "w_avg": torch.randn(4)}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(value))
    outcome = converted(stfs, tmp_path / "m.pkl")
    if not is_refused(outcome, "G_ema"):
        assert contents(outcome) == contents(wanted({**value, "G_ema": value["G_ema"].state_dict()}))


# torch.distributed's older sharded tensor

RANK = """
import sys
import torch
import torch.distributed as dist
from torch.distributed._shard import sharded_tensor
from torch.distributed._shard.sharding_spec import ChunkShardingSpec

def save(rank, port, size, path):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    spec = ChunkShardingSpec(0, [f"rank:{r}/cpu" for r in range(size)])
    torch.save({"layer.weight": sharded_tensor.rand(spec, 8, 3), "b": torch.ones(3)}, f"{path}/rank{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    port, size, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.multiprocessing.spawn(save, (port, size, path), nprocs=size)
"""


@pytest.mark.parametrize("size", [1, 2])
def test_sharded_tensor(size, stfs, mounted, tmp_path):
    (tmp_path / "save.py").write_text(RANK)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "out").mkdir()
    command = [sys.executable, tmp_path / "save.py", str(port), str(size), tmp_path / "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, timeout=120)
    with mounted(tmp_path / "out") as mount_point:
        for rank in range(size):
            assert is_refused(refusal(mount_point / f"rank{rank}.pt"), "rank")


# torch.export's archives


class Exported(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.layer.weight
        self.register_buffer("saved", torch.randn(2))
        self.register_buffer("unsaved", torch.randn(2), persistent=False)
        self.transposed = nn.Parameter(torch.randn(2, 3).t())
        self.small = nn.ParameterList([nn.Parameter(torch.randn(3, 2).half())])
        self.constant = torch.randn(2)

    def forward(self, x):
        y = self.layer(x) + self.tied(x) + self.saved + self.unsaved + self.constant
        return y + self.transposed.sum() + self.small[0].sum()


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_exported_program(suffix, stfs, tmp_path):
    program = torch.export.export(Exported(), (torch.randn(1, 4),))
    path = tmp_path / f"program{suffix}"
    torch.export.save(program, tmp_path / "program.pt2")
    (tmp_path / "program.pt2").rename(path)
    assert any(name.endswith("model_weights_config.json") for name in zipfile.ZipFile(path).namelist())
    outcome = converted(stfs, path)
    if is_refused(outcome):
        assert "torch.export" in outcome
        return
    expected = wanted(program.state_dict)
    constants = wanted(program.constants)
    assert expected.items() <= outcome.items()
    assert {name: tensor for name, tensor in outcome.items() if name not in expected}.items() <= constants.items()


# Classes that a pickle brings along


class Local:
    """Makes classes of a program that is run and not imported, which dill and cloudpickle save by value."""

    SOURCE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(2, 2)

    def forward(self, x):
        return self.l(x)
"""

    def __init__(self):
        module = types.ModuleType("__main__")
        exec(self.SOURCE, module.__dict__)
        self.Mine = module.Mine


@pytest.mark.parametrize("library", ["dill", "cloudpickle"])
def test_class_by_value(library, stfs, tmp_path):
    library = pytest.importorskip(library)
    value = {"model": Local().Mine(), "extra": torch.randn(2)}
    (tmp_path / "m.pkl").write_bytes(library.dumps(value))
    outcome = converted(stfs, tmp_path / "m.pkl")
    if is_refused(outcome):
        assert "made to run code" not in outcome
    else:
        assert outcome == wanted({**value, "model": value["model"].state_dict()})


# hqq keeps what belongs to its weights in a plain dictionary


def test_hqq(monkeypatch, stfs, tmp_path):
    quantize = types.ModuleType("hqq.core.quantize")
    quantize.HQQLinear = type("HQQLinear", (nn.Module,), {"__module__": quantize.__name__})
    for name in ["hqq", "hqq.core", "hqq.core.quantize"]:
        monkeypatch.setitem(sys.modules, name, quantize)
    layer = quantize.HQQLinear()
    layer.W_q = nn.Parameter(torch.randint(0, 256, (32, 64), dtype=torch.uint8), requires_grad=False)
    layer.bias = None
    layer.quant_config = {"weight_quant_params": {"nbits": 4, "group_size": 64}}
    layer.meta = {"nbits": 4, "shape": torch.Size([64, 64]), "scale": torch.randn(64, 1), "zero": torch.randn(64, 1)}
    module = nn.ModuleDict({"q": layer, "n": nn.LayerNorm(4)})
    torch.save(module, tmp_path / "m.pt")
    outcome = converted(stfs, tmp_path / "m.pt")
    if is_refused(outcome):
        return
    weights = {"q.W_q": layer.W_q, "q.scale": layer.meta["scale"], "q.zero": layer.meta["zero"]}
    weights |= {f"n.{name}": tensor for name, tensor in module["n"].state_dict().items()}
    assert {name.replace("q.meta.", "q."): tensor for name, tensor in outcome.items()} == wanted(weights)
