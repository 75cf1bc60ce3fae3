//! How the parts of a checkpoint are written down that serde has no fitting form
//! of its own for.

use std::cell::Cell;

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Storages that may stand inside each other when they are read back. A storage
/// of boxes has storages in it; none of the formats goes further.
const MAX_NESTING: u32 = 4;

/// An element type, by its name: the numbers of the variants are the affair of
/// whichever release of safetensors this was built with.
pub mod dtype {
    use safetensors::Dtype;
    use serde::de::IntoDeserializer;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(dtype: &Dtype, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(dtype)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
        let name = String::deserialize(deserializer)?;
        Dtype::deserialize(name.as_str().into_deserializer())
    }
}

/// Bytes in one piece.
pub mod bytes {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Arc<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<[u8]>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Arc::from)
    }
}

/// A JSON value, as text: its form depends on what it is.
pub mod json {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    pub fn serialize<S: Serializer>(
        value: &Option<Value>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Value::to_string).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Value>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        let value = text.map(|text| serde_json::from_str(&text));
        value.transpose().map_err(D::Error::custom)
    }
}

thread_local! {
    /// How deep the value lies that is being read back.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Reads what stands inside a storage, unless it lies too deep.
pub fn nested<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let depth = DEPTH.get();
    if depth >= MAX_NESTING {
        return Err(D::Error::custom("storages are nested too deep"));
    }
    DEPTH.set(depth + 1);
    let value = T::deserialize(deserializer);
    DEPTH.set(depth);
    value
}
