"""Broken and hostile checkpoints: refused with a reason that helps, and nothing of them ever runs.

All of them lie in one directory and are looked at through one mount, which must survive every one.
"""

import collections
import io
import os
import pickle
import re
import struct
import time
import zipfile

import oracle
import pytest
import torch
from conftest import derived, read_everything, refusal

# Looking at a file takes no longer than this, whatever is in it.
PATIENCE_S = 20

WEIGHT = torch.arange(1.0, 7.0).reshape(2, 3)


class Call:
    """Pickled as a call of `function`, which unpickling would make."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Storage:
    """Pickled as a reference to a storage record."""

    def __init__(self, key="0", numel=6, storage_type=torch.FloatStorage):
        self.persistent_id = ("storage", storage_type, key, "cpu", numel)


def tensor(storage=None, offset=0, size=(2, 3), stride=(3, 1)):
    hooks = collections.OrderedDict()
    return Call(torch._utils._rebuild_tensor_v2, storage or Storage(), offset, size, stride, False, hooks)


def pickled(value, protocol=2):
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return getattr(item, "persistent_id", None) if isinstance(item, Storage) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def archive(data_pkl, records=None, compression=zipfile.ZIP_STORED):
    """A torch archive around a pickle, by default with one record of six float32."""
    if records is None:
        records = {"0": oracle.raw_bytes(WEIGHT)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        file.writestr("archive/data.pkl", data_pkl)
        file.writestr("archive/byteorder", "little")
        for key, data in records.items():
            file.writestr(f"archive/data/{key}", data)
        file.writestr("archive/version", "3\n")
    return buffer.getvalue()


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def encrypted(data):
    """The archive with the flag of encryption on every record of its central directory."""
    data, position = bytearray(data), 0
    while (position := data.find(b"PK\x01\x02", position)) >= 0:
        data[position + 8] |= 1
        position += 4
    return bytes(data)


def references(depth, width):
    """Lists of one list, `depth` times: a few bytes of pickle that stand for width**depth tensors."""
    value = WEIGHT
    for _ in range(depth):
        value = [value] * width
    return value


def nested(depth):
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


def refused_files(command):
    """name -> (bytes, words of which one must be in the refusal). Some run `command` if anything unpickles them."""
    return {
        "truncated.bin": (saved({"w": torch.randn(1000)})[:2500], "truncat|incomplete|cut|end of"),
        "pointer.bin": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n",
            "git lfs pull",
        ),
        "page.bin": (b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n", "HTML"),
        "empty.bin": (b"", "empty"),
        "system.bin": (saved({"w": WEIGHT, "x": Call(os.system, command)}), "system"),
        "system_root.bin": (saved(Call(os.system, command)), "system"),
        "eval.bin": (saved({"w": Call(eval, f"__import__('os').system({command!r})")}), "eval"),
        "system.pkl": (pickle.dumps(Call(os.system, command), protocol=4), ""),
        "beyond_size.bin": (archive(pickled({"w": tensor(size=(200, 3))})), "storage|beyond|outside|exceed"),
        "beyond_offset.bin": (archive(pickled({"w": tensor(offset=4)})), "storage|beyond|outside|exceed"),
        "beyond_stride.bin": (archive(pickled({"w": tensor(stride=(300, 1))})), "storage|beyond|outside|exceed"),
        "negative_stride.bin": (archive(pickled({"w": tensor(stride=(-3, 1))})), "stride|negative"),
        "negative_size.bin": (archive(pickled({"w": tensor(size=(-2, 3))})), "size|shape|negative"),
        "negative_offset.bin": (archive(pickled({"w": tensor(offset=-1)})), "offset|negative"),
        "overflow.bin": (archive(pickled({"w": tensor(size=(2**40, 2**40), stride=(2**62, 2**62))})), ""),
        "fewer_strides.bin": (archive(pickled({"w": tensor(stride=(1,))})), "stride"),
        "huge_storage.bin": (archive(pickled({"w": tensor(Storage(numel=2**61))})), ""),
        "missing_record.bin": (archive(pickled({"w": tensor(Storage("7"))})), "data/7|7"),
        "short_record.bin": (archive(pickled({"w": tensor()}), {"0": b"\0" * 20}), "24|20"),
        "long_record.bin": (archive(pickled({"w": tensor()}), {"0": b"\0" * 40}), "24|40"),
        "traversal_key.bin": (archive(pickled({"w": tensor(Storage("../../../../../etc/passwd"))})), "passwd"),
        "encrypted.bin": (encrypted(archive(pickled({"w": tensor()}))), "encrypt"),
        "lzma.bin": (archive(pickled({"w": tensor()}), compression=zipfile.ZIP_LZMA), "compress|method"),
        "no_pickle.bin": (archive(b"this is no pickle"), ""),
        "cut_pickle.bin": (archive(pickled({"w": tensor()})[:-20]), ""),
        "huge_string.bin": (archive(b"\x80\x02X\xff\xff\xff\xffab."), ""),
        "stack_underflow.bin": (archive(b"\x80\x02R."), ""),
        "unknown_opcode.bin": (archive(b"\x80\x02\xff."), "opcode"),
        "references.bin": (saved(references(12, 12)), ""),
        "same_name.bin": (saved({"a.b": WEIGHT, "a": {"b": WEIGHT + 1}}), "a\\.b"),
        "surrogate.bin": (saved({"bad\udc80": WEIGHT}), "name|Unicode|UTF-8|surrogate"),
        "metadata.bin": (saved({"__metadata__": WEIGHT}), "__metadata__"),
        "meta.bin": (saved({"w": torch.empty(3, device="meta")}), "meta|no data|without data"),
        "escapes.bin": (archive(pickled({"\x1b[31mevil\x07": tensor(offset=4)})), "evil"),
    }


REFUSED = {name: words for name, (_, words) in refused_files("true").items()}

CONVERTED = {
    "no_elements.bin": {"w": torch.empty(0, 4), "v": WEIGHT},
    "dots.bin": {"../../etc/passwd": WEIGHT, "..": WEIGHT + 1, ".": WEIGHT + 2, "/": WEIGHT + 3},
}

NOT_CHECKPOINTS = {
    "ggml.bin": b"GGUF\x03\0\0\0" + bytes(range(256)),
    "vocabulary.bin": b"\x07words and more words\0" * 9,
    "notes.txt": b"text",
}


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    return tmp_path_factory.mktemp("canary") / "ran"


@pytest.fixture(scope="module")
def mount(tmp_path_factory, canary, mounted):
    source = tmp_path_factory.mktemp("hostile")
    for name, (data, _) in refused_files(f"touch {canary}").items():
        (source / name).write_bytes(data)
    for name, state_dict in CONVERTED.items():
        torch.save(state_dict, source / name)
    for name, data in NOT_CHECKPOINTS.items():
        (source / name).write_bytes(data)
    (source / "deep.bin").write_bytes(archive(nested(1_000_000)))
    with mounted(source) as mount_point:
        yield mount_point


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, mount, canary):
    started = time.monotonic()
    text = refusal(mount / name)
    assert time.monotonic() - started < PATIENCE_S
    assert re.search(REFUSED[name], text, re.IGNORECASE), text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text), "a refusal carries no control characters of the file"
    assert not canary.exists(), "the pickle ran"


@pytest.mark.parametrize("name", CONVERTED)
def test_converted(name, mount):
    data = derived(mount / name).read_bytes()
    header, data_start = oracle.header_of(data)
    assert header.pop("__metadata__") == {"format": "pt"}
    assert header.keys() == CONVERTED[name].keys()
    for tensor_name, wanted in CONVERTED[name].items():
        begin, end = header[tensor_name]["data_offsets"]
        assert header[tensor_name]["shape"] == list(wanted.shape)
        assert data[data_start + begin : data_start + end] == oracle.raw_bytes(wanted)


def test_names_stay_inside(mount):
    names = {"..%2F..%2Fetc%2Fpasswd", "%2E%2E", "%2E", "%2F"}
    assert set(os.listdir(mount / "dots.tensors")) == names
    for name in names:
        assert (mount / "dots.tensors" / name).stat().st_size == 24


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_other_files_are_themselves(name, mount):
    assert (mount / name).read_bytes() == NOT_CHECKPOINTS[name]
    assert not (mount / f"{name}.refused.txt").exists()


def test_deep_nesting(mount):
    """A million lists within each other: no stack overflows, and nothing is found in them."""
    refusal(mount / "deep.bin")


def test_everything_is_readable(mount, canary):
    assert read_everything(mount) > len(REFUSED)
    assert not canary.exists(), "a pickle ran"


def test_random_damage(tmp_path, mounted):
    """One byte changed anywhere: converted or refused, readable either way, and the mount lives."""
    whole = saved({"first": torch.randn(20, 3), "second": torch.arange(30), "third": WEIGHT.t()})
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / f"at{position:05}.bin").write_bytes(damaged)
    with mounted(tmp_path, "--tensors", "hide") as mount_point:
        shown = os.listdir(mount_point)
        assert len(shown) == len(os.listdir(tmp_path))
        assert read_everything(mount_point) == len(shown)


def test_random_truncation(tmp_path, mounted):
    """Every prefix of a checkpoint is refused, or is no checkpoint at all."""
    whole = saved({"first": torch.randn(20, 3), "second": torch.arange(30)})
    for length in range(0, len(whole), 13):
        (tmp_path / f"of{length:05}.bin").write_bytes(whole[:length])
    with mounted(tmp_path) as mount_point:
        assert not [name for name in os.listdir(mount_point) if name.endswith(".safetensors")]
        read_everything(mount_point)


def test_archive_of_many_records(tmp_path, mounted):
    """A central directory that promises more records than the file can hold."""
    data = bytearray(archive(pickled({"w": tensor()})))
    end = data.rfind(b"PK\x05\x06")
    struct.pack_into("<HH", data, end + 8, 0xFFFE, 0xFFFE)
    (tmp_path / "many.bin").write_bytes(data)
    with mounted(tmp_path) as mount_point:
        refusal(mount_point / "many.bin")


def bombs():
    """Small files that ask for much: name -> bytes of a zip archive's data.pkl and data/0, or of the whole file."""
    start = b"\x80\x02"
    lists = start + b"]q\x00(K\x01K\x01e0"
    for level in range(1, 60):
        lists += b"]q" + bytes([level]) + b"(" + (b"h" + bytes([level - 1])) * 10 + b"e0"
    yield "laughs.pt", lists + b"}X\x01\x00\x00\x00wh;s.", b""
    yield "deep.pt", start + b"]" * 200_000 + b"a" * 199_999 + b".", b""
    yield "itself.pt", start + b"]q\x00h\x00a.", b""
    yield "long.pt", start + b"\x8e" + struct.pack("<Q", 1 << 62) + b".", b""
    view = b"(\x8a\x04" + struct.pack("<i", 1 << 30) + b"t(K\x00t"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + view + b"\x89ccollections\nOrderedDict\n)RtR"
    yield "expanded.pt", start + b"}X\x01\x00\x00\x00w" + tensor + b"s.", bytes(16)
    yield "deflated.pt", start + b"}.", bytes(1 << 30)


def memory(pid, field):
    """KiB."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


@pytest.mark.parametrize(("name", "pickle", "storage"), bombs(), ids=lambda value: value if isinstance(value, str) else "")
def test_bomb(name, pickle, storage, tmp_path, mounted):
    """Refused in bounded memory, without keeping anyone waiting."""
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), pickle)
        archive.writestr("archive/data/0", storage)
    with mounted(tmp_path) as mount_point:
        pid = int(os.getxattr(mount_point, "user.stfs.pid"))
        idle = memory(pid, "VmRSS")
        began = time.monotonic()
        assert os.listdir(mount_point) == [f"{name}.refused.txt"]
        assert time.monotonic() - began < 2
        assert memory(pid, "VmHWM") - idle < 64 << 10
