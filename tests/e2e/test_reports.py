"""Small files rebuilt from public reports, each against what the library that wrote it sees in it.

They are not part of this repository. STFS_REPORTS names their directory: MANIFEST.tsv says where people meet each and
what must be shown. test_sets_of_weights.py, test_quantized_modules.py and test_whole_objects.py have the same kinds,
made on the spot.
"""

import csv
import json
import os
import pickle
import re
import sys
import types
from pathlib import Path

import numpy
import oracle
import pytest
import torch
from conftest import MATERIAL, REPOSITORY, derived, refusal
from safetensors.torch import load_file
from torch import nn
from written import contents, found, is_refused, represented, shown, wanted

REPORTS = Path(os.environ.get("STFS_REPORTS", REPOSITORY.parent / "shared" / "reports"))
MANIFEST = REPORTS / "MANIFEST.tsv"

pytestmark = [
    pytest.mark.skipif(not MANIFEST.is_file(), reason=f"{MATERIAL}no reports at {REPORTS}: set STFS_REPORTS"),
    pytest.mark.filterwarnings("ignore"),
]

REPORTED = {}


def reports(*paths):
    """Marks a test of these rows of the manifest."""

    def mark(test):
        REPORTED.update(dict.fromkeys(paths, test.__name__))
        return test

    return mark


@pytest.fixture(scope="module")
def mount(mounted):
    with mounted(REPORTS) as mount_point:
        yield mount_point


def load(path):
    return torch.load(REPORTS / path, weights_only=False)


# Weights that were lost without a word


class Unpickler(pickle.Unpickler):
    """Puts a class of its own in the place of those of a program that is not here."""

    def find_class(self, module, name):
        return PLACEHOLDERS[name] if module == "__main__" else super().find_class(module, name)


class Holder:
    pass


PLACEHOLDERS = {"C": Holder, "_reconstruct": lambda arguments: arguments["state"]}


def unpickled(path):
    with open(REPORTS / path, "rb") as file:
        return Unpickler(file).load()


def all_or_refused(outcome, state_dict, *words):
    """Nothing in between. Names are free: these are objects without a state dict."""
    if not is_refused(outcome, *words):
        assert contents(outcome) == contents(wanted(state_dict))


@reports("lost-plain/dataclass.pkl")
def test_dataclass(mount):
    value = unpickled("lost-plain/dataclass.pkl")
    all_or_refused(shown(mount / "lost-plain/dataclass.pkl"), {"w": value["obj"].w, "extra": value["extra"]}, "obj")


@reports("lost-plain/deque.pkl")
def test_deque(mount):
    value = unpickled("lost-plain/deque.pkl")
    all_or_refused(shown(mount / "lost-plain/deque.pkl"), {**value, "obj": list(value["obj"])}, "obj")


@reports("lost-plain/stylegan_like_with_extra.pkl")
def test_stylegan(mount):
    path = "lost-plain/stylegan_like_with_extra.pkl"
    all_or_refused(shown(mount / path), unpickled(path), "G_ema")


@reports("lost-module/whole.pt", "lost-module/mixed_whole.pt")
@pytest.mark.parametrize("name", ["whole.pt", "mixed_whole.pt"])
def test_quantized_module(name, mount):
    outcome = shown(mount / "lost-module" / name)
    if not is_refused(outcome):
        assert outcome == wanted(load(f"lost-module/{name}").state_dict())


@reports("lost-module/hqq_whole.pt")
def test_hqq(mount, monkeypatch):
    outcome = shown(mount / "lost-module/hqq_whole.pt")
    if is_refused(outcome):
        return
    quantize = types.ModuleType("hqq.core.quantize")
    quantize.HQQLinear = type("HQQLinear", (nn.Module,), {"__module__": quantize.__name__})
    for name in ["hqq", "hqq.core", "hqq.core.quantize"]:
        monkeypatch.setitem(sys.modules, name, quantize)
    module = load("lost-module/hqq_whole.pt")
    # As hqq's own state_dict() calls them; it writes its numbers as tensors too.
    weights = {"q.W_q": module["q"].W_q, "q.scale": module["q"].meta["scale"], "q.zero": module["q"].meta["zero"]}
    weights |= {f"n.{name}": tensor for name, tensor in module["n"].state_dict().items()}
    names = {name.replace("q.meta.", "q."): tensor for name, tensor in outcome.items()}
    assert wanted(weights).items() <= names.items()


