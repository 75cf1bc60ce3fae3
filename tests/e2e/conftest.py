"""Fixtures: the stfs program, mounts that end with their test, and visible skips where either cannot be had.

With STFS_REQUIRE_E2E=1 a skip is a failure: what a test needs can be installed, and was not. Only what is no part of
this repository and cannot be installed either may be missing: `MATERIAL` begins the reason of such a skip.
"""

import contextlib
import gc
import os
import re
import shutil
import subprocess
from pathlib import Path

# Loaders must not look for anything beyond the directory they are given.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

import pytest
from caches import Cache

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60

REQUIRE_ALL = os.environ.get("STFS_REQUIRE_E2E") == "1"
MATERIAL = "material that is not part of this repository: "


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    return required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    return required((yield))


def required(report):
    """The report, of a failure if it is of a skip that STFS_REQUIRE_E2E does not allow."""
    if REQUIRE_ALL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(MATERIAL):
            report.outcome = "failed"
            report.longrepr = f"skipped, and STFS_REQUIRE_E2E is set: {reason}"
    return report


class Stfs:
    """The program under test, with a cache directory of its own."""

    def __init__(self, binary, directory):
        self.binary = binary
        self.directory = directory
        self.environment = {**os.environ, "XDG_CACHE_HOME": str(directory / "cache")}
        self._mounts = 0

    def run(self, *arguments, check=True):
        result = subprocess.run(
            [self.binary, *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"stfs {' '.join(map(str, arguments))}: exit {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def convert(self, source, target):
        """Writes the converted form of `source` (a file or a directory) to `target`."""
        return self.run("convert", source, target)

    @contextlib.contextmanager
    def mounted(self, source, *options, source_stays=True):
        """Mounts `source` and yields the mount point. The mount must still answer when the block ends, unless its
        source may be gone by then. It can be unmounted either way."""
        self._mounts += 1
        mount_point = self.directory / f"mount{self._mounts}"
        mount_point.mkdir()
        self.run("mount", *options, source, mount_point)
        try:
            assert is_mounted(mount_point), "`stfs mount` returned without a mount"
            yield mount_point
            if source_stays:
                os.statvfs(mount_point)
                os.listdir(mount_point)
        finally:
            # Tensors that alias a mapping of a mounted file would keep the mount busy.
            gc.collect()
            result = self.run("umount", mount_point, check=False)
            left = is_mounted(mount_point)
            if left:
                subprocess.run(["fusermount3", "-uz", mount_point], check=False)
        assert result.returncode == 0, f"stfs umount: {result.stdout}{result.stderr}"
        assert not left, "`stfs umount` left the mount"
        mount_point.rmdir()


def is_mounted(path):
    """By what the kernel says: nobody is asked who might not answer."""
    with open("/proc/self/mountinfo") as mounts:
        return str(path) in (line.split()[4] for line in mounts)


@pytest.fixture(scope="session")
def stfs(tmp_path_factory):
    binary = (REPOSITORY / os.environ.get("STFS", "target/release/stfs")).resolve()
    if not binary.is_file():
        pytest.skip(f"no stfs program at {binary}: build it with `cargo build --release` or set STFS")
    return Stfs(binary, tmp_path_factory.mktemp("stfs"))


@pytest.fixture(scope="session")
def mounted(stfs):
    """`mounted(source, *options)`: a context manager that yields a mount point."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("/dev/fuse is missing: mounts cannot be tested here")
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is missing (package fuse3): mounts cannot be tested here")
    return stfs.mounted


@pytest.fixture
def cache(stfs, mounted, tmp_path):
    return Cache(stfs, tmp_path / "cache")


def derived(path, suffix=".safetensors"):
    """Where the converted form of a checkpoint appears: `pytorch_model` becomes `model`, the extension changes."""
    stem = path.stem
    if re.fullmatch(r"pytorch_model(_[0-9]+)?([-.].*)?", stem):
        stem = stem.removeprefix("pytorch_")
    return path.with_name(stem + suffix)


def refusal(path):
    """The text that stands in for a checkpoint that cannot be converted. Asserts that nothing else does."""
    assert not derived(path).exists(), "refused checkpoints have no converted form"
    assert not derived(path, ".tensors").exists(), "refused checkpoints have no tensors"
    text = path.with_name(path.name + ".refused.txt").read_text()
    assert len(text.split()) > 5, "a refusal says why"
    return text


def read_everything(directory):
    """Reads every file under `directory` to its end and returns the number of them. Listings and sizes must hold."""
    count = 0
    for parent, directories, files in os.walk(directory, onerror=_raise):
        for name in directories:
            assert os.path.isdir(os.path.join(parent, name))
        for name in files:
            path = os.path.join(parent, name)
            size = os.stat(path).st_size
            with open(path, "rb") as file:
                read = sum(len(block) for block in iter(lambda: file.read(1 << 20), b""))
            assert read == size, path
            count += 1
    return count


def _raise(error):
    raise error
