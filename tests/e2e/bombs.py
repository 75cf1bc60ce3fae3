"""Small files that make much of themselves: for tests, and for the benchmark."""

import zipfile

import torch

MIB = 1 << 20


def deflate(path):
    """Compresses every entry of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def halves_of_bytes(count):
    """Bytes of which deflate makes about half as many."""
    return torch.randint(0, 16, (count,), dtype=torch.uint8)


def save_bomb(path, length=25 * MIB):
    """A checkpoint of 281 KB with a pickle of 25 MiB: its one tensor, and a list of so many empty lists."""
    weight = torch.randn(64_000)
    torch.save({"weight": weight}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            if not name.endswith("data.pkl"):
                archive.writestr(name, data)
                continue
            # `SETITEM STOP` becomes another item, its list, and `SETITEMS STOP`; the mark goes where the items begin.
            assert data.startswith(b"\x80\x02}q\x00X") and data.endswith(b"s.")
            data = data[:5] + b"(" + data[5:-2] + b"X\x04\x00\x00\x00more](" + b"]" * length + b"eu."
            archive.writestr(name, data, zipfile.ZIP_DEFLATED, 9)
    assert path.stat().st_size < 300_000
    return {"weight": weight}
