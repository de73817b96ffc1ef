//! ResLoRA (Shi et al. 2024, arXiv 2402.18039): LoRA with shortcuts between its blocks.
//!
//! A block is the A `[r, n_in]` and B `[n_out, r]` of one adapted layer; the blocks of one projection (all `q_proj`, say)
//! form a chain from layer to layer, as long as both sides of their matrices stay equal. Where they change a new chain
//! begins, with a warning. With x_n the input of the layer in place n of its chain, counted from 0, m_n = min(pre_num, n)
//! (`pre_num = -1`: all earlier blocks) and s = lora_alpha / r:
//!
//! ```text
//! is   y_n = x_n Wᵀ + bias + s drop(x_n + p_n) A_nᵀ B_nᵀ     p_n = x_{n-1}; x_n itself at the head of a chain
//! bs   y_n = x_n Wᵀ + bias + s Σ_{k ≤ m_n} drop_k(x_n) A_{n-k}ᵀ B_{n-k}ᵀ
//! ms   y_n = x_n Wᵀ + bias + s (Σ_{k ≤ m_n} u_{n-k}) B_nᵀ     u_n = drop(x_n) A_nᵀ
//! ```
//!
//! Parameters, their count and their start are LoRA's: B starts at 0, so that the adapted model starts as its base. Gradients
//! flow through the shortcuts, also where the trainer cuts the graph between two layers. With `pre_num = 0`, bs and ms are LoRA.
//!
//! What merges:
//!
//! - bs exactly: it is one update of rank (m_n + 1) r at the same scale.
//! - is and ms by `merge = "bi"` or `"bw"`, approximately but at the heads of chains. The previous input is taken as α x_n:
//!   - is: W + (1 + α) s B A; by inputs α = f_{n-1} / f_n with f the mean of ||x||_F over the last 100 training passes; by weights
//!     α = ||W*_{n-2}|| / ||W*_{n-1}|| of the weights merged before, and 1 for the second block.
//!   - ms: by inputs W + (1 + α) s B A with α = Σ_k f_{n-k} / f_n and f that of ||u||_F; by weights
//!     W + s B (A_n + Σ_k f_{n-k} / f_n A_{n-k}) with f that of ||x||_F.
//! - `merge = "none"` leaves is and ms apart: a layer that a shortcut reaches depends on another layer's input.
//!
//! f is saved beside the adapter (`reslora_norm`), so that a merge is possible after loading. A quotient with a norm of 0 is 1.
//!
//! Where the paper and its code differ, we follow the paper's names (`bi`: inputs, `bw`: weights) and, for ms by weights, the
//! code's norms, which are exact where inputs are proportional. Departures from the official code: norms leave padding out,
//! since a row's padding must not change what is learned; merging by weights works on copies, with s, 1 + α and the product in
//! its right order; and no block holds several pairs (`lora_num`). ||u||_F is that of the activation as it is handed on, after dropout.
//! Ranks and scales are the same in all layers, since blocks add up: there is no `rank_pattern`.
//!
//! ```
//! use lowrank_reslora::{PreNum, ResType, ResloraConfig};
//! let config: ResloraConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6, "pre_num": -1}"#)?;
//! assert_eq!((config.scale(), config.res_type, config.pre_num), (1.5, ResType::Block, PreNum::ALL));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod block;
mod chain;
mod config;
mod family;
mod input;
mod layer;
mod middle;
mod norms;

pub use config::{MergeMode, PreNum, ResType, ResloraConfig};
pub use family::Reslora;
