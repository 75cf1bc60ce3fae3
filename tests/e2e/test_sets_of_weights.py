"""Which of the values in a file are its weights, what they are called, and how the other sets in it are reached.

Expected values are those of the libraries that write such files: Real-ESRGAN and spandrel, A1111 and diffusers, timm.
"""

import json
import os
import types

import numpy
import oracle
import pytest
import torch
from conftest import REPOSITORY, derived
from torch import nn
from written import converted, found, wanted

pytestmark = pytest.mark.filterwarnings("ignore")


def layer():
    return nn.Linear(2, 3).state_dict()


def trained():
    """The state of an optimizer that has taken a step."""
    module = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def random_states():
    return {"torch": torch.get_rng_state(), "numpy": numpy.random.get_state(), "python": (3, (1, 2), None)}


SET, OTHER = layer(), layer()

# The value of the file, the dotted path of what is taken ("" for everything), and what is taken.
VALUES = {
    "plain": (SET, "", SET),
    "state_dict": ({"state_dict": SET, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, "state_dict", SET),
    "lightning": ({"state_dict": SET, "optimizer_states": [trained()], "loops": {"n": 1}}, "state_dict", SET),
    "model": ({"model": SET, "epoch": 3}, "model", SET),
    "with an optimizer": (
        {"model_state_dict": SET, "optimizer_state_dict": trained(), "loss": 0.5},
        "model_state_dict",
        SET,
    ),
    "with a configuration": ({"weight": SET, "config": [1, "x"], "sr": "40k", "f0": 1}, "weight", SET),
    "module": ({"module": SET, "ds_version": "0.15"}, "module", SET),
    "deep": ({"app": {"model": {"net": SET}, "step": 7}, "note": "x"}, "app.model.net", SET),
    "with random states": ({"model": SET, "rng_state": random_states()}, "model", SET),
    "composer": (
        {"state": {"model": SET, "optimizers": {"AdamW": trained()}, "run_name": "x"}, "rng": [random_states()]},
        "state.model",
        SET,
    ),
    "fastai": ({"model": SET, "opt": {"state": [{"sqr_avg": torch.ones(3)}], "hypers": [{"lr": 1}]}}, "model", SET),
    "params": ({"params": SET}, "params", SET),
    "params_ema": ({"params_ema": SET}, "params_ema", SET),
    "params and params_ema": ({"params": OTHER, "params_ema": SET}, "params_ema", SET),
    "side by side": ({"generator": SET, "discriminator": OTHER}, "", {"generator": SET, "discriminator": OTHER}),
    "side by side below": (
        {"model": {"encoder": SET, "decoder": OTHER}, "n": 1},
        "model",
        {"encoder": SET, "decoder": OTHER},
    ),
    "beside a tensor": ({"model": SET, "mean": OTHER["bias"]}, "", {"model": SET, "mean": OTHER["bias"]}),
    "list": ({"weights": [SET["weight"], OTHER["bias"]], "n": 1}, "", {"weights": [SET["weight"], OTHER["bias"]]}),
    "state_dict that is no dictionary": ({"state_dict": [OTHER["bias"]], "n": 1}, "", {"state_dict": [OTHER["bias"]]}),
}



@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_is_taken(case, zipped, stfs, tmp_path):
    value, root, weights = VALUES[case]
    torch.save(value, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    assert converted(stfs, tmp_path / "m.pt") == wanted(weights)
    # What was taken can be undone, but for what Hugging Face's own converter takes without a word.
    metadata = oracle.metadata_of((tmp_path / "m.pt.converted.safetensors").read_bytes())
    if root not in ("", "state_dict"):
        assert root in metadata["stfs"]


@pytest.mark.parametrize("case", VALUES)
def test_root_comes_first(case, stfs, tmp_path):
    value, _, _ = VALUES[case]
    torch.save({"chosen": OTHER, "file": value}, tmp_path / "m.pt")
    assert converted(stfs, tmp_path / "m.pt", "--root", "chosen") == wanted(OTHER)


def test_whole_module_beside_its_optimizer(stfs, tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.save({"model": module, "ema": None, "optimizer": trained(), "epoch": 3}, tmp_path / "m.pt")
    assert converted(stfs, tmp_path / "m.pt") == wanted(module.state_dict())


# The other sets


@pytest.fixture
def two_sets(tmp_path):
    """A checkpoint with an averaged copy, written by timm itself."""
    pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema = ModelEmaV3(module)
    with torch.no_grad():
        ema.module[0].weight.add_(1)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    arguments = types.SimpleNamespace(model="tiny")
    saver = CheckpointSaver(module, optimizer, args=arguments, model_ema=ema, checkpoint_dir=str(tmp_path))
    saver.save_checkpoint(0, metric=0.5)
    for name in ["last.pth.tar", "checkpoint-0.pth.tar"]:
        (tmp_path / name).unlink()
    return tmp_path / "model_best.pth.tar"


def test_timm(two_sets, mounted):
    from timm.models import load_state_dict

    with mounted(two_sets.parent) as mount_point:
        (main,) = [name for name in os.listdir(mount_point) if name.endswith(".safetensors")]
        averaged = mount_point / "model_best.pth@state_dict_ema.safetensors"
        for use_ema, path in [(False, mount_point / main), (True, averaged)]:
            original = load_state_dict(str(two_sets), use_ema=use_ema, weights_only=False)
            assert wanted(load_state_dict(str(path))) == wanted(original)
        assert "state_dict_ema" in os.getxattr(mount_point / main, "user.stfs.roots").decode()


OTHERS = {
    "timm": ({"state_dict": SET, "state_dict_ema": OTHER, "epoch": 1}, "state_dict_ema"),
    "mmengine": (
        {"state_dict": SET, "ema_state_dict": {**OTHER, "steps": torch.tensor(4)}, "meta": {}},
        "ema_state_dict",
    ),
    "upscaler": ({"params_ema": SET, "params": OTHER}, "params"),
    "lightning's average": ({"state_dict": SET, "callbacks": {"EMA": {"weights": OTHER}}}, "callbacks"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_set(case, stfs, mounted, tmp_path):
    value, root = OTHERS[case]
    torch.save(value, tmp_path / "m.pt")
    listing = json.loads(stfs.run("ls", "--json", tmp_path / "m.pt").stdout)
    (entry,) = listing["left_out"]
    assert (entry["path"], entry["rule"]) == (root, "another set of weights")
    assert entry["bytes"] == sum(tensor.nbytes for tensor in tensors_in(value[root]))
    with mounted(tmp_path) as mount_point:
        # What is listed is what a loader of all files may read: no model twice.
        assert sorted(os.listdir(mount_point)) == ["m.safetensors", "m.tensors"]
        assert found(mount_point / "m.safetensors") == wanted(SET)
        other = mount_point / f"m@{root}.safetensors"
        assert contents_of(found(other)) == contents_of(wanted(value[root]))
        tensors = mount_point / f"m@{root}.tensors"
        assert sorted(os.listdir(tensors)) == sorted(found(other))
        assert root in os.getxattr(mount_point / "m.safetensors", "user.stfs.roots").decode()
        assert not (mount_point / "m@nowhere.safetensors").exists()
    # By its path alone it is named from there, as a file of its own would be.
    assert found(converted_root(stfs, tmp_path / "m.pt", root)) == wanted(value[root])


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value.values() for tensor in tensors_in(item)]


def contents_of(digests):
    return sorted(digests.values())


def converted_root(stfs, path, root):
    target = path.with_name("root.safetensors")
    stfs.run("convert", "--root", root, path, target)
    return target


# Loaders that would not take what a plain walk gives


def upscaler():
    """Real-ESRGAN's compact network, which spandrel knows by its names."""
    body = [nn.Conv2d(3, 8, 3, 1, 1), nn.PReLU(8), nn.Conv2d(8, 8, 3, 1, 1), nn.PReLU(8), nn.Conv2d(8, 12, 3, 1, 1)]
    module = nn.Module()
    module.body = nn.ModuleList(body)
    return module.state_dict()


UPSCALERS = {
    "plain": lambda weights, other: weights,
    "params": lambda weights, other: {"params": weights},
    "params_ema": lambda weights, other: {"params_ema": weights},
    "both": lambda weights, other: {"params": other, "params_ema": weights},
}


@pytest.mark.parametrize("kind", UPSCALERS)
def test_upscaler(kind, mounted, tmp_path):
    spandrel = pytest.importorskip("spandrel")
    weights = upscaler()
    torch.save(UPSCALERS[kind](weights, upscaler()), tmp_path / "x2.pth")
    original = spandrel.ModelLoader().load_from_file(tmp_path / "x2.pth")
    with mounted(tmp_path) as mount_point:
        actual = spandrel.ModelLoader().load_from_file(derived(mount_point / "x2.pth"))
    assert actual.architecture.id == original.architecture.id == "Compact"
    assert wanted(actual.model.state_dict()) == wanted(original.model.state_dict()) == wanted(weights)


def pipeline():
    from diffusers import StableDiffusionPipeline

    path = REPOSITORY / "examples" / "models" / "tiny-stable-diffusion"
    return StableDiffusionPipeline.from_pretrained(path, safety_checker=None)


def automatic(vectors, token):
    return {
        "string_to_token": {"*": token},
        "string_to_param": {"*": vectors},
        "name": "my-style",
        "step": 100,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": None,
    }


def automatic_module(vectors):
    value = automatic(vectors, torch.tensor(265))
    value["string_to_param"] = nn.ParameterDict({"*": nn.Parameter(vectors)})
    return value


EMBEDDINGS = {
    "token is a tensor": lambda vectors: automatic(vectors, torch.tensor(265)),
    "token is a number": lambda vectors: automatic(vectors, 265),
    "parameters of a module": automatic_module,
    "diffusers": lambda vectors: {"my-style": vectors},
}


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("count", [1, 2])
def test_embedding(kind, count, mounted, tmp_path):
    """Textual inversion: one tensor, named as the embedding is. diffusers registers that name as its word."""
    pipe = pipeline()
    vectors = torch.randn(count, pipe.text_encoder.config.hidden_size)
    torch.save(EMBEDDINGS[kind](vectors), tmp_path / "some-file.pt")
    with mounted(tmp_path) as mount_point:
        path = derived(mount_point / "some-file.pt")
        assert found(path) == wanted({"my-style": vectors})
        pipe.load_textual_inversion(str(path))
    weight = pipe.text_encoder.get_input_embeddings().weight
    for index, row in enumerate(vectors):
        word = f"my-style_{index}" if index else "my-style"
        assert torch.equal(weight[pipe.tokenizer.convert_tokens_to_ids(word)], row)


def test_token_of_an_embedding_is_said_to_be_left_out(stfs, tmp_path):
    torch.save(automatic(torch.ones(2, 8), torch.tensor(265)), tmp_path / "m.pt")
    listing = json.loads(stfs.run("ls", "--json", tmp_path / "m.pt").stdout)
    assert [entry["rule"] for entry in listing["left_out"]] == ["token of an embedding"]


def test_embedding_for_two_encoders(stfs, tmp_path):
    """SDXL's: both are there, and whoever loads them picks."""
    value = {"clip_g": torch.randn(2, 8), "clip_l": torch.randn(2, 4)}
    torch.save(value, tmp_path / "m.pt")
    assert converted(stfs, tmp_path / "m.pt") == wanted(value)
