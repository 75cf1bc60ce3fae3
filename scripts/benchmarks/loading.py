"""load_file through a mount: the first time, again, and once promoted, against the native file and torch.load."""

from collections import defaultdict

from . import reads
from .report import at_least, at_most
from .worker import Worker

FIRST, AGAIN, DEFAULT = "mount, first", "mount, again", "mount, first, default options"
NATIVE, PICKLE, PICKLE_MMAP = "native file", "torch.load", "torch.load mmap=True"
# Measured in turns of their own: the native file is measured again beside them.
PROMOTED, PROMOTED_AGAIN, NATIVE_BESIDE = "promoted, first", "promoted, again", "native file, beside promoted"
LOAD, COPY = "load: ", "load and copy: "

# Loads of a few milliseconds are measured several times a round.
REPEATS = 3
# https://huggingface.co/docs/safetensors/speed: load_file of GPT-2 against torch.load, on a CPU.
PUBLISHED = 76.6


def run(bench):
    load(bench, "gpt2", bench.models.gpt2(), goals=True)
    load(bench, "small_tensors", bench.models.small_tensors(20_000), goals=False)
    load(bench, "llama", bench.models.llama(), goals=True)


def load(bench, name, model, goals):
    with Worker() as worker:
        reads.warm(model.native)
        worker.make_destinations(model.native)
        samples = in_turns(bench, model, worker)
        promoted = once_promoted(bench, model, worker) if bench.stfs.has_command("warm") else None
        memory = [worker.copy_memory() for _ in range(bench.rounds)] if name == "gpt2" else []

    report = bench.report
    report.section(
        f"loading_{name}",
        f"Loading with safetensors.torch.load_file: {model.describe()}",
        "load: until load_file or torch.load returns; no byte of a tensor is looked at",
        "load and copy: until every tensor was copied, by one thread, to one that existed before",
        "first: on a mount that nobody has used, nothing promoted; again: the same mount; promoted: after `stfs warm`",
    )
    loads = report.rows("s", with_prefix(LOAD, samples.loads))
    copies = report.rows("s", with_prefix(COPY, samples.copies))
    if promoted:
        loads |= report.rows("s", with_prefix(LOAD, promoted.loads))
        copies |= report.rows("s", with_prefix(COPY, promoted.copies))
    if memory:
        report.row("limit: the same bytes copied in memory", "s", memory)

    def ratio(kind, other, way, published=None):
        rows = loads if way == LOAD else copies
        return report.ratio(f"{way}{kind} / {other}", rows[way + kind], rows[way + other], published)

    first_speed = ratio(PICKLE, FIRST, LOAD)
    first_native = ratio(FIRST, NATIVE, LOAD)
    again_native = ratio(AGAIN, NATIVE, LOAD)
    published = PUBLISHED if name == "gpt2" else None
    ratio(PICKLE, AGAIN, LOAD, published)
    ratio(PICKLE, NATIVE, LOAD, published)
    first_copy = ratio(FIRST, PICKLE, COPY)
    ratio(AGAIN, NATIVE, COPY)
    promoted_copy = None
    if promoted:
        ratio(PROMOTED_AGAIN, NATIVE_BESIDE, COPY)
        promoted_copy = ratio(PROMOTED, NATIVE_BESIDE, COPY)
    else:
        report.missing("once promoted", "not available: this stfs has no `warm`")
    if not bench.stfs.streaming:
        report.missing(DEFAULT, "not available: this stfs has no `--promote`, so the rows above are the default")
    if not goals:
        return

    def goal(text, bound, value, why=None):
        report.goal(f"{text} ({model.describe()})", bound, value, why)

    goal("first load_file, no byte touched: torch.load / mount", at_least(20), first_speed)
    goal("first load_file, no byte touched: mount / native", at_most(3), first_native)
    goal("repeated load_file, no byte touched: mount / native", at_most(1.1), again_native)
    goal("first load, every tensor copied: mount / torch.load", at_most(0.6), first_copy)
    why = None if promoted else "this stfs has no `warm`"
    goal("the same, once promoted: mount / native", at_most(1.03), promoted_copy, why)


class Samples:
    """Seconds of loading, and of loading and copying, of each kind."""

    def __init__(self, worker):
        self._worker = worker
        self.loads, self.copies = defaultdict(list), defaultdict(list)

    def measure(self, kind, loader, paths):
        loaded, copied = self._worker.measure(loader, paths)
        self.loads[kind].append(loaded)
        self.copies[kind].append(copied)


def in_turns(bench, model, worker):
    stfs, samples = bench.stfs, Samples(worker)
    for loader in ("torch_load", "torch_load_mmap"):
        # What these do only once is no part of loading.
        worker.measure(loader, model.checkpoints)
    for _ in range(bench.rounds):
        reads.warm(model.checkpoints)
        with stfs.mounted(model.source, *stfs.streaming) as mount_point:
            shown = model.shown(mount_point)
            samples.measure(FIRST, "load_file", shown)
            reads.warm(model.native)
            for _ in range(REPEATS):
                samples.measure(AGAIN, "load_file", shown)
                samples.measure(NATIVE, "load_file", model.native)
        reads.warm(model.checkpoints)
        samples.measure(PICKLE, "torch_load", model.checkpoints)
        samples.measure(PICKLE_MMAP, "torch_load_mmap", model.checkpoints)
        if stfs.streaming:
            with stfs.mounted(model.source) as mount_point:
                samples.measure(DEFAULT, "load_file", model.shown(mount_point))
    return samples


def once_promoted(bench, model, worker):
    """On fresh mounts, with a cache in which the model was promoted before."""
    stfs, samples = bench.stfs, Samples(worker)
    with stfs.scratch() as cache:
        stfs.promote(model.source, cache)
        for _ in range(bench.rounds):
            with stfs.mounted(model.source, cache=cache) as mount_point:
                reads.warm(model.shown(mount_point))
            reads.warm(model.native)
            with stfs.mounted(model.source, cache=cache) as mount_point:
                shown = model.shown(mount_point)
                samples.measure(PROMOTED, "load_file", shown)
                for _ in range(REPEATS):
                    samples.measure(NATIVE_BESIDE, "load_file", model.native)
                    samples.measure(PROMOTED_AGAIN, "load_file", shown)
    return samples


def with_prefix(prefix, samples):
    return {prefix + kind: values for kind, values in samples.items()}
