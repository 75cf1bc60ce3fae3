"""Names that loaders look for, where the pickles have others: each loader finds on the mount what it finds in the
directory, or what it would find if the checkpoint had been saved as safetensors."""

import json

import accelerate
import make_example_models as models
import torch
import transformers


def assert_same_weights(loaded, wanted):
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor), name


def assert_loads(directory):
    """`models.bert` comes out of `directory`. Nothing of it is mapped any more afterwards."""
    loaded = transformers.BertForMaskedLM.from_pretrained(directory, use_safetensors=True)
    assert_same_weights(loaded.state_dict(), models.bert().state_dict())


def test_accelerate_finds_the_second_of_two_models(mounted, tmp_path):
    """`save_state` numbers the models that it was given, and `load_state` takes safetensors where there are some."""

    def prepared(seed):
        torch.manual_seed(seed)
        accelerator = accelerate.Accelerator(cpu=True)
        return accelerator, accelerator.prepare(torch.nn.Linear(3, 2), torch.nn.Linear(4, 5, bias=False))

    accelerator, saved = prepared(0)
    accelerator.save_state(tmp_path / "state", safe_serialization=False)
    assert (tmp_path / "state" / "pytorch_model_1.bin").is_file()

    accelerator, loaded = prepared(1)
    with mounted(tmp_path / "state") as mount_point:
        assert {"model.safetensors", "model_1.safetensors"} <= {path.name for path in mount_point.iterdir()}
        accelerator.load_state(mount_point)
        for model, wanted in zip(loaded, saved, strict=True):
            assert_same_weights(model.state_dict(), wanted.state_dict())


def test_shards_of_bloom(mounted, tmp_path):
    """BLOOM's shards have an underscore before their number. The names are those of convert.py, which replaces
    `pytorch_model` in the names of shards and nothing else."""
    source = tmp_path / "bloom"
    models.save_sharded_bin(models.bert(), source, max_shard_size=24_000)
    index = source / "pytorch_model.bin.index.json"
    for shard in source.glob("pytorch_model-*.bin"):
        shard.rename(shard.with_name(shard.name.replace("-", "_", 1)))
    index.write_text(index.read_text().replace("pytorch_model-", "pytorch_model_"))
    original = json.loads(index.read_text())["weight_map"]

    with mounted(source) as mount_point:
        shown = json.loads((mount_point / "model.safetensors.index.json").read_text())["weight_map"]
        assert shown == {
            name: file.replace("pytorch_model", "model").replace(".bin", ".safetensors")
            for name, file in original.items()
        }
        assert_loads(mount_point)
