"""The machine and the programs that were measured."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

from . import loaders


def describe(directory, stfs):
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name")]
    return {
        "cpu": cpus[0] if cpus else platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "filesystem": output(["findmnt", "-n", "-o", "FSTYPE", "-T", str(directory)]),
        "root": os.geteuid() == 0,
        "stfs": stfs.version,
        "python": platform.python_version(),
        "fio": output(["fio", "--version"]),
        **loaders.versions(),
    }


def memory_bytes():
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def output(command):
    if not shutil.which(command[0]):
        return "not installed"
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def print_facts(facts):
    memory = f"{facts['memory_bytes'] / 2**30:.0f} GiB"
    user = "root" if facts["root"] else "an ordinary user"
    print(f"{facts['cpus']} x {facts['cpu']}, {memory}, Linux {facts['kernel']}, {facts['filesystem']}, as {user}")
    programs = ("torch", "safetensors", "transformers", "fastsafetensors", "runai-model-streamer", "fio")
    versions = ", ".join(f"{program} {facts[program].removeprefix('fio-')}" for program in programs)
    print(f"{facts['stfs']}, {versions}, Python {facts['python']}")
