"""What training leaves behind beside the weights, as trainers write it: it is no weights, and it hides none."""

import json
import os
import pickle
import random

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import derived, refusal
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import get_state_dict
from written import converted, found, is_refused, shown, wanted

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(kind=torch.optim.AdamW, **options):
    """A module and an optimizer that has taken a step on it."""
    module = nn.Sequential(nn.Linear(4, 4))
    optimizer = kind(module.parameters(), **options)

    def loss():
        optimizer.zero_grad()
        value = module(torch.randn(2, 4)).square().sum()
        value.backward()
        return value

    for _ in range(2):
        optimizer.step(loss)
    return module, optimizer


def random_states():
    return {
        "random_rng_state": random.getstate(),
        "np_rng_state": numpy.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "cuda_rng_state": torch.get_rng_state(),
        "rng_tracker_states": {"model-parallel-rng": torch.get_rng_state()},
    }


OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True}),
    "adafactor": (torch.optim.Adafactor, {}),
    "lbfgs": (torch.optim.LBFGS, {}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_under_any_name(kind, stfs, tmp_path):
    module, optimizer = trained(OPTIMIZERS[kind][0], **OPTIMIZERS[kind][1])
    torch.save({"net": module.state_dict(), "thing": optimizer.state_dict(), "epoch": 3}, tmp_path / "m.pt")
    assert converted(stfs, tmp_path / "m.pt") == wanted(module.state_dict())
    listing = json.loads(stfs.run("ls", "--json", tmp_path / "m.pt").stdout)
    assert [(entry["path"], entry["rule"]) for entry in listing["left_out"]] == [("thing", "optimizer state")]


def megatron():
    module, optimizer = trained()
    value = {
        "args": numpy.float64(1),
        "checkpoint_version": 3.0,
        "iteration": 10,
        "model": {"language_model": {"encoder": module.state_dict()}},
        "optimizer": {
            "optimizer": optimizer.state_dict(),
            "grad_scaler": {"scale": torch.ones(1)},
            "fp32_from_fp16_params": [[torch.ones(2)]],
        },
        "opt_param_scheduler": {"max_lr": 0.1},
        "rng_state": [random_states()],
    }
    return value, module.state_dict()


def composer():
    module, optimizer = trained()
    state = {"model": module.state_dict(), "optimizers": {"AdamW": optimizer.state_dict()}, "run_name": "x"}
    rng = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    return {"state": state, "rng": [rng]}, module.state_dict()


def fastai():
    module, _ = trained()
    moments = [{"grad_avg": torch.ones(4, 4), "sqr_avg": torch.ones(4, 4), "step": 4}]
    return {"model": module.state_dict(), "opt": {"state": moments, "hypers": [{"lr": 0.001}]}}, module.state_dict()


def recipe():
    module, optimizer = trained()
    model, optim = get_state_dict(module, optimizer)
    return {"app": {"model": model, "optim": optim}}, module.state_dict()


def zero_2():
    """DeepSpeed below stage 3: the weights are whole, and the shapes of the parameters say so."""
    module, _ = trained()
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    value = {
        "module": module.state_dict(),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": {},
        "ds_config": {},
        "ds_version": "0.15.0",
    }
    return value, module.state_dict()


@pytest.mark.parametrize("program", [megatron, composer, fastai, recipe, zero_2])
def test_training_checkpoint(program, stfs, tmp_path):
    value, weights = program()
    torch.save(value, tmp_path / "model_optim_rng.pt")
    assert converted(stfs, tmp_path / "model_optim_rng.pt") == wanted(weights)


# Files of nothing else, and the names that they usually have

STATES = {
    "optimizer.pt": lambda: trained()[1].state_dict(),
    "optimizer.bin": lambda: trained()[1].state_dict(),
    "optimizer_1.bin": lambda: trained()[1].state_dict(),
    "last.pth": lambda: trained()[1].state_dict(),
    "opt_stage-1.pth": lambda: fastai()[0]["opt"],
    "rng_state.pth": lambda: {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "cpu": torch.get_rng_state(),
    },
    "rng_state_3.pth": lambda: {"cpu": torch.get_rng_state(), "cuda": torch.get_rng_state()},
    "random_states_0.pkl": lambda: {
        "step": 1,
        "random_state": random.getstate(),
        "numpy_random_seed": numpy.random.get_state(),
        "torch_manual_seed": torch.get_rng_state(),
    },
    "rng.pt": random_states,
    "scheduler.pt": lambda: torch.optim.lr_scheduler.StepLR(trained()[1], 5).state_dict(),
    "scaler.pt": lambda: {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 0},
    "sampler.bin": lambda: {"epoch": 3, "seed": 7},
    "training_args.bin": lambda: {"learning_rate": 0.1, "output_dir": "x"},
    "custom_checkpoint_0.pkl": lambda: {"steps": 4},
}


@pytest.mark.parametrize("name", STATES)
def test_no_weights(name, mounted, stfs, tmp_path):
    torch.save(STATES[name](), tmp_path / name)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "pytorch_model.bin")
    with mounted(tmp_path) as mount_point:
        assert sorted(os.listdir(mount_point)) == ["model.safetensors", "model.tensors"]
        assert not derived(mount_point / name).exists()
    outcome = converted(stfs, tmp_path / name)
    assert is_refused(outcome, "nothing needs to be done")


@pytest.mark.parametrize("name", [*STATES, "model_optim_rng.pt"])
def test_weights_under_the_name_of_something_else(name, mounted, tmp_path):
    weights = {"net.weight": torch.randn(4, 4)}
    torch.save(weights, tmp_path / name)
    with mounted(tmp_path) as mount_point:
        assert found(derived(mount_point / name)) == wanted(weights)


