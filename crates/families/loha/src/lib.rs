//! LoHa (Hyeon-Woo, Ye-Bin and Oh 2022, "FedPara", arXiv 2108.06098; Yeh et al. 2024, "LyCORIS", arXiv 2309.14859): the
//! update is the product, number by number, of two low-rank matrices.
//!
//! With W `[n_out, n_in]` frozen, `hada_w1_a` and `hada_w2_a` `[n_out, r]`, `hada_w1_b` and `hada_w2_b` `[r, n_in]` trained:
//!
//! ```text
//! y = x Wᵀ + bias + s x ((w1_a w1_b) ∘ (w2_a w2_b))ᵀ        s = alpha / r
//! ```
//!
//! The update's rank is up to r², for the 2 r (n_in + n_out) numbers that two LoRA of rank r have. `hada_w2_b` starts at 0,
//! so the adapted model starts as its base (unless `init_weights = false`, which is for tests).
//!
//! PEFT forms the update at every pass. It is also a plain low-rank one of rank r², b a with
//!
//! ```text
//! a = the r² products of a row of w1_b and one of w2_b       [r², n_in]
//! b = the r² products of a column of w1_a and one of w2_a    [n_out, r²]
//! ```
//!
//! and is computed so where that takes less: where r² (n_in + n_out) <= n_in n_out. The update is then never formed, nor is a
//! gradient of its size. Elsewhere it is formed once a pass, and kept for the backward pass together with nothing else of its
//! size (the two low-rank matrices are made again).
//!
//! In training, `rank_dropout` switches off whole rows of the update, that is outputs, and divides the others by the share that
//! is left; `module_dropout` leaves out a module for a whole pass, whose gradients are then 0. (If every row is switched off
//! PEFT divides by 0; here the update is then 0.) An optimiser of PyTorch does not touch tensors without gradients; ours
//! treats a module that was left out as one with gradients of 0.
//!
//! The configuration and the files are those of PEFT 0.21.2, which starts `hada_w2_b` at 0 where older descriptions have
//! `hada_w2_a`. `use_effective_conv2d` speaks of convolutions, of which there are none here.
//!
//! ```
//! use lowrank_loha::LohaConfig;
//! let keys = r#"{"r": 4, "alpha": 6, "rank_pattern": {"q_proj": 2}}"#;
//! let config: LohaConfig = serde_json::from_str(keys)?;
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.v_proj")?, (4, 1.5));
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj")?, (2, 3.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod layer;

pub use config::LohaConfig;
pub use layer::Loha;
