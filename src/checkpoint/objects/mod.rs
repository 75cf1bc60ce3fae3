//! The objects in a pickle, whoever wrote them: torch's storages, the functions
//! that rebuild tensors and the containers around them, and the arrays of numpy,
//! joblib and Paddle. Nothing is called; each known name is given the meaning it
//! has in torch (torch/_utils.py, torch/_tensor.py).

mod array;
mod composed;
mod containers;
mod embedded;
mod instance;
mod joblib;
mod map;
mod meaning;
mod module;
mod numpy_dtype;
mod paddle;
mod payload;
mod rebuild;
mod saved;
mod tensor;
mod torch;
pub mod torchscript;
mod wrapper;

pub use joblib::{Follows, follows};
pub use map::{Entries, Kind, Label, Map};
pub use meaning::Meaning;
pub use paddle::evaluated;
pub use saved::{SavedStorage, saved_storage};
pub use tensor::GRADIENT;
pub use torch::{Composed, Storages, Torch};
