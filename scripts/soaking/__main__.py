"""Options, the table at the end, and the exit status."""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from . import __doc__ as description
from .run import Run

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH = 48


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0, or 1 for wrong bytes, hangs, failures or growth.",
    )
    parser.add_argument("--seconds", type=float, help="how long (default: 60)")
    parser.add_argument("--minutes", type=float, help="the same in minutes")
    parser.add_argument("--seed", default="random", help="a number, or `random` (default); it is printed")
    parser.add_argument("--workers", type=int, default=8, help="operations at once (default: 8)")
    parser.add_argument("--stfs", type=Path, help="the program (default: $STFS, or target/release/stfs)")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    arguments = parser.parse_args()
    program = (arguments.stfs or REPOSITORY / os.environ.get("STFS", "target/release/stfs")).resolve()
    if not program.is_file():
        sys.exit(f"no stfs program at {program}: build it with `cargo build --release`, or name it with --stfs")
    if not os.path.exists("/dev/fuse"):
        sys.exit("/dev/fuse is missing: nothing can be mounted here")
    seed = random.SystemRandom().randrange(10**9) if arguments.seed == "random" else int(arguments.seed)
    seconds = arguments.minutes * 60 if arguments.minutes else arguments.seconds or 60
    print(f"scripts/soak --seed {seed} --seconds {seconds:g} --workers {arguments.workers}, {program}", flush=True)

    # Workers are forks, and torch's threads would not be there in them.
    torch.set_num_threads(1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    directory = Path(tempfile.mkdtemp(prefix="stfs-soak-", dir=arguments.dir)).resolve()
    run = Run(program, directory, seed, arguments.workers, lambda text: print(text, flush=True))
    began = time.monotonic()
    try:
        run.go(seconds)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        run.close()
        shutil.rmtree(directory, ignore_errors=True)
    sys.exit(table(run, time.monotonic() - began))


def table(run, seconds):
    """Prints what was done and found. The exit status."""
    line(f"after {seconds:.0f} s", "")
    for kind, count in sorted(run.counts.items()):
        line(kind, count)
    line("errors, where they are right", sum(run.errors.values()))
    for error, count in run.errors.most_common(12):
        line(f"    {error}"[:WIDTH], count)
    line("wrong bytes", len(run.wrong))
    line("hangs", len(run.hangs))
    line("failures", len(run.failures))
    for title, before, after, too_much in run.figures:
        line(title, f"{before} -> {after}{'  GROWN' if too_much else ''}")
    bad = run.wrong or run.hangs or run.failures or run.grown
    print("FAILED" if bad else "passed")
    return int(bool(bad))


def line(title, value):
    print(f"{title:<{WIDTH}} {value:>10}" if isinstance(value, int) else f"{title:<{WIDTH}} {value}")


if __name__ == "__main__":
    main()
