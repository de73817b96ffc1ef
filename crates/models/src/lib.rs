//! The models: built from a config.json and [`Weights`](lowrank_frozen::Weights), as blocks that adapters attach to:
//! decoders ([`Llama`], which is Mistral and Qwen2 too) and encoders ([`Bert`], which is RoBERTa too), with the [`Head`] that is
//! wanted;
//! and how any of them continues a text, a token at a time ([`Continuation`]), or several side by
//! side ([`continue_all`]).
//!
//! ```
//! use lowrank_models::ModelInfo;
//! let config = r#"{
//!     "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
//!     "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4, "eos_token_id": 2
//! }"#;
//! let info = ModelInfo::from_json(&serde_json::from_str(config)?, "config.json")?;
//! assert_eq!(info.eos_token_ids, [2]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bert;
mod bert_config;
mod checkpoint;
mod checks;
mod classes;
mod config;
mod embedded;
mod error;
mod fields;
mod generate;
mod generate_batch;
mod kind;
mod llama;
mod load;
mod quantisation;
mod renamed;
mod rope;
mod sample;
mod sizes;

pub use bert::Bert;
pub use bert_config::{Activation, BertConfig};
pub use checkpoint::Precision;
pub use classes::{classes_of, drawn_layer, stored_classes};
pub use config::{Biases, LlamaConfig};
pub use embedded::{Embedded, TINY};
pub use error::{Error, Result};
pub use generate::{Continuation, Finish, Limits};
pub use generate_batch::{Continued, continue_all};
pub use kind::{Kind, Reading};
pub use llama::Llama;
pub use load::{Head, ModelInfo, load};
pub use sample::{Sampling, Temperature, TopP};
