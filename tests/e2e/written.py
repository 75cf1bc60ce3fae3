"""How values that safetensors has no word for are written, restated from the README; and either-or assertions."""

import oracle
import torch
from conftest import derived, refusal


def represented(value):
    """A flat dictionary of the plain tensors that stand for a state dict: name -> tensor.

    Dictionary keys, list positions and attributes of wrapped tensors are the parts of a dotted name. A packed parameter
    of torch's quantized modules is what its state holds.
    """
    return dict(_represent(value, ""))


def _represent(value, name):
    if isinstance(value, torch.Tensor):
        yield from _represent_tensor(value.detach(), name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _represent(item, _below(name, key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _represent(item, _below(name, index))
    elif isinstance(value, torch.ScriptObject):
        state, _class_name = value.__getstate__()
        yield from _represent(state, name)


def _represent_tensor(tensor, name):
    if not tensor.is_quantized:
        yield name, tensor
    elif tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield name, tensor.int_repr()
        yield f"{name}.scale", torch.tensor(tensor.q_scale(), dtype=torch.float64)
        yield f"{name}.zero_point", torch.tensor(tensor.q_zero_point())
    else:
        yield name, tensor.int_repr()
        yield f"{name}.scale", tensor.q_per_channel_scales()
        yield f"{name}.zero_point", tensor.q_per_channel_zero_points()


def _below(name, part):
    return f"{name}.{part}" if name else str(part)


def wanted(state_dict):
    """What a converted file must hold for this state dict: name -> (dtype, shape, sha256)."""
    return oracle.digests(oracle.lossless(represented(state_dict)))


def found(path):
    """What a converted file holds."""
    return oracle.digests(path.read_bytes())


def contents(digests):
    """The tensors without their names."""
    return sorted(digests.values())


def converted(stfs, path, *options):
    """What `stfs convert` makes of a file, or the words of its refusal."""
    target = path.with_name(f"{path.name}.converted.safetensors")
    target.unlink(missing_ok=True)
    result = stfs.run("convert", *options, path, target, check=False)
    if result.returncode == 0:
        return found(target)
    assert result.returncode == 1 and not target.exists()
    assert len(result.stderr.split()) > 5, "a refusal says why"
    return result.stderr


def shown(path):
    """What a mount shows for the checkpoint at `path` of it: its tensors, or the words of its refusal."""
    if derived(path).exists():
        assert not path.with_name(f"{path.name}.refused.txt").exists(), "converted, and refused"
        return found(derived(path))
    return refusal(path)


def is_refused(outcome, *words):
    """Whether an outcome is a refusal. Asserts that one has all these words."""
    if not isinstance(outcome, str):
        return False
    assert [word for word in words if word.lower() not in outcome.lower()] == [], outcome
    return True
