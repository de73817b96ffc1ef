//! Reslora: CHANGE this to the method's name, its authors, the year and the arXiv number, in a sentence that says what it does.
//!
//! CHANGE: the paper's equations. What is here is a plain low-rank update, with W `[n_out, n_in]` frozen, A `[r, n_in]` and
//! B `[n_out, r]` trained:
//!
//! ```text
//! y = x Wᵀ + bias + s (drop(x) Aᵀ) Bᵀ        s = lora_alpha / r
//! ```
//!
//! B starts at 0, so the adapted model starts as its base. CHANGE: say where you depart from the paper, and why.
//!
//! ```
//! use lowrank_reslora::ResloraConfig;
//! let config: ResloraConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6}"#)?;
//! assert_eq!(config.scale(), 1.5);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod config;
mod layer;

pub use config::ResloraConfig;
pub use layer::Reslora;
