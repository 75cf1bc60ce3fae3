"""`stfs cache verify` of many checkpoints in one directory, against reading what it compares."""

from collections import defaultdict
from pathlib import Path

from . import reads, stfs
from .report import at_most

VERIFY, READ = "stfs cache verify", "reading checkpoints and converted files once"


def run(bench):
    model = bench.models.siblings()
    report = bench.report
    report.section(
        "verifying",
        f"Verifying {len(model.checkpoints)} converted files, checkpoints in one directory: {model.describe()}",
        "the whole command; reading: each file from beginning to end, by one thread",
    )
    if not bench.stfs.has_command("cache"):
        report.missing(VERIFY, "not available: this stfs has no `cache`")
        return
    times = defaultdict(list)
    with bench.stfs.scratch() as cache:
        bench.stfs.promote(model.source, cache)
        converted = [path for path in Path(cache).rglob("files/**/*") if path.is_file() and path.suffix != ".record"]
        if len(converted) < len(model.checkpoints):
            report.missing(VERIFY, f"only {len(converted)} were converted: is there room on the disk?")
            return
        for _ in range(bench.rounds):
            reads.warm([*model.checkpoints, *converted])
            times[READ].append(reads.seconds(reads.warm, [*model.checkpoints, *converted]))
            command = [stfs.PROGRAM, "cache", "verify"]
            times[VERIFY].append(reads.seconds(stfs.run, command, bench.stfs.environment(cache)))
    rows = report.rows("s", times)
    ratio = report.ratio("stfs cache verify / reading", rows[VERIFY], rows[READ])
    report.goal(f"cache verify of {len(model.checkpoints)} checkpoints / reading both files", at_most(1.5), ratio)
