"""A tensor subclass without data of its own, built as torchao builds them."""

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing


class QuantizedTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, int_data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, int_data.shape, dtype=scale.dtype)

    def __init__(self, int_data, scale):
        self.int_data = int_data
        self.scale = scale

    def __tensor_flatten__(self):
        return ["int_data", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts, context, size, stride):
        return cls(parts["int_data"], parts["scale"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            result = cls(args[0].int_data, args[0].scale)
            return return_and_correct_aliasing(function, args, kwargs or {}, result)
        raise NotImplementedError(str(function))
