"""The libraries that people load models with, each on a checkpoint directory and on its mount.

The same model must come out: the same weights bit for bit, the same outputs, and ties that are still ties.
"""

import json
import os

import make_example_models as models
import numpy
import peft
import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from accelerate import load_checkpoint_in_model
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])


def llama():
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    return models.randomize(transformers.LlamaForCausalLM(config), 11).to(torch.bfloat16)


def t5():
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    return models.randomize(transformers.T5ForConditionalGeneration(config), 12)


def bert_model():
    return models.randomize(transformers.BertModel(models.bert().config), 13)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    models.save_bin(models.gpt2(), root / "gpt2")
    models.save_bin(bert_model(), root / "bert")
    models.save_bin(llama(), root / "llama")
    models.save_bin(t5(), root / "t5")
    models.save_sharded_bin(models.bert(), root / "bert-sharded", max_shard_size=24_000)
    models.save_sharded_bin(llama(), root / "llama-sharded", max_shard_size=4_000)
    models.save_pipeline(root / "pipeline")
    models.lora(models.gpt2()).save_pretrained(root / "lora", safe_serialization=False)
    return root


@pytest.fixture(scope="module")
def mount(source, mounted):
    with mounted(source) as mount_point:
        yield mount_point


def assert_same_weights(loaded, reference):
    loaded, reference = loaded.state_dict(), reference.state_dict()
    assert loaded.keys() == reference.keys()
    for name, tensor in reference.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert torch.equal(loaded[name], tensor), name


def outputs(model):
    inputs = {"input_ids": TOKENS}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = TOKENS[:, :4]
    with torch.no_grad():
        return model(**inputs)[0]


@pytest.mark.parametrize(
    ("directory", "loader", "build"),
    [
        ("gpt2", transformers.GPT2LMHeadModel, models.gpt2),
        ("gpt2", transformers.AutoModelForCausalLM, models.gpt2),
        ("bert", transformers.BertModel, bert_model),
        ("bert-sharded", transformers.BertForMaskedLM, models.bert),
        ("llama", transformers.LlamaForCausalLM, llama),
        ("llama-sharded", transformers.AutoModelForCausalLM, llama),
        ("t5", transformers.T5ForConditionalGeneration, t5),
    ],
)
def test_transformers(directory, loader, build, source, mount):
    saved = build()
    original = loader.from_pretrained(source / directory, dtype="auto").eval()
    shown = loader.from_pretrained(mount / directory, dtype="auto", use_safetensors=True).eval()
    assert_same_weights(original, saved)
    assert_same_weights(shown, saved)
    assert torch.equal(outputs(shown), outputs(original))
    assert torch.equal(outputs(shown), outputs(saved))


@pytest.mark.parametrize(
    ("directory", "loader", "tied"),
    [
        ("gpt2", transformers.GPT2LMHeadModel, ["lm_head.weight", "transformer.wte.weight"]),
        (
            "t5",
            transformers.T5ForConditionalGeneration,
            ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"],
        ),
        (
            "bert-sharded",
            transformers.BertForMaskedLM,
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"],
        ),
    ],
)
def test_ties_stay_tied(directory, loader, tied, source, mount):
    for root in (source, mount):
        state_dict = loader.from_pretrained(root / directory).state_dict()
        assert len({state_dict[name].data_ptr() for name in tied}) == 1, root


