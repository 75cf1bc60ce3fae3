//! torch's element types and their safetensors counterparts.

use safetensors::Dtype;

/// An element type of a torch tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// One that safetensors has too.
    Plain(Dtype),
    /// One that safetensors has no name for.
    Foreign(Foreign),
}

/// Element types that only torch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// torch's name.
    pub name: &'static str,
    /// Bytes of one element.
    pub size: u64,
}

/// What the negation and conjugation of torch's lazy views do to an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numeric {
    Integer,
    Float,
    /// Two floats: the real and the imaginary part.
    Complex,
}

impl ElementType {
    /// Bytes of one element as torch counts elements: `float4_e2m1fn_x2` is one
    /// element of two values.
    pub fn size(self) -> u64 {
        match self {
            ElementType::Plain(Dtype::F4) => 1,
            ElementType::Plain(dtype) => dtype.bitsize() as u64 / 8,
            ElementType::Foreign(foreign) => foreign.size,
        }
    }

    /// Bytes of one number, which is what a byte order applies to: a complex
    /// element is two numbers.
    pub fn number_size(self) -> u64 {
        let complex = match self {
            ElementType::Plain(dtype) => numeric(dtype) == Numeric::Complex,
            ElementType::Foreign(foreign) => {
                matches!(foreign.name, "complex128" | "complex32" | "bcomplex32")
            }
        };
        self.size() / if complex { 2 } else { 1 }
    }

    /// The type of a storage class such as `FloatStorage`, whatever its module:
    /// torch itself looks at the class name alone (torch/storage.py,
    /// `StorageType`). An untyped storage counts bytes.
    pub fn of_storage_class(name: &str) -> Option<ElementType> {
        use ElementType::{Foreign as Other, Plain};
        Some(match name {
            "DoubleStorage" => Plain(Dtype::F64),
            "FloatStorage" => Plain(Dtype::F32),
            "HalfStorage" => Plain(Dtype::F16),
            "BFloat16Storage" => Plain(Dtype::BF16),
            "LongStorage" => Plain(Dtype::I64),
            "IntStorage" => Plain(Dtype::I32),
            "ShortStorage" => Plain(Dtype::I16),
            "CharStorage" => Plain(Dtype::I8),
            "ByteStorage" => Plain(Dtype::U8),
            "BoolStorage" => Plain(Dtype::BOOL),
            "ComplexFloatStorage" => Plain(Dtype::C64),
            "UntypedStorage" | "_UntypedStorage" => Plain(Dtype::U8),
            "ComplexDoubleStorage" => Other(foreign("complex128", 16)),
            "QInt8Storage" => Other(foreign("qint8", 1)),
            "QUInt8Storage" => Other(foreign("quint8", 1)),
            "QInt32Storage" => Other(foreign("qint32", 4)),
            "QUInt4x2Storage" => Other(foreign("quint4x2", 1)),
            "QUInt2x4Storage" => Other(foreign("quint2x4", 1)),
            _ => return None,
        })
    }

    /// The type that torch.export writes as this number (torch/_export/serde/schema.py,
    /// `ScalarType`).
    pub fn of_export_number(number: u32) -> Option<ElementType> {
        let name = match number {
            1 => "uint8",
            2 => "int8",
            3 => "int16",
            4 => "int32",
            5 => "int64",
            6 => "float16",
            7 => "float32",
            8 => "float64",
            9 => "complex32",
            10 => "complex64",
            11 => "complex128",
            12 => "bool",
            13 => "bfloat16",
            28 => "uint16",
            29 => "float8_e4m3fn",
            30 => "float8_e5m2",
            31 => "float8_e4m3fnuz",
            32 => "float8_e5m2fnuz",
            33 => "float8_e8m0fnu",
            34 => "uint32",
            35 => "uint64",
            _ => return None,
        };
        ElementType::of_dtype_name(name)
    }

    /// The type of a dtype object: the name behind `torch.`, as in `torch.float32`.
    pub fn of_dtype_name(name: &str) -> Option<ElementType> {
        use ElementType::{Foreign as Other, Plain};
        Some(match name {
            "float64" | "double" => Plain(Dtype::F64),
            "float32" | "float" => Plain(Dtype::F32),
            "float16" | "half" => Plain(Dtype::F16),
            "bfloat16" => Plain(Dtype::BF16),
            "int64" | "long" => Plain(Dtype::I64),
            "int32" | "int" => Plain(Dtype::I32),
            "int16" | "short" => Plain(Dtype::I16),
            "int8" => Plain(Dtype::I8),
            "uint8" => Plain(Dtype::U8),
            "uint16" => Plain(Dtype::U16),
            "uint32" => Plain(Dtype::U32),
            "uint64" => Plain(Dtype::U64),
            "bool" => Plain(Dtype::BOOL),
            "complex64" | "cfloat" => Plain(Dtype::C64),
            "float8_e4m3fn" => Plain(Dtype::F8_E4M3),
            "float8_e4m3fnuz" => Plain(Dtype::F8_E4M3FNUZ),
            "float8_e5m2" => Plain(Dtype::F8_E5M2),
            "float8_e5m2fnuz" => Plain(Dtype::F8_E5M2FNUZ),
            "float8_e8m0fnu" => Plain(Dtype::F8_E8M0),
            "float4_e2m1fn_x2" => Plain(Dtype::F4),
            "complex128" | "cdouble" => Other(foreign("complex128", 16)),
            "complex32" | "chalf" => Other(foreign("complex32", 4)),
            "bcomplex32" => Other(foreign("bcomplex32", 4)),
            "bits8" => Other(foreign("bits8", 1)),
            "bits16" => Other(foreign("bits16", 2)),
            "bits1x8" => Other(foreign("bits1x8", 1)),
            "bits2x4" => Other(foreign("bits2x4", 1)),
            "bits4x2" => Other(foreign("bits4x2", 1)),
            _ => return None,
        })
    }
}

/// How the bits of a safetensors element are to be read as a number.
pub fn numeric(dtype: Dtype) -> Numeric {
    match dtype {
        Dtype::C64 => Numeric::Complex,
        Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64 => Numeric::Float,
        Dtype::F8_E5M2 | Dtype::F8_E4M3 | Dtype::F8_E8M0 => Numeric::Float,
        Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => Numeric::Float,
        _ => Numeric::Integer,
    }
}

fn foreign(name: &'static str, size: u64) -> Foreign {
    Foreign { name, size }
}
