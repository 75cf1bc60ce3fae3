"""Options, and the sections in their order. See the package's own description for what they measure."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Loaders must not look for anything beyond the directory they are given.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"

from . import __doc__ as description
from . import (
    alive,
    comparing,
    distance,
    indexes,
    loading,
    looking,
    machine,
    memory,
    peers,
    plot,
    pressure,
    reading,
    reads,
    tree,
    verifying,
)
from .models import Models
from .report import Report
from .stfs import Stfs

SECTIONS = {
    "looking": looking.run,
    "many_tensors": looking.many_tensors,
    "loading": loading.run,
    "peers": peers.run,
    "reading": reading.run,
    "cold": reading.cold,
    "memory": memory.run,
    "peaks": memory.peaks,
    "inflating": alive.inflating,
    "hanging": alive.hanging,
    "idle": alive.idle,
    "tree": tree.run,
    "distance": distance.run,
    "verifying": verifying.run,
    "diff": comparing.run,
    "indexes": indexes.run,
    "pressure": pressure.run,
}
# Sections that are only run when they are asked for.
BIG = {"pressure"}


@dataclass
class Bench:
    """What a section gets."""

    rounds: int
    models: Models
    stfs: Stfs
    report: Report


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures stfs against its peers, in one run.",
        epilog="The models take 12 GB of disk, and once promoted 4 GB more; the 4 GB model wants 20 GB of memory. Root "
        "gives passthrough mounts and really cold reads.",
    )
    parser.add_argument("--dir", type=Path, help="where models are made and kept (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each kind (default: 5)")
    parser.add_argument("--only", action="append", metavar="SECTION", choices=SECTIONS, help="run this one; repeatable")
    parser.add_argument("--big", action="store_true", help="also what takes a model of half the memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file as well")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them as an SVG")
    parser.add_argument("--list", action="store_true", help="tell the sections and what they measure")
    parser.add_argument("--scale", type=float, default=1, help="size of the models, to try the benchmark itself")
    arguments = parser.parse_args()
    if arguments.list:
        print(description)
        return
    if not os.path.exists("/dev/fuse"):
        sys.exit("/dev/fuse is missing: nothing can be mounted here")
    chosen = arguments.only or [name for name in SECTIONS if arguments.big or name not in BIG]
    with contextlib.ExitStack() as stack:
        directory = arguments.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stfs-bench-")))
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        report = measure(directory, chosen, arguments)
    report.print_goals()
    if arguments.json:
        arguments.json.write_text(json.dumps(report.data, indent=2) + "\n")
    if arguments.plot:
        arguments.plot.parent.mkdir(parents=True, exist_ok=True)
        arguments.plot.write_text(plot.draw(report.data))


def measure(directory, chosen, arguments):
    models, stfs = Models(directory, arguments.scale), Stfs(directory)
    report = Report(machine.describe(directory, stfs), arguments.rounds, arguments.scale)
    machine.print_facts(report.data["machine"])
    bench = Bench(arguments.rounds, models, stfs, report)
    models.directory.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for name in SECTIONS:
        if name in chosen:
            seconds[name] = reads.seconds(SECTIONS[name], bench)
    report.data["seconds"] = seconds
    return report


if __name__ == "__main__":
    main()
