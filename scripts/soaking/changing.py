"""Changes of the source, as people and programs make them."""

import os

from . import contents


def replace(path, spare):
    os.replace(spare, path)


def overwrite(path, spare):
    """In place, from the beginning: all of the old length are another's bytes before the length changes."""
    data = spare.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        file.write(data)
        file.truncate(len(data))
    spare.unlink()


def overwrite_keeping_times(path, spare):
    times = os.stat(path)
    overwrite(path, spare)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def write_again(path, spare):
    """As `torch.save` to the same path: emptied first."""
    data = spare.read_bytes()
    with open(path, "wb", buffering=1 << 16) as file:
        file.write(data)
    spare.unlink()


WITH_CONTENT = {function.__name__: function for function in (replace, overwrite, overwrite_keeping_times, write_again)}
IN_PLACE = ["overwrite", "overwrite_keeping_times", "write_again"]


def change(how, path, kind, number, spare, expected):
    """Makes another version of a file, and makes it this one in one of the ways above."""
    contents.write(kind, number, spare, expected)
    WITH_CONTENT[how](path, spare)


def truncate(path):
    os.truncate(path, os.stat(path).st_size // 2 + 1234)


def delete(path):
    path.unlink()


def rename_directory(path, target):
    path.rename(target)
