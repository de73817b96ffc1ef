//! MoR, a mixture of ranks (Tang et al. 2024, arXiv 2410.13408): N experts that are scaled copies of one trained low-rank
//! pair, mixed for every token by a softmax router.
//!
//! With W `[n_out, n_in]` frozen, A `[r, n_in]` and B `[n_out, r]` trained and shared by all experts of a module, scales
//! la_i (the rows of OA `[N, r]`) and lb_i (the rows of OB `[N, n_out]`), and a router Wg `[N, n_in]`:
//!
//! ```text
//! h   = A drop(x)                                     [r]
//! g   = softmax(Wg x)                                 [N]
//! E_i = lb_i * (B (la_i * h))                         [n_out]
//! y   = W x + bias + s sum_i g_i E_i                  s = lora_alpha / r
//! ```
//!
//! It is computed as W x + Bcat c, where Bcat `[n_out, N r]` holds diag(lb_1) B, .., diag(lb_N) B side by side and c the
//! numbers s g_i la_i * h, expert after expert: one product with W, to which the update is added while it is made. Without
//! dropout A and Wg are one product as well. The update of one token has rank r at most; what grows with N is the space
//! that the updates of many tokens span.
//!
//! Where the gates do not depend on the input (`router = "mean"`, where each is 1/N, and a single expert, where it is 1)
//! there is no router, and the layer is plain LoRA with B .* (OBᵀ diag(g) OA) in the place of B: its merge and its export
//! are exact. With a router no weight equals the layer; [`at_gates`] gives the update at gates of one's choice.
//!
//! Decisions where the paper is silent: gates are made for each token from the input of that module, in the dtype that the
//! model computes in (f32) whatever its products are computed in; the router has no bias and sees the input before
//! dropout; OB starts at 1 and OA near it, with noise of deviation `init_noise`, as has the router around 0. That noise is
//! needed: experts that start alike stay alike for ever. Weight decay leaves OA and OB alone. The loss that balances
//! experts, `balance_weight * N sum_i f_i P_i` with P_i the mean gate and f_i the share of tokens whose largest gate is i,
//! is off by default, as in the paper's main runs. The paper adapts the modules of the feed-forward part; name them
//! (`target_modules = ["gate_proj", "up_proj", "down_proj"]`), for an absent key means PEFT's table here as everywhere.
//!
//! ```
//! use lowrank_mor::{MorConfig, Router};
//! let config: MorConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6, "num_experts": 3}"#)?;
//! assert_eq!(config.rank_and_scale("model.layers.0.mlp.up_proj")?, (4, 1.5));
//! assert_eq!(config.router, Router::Softmax);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod layer;
mod mixture;
mod usage;

pub use config::{MorConfig, Router};
pub use layer::{Mor, at_gates};
pub use usage::Usage;
