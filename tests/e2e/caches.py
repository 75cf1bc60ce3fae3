"""A cache directory for tests: what mounts and commands use it with, and what happened to a file in it."""

import json
import os
import time

import torch

# A checkpoint may be promoted once its times are older than the grain of any file system.
SETTLED_S = 3.2
PATIENCE_S = 20
MIB = 1 << 20

# How much may be kept, said aloud: what stfs takes by itself depends on how full the disk is.
SIZE = ["--cache-size", "1G"]


class Cache:
    """A cache directory, and mounts that use it."""

    def __init__(self, stfs, path):
        self.stfs = stfs
        self.path = path

    def mounted(self, source, *options, **how):
        return self.stfs.mounted(source, "--cache-dir", self.path, *SIZE, *options, **how)

    def run(self, command, *arguments, check=True):
        return self.stfs.run(*command.split(), "--cache-dir", self.path, *arguments, check=check)

    def json(self, command, *arguments):
        return json.loads(self.run(command, "--json", *arguments).stdout)

    def warm(self, *paths, size=SIZE):
        return self.run("warm", *size, *paths)

    def data(self):
        """The converted files."""
        files = self.path / "files"
        return [path for path in files.rglob("*") if path.is_file() and path.suffix != ".record"]

    def unfinished(self):
        incoming = self.path / "incoming"
        return list(incoming.iterdir()) if incoming.exists() else []


def settled(path, state_dict):
    """A checkpoint that has been there for a while. What the change time says cannot be set: it is waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state_dict, path)
    time.sleep(SETTLED_S)
    return path


def tier(path):
    return os.getxattr(path, "user.stfs.tier").decode()


def wait_for(condition, patience=PATIENCE_S):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def promoted(shown):
    """The file, once a lookup finds it promoted."""
    wait_for(lambda: tier(shown) == "promoted")
    return shown