@pytest.mark.parametrize("name", ["scaler.pkl", "sampler.pkl", "custom_checkpoint_0.pkl"])
def test_arrays_under_the_name_of_something_else(name, mounted, tmp_path):
    """A fitted normaliser, say."""
    weights = {"mean": numpy.arange(3.0), "std": numpy.ones(3)}
    (tmp_path / name).write_bytes(pickle.dumps(weights))
    with mounted(tmp_path) as mount_point:
        expected = wanted({key: torch.from_numpy(array) for key, array in weights.items()})
        assert found(derived(mount_point / name)) == expected


# Distributed checkpoints


def save(value, directory):
    dcp.save(value, checkpoint_id=directory)


def test_recipe(mounted, stfs, tmp_path):
    """PyTorch's own, and what `dcp_to_torch_save` makes of it: the model alone, under the same names."""
    value, weights = recipe()
    save(value, tmp_path / "checkpoint")
    dcp_to_torch_save(tmp_path / "checkpoint", tmp_path / "merged.pt")
    assert wanted(torch.load(tmp_path / "merged.pt", weights_only=False)["app"]["model"]) == wanted(weights)
    with mounted(tmp_path) as mount_point:
        assert found(mount_point / "checkpoint" / "model.safetensors") == wanted(weights)
        assert found(mount_point / "merged.safetensors") == wanted(weights)


def test_weights_at_the_top(mounted, tmp_path):
    """As torchtitan has them: the names of the model are at the top, beside the names of everything else."""
    module, optimizer = trained()
    weights, moments = get_state_dict(module, optimizer)
    value = {**weights, "optimizer": moments, "rng": torch.get_rng_state(), "step": 5, "train_state": {"step": 5}}
    save(value, tmp_path / "step-5")
    with mounted(tmp_path) as mount_point:
        assert found(mount_point / "step-5" / "model.safetensors") == wanted(module.state_dict())


def test_accelerate_with_fsdp(mounted, tmp_path):
    """Its own tool gives the inner names; the optimizer has a directory of its own."""
    from accelerate.utils import merge_fsdp_weights

    module, optimizer = trained()
    weights, moments = get_state_dict(module, optimizer)
    save({"model": weights}, tmp_path / "source" / "pytorch_model_fsdp_0")
    save({"optimizer": moments}, tmp_path / "source" / "optimizer_0")
    merge_fsdp_weights(str(tmp_path / "source" / "pytorch_model_fsdp_0"), str(tmp_path / "merged"))
    with mounted(tmp_path / "source") as mount_point:
        model = found(mount_point / "pytorch_model_fsdp_0" / "model.safetensors")
        assert model == found(tmp_path / "merged" / "model.safetensors")
        assert os.listdir(mount_point / "optimizer_0") == []


def test_accelerate_with_two_models(mounted, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    originals = accelerator.prepare(nn.Linear(2, 2), nn.Linear(2, 2))
    accelerator.save_state(str(tmp_path / "state"), safe_serialization=False)
    assert (tmp_path / "state" / "pytorch_model_1.bin").exists()
    fresh = Accelerator(cpu=True)
    models = fresh.prepare(nn.Linear(2, 2), nn.Linear(2, 2))
    with mounted(tmp_path / "state") as mount_point:
        listed = sorted(path.name for path in mount_point.glob("*.safetensors"))
        assert listed == ["model.safetensors", "model_1.safetensors"]
        fresh.load_state(str(mount_point))
    for model, original in zip(models, originals, strict=True):
        assert wanted(model.state_dict()) == wanted(original.state_dict())


# DeepSpeed's stage 3


def zero_3():
    """What the first of two ranks writes: the weights are flat, in parts, beside the optimizer's moments."""
    shapes = {"lin.weight": torch.Size([4, 4]), "lin.bias": torch.Size([4])}
    model = {
        "module": {name: torch.empty(0, dtype=torch.float16) for name in shapes},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": {},
        "ds_config": {"zero_optimization": {"stage": 3}},
        "ds_version": "0.15.0",
    }
    flat = torch.randn(10)
    states = {0: {"step": 1, "exp_avg": torch.ones(10), "exp_avg_sq": torch.ones(10)}}
    optimizer = {
        "zero_stage": 3,
        "loss_scaler": None,
        "fp32_flat_groups": [flat],
        "optimizer_state_dict": {"state": states, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "partition_count": 2,
    }
    return model, {"optimizer_state_dict": optimizer, "ds_config": {}, "ds_version": "0.15.0"}


def test_zero_3(mounted, tmp_path):
    model, optimizer = zero_3()
    torch.save(model, tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    torch.save(optimizer, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with mounted(tmp_path) as mount_point:
        assert is_refused(refusal(mount_point / "zero_pp_rank_0_mp_rank_00_model_states.pt"), "zero_to_fp32.py")
        # Its flat groups are the weights.
        assert is_refused(refusal(mount_point / "zero_pp_rank_0_mp_rank_00_optim_states.pt"), "zero_to_fp32.py")


def test_parameter_that_is_empty(mounted, tmp_path):
    """A shape that says so is no placeholder's."""
    weights = {"a": torch.randn(2), "b": torch.empty(0, 3)}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    torch.save({"module": weights, "param_shapes": [shapes], "ds_version": "0.15.0"}, tmp_path / "m.pt")
    with mounted(tmp_path) as mount_point:
        assert shown(mount_point / "m.pt") == wanted(weights)
