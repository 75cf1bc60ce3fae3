"""What paddle.save writes (python/paddle/framework/io.py, io_utils.py): pickles of numpy arrays.

The objects are those that paddle puts into its pickler; paddle itself is not needed to write them. The loader is
that of paddle.load without paddle: pickle.load with latin-1, then parts of big parameters put together and tensors
taken out of their (name, array) pairs.
"""

import pickle

import numpy as np

from fixture import Fixtures

FIXTURES = Fixtures("pickle.load(encoding='latin1'), and what paddle.load does to the result")
PARTS = "UnpackBigParamInfor@@"


class Tensor:
    """A paddle.Tensor outside of a state dict (`reduce_varbase`)."""

    def __init__(self, name, array):
        self.name, self.array = name, array

    def __reduce__(self):
        return tuple, ((self.name, self.array),)


class LoDTensor:
    """(`reduce_LoDTensor`)"""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        return eval, ("data", {"data": self.array})


class Eval:
    """What only looks like it."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return eval, self.arguments


def dump(name, value, protocol):
    FIXTURES.path(name).write_bytes(pickle.dumps(value, protocol))


def save(name, about, value, protocol=4):
    dump(name, value, protocol)
    loaded = pickle.loads(FIXTURES.path(name).read_bytes(), encoding="latin1")
    FIXTURES.expect(name, about, tensors(loaded))


def refuse(name, about, value, *words):
    dump(name, value, 4)
    FIXTURES.refuse(name, about, *words)


def tensors(loaded):
    """`_pack_loaded_dict` and `_parse_load_result`"""
    if isinstance(loaded, tuple) and len(loaded) == 2 and isinstance(loaded[0], str):
        return loaded[1]
    if isinstance(loaded, list):
        return [tensors(item) for item in loaded]
    if not isinstance(loaded, dict):
        return loaded
    loaded = {key: tensors(value) for key, value in loaded.items()}
    for key, info in loaded.pop(PARTS, {}).items():
        slices = [loaded.pop(part) for part in info["slices"]]
        loaded[key] = np.concatenate(slices).reshape(info["OriginShape"])
    return loaded


def main():
    kernel = np.arange(12, dtype="<f4").reshape(3, 4)
    bias = np.arange(4, dtype="<f4") / 3
    names = {"linear.weight": "linear_0.w_0", "linear.bias": "linear_0.b_0", "norm._mean": "batch_norm2d_0.w_1"}
    state = {
        "linear.weight": kernel,
        "linear.bias": bias,
        "norm._mean": np.arange(4, dtype="<u2"),
        "StructuredToParameterName@@": names,
    }
    for protocol in [2, 4]:
        save(f"state{protocol}.pdparams", f"a state dict, protocol {protocol}", state, protocol)

    # Above 2^30 bytes; the pieces of a real file are as long.
    parts = {f"emb.weight@@.{index}": kernel.ravel()[start : start + 5] for index, start in enumerate([0, 5, 10])}
    info = {"emb.weight": {"OriginShape": (3, 4), "slices": list(parts)}}
    save("parts.pdparams", "a parameter in parts", {"bias": bias, **parts, PARTS: info}, protocol=2)
    short = {"emb.weight": {"OriginShape": (3, 5), "slices": list(parts)}}
    refuse("parts-too-few.pdparams", "parts that do not make the shape", {**parts, PARTS: short}, "emb.weight")
    missing = {"emb.weight": {"OriginShape": (3, 4), "slices": [*parts, "emb.weight@@.3"]}}
    refuse("parts-missing.pdparams", "a part that is not there", {**parts, PARTS: missing}, "emb.weight")

    nested = {"model": {"w": Tensor("linear_0.w_0", kernel)}, "list": [Tensor("a", bias), 3], "epoch": 2}
    save("nested.pdparams", "tensors in nested dictionaries: (name, array)", nested)
    save("tensor.pdparams", "one tensor", Tensor("linear_0.w_0", kernel))
    save("lod.pdparams", "LoD tensors: eval('data', {'data': array})", {"w": LoDTensor(kernel), "b": LoDTensor(bias)})
    save("lod2.pdparams", "LoD tensors in protocol 2", {"w": LoDTensor(kernel)}, protocol=2)

    call = "data.tobytes()"
    refuse("eval-call.pdparams", "eval of something else", {"w": Eval(call, {"data": kernel})}, "eval")
    refuse("eval-more.pdparams", "eval with one more name", {"w": Eval("data", {"data": kernel, "x": 1})}, "eval")
    refuse("eval-locals.pdparams", "eval with locals", {"w": Eval("data", {"data": kernel}, {})}, "eval")
    refuse("eval-no-array.pdparams", "eval of no array", {"w": kernel, "x": Eval("data", {"data": eval})}, "eval")


main()
