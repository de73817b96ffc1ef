//! ALoRA (Liu, Lyn, Zhu, Tian and Graham 2024, arXiv 2403.16187): LoRA whose ranks move, from the matrices that can do
//! without them to those that cannot.
//!
//! Each rank has a gate g of 0 or 1. With W `[n_out, n_in]` frozen, A `[r, n_in]` and B `[n_out, r]` trained:
//!
//! ```text
//! y = x Wᵀ + bias + s ((drop(x) Aᵀ) g) Bᵀ        s = lora_alpha / r
//! ```
//!
//! Every matrix starts with `r` ranks. After `k1` epochs, and then every `k2`, `rounds` times: each rank is scored, the
//! `n_a` that are worth least over the whole model are removed, and as many new ones go to the matrices that lost none,
//! evenly, the better ones on average first. AB-LoRA scores by ablation, on a fixed batch of held-out rows with S minus the
//! mean cross-entropy: IS(r) = S(all) - S(all but r) + S(r alone) (Eq. 5). Gates are never trained.
//!
//! Where the paper is silent: `n_a` counts ranks of the whole model, and is the number of different kinds of matrices (7
//! for LLaMA) if it is not given; s stays what it was at the start, or surviving ranks would be rescaled; a new rank starts
//! as the first ones did, B at 0, so that the function stays; its optimiser state and age start anew; a matrix that has
//! lost all its ranks never gets one again. Ranks stay in place while a run lasts, as slots of which some live; the adapter's
//! folder holds the live ones, and their numbers in `rank_pattern`. An adapter that was read from a folder keeps its ranks.
//! `score = "sensitivity"` is the paper's ablation ALoRA-Sensi: AdaLoRA's sensitivity times uncertainty.
//!
//! ```
//! use lowrank_alora::AloraConfig;
//! let config: AloraConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6, "rank_pattern": {"q_proj": 0}}"#)?;
//! assert_eq!(config.scale(), 1.5);
//! // The first round after an epoch, here of 30 steps, the others after a quarter of one.
//! assert_eq!(config.due(30), (30, 8));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod config;
mod family;
mod layer;
mod rounds;

pub use config::{AloraConfig, Scoring};
pub use family::Alora;
