"""Every loader there is on a model in two shards, through the mount and from native files."""

from collections import defaultdict

from . import reads
from .worker import LoaderFailed, Worker

# Loader: how it is called in the table.
SAFETENSORS_LOADERS = {
    "load_file": "load_file",
    "load_file_pread": 'load_file backend="pread"',
    "from_pretrained": "transformers from_pretrained",
    "fastsafetensors": "fastsafetensors, CPU",
    "runai": "run:ai model streamer, CPU",
}
PICKLE_LOADERS = {
    "torch_load": "torch.load",
    "torch_load_mmap": "torch.load mmap=True",
    "from_pretrained": "transformers from_pretrained of pickles",
}
FIRST, AGAIN, NATIVE = "mount, first", "mount, again", "native files"


def run(bench):
    model = bench.models.llama()
    report = bench.report
    report.section(
        "peers",
        f"Loaders: {model.describe()}",
        "until every tensor is there and a byte of each of its pages was read",
        "fastsafetensors and run:ai read with O_DIRECT: native files from the disk, the mount's out of the page cache",
    )
    for loader, title in SAFETENSORS_LOADERS.items():
        try:
            samples = safetensors_loader(bench, model, loader)
        except LoaderFailed as failure:
            report.missing(title, f"failed: {failure}")
            continue
        rows = report.rows("s", {f"{title}: {kind}": values for kind, values in samples.items()})
        for kind in (FIRST, AGAIN):
            report.ratio(f"{title}: {kind} / native", rows[f"{title}: {kind}"], rows[f"{title}: {NATIVE}"])
    for loader, title in PICKLE_LOADERS.items():
        try:
            report.row(title, "s", pickle_loader(bench, model, loader))
        except LoaderFailed as failure:
            report.missing(title, f"failed: {failure}")


def safetensors_loader(bench, model, loader):
    samples = defaultdict(list)
    with Worker() as worker:

        def measure(directory, files):
            paths = [directory] if loader == "from_pretrained" else files
            return worker.measure(loader, paths, "touch")[1]

        def measure_native():
            return measure(model.native[0].parent, model.native)

        worker.prepare(loader)
        measure_native()
        for _ in range(bench.rounds):
            reads.warm(model.checkpoints)
            with bench.stfs.mounted(model.source, *bench.stfs.streaming) as mount_point:
                for kind in (FIRST, AGAIN):
                    samples[kind].append(measure(mount_point, model.shown(mount_point)))
            reads.warm(model.native)
            samples[NATIVE].append(measure_native())
    return samples


def pickle_loader(bench, model, loader):
    paths = [model.source] if loader == "from_pretrained" else model.checkpoints
    with Worker() as worker:

        def measure():
            reads.warm(model.checkpoints)
            return worker.measure(loader, paths, "touch")[1]

        worker.prepare(loader)
        measure()
        return [measure() for _ in range(bench.rounds)]
