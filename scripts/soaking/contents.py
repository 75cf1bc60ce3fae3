"""Versions of files, each by its number: written with torch, and what safetensors makes of them to compare with."""

import hashlib
import json
import mmap
import zipfile

import numpy
import torch
from safetensors.torch import save

KIB = 1 << 10
# Bytes that a version has; the others of one file mostly have the same.
SIZES = [700 * KIB, 700 * KIB, 700 * KIB, 2300 * KIB]


def tensors(number):
    """A state dict that no other version shares a row with."""
    generator = numpy.random.default_rng(number)
    rows = SIZES[number % len(SIZES)] // (8 * KIB)
    parts = [
        ("embed.weight", torch.float32, (2 * rows, 256)),
        ("layers.0.weight", torch.float32, (rows, 1024)),
        ("layers.0.bias", torch.float32, (257,)),
        ("layers.1.weight", torch.float16, (rows, 512)),
        ("layers.1.bias", torch.int32, (33,)),
        ("mask", torch.uint8, (rows, 129)),
        ("step", torch.int64, (1,)),
    ]
    state_dict = {}
    for name, dtype, shape in parts:
        count = torch.Size(shape).numel() * dtype.itemsize
        state_dict[name] = torch.frombuffer(bytearray(generator.bytes(count)), dtype=dtype).reshape(shape)
    return state_dict


def transposed(number):
    return {name: value.t() if value.dim() == 2 else value for name, value in tensors(number).items()}


def write_zip(number, path):
    torch.save(tensors(number), path)


def write_legacy(number, path):
    torch.save(tensors(number), path, _use_new_zipfile_serialization=False)


def write_transposed(number, path):
    torch.save(transposed(number), path)


def write_deflated(number, path):
    torch.save(tensors(number), path)
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for entry, data in entries:
            archive.writestr(entry.filename, data)


def write_native(number, path):
    path.write_bytes(save(tensors(number), {"format": "pt"}))


def write_text(number, path):
    path.write_text(json.dumps({"number": number, "words": [str(number)] * (number % 4000)}))


WRITERS = {
    "zip": write_zip,
    "legacy": write_legacy,
    "transposed": write_transposed,
    "deflated": write_deflated,
    "native": write_native,
    "text": write_text,
}
PICKLES = ["zip", "legacy", "transposed", "deflated"]


def write(kind, number, path, expected):
    """Writes a version to `path`, and to `expected` the bytes that a mount owes for it, at once."""
    WRITERS[kind](number, path)
    data = path.read_bytes()
    if kind in PICKLES:
        state_dict = transposed(number) if kind == "transposed" else tensors(number)
        data = save({name: value.contiguous() for name, value in state_dict.items()}, {"format": "pt"})
    part = expected.with_suffix(".part")
    part.write_bytes(data)
    part.rename(expected)


def digest(data):
    return hashlib.sha256(data).hexdigest()


class Expected:
    """What a mount owes for a version: answers about parts of it, as readers describe them."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._tensors, self._start = {}, 0
        if self._data[8:9] == b"{":
            self._start = 8 + int.from_bytes(self._data[:8], "little")
            self._tensors = json.loads(self._data[8 : self._start])
            self._tensors.pop("__metadata__")

    def answer(self, part):
        match part:
            case ("size",):
                return len(self._data)
            case ("bytes", offset, length):
                return digest(self._data[offset : offset + length])
            case ("names",):
                return sorted(self._tensors)
            case ("tensor", name):
                return name in self._tensors and digest(self._tensor(name))
            case ("tensor size", name):
                return name in self._tensors and len(self._tensor(name))
            case ("rows", name, first, last):
                row = len(self._tensor(name)) // self._tensors[name]["shape"][0]
                return digest(self._tensor(name)[first * row : last * row])
        raise ValueError(part)

    def _tensor(self, name):
        begin, end = self._tensors[name]["data_offsets"]
        return self._data[self._start + begin : self._start + end]
