//! The functions and classes that tensors are made with in a pickle, by all
//! versions of torch (torch/_utils.py, torch/_tensor.py, torch/nn/parameter.py).

use std::ops::RangeInclusive;

/// What the callable `module.name` makes of its arguments.
pub enum Wrapper {
    /// `(storage, offset, size, stride, ...)`, so many in all.
    Rebuild(RangeInclusive<usize>),
    /// `(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)`
    RebuildTyped,
    /// A tensor class of torch before 0.2: the arguments of `Rebuild` as state.
    TensorClass,
    /// `(function, type, arguments, state)`
    FromType,
    /// `(tensor, requires_grad, hooks)`
    Parameter,
    /// `(tensor, requires_grad, hooks, attributes)`
    ParameterWithState,
    /// `(tensor,)`, or nothing and a state that begins with the tensor.
    ParameterClass,
    /// `(tensor, dtype, device, requires_grad)`
    FromCpu,
    /// `(array of numpy, dtype, device, requires_grad)`
    FromNumpy,
    /// `(storage, offset, size, stride, quantizer, requires_grad, hooks)`
    Quantized,
    /// `(layout, parts)`
    Sparse,
    /// A tensor that is not read.
    Unsupported(&'static str),
    /// No tensor.
    None,
}

/// Makes a tensor without data of its own; its parts are among its attributes.
pub const WRAPPER_SUBCLASS: (&str, &str) = ("torch._utils", "_rebuild_wrapper_subclass");

/// Why a tensor on the meta device is refused.
pub const NO_DATA: &str = "it is on the meta device, so it has no data";

/// What `module.name` makes.
pub fn wrapper(module: &str, name: &str) -> Wrapper {
    match (module, name) {
        ("torch._utils", "_rebuild_tensor") => Wrapper::Rebuild(4..=4),
        ("torch._utils", "_rebuild_tensor_v2") => Wrapper::Rebuild(6..=7),
        ("torch._utils", "_rebuild_tensor_v3") => Wrapper::RebuildTyped,
        ("torch._utils", "_rebuild_parameter") => Wrapper::Parameter,
        ("torch._utils", "_rebuild_parameter_with_state") => Wrapper::ParameterWithState,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") => Wrapper::FromCpu,
        ("torch._tensor" | "torch.tensor", "_rebuild_from_type_v2" | "_rebuild_from_type") => {
            Wrapper::FromType
        }
        ("torch.nn.parameter", "Parameter" | "Buffer")
        | ("torch.autograd.variable", "Variable") => Wrapper::ParameterClass,
        ("torch._utils", "_rebuild_qtensor") => Wrapper::Quantized,
        ("torch._utils", "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor") => {
            Wrapper::Sparse
        }
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => Wrapper::Unsupported(NO_DATA),
        WRAPPER_SUBCLASS => {
            Wrapper::Unsupported("it is of a tensor subclass without data of its own")
        }
        (
            "torch._utils",
            "_rebuild_device_tensor_from_numpy" | "_rebuild_xla_tensor" | "_rebuild_mlc_tensor",
        ) => Wrapper::FromNumpy,
        ("torch._utils", "_rebuild_nested_tensor")
        | ("torch.nested._internal.nested_tensor", _) => {
            Wrapper::Unsupported("it is nested, so it has no rectangular shape")
        }
        ("torch._utils", other) if other.starts_with("_rebuild") => {
            Wrapper::Unsupported("it is rebuilt by a function of an unknown torch version")
        }
        ("torch.storage", "_load_from_bytes") => {
            Wrapper::Unsupported("its storage is kept in a pickled byte string")
        }
        ("torch.nn.parameter", "UninitializedParameter" | "UninitializedBuffer") => {
            Wrapper::Unsupported("it is uninitialized, so it has no data")
        }
        ("torch" | "torch.cuda", class) if class.ends_with("Tensor") => Wrapper::TensorClass,
        ("torch.sparse" | "torch.cuda.sparse", class) if class.ends_with("Tensor") => {
            Wrapper::Unsupported("it is sparse")
        }
        _ => Wrapper::None,
    }
}
