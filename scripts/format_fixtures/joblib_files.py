"""What joblib.dump writes: a pickle with the bytes of each array in the midst of it, or compressed as a whole."""

import joblib
import numpy as np

from fixture import Fixtures

FIXTURES = Fixtures(f"joblib.load of joblib {joblib.__version__}, numpy {np.__version__}")


def dump(name, about, value, **options):
    joblib.dump(value, FIXTURES.path(name), **options)
    FIXTURES.expect(name, about, joblib.load(FIXTURES.path(name)))


def refuse(name, about, value, words, **options):
    joblib.dump(value, FIXTURES.path(name), **options)
    FIXTURES.refuse(name, about, *words)


def main():
    grid = np.arange(12, dtype="<f4").reshape(3, 4)
    arrays = {
        "c": grid,
        "fortran": np.asfortranarray(grid),
        "again": grid,
        "strided": grid[:, ::2],
        "big_endian": grid.astype(">i2"),
        "scalar": np.array(1.5),
        "empty": np.zeros((2, 0), "<i8"),
        "complex128": grid.astype("<c16"),
        "number": np.float32(3),
        "text": "text",
    }
    dump("arrays.joblib", "several arrays", arrays)
    dump("protocol2.joblib", "protocol 2", {"a": grid, "b": [grid[0], grid.T]}, protocol=2)
    dump("array.joblib", "one array", grid)
    objects = {"good": grid, "bad_one": np.array([1, None])}
    refuse("objects.joblib", "an array of objects among others", objects, ["bad_one"])
    refuse("zlib.joblib", "compressed with zlib", arrays, ["compressed"], compress=("zlib", 3))
    refuse("gzip.joblib", "compressed with gzip", {"a": grid}, ["compressed"], compress=("gzip", 3))
    refuse("xz.joblib", "compressed with xz", {"a": grid}, ["compressed"], compress=("xz", 1))
    data = FIXTURES.path("array.joblib").read_bytes()
    FIXTURES.path("truncated.joblib").write_bytes(data[:-2])
    FIXTURES.refuse("truncated.joblib", "an array without its last byte")
    try:
        import torch
    except ImportError:
        return
    tensors = {"weight": torch.arange(6.0).view(2, 3), "tied": {"a": torch.ones(2)}, "array": grid}
    dump("tensors.joblib", "torch tensors and an array", tensors)


main()
