//! LoRA (Hu et al. 2021, arXiv 2106.09685): a frozen weight plus a product of two thin trained ones.
//!
//! With W `[n_out, n_in]` frozen, A `[r, n_in]` and B `[n_out, r]` trained:
//!
//! ```text
//! y = x Wᵀ + bias + s (drop(x) Aᵀ) Bᵀ        s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
//! ```
//!
//! rsLoRA is Kalajdzievski 2023 (arXiv 2312.03732). Dropout touches the adapter's input only. B starts at 0, so the
//! adapted model starts as its base (unless `init_lora_weights = false`, which is for tests).
//!
//! DoRA (Liu et al. 2024, arXiv 2402.09353; `use_dora`) trains the lengths m `[n_out]` of the rows apart from their
//! directions. With n the row norms of W + s B A, a constant to the gradient:
//!
//! ```text
//! y = (m / n) (x Wᵀ + s x Aᵀ Bᵀ) + bias
//! ```
//!
//! n comes from W Aᵀ and A Aᵀ; B A is never formed. m starts as n.
//!
//! Residual starts (`init_lora_weights`: PiSSA, Meng et al. 2024, arXiv 2404.02948; OLoRA, Büyükakyüz 2024, arXiv
//! 2406.01775) begin at the leading part of W itself, and PEFT subtracts that part from the base. Here the base is left
//! alone: the layer computes W + s (B A - B₀ A₀) with A₀ and B₀ frozen, and what is exported is plain LoRA of twice the
//! rank, s [B, -B₀] [A; A₀], which every reader of PEFT's files understands.
//!
//! The configuration and the files are those of PEFT 0.21.2. Keys of PEFT that are not built yet are listed in
//! [`Lora`]'s `fixed` and refused at any other value.
//!
//! ```
//! use lowrank_lora::LoraConfig;
//! let keys = r#"{"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}}"#;
//! let config: LoraConfig = serde_json::from_str(keys)?;
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.v_proj")?, (8, 2.0));
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj")?, (2, 8.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod dora;
mod family;
mod init;
mod layer;

pub use config::LoraConfig;
pub use family::Lora;
pub use init::{Foreign, InitLoraWeights};
