//! LoKr (Yeh et al. 2024, "LyCORIS", arXiv 2309.14859): the update is a Kronecker product of two small matrices.
//!
//! With W `[n_out, n_in]` frozen, n_out = l k and n_in = m n (see [`factorization`]), W1 `[l, m]` and W2 `[k, n]` trained:
//!
//! ```text
//! y = x Wᵀ + bias + s x kron(W1, W2)ᵀ        s = alpha / r
//! ```
//!
//! Either matrix may itself be a product of rank r: W2 = `lokr_w2_a` `lokr_w2_b` where r < max(k, n) / 2, and with
//! `decompose_both` W1 = `lokr_w1_a` `lokr_w1_b` where r < max(l, m) / 2. Where it is whole it is `lokr_w1` or `lokr_w2`, and
//! r only divides the scale. `lokr_w1` (or `lokr_w1_a`) starts at 0, so the adapted model starts as its base; with
//! `init_weights = "lycoris"` it is `lokr_w2` (or `lokr_w2_b`); with `false`, which is for tests, nothing does.
//!
//! PEFT forms the update at every pass. Here it is never formed: a row of x, read as a matrix X `[m, n]`, becomes W1 X W2ᵀ, two
//! small products ([`ops::kronecker`](lowrank_ops::kronecker)), and W2 stays in its two factors.
//!
//! The update is b a with b = kron(b1, b2) and a = kron(a1, a2), where b1 a1 = W1 and b2 a2 = W2: of rank r², min(l, m) r or
//! min(l, m) min(k, n), as the factors are.
//!
//! In training, `rank_dropout` switches off whole rows of the update, that is outputs (and divides the others by the share that
//! is left if `rank_dropout_scale` says so); `module_dropout` leaves out a module for a whole pass, whose gradients are then
//! 0. (If every row is switched off PEFT divides by 0; here the update is then 0.) An optimiser of PyTorch does not touch
//! tensors without gradients; ours treats a module that was left out as one with gradients of 0.
//!
//! The configuration and the files are those of PEFT 0.21.2. `use_effective_conv2d` speaks of convolutions, of which there are
//! none here.
//!
//! ```
//! use lowrank_lokr::{LokrConfig, factorization};
//! assert_eq!(factorization(11008, -1), (86, 128));
//! let keys = r#"{"r": 4, "alpha": 6, "rank_pattern": {"q_proj": 2}}"#;
//! let config: LokrConfig = serde_json::from_str(keys)?;
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.v_proj")?, (4, 1.5));
//! assert_eq!(config.rank_and_scale("model.layers.0.self_attn.q_proj")?, (2, 3.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod factors;
mod layer;

pub use config::{InitWeights, LokrConfig, Word};
pub use factors::factorization;
pub use layer::Lokr;
