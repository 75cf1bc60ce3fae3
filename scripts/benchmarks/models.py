"""The checkpoints that are measured: true shapes, random weights, made once and kept.

`--scale` makes all of them smaller, to see that the benchmark works; each scale has files of its own.
"""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import oracle
import torch
from bombs import deflate, halves_of_bytes, save_bomb

DIRECTORIES, PER_DIRECTORY = 1_000, 10
LLAMA_SIZE = 4e9
# What is left free on the disk when a model is made.
SPARE = 1e9


@dataclass
class Model:
    """A directory with pickle checkpoints, another with the same weights as safetensors files, if there is one."""

    title: str
    source: Path
    checkpoints: list[Path]
    native: list[Path]

    @property
    def size(self):
        return sum(path.stat().st_size for path in self.checkpoints)

    def shown(self, mount_point):
        return [mount_point / path.name for path in self.native]

    def describe(self):
        return f"{self.title}, {self.size / 1e6:,.0f} MB"


class Models:
    def __init__(self, directory, scale):
        self.directory = directory if scale == 1 else directory / f"scale-{scale:g}"
        self.scale = scale

    def scaled(self, count, least):
        return max(least, round(count * self.scale))

    def gpt2(self):
        """The shapes of openai-community/gpt2 in float32: 548 MB in 160 tensors."""
        return self._single("gpt2", "GPT-2 in float32", gpt2_shapes(self.scaled(12, 1), self.scaled(50257, 500)))

    def small_tensors(self, count):
        count = self.scaled(count, 10)
        names = (f"model.layers.{index // 8}.part{index % 8}.weight" for index in range(count))
        return self._single(f"tensors-{count}", f"{count:,} small tensors", dict.fromkeys(names, (4, 4)))

    def llama(self):
        """A Llama of 2e9 parameters in bfloat16: 4 GB in two shards, with what from_pretrained needs."""
        source, native = self.directory / "llama", self.directory / "llama-native"
        shards = [f"model-{number:05}-of-00002" for number in (1, 2)]
        model = Model(
            "Llama in bfloat16, two shards",
            source,
            [source / f"pytorch_{shard}.bin" for shard in shards],
            [native / f"{shard}.safetensors" for shard in shards],
        )
        if not source.exists():
            with being_made(source, LLAMA_SIZE * self.scale) as directory:
                write_llama(directory, [path.name for path in model.checkpoints], self._llama_config())
        if not native.exists():
            with being_made(native, model.size) as directory:
                shutil.copy(source / "config.json", directory)
                index = (source / "pytorch_model.bin.index.json").read_text()
                index = index.replace("pytorch_model-", "model-").replace(".bin", ".safetensors")
                (directory / "model.safetensors.index.json").write_text(index)
                for checkpoint, target in zip(model.checkpoints, model.native):
                    oracle.convert_file(checkpoint, directory / target.name)
        return model

    def tree(self):
        """1,000 directories of 10 small checkpoints and a config.json. All checkpoints have the same bytes."""
        directories = self.scaled(DIRECTORIES, 5)
        path = self.directory / f"tree-{directories}"
        if not path.exists():
            with being_made(path) as directory:
                checkpoint = directory / "checkpoint"
                torch.save({f"layer{layer}.weight": torch.randn(4, 4) for layer in range(4)}, checkpoint)
                content = checkpoint.read_bytes()
                checkpoint.unlink()
                for index in range(directories):
                    model = directory / f"model{index:04}"
                    model.mkdir()
                    (model / "config.json").write_text('{"architectures": ["BertModel"]}\n')
                    (model / "pytorch_model.bin").write_bytes(content)
                    for step in range(1, PER_DIRECTORY):
                        (model / f"step{step}.pt").write_bytes(content)
        return path, directories * PER_DIRECTORY

    def layers(self):
        """160 tensors of equal size that make 1 GB, as a distant server might have them."""
        shape = (self.scaled(1_638_400, 1_000),)
        source = self.directory / "layers"
        return self._pickles("160 tensors in float32", source, {"pytorch_model": 160}, shape)

    def siblings(self):
        """400 checkpoints of 1 MB in one directory."""
        names = {f"step{number:04}": 4 for number in range(self.scaled(400, 10))}
        return self._pickles("of four tensors", self.directory / "siblings", names, (65_536,))

    def _pickles(self, title, source, files, shape):
        """Checkpoints by name and count of tensors, and nothing beside them."""
        model = Model(title, source, [source / f"{name}.bin" for name in files], [])
        if not source.exists():
            generator = torch.Generator().manual_seed(0)
            size = 4 * sum(files.values()) * torch.Size(shape).numel()
            with being_made(source, size) as directory:
                for name, count in files.items():
                    tensors = {
                        f"layer{index}.weight": torch.randn(shape, generator=generator) for index in range(count)
                    }
                    torch.save(tensors, directory / f"{name}.bin")
        return model

    def index(self, count):
        """A directory with an index of so many tensors, all of one shard, which has one of them; and the count."""
        count = self.scaled(count, 10)
        source = self.directory / f"index-{count}"
        if not source.exists():
            with being_made(source) as directory:
                write_index(directory, [f"model.layers.{number}.weight" for number in range(count)])
        return source, count

    def large_indexes(self, number, size):
        """Directories with an index each; and the size of one."""
        source = self.directory / f"indexes-{size}"
        if not source.exists():
            with being_made(source) as directory:
                # With the shard's name 216 bytes each.
                names = [f"model.layers.{index:06}.{'x' * 150}.weight" for index in range(self.scaled(size // 216, 10))]
                for index in range(number):
                    (directory / f"model{index}").mkdir()
                    write_index(directory / f"model{index}", names)
        return source, (source / "model0" / "pytorch_model.bin.index.json").stat().st_size

    def deflated(self, size):
        """A checkpoint whose one storage is compressed, with other files beside it; and the bytes it inflates to."""
        size = self.scaled(size, 1 << 20)
        source = self.directory / f"deflated-{size}"
        model = Model("one compressed storage", source, [source / "pytorch_model.bin"], [])
        if not source.exists():
            with being_made(source, size) as directory:
                torch.save({"weight": halves_of_bytes(size)}, directory / "pytorch_model.bin")
                deflate(directory / "pytorch_model.bin")
                for number in range(1000):
                    (directory / f"{number}.txt").write_text("text")
        return model, size

    def bombs(self, count):
        """Checkpoints of 281 KB with pickles of 25 MiB."""
        source = self.directory / f"bombs-{count}"
        if not source.exists():
            with being_made(source) as directory:
                for number in range(count):
                    save_bomb(directory / f"bomb{number}.pt")
        return source

    def long_header(self, size):
        """A safetensors file whose header is so long, of tensors of one byte."""
        size = self.scaled(size, 10_000)
        source = self.directory / f"header-{size}"
        if not source.exists():
            with being_made(source) as directory, open(directory / "model.safetensors", "wb") as file:
                count = size // 250
                header = {
                    f"{'x' * 170}.{index:07}": {"dtype": "U8", "shape": [1], "data_offsets": [index, index + 1]}
                    for index in range(count)
                }
                text = json.dumps(header, separators=(",", ":")).encode()
                text += b" " * (-len(text) % 8)
                file.write(len(text).to_bytes(8, "little") + text + bytes(count))
        return source

    def zeros(self, size):
        """A checkpoint of `size` bytes of zeros in tensors of 256 MiB. It is sparse: no room on the disk is needed."""
        source, native = self.directory / f"zeros-{size >> 20}", self.directory / f"zeros-{size >> 20}-native"
        model = Model("zeros", source, [source / "pytorch_model.bin"], [native / "model.safetensors"])
        count, length = max(1, size >> 28), min(size, 1 << 28)
        names = [f"layers.{index:03}.weight" for index in range(count)]
        if not source.exists():
            with being_made(source) as directory, torch.serialization.skip_data():
                # Memory that nothing has written to is not there either.
                tensors = {name: torch.empty(length // 2, dtype=torch.bfloat16) for name in names}
                torch.save(tensors, directory / model.checkpoints[0].name)
        if not native.exists():
            with being_made(native) as directory, open(directory / "model.safetensors", "wb") as file:
                header = {
                    name: {
                        "dtype": "BF16",
                        "shape": [length // 2],
                        "data_offsets": [index * length, (index + 1) * length],
                    }
                    for index, name in enumerate(names)
                }
                text = json.dumps(header).encode()
                text += b" " * (-len(text) % 8)
                file.write(len(text).to_bytes(8, "little") + text)
                file.truncate(8 + len(text) + count * length)
        return model

    def _llama_config(self):
        from transformers import LlamaConfig

        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
            vocab_size=self.scaled(128_256, 1_000),
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=self.scaled(24, 1),
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=False,
        )

    def _single(self, name, title, shapes):
        source, native = self.directory / name, self.directory / f"{name}-native"
        model = Model(title, source, [source / "pytorch_model.bin"], [native / "model.safetensors"])
        if not source.exists():
            generator = torch.Generator().manual_seed(0)
            with being_made(source) as directory:
                tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
                torch.save(tensors, directory / model.checkpoints[0].name)
        if not native.exists():
            with being_made(native, model.size) as directory:
                oracle.convert_file(model.checkpoints[0], directory / model.native[0].name)
        return model


class being_made:
    """A directory that gets its name when it is complete: an interrupted run leaves no half of a model behind."""

    def __init__(self, directory, size=0):
        self._target = directory
        self._size = size
        self._part = directory.with_name(directory.name + ".part")

    def __enter__(self):
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)
        free = shutil.disk_usage(self._part).free
        if free < self._size + SPARE:
            self._part.rmdir()
            sys.exit(f"{self._target} needs {self._size / 1e9:.1f} GB, and only {free / 1e9:.1f} GB are free")
        return self._part

    def __exit__(self, error, *_):
        if error is None:
            self._part.rename(self._target)
        else:
            shutil.rmtree(self._part, ignore_errors=True)


def gpt2_shapes(layers, vocabulary):
    """The tensors of openai-community/gpt2, its causal masks included."""
    width, context = 768, 1024
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (context, width)}
    for layer in range(layers):
        block = {
            "ln_1.weight": (width,),
            "ln_1.bias": (width,),
            "attn.bias": (1, 1, context, context),
            "attn.c_attn.weight": (width, 3 * width),
            "attn.c_attn.bias": (3 * width,),
            "attn.c_proj.weight": (width, width),
            "attn.c_proj.bias": (width,),
            "ln_2.weight": (width,),
            "ln_2.bias": (width,),
            "mlp.c_fc.weight": (width, 4 * width),
            "mlp.c_fc.bias": (4 * width,),
            "mlp.c_proj.weight": (4 * width, width),
            "mlp.c_proj.bias": (width,),
        }
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_f.weight": (width,), "ln_f.bias": (width,)}


def write_index(directory, names):
    shard = "pytorch_model-00001-of-00001.bin"
    torch.save({names[0]: torch.zeros(4)}, directory / shard)
    index = {"metadata": {"total_size": 16}, "weight_map": dict.fromkeys(names, shard)}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def write_llama(directory, names, config):
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    half = sum(shape.numel() for shape in shapes.values()) / 2
    shards, elements = [{} for _ in names], 0
    for name, shape in shapes.items():
        shards[elements > half][name] = shape
        elements += shape.numel()

    generator = torch.Generator().manual_seed(0)
    for shard, file_name in zip(shards, names):
        tensors = {
            name: torch.randn(shape, generator=generator).mul_(0.02).to(torch.bfloat16) for name, shape in shard.items()
        }
        torch.save(tensors, directory / file_name)
    weight_map = {name: file_name for shard, file_name in zip(shards, names) for name in shard}
    index = {"metadata": {"total_size": 2 * elements}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2))
    config.save_pretrained(directory)
