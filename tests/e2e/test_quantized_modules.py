"""Modules that torch quantized, saved whole and as state dicts: their weights are packed, and no plain tensors.

What such a module holds is what its own state_dict() gives; how quantized tensors are written is the README's rule.
A whole module may be refused, but never shown in part.
"""

import pickle

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import quantize_dynamic
from written import converted, is_refused, wanted

pytestmark = pytest.mark.filterwarnings("ignore")

if "fbgemm" not in torch.backends.quantized.supported_engines:
    pytest.skip("this torch has no fbgemm to quantize with", allow_module_level=True)


def dynamic(module, kinds, **options):
    return quantize_dynamic(nn.Sequential(module), kinds, **options)


def static(module, example, fuse=()):
    module = module.eval()
    module.qconfig = quantization.get_default_qconfig("fbgemm")
    if fuse:
        module = quantization.fuse_modules(module, [list(fuse)])
    prepared = quantization.prepare(module)
    prepared(example)
    return quantization.convert(prepared)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.pointwise = nn.Conv2d(4, 2, 1, bias=False)
        self.flatten, self.head = nn.Flatten(), nn.Linear(32, 3)

    def forward(self, image):
        x = self.pointwise(self.relu(self.norm(self.conv(self.quant(image)))))
        return self.dequant(self.head(self.flatten(x)))