def test_no_missing_or_unexpected_keys(mount):
    _, info = transformers.GPT2LMHeadModel.from_pretrained(mount / "gpt2", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_index(source, mount):
    """The index names the converted shards and is otherwise as it was."""
    original = json.loads((source / "bert-sharded" / "pytorch_model.bin.index.json").read_text())
    shown = json.loads((mount / "bert-sharded" / "model.safetensors.index.json").read_text())
    assert shown["metadata"] == original["metadata"]
    assert list(shown["weight_map"]) == list(original["weight_map"])
    for name, shard in original["weight_map"].items():
        assert shown["weight_map"][name] == shard.replace("pytorch_model", "model").replace(".bin", ".safetensors")
        assert (mount / "bert-sharded" / shown["weight_map"][name]).is_file()


def test_tensors_of_all_shards(source, mount):
    """`model.tensors` holds every tensor that some shard holds."""
    directory = mount / "bert-sharded"
    for shard in set(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"].values()):
        for name, tensor in safetensors.torch.load_file(directory / shard).items():
            assert (directory / "model.tensors" / name).read_bytes() == tensor.contiguous().numpy().tobytes()


def test_accelerate(source, mount):
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(mount / "llama-sharded"))
    model = model.to(torch.bfloat16)
    load_checkpoint_in_model(model, str(mount / "llama-sharded"))
    assert_same_weights(model, llama())


def test_diffusers_components(source, mount):
    for directory, loader in [("unet", UNet2DConditionModel), ("vae", AutoencoderKL)]:
        original = loader.from_pretrained(source / "pipeline" / directory)
        shown = loader.from_pretrained(mount / "pipeline" / directory, use_safetensors=True)
        assert_same_weights(shown, original)


def test_diffusers_pipeline(source, mount):
    def image(root, **options):
        pipeline = StableDiffusionPipeline.from_pretrained(root / "pipeline", **options)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline("a", num_inference_steps=2, generator=generator, output_type="np").images

    assert numpy.array_equal(image(mount, use_safetensors=True), image(source))


def test_peft(source, mount):
    original = peft.PeftModel.from_pretrained(models.gpt2(), source / "lora").eval()
    shown = peft.PeftModel.from_pretrained(models.gpt2(), mount / "lora").eval()
    assert_same_weights(shown, original)
    assert torch.equal(outputs(shown), outputs(original))
    assert not torch.equal(outputs(shown), outputs(models.gpt2())), "the adapter must have an effect"


@pytest.fixture(scope="module")
def gpt2_weights(source):
    """What the mounted GPT-2 must hold: every name but the one tied to another."""
    weights = torch.load(source / "gpt2" / "pytorch_model.bin", weights_only=True)
    del weights["lm_head.weight"]
    return weights


def assert_same_tensors(loaded, wanted):
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_load_file(backend, mount, gpt2_weights):
    path = mount / "gpt2" / "model.safetensors"
    assert_same_tensors(safetensors.torch.load_file(path, backend=backend), gpt2_weights)


def test_load_bytes(mount, gpt2_weights):
    data = (mount / "gpt2" / "model.safetensors").read_bytes()
    assert_same_tensors(safetensors.torch.load(data), gpt2_weights)


@pytest.mark.parametrize("framework", ["pt", "numpy"])
def test_safe_open(framework, mount, gpt2_weights):
    with safetensors.safe_open(mount / "gpt2" / "model.safetensors", framework=framework) as file:
        assert file.metadata() == {"format": "pt", "lm_head.weight": "transformer.wte.weight"}
        assert_same_tensors({name: torch.as_tensor(file.get_tensor(name)) for name in file.keys()}, gpt2_weights)
        part = file.get_slice("transformer.h.0.mlp.c_fc.weight")[3:7, 5:]
        assert torch.equal(torch.as_tensor(part), gpt2_weights["transformer.h.0.mlp.c_fc.weight"][3:7, 5:])


def test_torch_load(mount, gpt2_weights):
    """torch.load itself knows the extension."""
    assert_same_tensors(torch.load(mount / "gpt2" / "model.safetensors"), gpt2_weights)


@pytest.mark.parametrize("read", [numpy.fromfile, lambda *a, **k: numpy.memmap(*a, mode="r", **k)])
def test_numpy(read, mount, gpt2_weights):
    for name, tensor in gpt2_weights.items():
        path = mount / "gpt2" / "model.tensors" / name
        assert os.getxattr(path, "user.stfs.dtype") == b"F32"
        shape = json.loads(os.getxattr(path, "user.stfs.shape"))
        array = read(path, dtype="<f4").reshape(shape)
        assert numpy.array_equal(array, tensor.numpy()), name
