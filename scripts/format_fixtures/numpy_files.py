"""numpy's own files, and pickles of numpy arrays that today's Python does not write any more."""

import pickle
import struct

import numpy as np

from fixture import Fixtures

FIXTURES = Fixtures(f"numpy.load of numpy {np.__version__}")


def npy(name, about, array, version=None):
    with open(FIXTURES.path(name), "wb") as file:
        np.lib.format.write_array(file, array, version)
    FIXTURES.expect(name, about, np.load(FIXTURES.path(name)))


def npz(name, about, arrays, save=np.savez):
    save(FIXTURES.path(name), **arrays)
    with np.load(FIXTURES.path(name)) as file:
        FIXTURES.expect(name, about, {key: file[key] for key in file.files})


def broken(name, about, data):
    FIXTURES.path(name).write_bytes(data)
    FIXTURES.refuse(name, about, inert=True)


def with_header(text, data=b"", version=(1, 0)):
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text.encode() + data


class Python2:
    """A pickle as Python 2's cPickle wrote it: protocol 2, memo from 1, text and bytes alike as byte strings."""

    def __init__(self):
        self.out = bytearray(b"\x80\x02")
        self.memo = 0

    def put(self):
        self.memo += 1
        self.out += b"q" + bytes([self.memo])

    def text(self, value):
        data = value if isinstance(value, bytes) else value.encode("latin-1")
        # SHORT_BINSTRING, BINSTRING
        self.out += b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))
        self.out += data
        self.put()

    def unicode(self, value):
        data = value.encode()
        self.out += b"X" + struct.pack("<i", len(data)) + data
        self.put()

    def dict(self, items):
        self.out += b"}"
        self.put()
        self.out += b"("
        for key, value in items.items():
            self.text(key)
            value()
        self.out += b"u"

    def array(self, array):
        self.out += b"cnumpy.core.multiarray\n_reconstruct\n"
        self.put()
        self.out += b"cnumpy\nndarray\n"
        self.put()
        self.out += b"K\0\x85"
        self.put()
        self.text("b")
        self.out += b"\x87"
        self.put()
        self.out += b"R"
        self.put()
        # version, shape, dtype, is_fortran, data. Sizes were long integers.
        self.out += b"(K\x01("
        for size in array.shape:
            self.out += b"\x8a\x01" + bytes([size])
        self.out += b"t"
        self.put()
        self.out += b"cnumpy\ndtype\n"
        self.put()
        self.text(array.dtype.str[1:])
        self.out += b"K\0K\x01\x87"
        self.put()
        self.out += b"R"
        self.put()
        self.out += b"(K\x03"
        self.text(array.dtype.str[0])
        self.out += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0t"
        self.put()
        self.out += b"b"
        self.out += b"\x89"
        self.text(array.tobytes())
        self.out += b"t"
        self.put()
        self.out += b"b"


def caffe2():
    pickler = Python2()
    kernel = np.arange(100, dtype="<f4").reshape(10, 10) / 7
    bias = np.arange(5, dtype="<f4") - 2
    blobs = {
        "conv1_w": lambda: pickler.array(kernel),
        "conv1_b": lambda: pickler.array(bias),
        "res2_0_branch2a_bn_s": lambda: pickler.array(bias),
        "lr": lambda: pickler.text("0.1"),
    }
    pickler.dict({"blobs": lambda: pickler.dict(blobs), "cfg": lambda: pickler.unicode("MODEL:\n  TYPE: x\n\u00e9")})
    pickler.out += b"."
    FIXTURES.path("caffe2.pkl").write_bytes(pickler.out)
    loaded = pickle.loads(pickler.out, encoding="latin-1")
    about = "Caffe2's model zoo: byte strings of Python 2 (pickle.load, encoding latin-1)"
    FIXTURES.expect("caffe2.pkl", about, loaded, weights="blobs")


def main():
    grid = np.arange(12, dtype="<f4").reshape(3, 4)
    npy("c.npy", "row by row", grid)
    npy("fortran.npy", "column by column", np.asfortranarray(grid))
    npy("big-endian.npy", "big-endian", grid.astype(">f8"))
    npy("scalar.npy", "no dimensions", np.array(7, dtype="<i8"))
    npy("complex128.npy", "complex128, column by column", np.asfortranarray(grid[:2, :3] + 1j * grid[1:, :3]))
    npy("bool.npy", "bool", grid > 3)
    npy("empty.npy", "no elements", grid[:0])
    npy("version2.npy", "a header of version 2", grid.astype("<u2"), (2, 0))
    npy("version3.npy", "a header of version 3", grid.astype("i1"), (3, 0))

    arrays = {
        "kernel": grid,
        "fortran": np.asfortranarray(grid),
        "big_endian": grid.astype(">i4"),
        "Transformer/encoderblock_0/bias": grid[0].astype("<f2"),
        "scalar": np.array(True),
        "empty": grid[:0],
    }
    npz("stored.npz", "stored arrays", arrays)
    npz("deflated.npz", "deflated arrays", arrays, np.savez_compressed)

    objects = np.array([{"a": 1}, None], dtype=object)
    np.save(FIXTURES.path("objects.npy"), objects, allow_pickle=True)
    FIXTURES.refuse("objects.npy", "an array of objects: a pickle behind a header", "object")
    np.savez(FIXTURES.path("object-member.npz"), good=grid, bad_one=objects)
    FIXTURES.refuse("object-member.npz", "an array of objects among others", "bad_one", "object")
    np.save(FIXTURES.path("structured.npy"), np.zeros(2, [("x", "<f4"), ("y", "<i8")]))
    FIXTURES.refuse("structured.npy", "an array of records", inert=True)
    np.save(FIXTURES.path("text.npy"), np.array(["a", "bc"]))
    FIXTURES.refuse("text.npy", "an array of texts", inert=True)
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n"
    broken("truncated.npy", "an array without its last byte", with_header(header, grid.tobytes()[:-1]))
    huge = header.replace("(3, 4)", "(9223372036854775807, 9223372036854775807)")
    broken("huge.npy", "an array of more elements than there are numbers", with_header(huge, grid.tobytes()))
    broken("negative.npy", "a negative size", with_header(header.replace("3, 4", "-3, -4"), grid.tobytes()))
    broken("long-header.npy", "a header longer than the file", b"\x93NUMPY\x02\0\xff\xff\xff\x7f" + header.encode())
    call = header.replace("(3, 4)", "__import__('os').getpid()")
    broken("call.npy", "code in the header", with_header(call, grid.tobytes()))
    caffe2()


main()