@reports("lost-sharded/rank0.pt")
def test_sharded_tensor(mount):
    assert is_refused(shown(mount / "lost-sharded/rank0.pt"), "rank")


@reports("hidden-by-name/megatron/")
def test_megatron(mount):
    path = "hidden-by-name/megatron/iter_0000010/mp_rank_00/model_optim_rng.pt"
    outcome = found(derived(mount / path))
    model = wanted(load(path)["model"]["language_model"])
    assert contents(outcome) == contents(model)
    assert all(any(name.endswith(ending) for name in outcome) for ending in model)


def hidden_by_name():
    directory = REPORTS / "hidden-by-name" / "names"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


@reports("hidden-by-name/names/")
@pytest.mark.parametrize("name", hidden_by_name())
def test_names_that_hide_nothing(name, mount):
    path = REPORTS / "hidden-by-name" / "names" / name
    if path.suffix == ".safetensors":
        state_dict = load_file(path)
    elif path.suffix in (".npy", ".npz", ".pkl") and path.read_bytes()[:2] != b"PK" or path.suffix == ".npz":
        value = numpy.load(path, allow_pickle=True)
        arrays = {"tensor": value} if isinstance(value, numpy.ndarray) else dict(value)
        state_dict = {key: torch.from_numpy(array) for key, array in arrays.items()}
    else:
        state_dict = load(f"hidden-by-name/names/{name}")
    # Several of them have one stem, and then keep their endings.
    shown_path = mount / "hidden-by-name" / "names" / name
    candidates = [shown_path.with_name(f"{name}.safetensors"), derived(shown_path)]
    there = [candidate for candidate in candidates if candidate.exists()]
    assert there, f"nothing is shown for {name}"
    assert found(there[0]) == wanted(state_dict)


@reports("zero3/ds3/")
def test_zero3(mount):
    step = mount / "zero3/ds3/global_step1"
    assert is_refused(refusal(step / "zero_pp_rank_0_mp_rank_00_model_states.pt"), "zero_to_fp32.py")
    # The weights are in this one, flat and in parts: it is more than an optimizer's state.
    assert is_refused(refusal(step / "zero_pp_rank_0_mp_rank_00_optim_states.pt"), "zero_to_fp32.py")
    assert (step.parent / "latest").read_text() == "global_step1"


# Optimizer and RNG states shown as weights


