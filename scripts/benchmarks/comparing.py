"""`stfs diff` of a checkpoint and its converted form, against cmp(1) of two equal files of that size."""

import shutil
from collections import defaultdict

from . import reads, stfs
from .report import at_most

DIFF, CMP = "stfs diff: the checkpoint and its converted form", "cmp: the converted form and a copy"


def run(bench):
    model = bench.models.gpt2()
    (checkpoint,), (native,) = model.checkpoints, model.native
    report = bench.report
    report.section(
        "diff",
        f"Comparing two files: {model.describe()}",
        "the whole command, the files in the page cache, and equal; cmp knows nothing of tensors",
    )
    if not bench.stfs.has_command("diff"):
        report.missing(DIFF, "not available: this stfs has no `diff`")
        return
    times = defaultdict(list)
    with bench.stfs.scratch() as scratch:
        copy = scratch / "copy.safetensors"
        shutil.copyfile(native, copy)
        for _ in range(bench.rounds):
            reads.warm([checkpoint, native, copy])
            times[DIFF].append(reads.seconds(stfs.run, [stfs.PROGRAM, "diff", checkpoint, native]))
            times[CMP].append(reads.seconds(stfs.run, ["cmp", native, copy]))
    rows = report.rows("s", times)
    ratio = report.ratio("stfs diff / cmp", rows[DIFF], rows[CMP])
    report.goal("diff of a checkpoint and its converted form / cmp of two such files", at_most(1.5), ratio)
