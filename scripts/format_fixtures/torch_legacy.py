"""Streams in torch's format before 1.6 that today's torch does not write any more, or that are broken.

The stream: the pickles of a magic number, of a version, of the writer's sizes, of the object, and of the list of
storage keys; then each storage's number of elements (int64) and its bytes (torch/serialization.py, `_legacy_load`).
"""

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import torch

from fixture import Fixtures

FIXTURES = Fixtures(f"torch.load(weights_only=False) of torch {torch.__version__.split('+')[0]}")
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Storage:
    """What stands for a storage until it is pickled: its class's name, its key, its elements, its view."""

    def __init__(self, kind, key, elements, view=None):
        self.persistent_id = ("storage", getattr(torch, kind), key, "cpu", elements, view)


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.persistent_id if isinstance(value, Storage) else None


class Call:
    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def tensor(storage, offset, size, stride):
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def stream(value, storages, keys=None, protocol=2, announced=None):
    """`storages`: key -> array. `announced`: numbers of elements that are not true."""
    out = io.BytesIO()
    for head in [MAGIC, 1001, SYSTEM]:
        pickle.dump(head, out, protocol=protocol)
    Pickler(out, protocol=protocol).dump(value)
    keys = sorted(storages) if keys is None else keys
    pickle.dump(keys, out, protocol=protocol)
    for key in keys:
        elements = (announced or {}).get(key, storages[key].size)
        out.write(struct.pack("<q", elements) + storages[key].tobytes())
    return out.getvalue()


def read(name, about, data):
    FIXTURES.path(name).write_bytes(data)
    FIXTURES.expect(name, about, torch.load(FIXTURES.path(name), weights_only=False))


def refuse(name, about, data, *words):
    FIXTURES.path(name).write_bytes(data)
    try:
        torch.load(FIXTURES.path(name), weights_only=False)
    except Exception:
        FIXTURES.refuse(name, about, *words)
    else:
        raise AssertionError(f"torch loads {name}")


def main():
    floats = np.arange(12, dtype="<f4")
    longs = np.arange(4, dtype="<i8") * -3
    views = {
        "whole": tensor(Storage("FloatStorage", "1", 12), 0, (3, 4), (4, 1)),
        "view": tensor(Storage("FloatStorage", "1", 12, ("11", 2, 6)), 1, (2, 2), (2, 1)),
        "view.again": tensor(Storage("FloatStorage", "1", 12, ("11", 2, 6)), 1, (2, 2), (2, 1)),
        "other_view": tensor(Storage("FloatStorage", "1", 12, ("12", 8, 4)), 0, (4,), (1,)),
        "long": tensor(Storage("LongStorage", "2", 4), 0, (4,), (1,)),
    }
    read("views.pt", "storages that are views of others", stream(views, {"1": floats, "2": longs}))
    one = {"weight": tensor(Storage("FloatStorage", "7", 12), 0, (12,), (1,))}
    read("protocol4.pt", "pickles of protocol 4, which has frames", stream(one, {"7": floats}, protocol=4))
    read("trailing.pt", "bytes after the last storage", stream(one, {"7": floats}) + b"more bytes")
    empty = {"empty": tensor(Storage("FloatStorage", "3", 0), 0, (0,), (1,))}
    read("empty.pt", "an empty storage", stream(empty, {"3": floats[:0]}))
    keys = ["9", "10", "8"]
    several = {key: tensor(Storage("FloatStorage", key, int(key)), 0, (int(key),), (1,)) for key in keys}
    arrays = {key: np.arange(int(key), dtype="<f4") + int(key) for key in keys}
    read("unsorted.pt", "storages in an order of their own", stream(several, arrays, keys=keys))

    whole = stream(one, {"7": floats})
    refuse("truncated.pt", "a storage without its last byte", whole[:-1], "storage")
    refuse("truncated-keys.pt", "a file that ends in its list of storages", whole[: -12 * 4 - 8 - 4])
    refuse("no-data.pt", "a file that ends before its storages", whole[: -12 * 4 - 8], "storage")
    for name, about, length in [
        ("other-length.pt", "a storage of another length than announced", 11),
        ("huge-length.pt", "a storage of 2^62 elements", 1 << 62),
        ("negative-length.pt", "a storage of -1 elements", -1),
    ]:
        refuse(name, about, stream(one, {"7": floats}, announced={"7": length}), "storage `7`")
    refuse("missing-key.pt", "a storage that is not in the list", stream(one, {"8": floats}), "storage")
    outside = {"weight": tensor(Storage("FloatStorage", "7", 12, ("1", 8, 5)), 0, (5,), (1,))}
    refuse("view-outside.pt", "a view past the end of its storage", stream(outside, {"7": floats}), "weight")
    beyond = {"weight": tensor(Storage("FloatStorage", "7", 12, ("1", 2, 4)), 0, (5,), (1,))}
    refuse("tensor-outside-view.pt", "a tensor past the end of its view", stream(beyond, {"7": floats}), "weight")


main()
