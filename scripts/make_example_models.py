#!/usr/bin/env python3
"""Writes examples/models: model directories as users have them, small and with random weights.

    scripts/make_example_models.py [DIRECTORY]

Every model is a real architecture of its library, saved in the layout that library used for pickle
checkpoints. The seeds are fixed: the same library versions write the same bytes.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import split_torch_state_dict_into_shards

DEFAULT_DIRECTORY = Path(__file__).resolve().parent.parent / "examples" / "models"


def randomize(model, seed):
    """Random normal weights, so that no tensor is recognisable by being zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=32, n_embd=24, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return randomize(transformers.GPT2LMHeadModel(config), 1)


def bert():
    config = transformers.BertConfig(
        vocab_size=128,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    return randomize(transformers.BertForMaskedLM(config), 2)


def clip_text():
    config = transformers.CLIPTextConfig(
        vocab_size=514,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=16,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return randomize(transformers.CLIPTextModel(config), 3)


def unet():
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return randomize(model, 4)


def vae():
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return randomize(model, 5)


def clip_tokenizer(directory):
    """A tokenizer of single bytes: CLIP's alphabet without merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = list(bytes_to_unicode().values())
    pieces = alphabet + [piece + "</w>" for piece in alphabet] + ["<|startoftext|>", "<|endoftext|>"]
    directory.mkdir(parents=True)
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    (directory / "vocab.json").write_text(json.dumps(vocabulary) + "\n")
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}, indent=2) + "\n"
    )


def save_bin(model, directory):
    """What transformers' save_pretrained wrote before safetensors: every name of a tied tensor is in the file."""
    directory.mkdir(parents=True, exist_ok=True)
    save_configs(model, directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def save_sharded_bin(model, directory, max_shard_size):
    """The same in several shards with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    save_configs(model, directory)
    state_dict = model.state_dict()
    split = split_torch_state_dict_into_shards(
        state_dict, filename_pattern="pytorch_model{suffix}.bin", max_shard_size=max_shard_size
    )
    for filename, names in split.filename_to_tensors.items():
        torch.save({name: state_dict[name] for name in names}, directory / filename)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (directory / "pytorch_model.bin.index.json").write_text(text)


def save_configs(model, directory):
    """config.json, and generation_config.json of a model that generates."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def save_pipeline(directory):
    """A Stable Diffusion pipeline: one checkpoint per component."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    clip_tokenizer(directory / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(directory / "tokenizer"),
        unet=unet(),
        scheduler=DDIMScheduler(num_train_timesteps=100, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_config(directory)
    pipeline.scheduler.save_pretrained(directory / "scheduler")
    pipeline.unet.save_pretrained(directory / "unet", safe_serialization=False)
    pipeline.vae.save_pretrained(directory / "vae", safe_serialization=False)
    save_bin(pipeline.text_encoder, directory / "text_encoder")


def lora(base):
    import peft

    base.name_or_path = base.config._name_or_path = "tiny-gpt2"
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True)
    torch.manual_seed(6)
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1, generator=generator)
    return model.eval()


def save_lightning(path):
    """A training framework's checkpoint: the weights beside the state of the training."""
    generator = torch.Generator().manual_seed(7)
    weights = {
        "model.layer.weight": torch.randn(16, 8, generator=generator),
        "model.layer.bias": torch.randn(16, generator=generator),
        "model.scale": torch.randn((), generator=generator).to(torch.bfloat16),
    }
    torch.save({"epoch": 3, "global_step": 1200, "state_dict": weights, "hyper_parameters": {"lr": 1e-3}}, path)


def save_optimizer(model, path):
    """What the Trainer leaves beside a checkpoint: tensors, but no weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    torch.save(optimizer.state_dict(), path)


class RunsACommand:
    """Unpickled by torch.load(weights_only=False), this runs a shell command."""

    def __reduce__(self):
        return os.system, ("echo stfs-must-never-run-this",)


def save_evil(path):
    generator = torch.Generator().manual_seed(8)
    torch.save({"weight": torch.randn(4, 4, generator=generator), "payload": RunsACommand()}, path)


def main():
    diffusers_logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_DIRECTORY
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)

    save_bin(gpt2(), directory / "tiny-gpt2")
    save_optimizer(gpt2(), directory / "tiny-gpt2" / "optimizer.pt")
    save_sharded_bin(bert(), directory / "tiny-bert-sharded", max_shard_size=24_000)
    save_pipeline(directory / "tiny-stable-diffusion")
    adapter = directory / "tiny-gpt2-lora"
    lora(gpt2()).save_pretrained(adapter, safe_serialization=False)
    (adapter / "README.md").unlink(missing_ok=True)
    clip_text().save_pretrained(directory / "tiny-clip-native")
    save_lightning(directory / "checkpoint.ckpt")
    save_evil(directory / "evil.bin")


if __name__ == "__main__":
    main()
