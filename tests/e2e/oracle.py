"""What the converted file of a checkpoint must be, worked out with torch and safetensors.

Two rules, both restated here from their descriptions and sharing no code with stfs:

* `hugging_face`: the conversion that Hugging Face's convert.py does to one file. It raises `Refused`
  where that script stops with an error.
* `lossless`: the rule that stfs documents for the checkpoints which convert.py refuses or loses data of.

`expected` picks between them: the first wherever it loses nothing, else the second.
"""

import hashlib
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save, save_file

# Class name to tied weight keys, one table for each of several transformers releases.
TIED_TABLES = Path(
    os.environ.get("STFS_TIED_TABLES", Path(__file__).resolve().parents[2] / "src" / "convert" / "tied_weights")
)

# convert.py's tolerance between the size of the file it reads and the one it writes.
SIZE_TOLERANCE = 0.01


class Refused(Exception):
    """convert.py stops with an error on this checkpoint."""


def load(path):
    """The state dict of a checkpoint, as convert.py loads and unwraps it."""
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    return loaded["state_dict"] if "state_dict" in loaded else loaded


def discard_names(directory):
    """The names that the architecture in config.json prefers not to keep of a tied pair."""
    try:
        architecture = json.loads((Path(directory) / "config.json").read_text())["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return frozenset()
    newest_first = sorted(TIED_TABLES.glob("*.json"), key=_version, reverse=True)
    assert newest_first, f"no tables of tied weights in {TIED_TABLES}"
    for table in newest_first:
        names = json.loads(table.read_text()).get(architecture)
        if names is not None:
            return frozenset(names)
    return frozenset()


def _version(table):
    return tuple(int(part) for part in table.stem.rpartition("-")[2].split("."))


def expected(path, discard=frozenset()):
    """The bytes that stfs owes for `path`, and which of the two rules they come from."""
    state_dict = load(path)
    try:
        converted, kept_for = hugging_face(path, discard)
    except Refused:
        return lossless(state_dict, discard), "lossless"
    if is_lossless(state_dict, kept_for):
        return converted, "hugging_face"
    return lossless(state_dict, discard), "lossless"


# Hugging Face's rule


def hugging_face(path, discard=frozenset()):
    """convert.py's output for `path`, and the map from each name it removes to the name it keeps instead."""
    with tempfile.TemporaryDirectory() as directory:
        target = os.path.join(directory, "model.safetensors")
        try:
            kept_for = convert_file(path, target, discard)
        except Exception as error:
            # The script has no errors of its own kind: AttributeError, KeyError, TypeError and RuntimeError end it.
            raise Refused(f"{type(error).__name__}: {error}") from error
        return Path(target).read_bytes(), kept_for


def convert_file(path, target, discard=frozenset()):
    """Every step of convert.py for one file, its own checks of the result included."""
    state_dict = dict(load(path))
    kept_for = {}
    for names in _sharing_names(state_dict):
        covering = {name for name in names if _covers_storage(state_dict[name])}
        if not covering:
            if len(names) > 1:
                raise RuntimeError(f"no tensor of {sorted(names)} covers the storage they share")
            (name,) = names
            state_dict[name] = state_dict[name].clone()
            continue
        kept = min(covering - discard or covering)
        for name in sorted(names - {kept}):
            kept_for[name] = kept

    metadata = {"format": "pt"}
    for name, kept in kept_for.items():
        metadata.setdefault(name, kept)
        del state_dict[name]
    tensors = {name: tensor.contiguous() for name, tensor in state_dict.items()}
    save_file(tensors, target, metadata=metadata)

    source_size, target_size = os.stat(path).st_size, os.stat(target).st_size
    if (target_size - source_size) / source_size > SIZE_TOLERANCE:
        raise RuntimeError(f"the size grew from {source_size} to {target_size}")
    reloaded = load_file(target)
    for name, tensor in tensors.items():
        if not torch.equal(tensor, reloaded[name]):
            raise RuntimeError(f"{name} came back different")
    return kept_for


def _sharing_names(state_dict):
    """Sets of names whose tensors overlap in one storage, singletons included.

    The sweep compares each tensor with the end of the one before it and not with the furthest end so far: a
    tensor nested in an earlier, longer one can come out as overlapping nothing. That is what the script does.
    """
    by_storage = defaultdict(list)
    for name, tensor in state_dict.items():
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage.data_ptr() != 0 and storage.nbytes() != 0:
            by_storage[tensor.device, storage.data_ptr(), storage.nbytes()].append(name)
    for names in by_storage.values():
        if len(names) == 1:
            yield set(names)
            continue
        group, previous_end = set(), None
        for start, end, name in sorted((*_extent(state_dict[name]), name) for name in names):
            if previous_end is not None and start >= previous_end:
                yield group
                group = set()
            group.add(name)
            previous_end = end
        yield group


def _extent(tensor):
    """Addresses of the first byte and after the last one. Strides that do not flatten raise, as in the script."""
    if tensor.nelement() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    return tensor.data_ptr(), tensor.view(-1)[-1].data_ptr() + tensor.element_size()


def _covers_storage(tensor):
    storage = tensor.untyped_storage()
    return tensor.data_ptr() == storage.data_ptr() and tensor.nelement() * tensor.element_size() == storage.nbytes()


def is_lossless(state_dict, kept_for):
    """Whether every removed tensor is the very tensor that was kept for it, so that nothing is lost."""
    return all(_identity(state_dict[name]) == _identity(state_dict[kept]) for name, kept in kept_for.items())


def _identity(tensor):
    """Equal for two tensors exactly if they are the same view of the same bytes."""
    return (
        tensor.untyped_storage().data_ptr(),
        tensor.dtype,
        tensor.storage_offset(),
        tuple(tensor.shape),
        # Nothing is ever a step away along a dimension of one element.
        tuple(stride for size, stride in zip(tensor.shape, tensor.stride()) if size > 1),
    )


# stfs's own rule


def lossless(state_dict, discard=frozenset()):
    """Exact duplicates collapse to one name; every other tensor is kept whole; what is no tensor is left out."""
    tensors = dict(flatten(state_dict))
    classes = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.nelement() > 0:
            classes[_identity(tensor)].append(name)

    metadata = {"format": "pt"}
    for names in classes.values():
        kept = min(set(names) - discard or names)
        for name in names:
            if name != kept:
                metadata.setdefault(name, kept)
                del tensors[name]
    return save({name: row_major(tensor) for name, tensor in tensors.items()}, metadata)


def flatten(value, prefix=""):
    """Pairs of a dotted name and a tensor. Dictionary keys and list positions are the parts of the name."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
        return
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        # A nameless tensor at the top keeps its empty name; below, the empty part still has its dot.
        yield from flatten(item, f"{prefix}.{key}" if prefix else str(key))


def row_major(tensor):
    """A copy in row-major order with a storage of its own, made from bytes: not every dtype has a copy kernel."""
    if tensor.nelement() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    elements = torch.frombuffer(bytearray(raw_bytes(tensor)), dtype=torch.uint8).view(tensor.dtype)
    return elements.view(tensor.shape)


def raw_bytes(tensor):
    """The elements in row-major order, little-endian."""
    if tensor.nelement() == 0:
        return b""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    units = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.element_size() in units:
        # The same elements as integers of their size: a view that every stride allows.
        tensor = tensor.view(units[tensor.element_size()])
    copy = tensor.clone(memory_format=torch.contiguous_format)
    return copy.view(-1).view(torch.uint8).numpy().tobytes()


# Comparing


def header_of(data):
    """The parsed header of a safetensors file, and the offset of the data after it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def digests(data):
    """The tensors of a safetensors file: name -> (dtype, shape, sha256)."""
    header, data_start = header_of(data)
    header.pop("__metadata__", None)
    return {
        name: (
            info["dtype"],
            info["shape"],
            hashlib.sha256(data[slice(*(data_start + offset for offset in info["data_offsets"]))]).hexdigest(),
        )
        for name, info in header.items()
    }


def metadata_of(data):
    """The `__metadata__` of a safetensors file, in its order."""
    return header_of(data)[0].get("__metadata__", {})


def canonical_order(metadata):
    """The same entries: "format" first, the rest sorted."""
    return dict(sorted(metadata.items(), key=lambda item: (item[0] != "format", item[0])))


def canonical(data):
    """`data` with its `__metadata__` entries in canonical order.

    safetensors writes several entries in an order that changes from run to run; only their order is free.
    """
    _, data_start = header_of(data)
    header = data[8:data_start].decode()
    prefix = '{"__metadata__":'
    if not header.startswith(prefix):
        return data
    metadata, end = json.JSONDecoder().raw_decode(header, len(prefix))
    text = json.dumps(canonical_order(metadata), ensure_ascii=False, separators=(",", ":"))
    return data[:8] + (prefix + text + header[end:]).encode() + data[data_start:]


def difference(actual, wanted):
    """None if the two files are the same but for the order of metadata entries, else what differs, in words."""
    if canonical(actual) == canonical(wanted):
        return None
    ours, ours_start = header_of(actual)
    theirs, theirs_start = header_of(wanted)
    if ours != theirs:
        changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        return f"headers differ in {[(key, ours.get(key), theirs.get(key)) for key in sorted(changed)[:5]]}"
    if actual[:ours_start] != wanted[:theirs_start]:
        return f"same header values in other bytes: {actual[:ours_start]!r} for {wanted[:theirs_start]!r}"
    for name, info in theirs.items():
        begin, end = info.get("data_offsets", (0, 0))
        if actual[ours_start + begin : ours_start + end] != wanted[theirs_start + begin : theirs_start + end]:
            return f"the bytes of {name!r} differ"
    return f"lengths differ: {len(actual)} for {len(wanted)}"
