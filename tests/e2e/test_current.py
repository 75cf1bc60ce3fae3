"""Bytes of one file are never served for another: not from a cache, not after a remount, not where two images have
everything in common but what is in their files. And what is still the same is found again."""

import contextlib
import os
import re
import shutil
import time
import zipfile

import filesystems
import numpy
import oracle
import pytest
import slow_sftp
import torch
from caches import MIB, SETTLED_S, tier
from safetensors.torch import save
from users import needs_root

OLD, NEW = 0x01010101, 0x02020202
ELEMENTS = 100_000
VISIBLE_S = 1.2
# So long ago that nobody doubts that a file is finished.
LONG_AGO = 1_000_000_000


def vector(value, elements=ELEMENTS):
    return torch.full((elements,), value, dtype=torch.int32)


# Checkpoints whose weights can change without a trace in size or, for most, in anything but the weights.


def with_checksums(path, value):
    torch.save({"weight": vector(value)}, path)


def without_checksums(path, value):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": vector(value)}, path)
    finally:
        torch.serialization.set_crc32_options(True)


def legacy(path, value):
    """Before torch 1.6: no archive, no checksum."""
    torch.save({"weight": vector(value)}, path, _use_new_zipfile_serialization=False)


def renamed(path, value):
    """Here the names and shapes are others, and a tensor is where another one was."""
    first, second = ("alpha", (2, ELEMENTS // 2)) if value == OLD else ("omega", (4, ELEMENTS // 4))
    torch.save({first: vector(value).reshape(second), "weight": vector(value)}, path)


def numpy_archive(path, value):
    with open(path, "wb") as file:
        numpy.savez(file, weight=vector(value).numpy())


def numpy_pickle(path, value):
    """One array in a plain pickle."""
    path.write_bytes(vector(value).numpy().dumps())


WRITERS = {
    "checksums.pt": with_checksums,
    "no-checksums.pt": without_checksums,
    "legacy.pt": legacy,
    "renamed.pt": renamed,
    "archive.npz": numpy_archive,
    "array.pkl": numpy_pickle,
}


def write_all(directory, value):
    directory.mkdir(parents=True)
    for name, write in WRITERS.items():
        write(directory / name, value)
        os.utime(directory / name, (LONG_AGO, LONG_AGO))
    os.utime(directory, (LONG_AGO, LONG_AGO))
    return directory


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """Two directories of equal names, sizes and times, and of different weights."""
    place = tmp_path_factory.mktemp("twins")
    old, new = write_all(place / "old", OLD), write_all(place / "new", NEW)
    # The old one again but for its weights, whatever its storage was called.
    data = (old / "legacy.pt").read_bytes()
    marks = [value.to_bytes(4, "little") * ELEMENTS for value in (OLD, NEW)]
    (new / "legacy.pt").write_bytes(data.replace(*marks))
    os.utime(new / "legacy.pt", (LONG_AGO, LONG_AGO))
    for name in WRITERS:
        assert (old / name).stat().st_size == (new / name).stat().st_size, name
        assert (old / name).stat().st_mtime_ns == (new / name).stat().st_mtime_ns, name
    return old, new


def shown_as(name):
    return name.rpartition(".")[0] + ".safetensors"


def elements(data):
    return set(numpy.unique(numpy.frombuffer(data, dtype="<i4", offset=oracle.header_of(data)[1])).tolist())


def check_all(mount_point, source, value):
    """What is shown is what lies in `source`: torch's word for what it reads, the one value for the rest."""
    for name in WRITERS:
        data = (mount_point / shown_as(name)).read_bytes()
        assert elements(data) == {value}, f"{name} is served with the weights of another"
        if name.endswith(".pt"):
            assert oracle.difference(data, oracle.expected(source / name)[0]) is None, name


def images(kind, twins, tmp_path):
    """A function that mounts the first or the second of two file systems at one place."""
    place = tmp_path / "place"
    if kind == "sshfs":
        filesystems.needs_sshfs()
        return lambda which, server: server.mounted(twins[which], place), place
    make = {"squashfs": filesystems.squashfs, "erofs": filesystems.erofs}[kind]
    files = [make(content, tmp_path / f"{which}.img") for which, content in enumerate(twins)]
    return lambda which, _: filesystems.mounted(files[which], place, "ro"), place


@needs_root
@pytest.mark.parametrize("kind", ["squashfs", "erofs", "sshfs"])
def test_twins_are_told_apart(kind, twins, tmp_path, cache):
    """Mounted in turn at one place, with one cache: each is served as itself, promoted or not."""
    mount_of, place = images(kind, twins, tmp_path)
    with slow_sftp.SlowServer(tmp_path) as server:
        with mount_of(0, server):
            cache.warm(place)
            with cache.mounted(place) as mount_point:
                check_all(mount_point, twins[0], OLD)
        with mount_of(1, server):
            with cache.mounted(place, "--promote", "never") as mount_point:
                check_all(mount_point, twins[1], NEW)
            cache.warm(place)
            with cache.mounted(place) as mount_point:
                check_all(mount_point, twins[1], NEW)
        with mount_of(0, server), cache.mounted(place) as mount_point:
            check_all(mount_point, twins[0], OLD)
    # There was something to be wrong about.
    assert len(cache.data()) >= 2


# Found again


def checkpoint(path):
    generator = torch.Generator().manual_seed(7)
    torch.save({f"layer{index}": torch.randn(MIB // 4, generator=generator) for index in range(8)}, path)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return save(torch.load(path), {"format": "pt"})


@needs_root
@pytest.mark.parametrize("kind", ["squashfs", "btrfs", "sshfs"])
def test_what_was_promoted_is_found_after_a_remount(kind, tmp_path, cache):
    place, content = tmp_path / "place", tmp_path / "content"
    content.mkdir()
    wanted = checkpoint(content / "model.pt")
    (content / "other.txt").write_bytes(b"text")
    with slow_sftp.SlowServer(tmp_path) as server, contextlib.ExitStack() as stack:
        if kind == "sshfs":
            filesystems.needs_sshfs()

            def mounted():
                return server.mounted(content, place)

        else:
            image = tmp_path / "image"
            if kind == "squashfs":
                filesystems.squashfs(content, image)
            else:
                filesystems.btrfs(image)

            def mounted():
                return filesystems.mounted(image, place)

            if kind == "btrfs":
                with mounted():
                    shutil.copy2(content / "model.pt", place)
                time.sleep(SETTLED_S)

        with mounted():
            cache.warm(place)
            assert len(cache.data()) == 1
            before = os.stat(place / "model.pt")
        if kind != "sshfs":
            # Another one takes the device number that is free now.
            other = tmp_path / "other"
            shutil.copy(image, other) if kind == "squashfs" else filesystems.btrfs(other)
            stack.enter_context(filesystems.mounted(other, tmp_path / "elsewhere"))
        with mounted():
            # sshfs numbers inodes as they are asked for.
            os.stat(place / "other.txt") if kind == "sshfs" else None
            after = os.stat(place / "model.pt")
            assert (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino)
            server.reset()
            with cache.mounted(place) as mount_point:
                shown = mount_point / "model.safetensors"
                assert tier(shown) == "promoted"
                assert shown.read_bytes() == wanted
            assert server.bytes_read < len(wanted) / 10
    assert len(cache.data()) == 1


# Replaced within the grain of the times


def second_begins():
    time.sleep(1.01 - time.time() % 1)


def stamps(path):
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def rewrite(path, data):
    with open(path, "r+b") as file:
        file.write(data)


def rename_over(path, data):
    path.with_suffix(".next").write_bytes(data)
    path.with_suffix(".next").rename(path)


@needs_root
@pytest.mark.parametrize("change", [rewrite, rename_over], ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", ["whole-seconds", "sshfs"])
def test_replaced_within_a_second_of_its_times(kind, change, tmp_path, cache):
    """Equal size, equal times in whole seconds: what is served is new or an error, and stays so."""
    place, content = tmp_path / "place", tmp_path / "content"
    content.mkdir()
    with_checksums(tmp_path / "old.pt", OLD)
    with_checksums(tmp_path / "new.pt", NEW)
    old, new = (tmp_path / "old.pt").read_bytes(), (tmp_path / "new.pt").read_bytes()
    assert len(old) == len(new)
    with slow_sftp.SlowServer(tmp_path) as server, contextlib.ExitStack() as stack:
        if kind == "sshfs":
            filesystems.needs_sshfs()
            stack.enter_context(server.mounted(content, place, "-o", "dir_cache=no"))
        else:
            image = filesystems.whole_seconds(tmp_path / "image")
            stack.enter_context(filesystems.mounted(image, place))
        mount_point = stack.enter_context(cache.mounted(place, "--promote", "always"))
        model, shown = place / "model.pt", mount_point / "model.safetensors"
        # On a machine that is slow at the wrong moment both do not fit in one second.
        for _ in range(5):
            second_begins()
            model.write_bytes(old)
            before = stamps(model)
            with contextlib.suppress(OSError):
                assert elements(shown.read_bytes()) == {OLD}
            change(model, new)
            if stamps(model) == before:
                break
        else:
            pytest.fail("the two files never had the same times")
        for wait in (VISIBLE_S, SETTLED_S, VISIBLE_S):
            time.sleep(wait)
            with contextlib.suppress(OSError):
                assert elements(shown.read_bytes()) == {NEW}


# Checksums


def test_a_damaged_tensor_is_told(tmp_path, cache):
    """torch does not check it: what it would read is what is served, and the person hears of it."""
    model = tmp_path / "model" / "model.pt"
    model.parent.mkdir()
    with_checksums(model, OLD)
    with zipfile.ZipFile(model) as archive:
        (entry,) = (info for info in archive.infolist() if info.filename.endswith("/data/0"))
    data = bytearray(model.read_bytes())
    at = data.index(OLD.to_bytes(4, "little") * ELEMENTS) + entry.file_size // 2
    data[at] ^= 0xFF
    model.write_bytes(data)
    time.sleep(SETTLED_S)

    result = cache.warm(model)
    assert re.search("checksum.*does not match", result.stderr.replace(str(model), "")), result.stderr
    assert str(model) in result.stderr
    wanted, _ = oracle.expected(model)
    with cache.mounted(model.parent) as mount_point:
        shown = (mount_point / "model.safetensors").read_bytes()
        assert shown == wanted
        assert elements(shown) != {OLD}


# Room


def test_what_nobody_can_reach_any_more_goes_first(tmp_path, cache):
    """A converted file whose checkpoint was replaced makes room before one that is older, and still of use."""
    first, second = tmp_path / "models" / "first.pt", tmp_path / "models" / "second.pt"
    first.parent.mkdir()
    with_checksums(first, OLD)
    with_checksums(second, OLD)
    time.sleep(SETTLED_S)
    size = ["--cache-size", str(ELEMENTS * 4 * 5 // 2)]
    cache.warm(first, size=size)
    cache.warm(second, size=size)
    assert len(cache.data()) == 2
    with_checksums(tmp_path / "next.pt", NEW)
    os.replace(tmp_path / "next.pt", second)
    time.sleep(SETTLED_S)
    cache.warm(second, size=size)
    assert {value for path in cache.data() for value in elements(path.read_bytes())} == {OLD, NEW}
    with cache.mounted(first.parent) as mount_point:
        assert tier(mount_point / "first.safetensors") == "promoted"
        assert tier(mount_point / "second.safetensors") == "promoted"
        assert elements((mount_point / "first.safetensors").read_bytes()) == {OLD}
        assert elements((mount_point / "second.safetensors").read_bytes()) == {NEW}
