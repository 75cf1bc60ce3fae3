"""Names that loaders look for, where the pickles have others: each loader finds on the mount what it finds in the
directory, or what it would find if the checkpoint had been saved as safetensors."""

import json
import time

import accelerate
import make_example_models as models
import safetensors
import torch
import transformers

# For so long the kernel may go on with what it was told.
STALE_S = 1.5


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


def shards_in_a_subfolder(source):
    models.save_sharded_bin(models.bert(), source, max_shard_size=24_000)
    (source / "all" / "shards").mkdir(parents=True)
    for shard in source.glob("pytorch_model-*.bin"):
        shard.rename(source / "all" / "shards" / shard.name)
    index = source / "pytorch_model.bin.index.json"
    text = json.loads(index.read_text())
    text["weight_map"] = {name: f"all/shards/{file}" for name, file in text["weight_map"].items()}
    index.write_text(json.dumps(text))


def weight_map(directory):
    return json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]


def assert_every_name_opens(directory):
    for name, file in weight_map(directory).items():
        with safetensors.safe_open(directory / file, "pt") as opened:
            assert name in opened.keys() or name in opened.metadata()


def test_shards_in_a_subfolder(mounted, tmp_path):
    source = tmp_path / "model"
    shards_in_a_subfolder(source)
    with mounted(source) as mount_point:
        assert_every_name_opens(mount_point)
        assert_loads(mount_point)
        tensors = {path.name for path in (mount_point / "model.tensors").iterdir()}
        assert tensors == {
            path.name for directory in (mount_point / "all" / "shards").glob("*.tensors") for path in directory.iterdir()
        }


def test_a_change_in_the_subfolder_shows_in_the_index(mounted, tmp_path):
    """Nobody has looked at the directory that changes but for the index, which lies in another one."""
    source = tmp_path / "model"
    shards_in_a_subfolder(source)
    first = min((source / "all" / "shards").iterdir())
    converted = first.stem.removeprefix("pytorch_")
    with mounted(source) as mount_point:
        list(mount_point.iterdir())
        assert f"all/shards/{converted}.safetensors" in weight_map(mount_point).values()
        # Another checkpoint that would get the same name.
        torch.save({}, first.with_name(f"{converted}.pt"))
        time.sleep(STALE_S)
        assert f"all/shards/{first.name}.safetensors" in weight_map(mount_point).values()
        assert_every_name_opens(mount_point)
    with mounted(source) as mount_point:
        list(mount_point.iterdir())
        assert (mount_point / "model.tensors").exists()
        first.unlink()
        time.sleep(STALE_S)
        assert not (mount_point / "model.tensors").exists()
