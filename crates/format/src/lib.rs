//! Files: safetensors, checkpoints in Hugging Face layout, GGUF, PEFT adapter folders, the hub, and folders that appear whole or not at all.
//!
//! This is the only crate that parses weights. A reader checks a file's header completely before any of it is used:
//! whatever a file claims, reading it never panics and never allocates more than the file holds. A pickle is never opened.
//! A writer is deterministic: the same tensors give the same bytes, and those the Python library would write.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lowrank_format::{PYTORCH, Safetensors, write_safetensors};
//!
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("pair.safetensors");
//! let weight = Tensor::new(&[[1f32, 2., 3.], [4., 5., 6.]], &Device::Cpu)?;
//! write_safetensors(&path, [("weight", &weight)], PYTORCH)?;
//!
//! let file = Safetensors::open(&path)?;
//! assert_eq!(file.names(), ["weight"]);
//! assert_eq!(file.tensor("weight")?.to_vec2::<f32>()?, [[1., 2., 3.], [4., 5., 6.]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian, and this crate reads them in place");

mod atomic;
mod bitsandbytes;
mod bytes;
mod card;
mod checkpoint;
mod dtype;
mod error;
mod fingerprint;
mod gguf;
mod header;
mod hub;
mod json;
mod lock;
mod mapped;
mod names;
mod peft;
mod safetensors;
mod side_files;
mod source;
mod write;

pub use atomic::{AtomicFolder, Existing, atomic_write, atomic_write_file};
pub use bytes::check_finite;
pub use card::{Measure, Training};
pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use fingerprint::{Fingerprint, LowrankJson, fingerprint};
pub use gguf::Gguf;
pub use hub::{Hub, HubId, Location, Network, Token};
pub use json::{python_json, read_json_object};
pub use lock::FolderLock;
pub use names::{infer_adapter_infix, strip_adapter_infix};
pub use peft::{CONFIG_FILE, PREFIX, PeftFolder, TENSORS_FILE};
pub use safetensors::Safetensors;
pub use side_files::copy_side_files;
pub use write::{PYTORCH, Planned, write_safetensors, write_safetensors_streaming, write_sharded};