@reports("optimizer-states/dcp_recipe/")
def test_dcp_recipe(mount, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(REPORTS / "optimizer-states/dcp_recipe", tmp_path / "merged.pt")
    model = torch.load(tmp_path / "merged.pt", weights_only=False)["app"]["model"]
    assert found(mount / "optimizer-states/dcp_recipe/model.safetensors") == wanted(model)


@reports("optimizer-states/dcp_recipe_merged.pt")
def test_dcp_recipe_merged(mount):
    path = "optimizer-states/dcp_recipe_merged.pt"
    assert found(derived(mount / path)) == wanted(load(path)["app"]["model"])
    directory = found(mount / "optimizer-states/dcp_recipe/model.safetensors")
    assert found(derived(mount / path)).keys() == directory.keys()


@reports("optimizer-states/accel_fsdp/")
def test_accelerate_fsdp(mount, tmp_path):
    from accelerate.utils import merge_fsdp_weights

    directory = "optimizer-states/accel_fsdp"
    merge_fsdp_weights(str(REPORTS / directory / "pytorch_model_fsdp_0"), str(tmp_path))
    assert found(mount / directory / "pytorch_model_fsdp_0/model.safetensors") == found(tmp_path / "model.safetensors")
    assert list((mount / directory / "optimizer_0").iterdir()) == []


@reports("optimizer-states/fastai/stage-1.pth")
def test_fastai(mount):
    path = "optimizer-states/fastai/stage-1.pth"
    assert found(derived(mount / path)) == wanted(load(path)["model"])


# Lossless, and yet the next tool could not load it


@reports("roots/upscalers/")
@pytest.mark.parametrize("name", ["plain.pth", "params_ema.pth", "both.pth"])
def test_upscaler(name, mount):
    spandrel = pytest.importorskip("spandrel")
    path = f"roots/upscalers/{name}"
    actual = spandrel.ModelLoader().load_from_file(derived(mount / path))
    original = spandrel.ModelLoader().load_from_file(REPORTS / path)
    assert actual.architecture.id == original.architecture.id
    assert wanted(actual.model.state_dict()) == wanted(original.model.state_dict())
    loaded = load(path)
    assert found(derived(mount / path)) == wanted(loaded.get("params_ema", loaded))


@reports("roots/embeddings/")
@pytest.mark.parametrize("name", ["easyx", "easyy", "easyz", "learned_embeds", "sdxl"])
def test_embedding(name, mount):
    suffix = ".bin" if name == "learned_embeds" else ".pt"
    path = f"roots/embeddings/{name}{suffix}"
    value = load(path)
    vectors = {value["name"]: value["string_to_param"]["*"]} if "string_to_param" in value else value
    assert found(derived(mount / path)) == wanted(vectors)
    if len(vectors) > 1:
        # One set for each of two text encoders. Whoever loads it picks one.
        return
    ((token, vector),) = represented(vectors).items()
    reader = embedding_reader(vector.shape[-1])
    reader.load_textual_inversion(str(derived(mount / path)))
    weight = reader.text_encoder.get_input_embeddings().weight
    rows = vector.reshape(-1, vector.shape[-1])
    tokens = [token, *(f"{token}_{index}" for index in range(1, len(rows)))]
    for word, row in zip(tokens, rows, strict=True):
        assert torch.equal(weight[reader.tokenizer.convert_tokens_to_ids(word)], row)


def embedding_reader(width):
    """As much of a diffusers pipeline as reads embeddings."""
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    class Reader(TextualInversionLoaderMixin):
        hf_device_map = None

        def __init__(self):
            pipeline = REPOSITORY / "examples" / "models" / "tiny-stable-diffusion"
            config = CLIPTextConfig.from_pretrained(pipeline / "text_encoder")
            config.hidden_size, config.num_attention_heads = width, 1
            self.tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
            self.text_encoder = CLIPTextModel(config)
            self.components = {"tokenizer": self.tokenizer, "text_encoder": self.text_encoder}

    return Reader()


def other_set(mount, checkpoint, other):
    """The converted form of another set of weights: it can be opened and is not listed, and an attribute names it."""
    path = mount / other
    assert path.name not in os.listdir(path.parent)
    (main,) = [entry for entry in os.listdir(path.parent) if entry.endswith(".safetensors")]
    assert checkpoint.partition(".")[0] == main.partition(".")[0]
    root = other.partition("@")[2].removesuffix(".safetensors")
    assert root in os.getxattr(path.parent / main, "user.stfs.roots").decode()
    tensors = path.with_suffix(".tensors")
    assert sorted(os.listdir(tensors)) == sorted(found(path))
    return path.parent / main, path


@reports("ema/timm/model_best.pth.tar")
def test_timm(mount):
    timm = pytest.importorskip("timm")
    path = "ema/timm/model_best.pth.tar"
    main, ema = other_set(mount, "model_best.pth.tar", "ema/timm/model_best.pth@state_dict_ema.safetensors")
    for use_ema, converted in [(False, main), (True, ema)]:
        original = timm.models.load_state_dict(str(REPORTS / path), use_ema=use_ema, weights_only=False)
        actual = timm.models.load_state_dict(str(converted))
        assert wanted(actual) == wanted(original)


@reports("ema/mm/epoch_1.pth")
def test_mmengine(mount, stfs):
    path = "ema/mm/epoch_1.pth"
    main, ema = other_set(mount, "epoch_1.pth", "ema/mm/epoch_1@ema_state_dict.safetensors")
    assert found(main) == wanted(load(path)["state_dict"])
    assert found(ema) == wanted(load(path)["ema_state_dict"])
    listing = json.loads(stfs.run("ls", "--json", REPORTS / path).stdout)
    rules = {entry["path"]: entry["rule"] for entry in listing["left_out"]}
    assert rules["ema_state_dict"] == "another set of weights"


@reports("index/accelerate_two_models/")
def test_accelerate_two_models(mount):
    from accelerate import Accelerator

    directory = "index/accelerate_two_models"
    originals = [load(f"{directory}/{name}") for name in ["pytorch_model.bin", "pytorch_model_1.bin"]]
    for name, original in zip(["model.safetensors", "model_1.safetensors"], originals, strict=True):
        assert found(mount / directory / name) == wanted(original)
    accelerator = Accelerator(cpu=True)
    models = accelerator.prepare(nn.Linear(2, 2), nn.Linear(2, 2))
    accelerator.load_state(str(mount / directory))
    for model, original in zip(models, originals, strict=True):
        assert wanted(model.state_dict()) == wanted(original)


@reports("index/sub/")
def test_index_of_a_subfolder(mount):
    original = json.loads((REPORTS / "index/sub/pytorch_model.bin.index.json").read_text())
    index = json.loads((mount / "index/sub/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == original["weight_map"].keys()
    for name, shard in index["weight_map"].items():
        state_dict = load(f"index/sub/{original['weight_map'][name]}")
        assert found(mount / "index/sub" / shard)[name] == wanted(state_dict)[name]


# Words that mislead


@reports("texts/collide.pt, tuple.pt, backslash.pt")
@pytest.mark.parametrize("name, words", [
    ("collide.pt", r"`a\.b`"),
    ("tuple.pt", r"\ba\W+b\b"),
    ("backslash.pt", r"\\|backslash"),
])
def test_keys(name, words, mount):
    text = refusal(mount / "texts" / name).replace(name, "it")
    assert re.search(words, text), text
    assert "a type that safetensors has" not in text, "their type is not what is wrong"


@reports("texts/dill.pkl, texts/torch_dill.pt")
@pytest.mark.parametrize("name", ["dill.pkl", "torch_dill.pt"])
def test_dill(name, mount):
    outcome = shown(mount / "texts" / name)
    if is_refused(outcome):
        assert "made to run code" not in outcome
        assert "dill" in outcome.replace(name, "it")
    else:
        assert outcome.keys() == {"model.l.weight", "model.l.bias", "extra"}


@reports("texts/exported_program.pt")
def test_exported_program(mount):
    outcome = shown(mount / "texts/exported_program.pt")
    if is_refused(outcome):
        assert "torch.export" in outcome and "TorchScript" not in outcome
        return
    program = torch.export.load(REPORTS / "texts/exported_program.pt")
    assert outcome == wanted(program.state_dict)


@reports("texts/lfs.safetensors")
def test_lfs_pointer(mount):
    assert is_refused(refusal(mount / "texts/lfs.safetensors"), "git lfs")


@reports("texts/s2G_v2Pro.pth")
def test_changed_zip(mount):
    text = refusal(mount / "texts/s2G_v2Pro.pth")
    assert "download" not in text.lower(), "it is as its authors made it"


@reports("texts/safari/u/")
def test_unzipped_archive(mount):
    text = refusal(mount / "texts/safari/u/data.pkl").lower()
    assert "zip" in text or "unpacked" in text
    assert "download the file again; if it stays like this" not in text, "it would be unpacked again"


def test_every_report_has_a_test():
    with open(MANIFEST, newline="") as file:
        assert {row["path"] for row in csv.DictReader(file, delimiter="\t")} == REPORTED.keys()


def test_expected_values_are_of_weights():
    """Of the rules that this suite restates: a state dict of a quantized module is more than its plain tensors."""
    assert oracle.TIED_TABLES.is_dir()
    names = represented(load("lost-module/whole.pt").state_dict()).keys()
    assert {"0.scale", "0._packed_params._packed_params.0", "0._packed_params._packed_params.1"} <= names
