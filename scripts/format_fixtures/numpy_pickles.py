"""numpy arrays in plain pickles, by one version of numpy: what it calls its modules changed with numpy 2."""

import pickle

import numpy as np

from fixture import Fixtures

FIXTURES = Fixtures(f"pickle.load with numpy {np.__version__}")
DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "c8", "c16"]


def dump(name, about, value, protocol=4, refused=None, weights=None):
    FIXTURES.path(name).write_bytes(pickle.dumps(value, protocol))
    if refused is not None:
        FIXTURES.refuse(name, about, *refused)
    else:
        FIXTURES.expect(name, about, pickle.loads(FIXTURES.path(name).read_bytes()), weights=weights)


def values(dtype, shape=(2, 3)):
    """Any bits at all."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    return (np.arange(count) * 37 % 256).astype("u1").view(dtype).reshape(shape)


def layouts():
    array = np.arange(12, dtype="<f4").reshape(3, 4)
    return {
        "c": array,
        "fortran": np.asfortranarray(array),
        "again": array,
        "transposed": array.T,
        "column": array[:, 1],
        "reversed": array[::-1],
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3), "<i4"),
        # Protocols before 3 write bytes as text, in UTF-8.
        "bytes": np.arange(256, dtype="u1"),
        "bool": np.array([True, False, True]),
        "three": np.asfortranarray(np.arange(24, dtype="<i2").reshape(2, 3, 4)),
    }


def main():
    for protocol in range(6):
        dump(f"protocol{protocol}.pkl", f"arrays of several layouts, protocol {protocol}", layouts(), protocol)
    dtypes = {dtype: values(f"<{dtype}") for dtype in DTYPES}
    dump("dtypes.pkl", "every numeric dtype", {**dtypes, "b1": values("u1") > 99})
    dump("big-endian.pkl", "big-endian arrays", {dtype: values(f">{dtype}") for dtype in DTYPES if dtype[1:] != "1"})
    dump("big-endian-fortran.pkl", "protocol 2", {"a": np.asfortranarray(values(">f8")), "b": values(">c8")[:, 1]}, 2)
    scalars = {"weight": values("<f4"), "lr": np.float32(0.5), "step": np.int64(3), "flag": np.bool_(True)}
    for protocol in [2, 5]:
        dump(f"scalars{protocol}.pkl", "numpy's numbers, which are no tensors, beside an array", scalars, protocol)
    dump("array.pkl", "one array", values("<f4"))
    dump("nested.pkl", "lists and tuples of arrays", {"blocks": [values("<f2"), (values("<i8"), "text")], "none": None})
    good = values("<f4")
    records = np.zeros(2, [("x", "<f4"), ("y", "<i8")])
    for name, about, array in [
        ("structured", "an array of records", records),
        ("objects", "an array of objects", np.array([{"a": 1}, None], dtype=object)),
        ("arrays-in-objects", "an array of arrays", np.array([good, None], dtype=object)),
        ("long-double", "an array of 80-bit floats", np.ones(2, np.longdouble)),
    ]:
        dump(f"{name}.pkl", about, {"good": good, "bad_one": array}, refused=["bad_one"])
    weights = {"backbone.stem.weight": values("<f4"), "head.bias": values("<f4", (3,))}
    detectron = {"model": weights, "__author__": "Model Zoo", "matching_heuristics": True}
    dump("detectron2.pkl", "detectron2's model zoo", detectron, 2, weights="model")


main()
