"""Archives of torch.jit.save: parameters, buffers, nested modules, plain attributes, extra files."""

import zipfile

import torch
from torch import nn

from fixture import Fixtures

FIXTURES = Fixtures(f"torch.jit.load of torch {torch.__version__.split('+')[0]}")


class Layer(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, 3))
        self.register_buffer("steps", torch.arange(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(x, self.weight.t()) + self.steps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Layer(4)
        self.blocks = nn.ModuleList([Layer(2), Layer(1)])
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.shared = nn.Parameter(self.first.weight)
        self.register_buffer("mean", torch.ones(3, 2).t())
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)
        self.limit = 3
        self.name = "net"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.first(x).sum() * self.scale + self.mean.sum() + self.shared.sum() + self.unsaved.sum()
        for block in self.blocks:
            total = total + block(x).sum()
        return total


def strip_debug_files(path):
    """The debug files name the paths of this machine. Records are stored, but for the code, as torch does it."""
    with zipfile.ZipFile(path) as old:
        records = [(entry, old.read(entry)) for entry in old.infolist() if not entry.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w") as new:
        for entry, data in records:
            new.writestr(zipfile.ZipInfo(entry.filename), data, entry.compress_type)


def save(name, about, module, **options):
    path = FIXTURES.path(name)
    torch.jit.save(module, str(path), **options)
    strip_debug_files(path)
    loaded = torch.jit.load(str(path))
    # A plain attribute that is a tensor looks like a buffer to whoever loads the archive, and is one then.
    FIXTURES.expect(name, about, loaded)


def main():
    torch.manual_seed(5)
    save("scripted.pt", "a scripted module", torch.jit.script(Net()), _extra_files={"note.txt": "hello"})
    save("traced.pt", "a traced module", torch.jit.trace(Net(), torch.ones(1, 3)))
    frozen = FIXTURES.path("frozen.pt")
    torch.jit.save(torch.jit.freeze(torch.jit.script(Net().eval())), str(frozen))
    strip_debug_files(frozen)
    assert not torch.jit.load(str(frozen)).state_dict()
    FIXTURES.refuse("frozen.pt", "a frozen module: its weights are constants of its code, without names", "constants")


main()
