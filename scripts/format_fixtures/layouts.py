"""torch.save as the well-known projects use it: where the weights are, and what lies beside them."""

from argparse import Namespace
from collections import OrderedDict

import torch
from torch import nn

from fixture import Fixtures

FIXTURES = Fixtures(f"torch.load(weights_only=False) of torch {torch.__version__.split('+')[0]}")


def save(name, about, value, roots=(), legacy=False, **weights):
    path = FIXTURES.path(name)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    loaded = torch.load(path, weights_only=False)
    FIXTURES.expect(name, about, loaded, **weights)
    for root in roots:
        FIXTURES.expect(name, f"{about}: {root}", loaded, root)


def weights(*names):
    return OrderedDict((name, torch.randn(2, 3)) for name in names)


def adam(parameters):
    state = {index: {"step": 1, "exp_avg": torch.zeros_like(p)} for index, p in enumerate(parameters.values())}
    return {"state": state, "param_groups": [{"lr": 0.1, "params": [*range(len(parameters))]}]}


def main():
    torch.manual_seed(6)
    model = weights("encoder.version", "encoder.layers.0.fc1.weight")
    fairseq = {
        "args": Namespace(arch="transformer", lr=[0.1]),
        "cfg": None,
        "model": model,
        "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": 1.5}}],
        "extra_state": {"epoch": 2, "metrics": [("default", "loss", {"sum": torch.tensor(3.0), "round": 3})]},
        "last_optimizer_state": adam(model),
    }
    save("fairseq.pt", "fairseq", fairseq, roots=["model"], legacy=True)
    timm = {
        "epoch": 3,
        "arch": "resnet18",
        "state_dict": weights("module.conv1.weight", "module.fc.weight"),
        "state_dict_ema": weights("conv1.weight", "fc.weight"),
        "optimizer": adam(model),
        "args": Namespace(model="resnet18", opt="adam"),
        "amp_scaler": {"scale": 65536.0},
    }
    save("timm.pth", "timm's training script", timm, roots=["state_dict_ema"])
    whisper = {"dims": {"n_mels": 80}, "model_state_dict": weights("encoder.conv1.weight")}
    save("whisper.pt", "Whisper", whisper, weights="model_state_dict")
    save("sam.pth", "SAM: flat", weights("image_encoder.pos_embed", "mask_decoder.iou_token.weight"))
    esrgan = {"params": weights("conv_first.weight"), "params_ema": weights("conv_first.weight")}
    save("esrgan.pth", "ESRGAN", esrgan, roots=["params_ema"], weights="params_ema")
    halves = {name: tensor.half() for name, tensor in weights("enc_p.emb_phone.weight").items()}
    rvc = {"weight": halves, "config": [1025, [3, 7]], "info": "20epoch", "sr": "40k", "f0": 1}
    save("rvc.pth", "RVC", rvc, weights="weight")
    deepspeed = {
        "module": weights("transformer.wte.weight", "transformer.h.0.ln_1.weight"),
        "buffer_names": ["transformer.h.0.attn.bias"],
        "optimizer": None,
        "param_shapes": [OrderedDict({"transformer.wte.weight": torch.Size([2, 3])})],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": {"last_batch_iteration": 1},
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 2,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 1}},
        "ds_version": "0.14.0",
    }
    about = "DeepSpeed, ZeRO stage 1"
    save("deepspeed-mp_rank_00_model_states.pt", about, deepspeed, roots=["module"], weights="module")
    embedding = {"string_to_token": {"*": 265}, "name": "style", "step": 99}
    inversion = {"weights": "string_to_param", "called": "style"}
    a1111 = {**embedding, "string_to_param": {"*": torch.randn(2, 8)}}
    save("a1111-embedding.pt", "an embedding of A1111", a1111, **inversion)
    parameters = nn.ParameterDict({"*": torch.randn(2, 8)})
    about = "an embedding of textual inversion"
    save("textual-inversion.pt", about, {**embedding, "string_to_param": parameters}, **inversion)
    nested = {"generator": {"blocks": [weights("w"), weights("w")]}, "discriminator": None, "iteration": 3}
    roots = ["generator", "generator.blocks.1"]
    save("gan.pt", "networks in dictionaries and lists", nested, roots=roots, weights="generator")


main()
