"""A source that is gone as a whole: errors for as long as it is away, and never a directory that looks empty."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy
import oracle
import pytest
import slow_sftp
import torch
from caches import wait_for
from filesystems import needs_sshfs
from users import NOBODY, fuse_is_open_to_all, needs_root, run_where_fuse_is_open_to_all

OLD, NEW = 0x01010101, 0x02020202
VISIBLE_S = 1.2
# A while in which nothing may come back.
STAYS_S = 3


def fill(source, value):
    source.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": torch.full((1000,), value, dtype=torch.int32)}, source / "model.bin")
    return source


def value_of(mount_point):
    """What the model's elements are. OSError where there is none."""
    data = (mount_point / "model.safetensors").read_bytes()
    (value,) = set(numpy.unique(numpy.frombuffer(data, dtype="<i4", offset=oracle.header_of(data)[1])).tolist())
    return value


def shows(mount_point, value):
    try:
        return value_of(mount_point) == value
    except OSError:
        return False


def assert_is_an_error(mount_point):
    for attempt in (os.listdir, os.stat, value_of):
        with pytest.raises(OSError):
            attempt(mount_point)


@pytest.mark.parametrize("options", [(), pytest.param(("--allow-other",), marks=needs_root)], ids=["private", "shared"])
def test_source_deleted_and_made_again(options, tmp_path, mounted):
    """Whoever shares a mount shares the directory that he named then; his own mount shows what is there by its name."""
    source = fill(tmp_path / "source", OLD)
    with mounted(source, *options, source_stays=False) as mount_point:
        assert value_of(mount_point) == OLD
        shutil.rmtree(source)
        time.sleep(VISIBLE_S)
        assert_is_an_error(mount_point)
        fill(source, NEW)
        if not options:
            wait_for(lambda: shows(mount_point, NEW))
            assert sorted(os.listdir(mount_point)) == ["model.safetensors", "model.tensors"]
            assert os.stat(mount_point)
        else:
            deadline = time.monotonic() + STAYS_S
            while time.monotonic() < deadline:
                assert_is_an_error(mount_point)
                time.sleep(0.2)


def test_source_replaced_in_a_mount_of_ones_own(tmp_path, mounted):
    """As by whoever puts a new download in the place of the old one."""
    source = fill(tmp_path / "source", OLD)
    fill(tmp_path / "next", NEW)
    with mounted(source) as mount_point:
        assert value_of(mount_point) == OLD
        source.rename(tmp_path / "old")
        (tmp_path / "next").rename(source)
        wait_for(lambda: shows(mount_point, NEW))


@needs_root
def test_the_connection_to_a_distant_source_breaks(tmp_path, mounted):
    """The process of sshfs is killed: what it showed is an error, until it is mounted again."""
    needs_sshfs()
    distant, source = fill(tmp_path / "distant", OLD), tmp_path / "source"
    with slow_sftp.SlowServer(tmp_path) as server, contextlib.ExitStack() as ends:
        source.mkdir()
        pid = server.mount(distant, source)
        ends.callback(lambda: subprocess.run(["umount", "-l", source], capture_output=True))
        with mounted(source, source_stays=False) as mount_point:
            assert value_of(mount_point) == OLD
            slow_sftp.kill(pid)
            time.sleep(VISIBLE_S)
            assert_is_an_error(mount_point)
            assert_is_an_error(mount_point)

            slow_sftp.unmount(source)
            server.mount(distant, source)
            wait_for(lambda: shows(mount_point, OLD))
            assert sorted(os.listdir(mount_point)) == ["model.safetensors", "model.tensors"]


@needs_root
def test_an_ordinary_user_loses_the_right_to_his_source(stfs, mounted):
    """A directory that must not be read any more is an error, and not an empty directory."""
    if not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is missing (package fuse3)")
    if not fuse_is_open_to_all():
        run_where_fuse_is_open_to_all(f"{__file__}::test_an_ordinary_user_loses_the_right_to_his_source")
        return
    with tempfile.TemporaryDirectory(prefix="stfs-nobody-", dir="/tmp") as directory:
        place = Path(directory)
        source, point, program = fill(place / "source", OLD), place / "mount", place / "stfs"
        shutil.copy(stfs.binary, program)
        point.mkdir()
        for path in [place, *place.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)

        def run(*command):
            words = list(map(str, command))
            return subprocess.run(words, user=NOBODY, group=NOBODY, capture_output=True, text=True, timeout=60)

        mount = run(program, "mount", "--cache-dir", place / "cache", source, point)
        assert mount.returncode == 0, mount.stderr
        try:
            assert run("ls", point).stdout.split() == ["model.safetensors", "model.tensors"]
            source.chmod(0)
            time.sleep(VISIBLE_S)
            for command in (["ls", point], ["cat", point / "model.safetensors"]):
                result = run(*command)
                assert result.returncode != 0 and not result.stdout, (command, result)
            source.chmod(0o700)
            wait_for(lambda: run("ls", point).stdout.split() == ["model.safetensors", "model.tensors"])
        finally:
            umount = run(program, "umount", point)
        assert umount.returncode == 0, umount.stderr
