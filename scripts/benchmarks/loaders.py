"""The ways to load a model that are compared. Each takes paths and yields dictionaries of tensors, one after another.

A loader that works file by file yields one dictionary per file, so that the memory of the one before can go. Packages
are imported by the loader that needs them, and before anything is measured: see `prepare`.
"""

import contextlib
import importlib
from importlib import metadata

import safetensors.torch
import torch


def load_file(paths):
    for path in paths:
        yield safetensors.torch.load_file(path)


def load_file_pread(paths):
    for path in paths:
        yield safetensors.torch.load_file(path, backend="pread")


def torch_load(paths):
    for path in paths:
        yield torch.load(path, map_location="cpu", weights_only=True)


def torch_load_mmap(paths):
    for path in paths:
        yield torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def from_pretrained(paths):
    """Of a directory. Where it has pickles only, these are loaded."""
    from transformers import AutoModelForCausalLM

    for path in paths:
        pickles = any(path.glob("pytorch_model*.bin"))
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", use_safetensors=not pickles)
        yield dict(model.named_parameters())


def fastsafetensors(paths):
    """In CPU mode. It reads with O_DIRECT on file systems that it has no rule for."""
    from fastsafetensors import SafeTensorsFileLoader, SingleGroup

    with contextlib.closing(SafeTensorsFileLoader(SingleGroup(), device="cpu", nogds=True)) as loader:
        loader.add_filenames({0: [str(path) for path in paths]})
        with contextlib.closing(loader.copy_files_to_device()) as buffers:
            yield {name: buffers.get_tensor(name) for name in buffers.key_to_rank_lidx}


def runai(paths):
    """run:ai's model streamer, in CPU mode. It reads with O_DIRECT. Each tensor comes as soon as it is there."""
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files([str(path) for path in paths])
        for name, tensor in streamer.get_tensors():
            yield {name: tensor}


LOADERS = {
    loader.__name__: loader
    for loader in (
        load_file,
        load_file_pread,
        torch_load,
        torch_load_mmap,
        from_pretrained,
        fastsafetensors,
        runai,
    )
}

# Loader: the module it needs, and the package that has it.
PACKAGES = {
    "from_pretrained": ("transformers", "transformers"),
    "fastsafetensors": ("fastsafetensors", "fastsafetensors"),
    "runai": ("runai_model_streamer", "runai-model-streamer"),
}


def prepare(loader):
    """Imports what a loader needs. Raises ImportError if it is not installed."""
    if loader == "from_pretrained":
        import transformers.utils.logging
        from transformers import LlamaForCausalLM  # noqa: F401

        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
    elif loader in PACKAGES:
        importlib.import_module(PACKAGES[loader][0])


def versions():
    found = {"torch": torch.__version__, "safetensors": safetensors.__version__}
    for _, package in PACKAGES.values():
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
