"""Room for converted files: what is said when there is none, on disks that are full, and what those leave who are stopped."""

import contextlib
import json
import os
import signal
import subprocess
import time

import pytest
import torch
from caches import SIZE, promoted, settled, tier, wait_for
from filesystems import tmpfs
from safetensors.torch import save

MIB = 1 << 20
TRIES = 10


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three checkpoints of six megabytes, in one directory."""
    folder = tmp_path_factory.mktemp("three")
    for name in ("a", "b"):
        torch.save({"weight": torch.randn(6 * MIB // 4)}, folder / f"{name}.pt")
    settled(folder / "c.pt", {"weight": torch.randn(6 * MIB // 4)})
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return settled(tmp_path_factory.mktemp("large") / "m.pt", {"weight": torch.randn(400 * MIB // 4)})


def wanted(model):
    return save(torch.load(model), {"format": "pt"})


def fill(path, *, leaving):
    """Takes all of a file system but so many bytes."""
    stats = os.statvfs(path)
    file = path / "others"
    with open(file, "wb") as out:
        os.posix_fallocate(out.fileno(), 0, stats.f_bavail * stats.f_frsize - leaving)
    return file


@contextlib.contextmanager
def mount_that_speaks(stfs, place, source, *options, environment=None):
    """A mount, what `stfs mount` said, and its log."""
    place.mkdir()
    log = place.with_name(place.name + ".log")
    command = [stfs.binary, "mount", "--log-file", log, *options, source, place]
    done = subprocess.run(
        list(map(str, command)), env=environment or stfs.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    try:
        yield done.stderr, log
    finally:
        stfs.run("umount", place)


def status(stfs, mount):
    return json.loads(stfs.run("status", "--json", mount).stdout), stfs.run("status", mount).stdout


# A cache that takes nothing


def test_a_mount_says_once_that_nothing_can_be_kept(stfs, mounted, models, tmp_path):
    place = tmp_path / "mount"
    options = ["--cache-dir", tmp_path / "cache", "--cache-size", "0", "--promote", "always"]
    with mount_that_speaks(stfs, place, models, *options) as (said, log):
        assert said.count("\n") == 1 and "nothing that is converted can be kept" in said and "--cache-size" in said
        for name in ("a", "b", "c"):
            assert (place / f"{name}.safetensors").read_bytes() == wanted(models / f"{name}.pt")
        wait_for(lambda: status(stfs, place)[0]["promotions"]["failed"] == 3)
        assert log.read_text().count("kept") == 1 and log.read_text().count("\n") == 1
        figures, text = status(stfs, place)
        assert "--cache-size" in figures["cache_problem"] and figures["cache_problem"] in text


def test_a_mount_that_keeps_nothing_by_wish_says_nothing(stfs, mounted, models, tmp_path):
    options = ["--cache-dir", tmp_path / "cache", "--cache-size", "0", "--promote", "never"]
    with mount_that_speaks(stfs, tmp_path / "mount", models, *options) as (said, log):
        assert said == "" and log.read_text() == ""
        assert status(stfs, tmp_path / "mount")[0]["cache_problem"] is None


def test_warm_says_once_that_nothing_can_be_kept(cache, models):
    result = cache.run("warm", "--cache-size", "0", models, check=False)
    assert result.returncode == 1
    assert result.stderr.count("do not fit") == 1 and "2 others" in result.stderr
    assert "3 of 3" in result.stderr and result.stderr.count("\n") == 2
    # What is there needs no room.
    cache.warm(models)
    assert cache.run("warm", "--cache-size", "0", models).stderr.count("was there") == 3


def test_warm_keeps_what_was_written_a_moment_ago(cache, tmp_path):
    torch.save({"weight": torch.randn(1000)}, tmp_path / "new.pt")
    assert "new.pt: converted" in cache.warm(tmp_path / "new.pt").stderr
    assert len(cache.data()) == 1


def test_warm_tells_what_did_not_stay(cache, models):
    result = cache.run("warm", "--cache-size", "13M", models, check=False)
    assert result.returncode == 1 and "1 of the converted files did not stay" in result.stderr
    assert len(cache.data()) == 2


# Disks that are full


def test_a_disk_that_is_nearly_full(cache, stfs, models, tmp_path):
    """Of 64 MiB 3.2 stay free: eight are free, of which a file of six does not fit."""
    with tmpfs(cache.path, "size=64m,mode=700"):
        others = fill(cache.path, leaving=8 * MIB)
        result = cache.run("warm", models, check=False)
        assert result.returncode == 1 and result.stderr.count("do not fit") == 1
        assert "3.20 MiB stay so" in result.stderr and "--cache-dir" in result.stderr
        assert cache.json("cache status")["shortage"] is None
        assert not cache.data() and not cache.unfinished()
        # What a user asks for goes before that.
        assert cache.run("warm", "--cache-size", "1G", models / "a.pt").stderr.count("converted") == 1
        cache.run("cache clear")
        others.unlink()
        fill(cache.path, leaving=2 * MIB)
        assert "3.20 MiB stay so" in cache.json("cache status")["shortage"]
        assert "3.20 MiB stay so" in cache.run("cache status").stdout
        with mount_that_speaks(stfs, tmp_path / "mount", models, "--cache-dir", cache.path) as (said, _):
            assert said.count("\n") == 1 and "3.20 MiB stay so" in said
            assert (tmp_path / "mount" / "a.safetensors").read_bytes() == wanted(models / "a.pt")
    assert not (models / "cache").exists()


@pytest.mark.parametrize("size", [[], SIZE])
def test_a_disk_that_fills_up_under_a_mount(cache, stfs, models, tmp_path, size):
    place = tmp_path / "mount"
    with tmpfs(cache.path, "size=64m,mode=700"):
        options = ["--cache-dir", cache.path, *size, "--promote", "always"]
        with mount_that_speaks(stfs, place, models, *options) as (said, log):
            assert said == ""
            with open(promoted_by_opening(place / "a.safetensors"), "rb") as kept:
                others = fill(cache.path, leaving=1 * MIB)
                for name in ("b", "c"):
                    assert (place / f"{name}.safetensors").read_bytes() == wanted(models / f"{name}.pt")
                wait_for(lambda: status(stfs, place)[0]["promotions"]["failed"] == 2)
                assert kept.read() == wanted(models / "a.pt")
            assert tier(place / "b.safetensors") == "stream"
            lines = log.read_text().splitlines()
            assert len(lines) == 1, lines
            assert str(models) in lines[0] and "do not fit" in lines[0] and "ree some space" in lines[0]
            assert len(cache.data()) == 1 and not cache.unfinished()
            others.unlink()
            assert "converted" in cache.warm(models / "b.pt", size=size).stderr
            assert promoted(place / "b.safetensors").read_bytes() == wanted(models / "b.pt")


def promoted_by_opening(shown):
    with open(shown, "rb"):
        return promoted(shown)


def test_a_disk_without_a_byte(cache, stfs, models, tmp_path):
    with tmpfs(cache.path, "size=16m,mode=700"):
        (cache.path / "CACHEDIR.TAG").write_text("")
        fill(cache.path, leaving=0)
        result = cache.run("warm", *SIZE, models, check=False)
        assert result.returncode == 1 and "no more on its file system" in result.stderr
        options = ["--cache-dir", cache.path, *SIZE, "--promote", "always"]
        with mount_that_speaks(stfs, tmp_path / "mount", models, *options) as (said, log):
            assert "no more on its file system" in said
            for name in ("a", "b", "c"):
                shown = tmp_path / "mount" / f"{name}.safetensors"
                assert shown.read_bytes() == wanted(models / f"{name}.pt")
        # And once that no records can be.
        assert len(log.read_text().splitlines()) == 2, log.read_text()


# Mounts without a cache


@pytest.fixture
def homeless(stfs):
    return {name: value for name, value in stfs.environment.items() if name not in ("HOME", "XDG_CACHE_HOME")}


def test_a_user_without_a_home(stfs, mounted, models, tmp_path, homeless):
    with mount_that_speaks(stfs, tmp_path / "mount", models, environment=homeless) as (said, log):
        assert said.count("\n") == 1 and "no cache" in said and "--cache-dir" in said
        assert "no cache" in log.read_text()
        figures, text = status(stfs, tmp_path / "mount")
        assert figures["cache"] is None and "no home directory" in figures["cache_problem"]
        assert "no home directory" in text


@pytest.mark.parametrize("what", ["open to others", "a file", "in the mount", "in the source"])
def test_a_directory_that_is_unfit(stfs, mounted, models, tmp_path, what):
    place = tmp_path / "cache"
    if what == "open to others":
        place.mkdir()
        place.chmod(0o777)
    elif what == "a file":
        place.write_text("")
    elif what == "in the source":
        place = models / "cache"
    else:
        place = tmp_path / "mount" / "cache"
    with mount_that_speaks(stfs, tmp_path / "mount", models, "--cache-dir", place) as (said, _):
        assert said.count("\n") == 1 and f"{place}: no cache: " in said
        assert str(place) in status(stfs, tmp_path / "mount")[1]
        assert (tmp_path / "mount" / "a.safetensors").read_bytes() == wanted(models / "a.pt")


def test_a_mount_in_the_foreground_says_so_once(stfs, mounted, models, tmp_path, homeless):
    place = tmp_path / "mount"
    for log in ([], ["--log-file", tmp_path / "log"]):
        place.mkdir()
        command = list(map(str, [stfs.binary, "mount", "--foreground", *log, models, place]))
        process = subprocess.Popen(command, env=homeless, stderr=subprocess.PIPE, text=True)
        try:
            wait_for(place.is_mount)
        finally:
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].count("no cache") == 1
        place.rmdir()
    assert (tmp_path / "log").read_text().count("no cache") == 1


# Those who are stopped


def stopped(cache, stfs, model, number):
    """A `warm` that got this signal while it was writing. What it ended with, and what it left then."""
    command = list(map(str, [stfs.binary, "warm", "--quiet", "--cache-dir", cache.path, *SIZE, model]))
    for _ in range(TRIES):
        process = subprocess.Popen(command, env=stfs.environment, stderr=subprocess.PIPE)
        while not cache.unfinished() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(number)
        process.communicate(timeout=60)
        if process.returncode != 0:
            return process.returncode, cache.unfinished()
        # It was quicker.
        cache.run("cache clear")
    raise AssertionError("it was never stopped in time")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_warm_leaves_nothing(cache, stfs, large, number, code):
    assert stopped(cache, stfs, large, number) == (code, [])
    assert not cache.data()


@pytest.mark.parametrize("command", ["cache list", "cache status", "cache verify", "warm", "mount"])
def test_the_next_command_collects_what_a_killed_warm_left(cache, stfs, models, large, command):
    code, left = stopped(cache, stfs, large, signal.SIGKILL)
    assert code == -signal.SIGKILL and len(left) == 1
    if command == "mount":
        with cache.mounted(models):
            wait_for(lambda: not cache.unfinished())
    elif command == "warm":
        cache.warm(models / "a.pt")
    else:
        cache.run(command)
    assert not cache.unfinished()


def test_looking_does_not_disturb_who_writes(cache, stfs, large):
    """A command that collects takes nothing from a process that is at work."""
    command = list(map(str, [stfs.binary, "warm", "--quiet", "--cache-dir", cache.path, *SIZE, large]))
    process = subprocess.Popen(command, env=stfs.environment, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        cache.run("cache status")
    assert process.returncode == 0, process.communicate()[1]
    assert len(cache.data()) == 1 and cache.json("cache verify")[0]["verdict"] == "sound"