class Signal(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = quantization.QuantStub(), quantization.DeQuantStub()
        self.conv, self.linear = nn.Conv1d(3, 4, 3), nn.Linear(4, 4)
        self.add = FloatFunctional()

    def forward(self, signal):
        x = self.conv(self.quant(signal))
        return self.dequant(self.add.add(x, self.linear(x)))


def graph_of_functions():
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    example = torch.randn(1, 3, 2, 2)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    prepared = prepare_fx(module, quantization.get_default_qconfig_mapping("fbgemm"), (example,))
    prepared(example)
    return convert_fx(prepared)


def beside_other_weights():
    module = nn.ModuleDict({"embed": nn.Embedding(10, 8), "fc": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})
    return quantize_dynamic(module, {nn.Linear})


PER_ROW = quantization.float_qparams_weight_only_qconfig
FOUR_BITS = quantization.float_qparams_weight_only_qconfig_4bit

MODULES = {
    "linear": lambda: dynamic(nn.Linear(4, 3), {nn.Linear}),
    "linear-without-bias": lambda: dynamic(nn.Linear(4, 3, bias=False), {nn.Linear}),
    "linear-float16": lambda: dynamic(nn.Linear(4, 3), {nn.Linear}, dtype=torch.float16),
    "linear-per-channel": lambda: dynamic(nn.Linear(4, 3), {nn.Linear: quantization.per_channel_dynamic_qconfig}),
    "lstm": lambda: dynamic(nn.LSTM(4, 3), {nn.LSTM}),
    "lstm-float16": lambda: dynamic(nn.LSTM(4, 3), {nn.LSTM}, dtype=torch.float16),
    "lstm-of-two-layers-both-ways": lambda: dynamic(nn.LSTM(4, 3, 2, bidirectional=True), {nn.LSTM}),
    "gru": lambda: dynamic(nn.GRU(4, 3), {nn.GRU}),
    "lstm-cell": lambda: dynamic(nn.LSTMCell(4, 3), {nn.LSTMCell}),
    "gru-cell": lambda: dynamic(nn.GRUCell(4, 3), {nn.GRUCell}),
    "rnn-cell": lambda: dynamic(nn.RNNCell(4, 3), {nn.RNNCell}),
    "embedding": lambda: dynamic(nn.Embedding(5, 4), {nn.Embedding: PER_ROW}),
    "embedding-bag": lambda: dynamic(nn.EmbeddingBag(5, 4), {nn.EmbeddingBag: PER_ROW}),
    "image": lambda: static(Image(), torch.randn(2, 3, 6, 6)),
    "image-fused": lambda: static(Image(), torch.randn(2, 3, 6, 6), ["conv", "norm", "relu"]),
    "signal": lambda: static(Signal(), torch.randn(2, 3, 6)),
    "graph-of-functions": graph_of_functions,
    "beside-other-weights": beside_other_weights,
}

# Their state dicts have nothing in them but tensors and tuples of tensors. Those of the others have packed parameters.
OF_TENSORS = [name for name in MODULES if not name.startswith(("lstm", "gru", "rnn"))]

NAMES = {
    "linear": {
        "0.scale",
        "0.zero_point",
        "0._packed_params._packed_params.0",
        "0._packed_params._packed_params.0.scale",
        "0._packed_params._packed_params.0.zero_point",
        "0._packed_params._packed_params.1",
    },
    "lstm": {
        f"0._all_weight_values.0.param.{name}"
        for name in ["1.0", "1.1"]
        + [f"4.{n}.0{part}" for n in range(2) for part in ["", ".scale", ".zero_point"]]
    },
    "embedding": {
        "0._packed_params._packed_weight",
        "0._packed_params._packed_weight.scale",
        "0._packed_params._packed_weight.zero_point",
    },
}


@pytest.fixture
def module(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODULES[request.param]()


def every(names):
    return pytest.mark.parametrize("module", names, indirect=True)


def all_or_refused(outcome, module):
    if not is_refused(outcome):
        assert outcome == wanted(module.state_dict())


@every(MODULES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_whole(module, zipped, stfs, tmp_path):
    torch.save(module, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    all_or_refused(converted(stfs, tmp_path / "m.pt"), module)


@every(MODULES)
def test_whole_in_a_pickle(module, stfs, tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": module, "epoch": 3}))
    all_or_refused(converted(stfs, tmp_path / "m.pkl", "--root", "model"), module)


@every(MODULES)
def test_beside_a_tensor(module, stfs, tmp_path):
    """A part of the file that could be read does not pass for the whole."""
    extra = torch.randn(3)
    torch.save({"model": module, "extra": extra}, tmp_path / "m.pt")
    outcome = converted(stfs, tmp_path / "m.pt")
    if not is_refused(outcome):
        assert outcome == wanted({"model": module.state_dict(), "extra": extra})


@every(OF_TENSORS)
def test_state_dict(module, stfs, tmp_path):
    torch.save(module.state_dict(), tmp_path / "m.pt")
    assert converted(stfs, tmp_path / "m.pt") == wanted(module.state_dict())


@every([name for name in MODULES if name not in OF_TENSORS])
def test_state_dict_of_packed_parameters(module, stfs, tmp_path):
    torch.save(module.state_dict(), tmp_path / "m.pt")
    all_or_refused(converted(stfs, tmp_path / "m.pt"), module)


def test_what_is_expected_of_them():
    """The names of this suite, spelled out."""
    for name, names in NAMES.items():
        assert wanted(MODULES[name]().state_dict()).keys() == names


def test_weights_that_no_state_dict_names(stfs, tmp_path):
    """torch's own state_dict() forgets this one: said to be left out, served, or refused."""
    from torch.ao.nn.quantized import PReLU

    module = nn.Sequential(PReLU(0.1, 2), nn.Linear(2, 2))
    assert "0.weight" not in module.state_dict()
    torch.save(module, tmp_path / "m.pt")
    outcome = converted(stfs, tmp_path / "m.pt")
    if not is_refused(outcome) and "0.weight" not in outcome:
        assert "0.weight" in stfs.run("ls", "--json", tmp_path / "m.pt").stdout


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_four_bits(kind, stfs, tmp_path):
    module = quantize_dynamic(nn.Sequential(kind(5, 4)), {kind: FOUR_BITS}, dtype=torch.quint4x2)
    for value in [module, module.state_dict()]:
        torch.save(value, tmp_path / "m.pt")
        assert is_refused(converted(stfs, tmp_path / "m.pt"), "_packed_weight")
