//! SBoRA (Po et al. 2024, arXiv 2407.05413): low-rank adaptation in which one factor is a frozen set of distinct one-hot
//! vectors, r indices in all, and the other is trained from 0.
//!
//! With W `[n_out, n_in]` frozen and s = lora_alpha / r:
//!
//! ```text
//! FA   y = x Wᵀ + bias + s drop(x[idx]) Bᵀ           idx: r columns of W, B [n_out, r] trained
//! FB   y = x Wᵀ + bias, y[idx] += s A drop(x)        idx: r rows of W,    A [r, n_in]  trained
//! ```
//!
//! FA changes r columns of the weight, FB r rows, and each is exactly the training of those alone. No one-hot matrix is
//! ever built: FA gathers inputs, FB adds to outputs. A merge changes what the indices name and leaves every other number
//! of W as it was, byte for byte; [`Kept`] puts back what was there. QSBoRA is the same on a base in NF4 or GGUF's blocks,
//! which is never written to.
//!
//! The authors draw indices from a generator that is not seeded. Here [`region`] draws them: the same seed and path give
//! the same permutation of all columns (or rows), and task t of a model owns the slots t r to (t + 1) r of it, so that
//! adapters of several tasks touch different parts of every weight. The indices are saved as `sbora_idx` (u32), and what a
//! file says counts: nothing is drawn where an adapter is read. FA drops after it has gathered, which has the same
//! distribution and costs less than before.
//!
//! ```
//! use lowrank_sbora::{SboraConfig, Variant, region};
//! let config: SboraConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6, "tasks": 4}"#)?;
//! assert_eq!((config.variant, config.task), (Variant::Fa, 0));
//! let columns = region(42, "layers.0.self_attn.q_proj", 16, 4, 1)?;
//! assert_eq!(columns, [0, 1, 9, 11]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod layer;
mod sampler;
mod update;

pub use config::{SboraConfig, Variant};
pub use layer::Sbora;
pub use sampler::region;
pub use update::{Kept, Overlap, Update, fold_all};
