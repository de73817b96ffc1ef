//! SaLoRA (Hu, Xie, Wang, Chen and Pan, "Structure-Aware Low-Rank Adaptation for Parameter-Efficient Fine-Tuning",
//! Mathematics 11(20):4317, 2023): LoRA that learns the rank of every module through gates.
//!
//! With W `[n_out, n_in]` frozen, Q `[r, n_in]` (`lora_A.weight`) and P `[n_out, r]` (`lora_B.weight`) trained:
//!
//! ```text
//! y = x Wᵀ + bias + s drop(x) Qᵀ diag(g) Pᵀ        s = lora_alpha / r, whatever ranks are left
//! ```
//!
//! Each gate g in [0, 1] is drawn from a hard-concrete distribution (Louizos, Welling and Kingma 2018, arXiv 1712.01312)
//! with a trained phi (`salora_phi` `[r]`), anew for each micro-batch and the same for all of its tokens:
//!
//! ```text
//! g = clip(sigma((log u - log(1 - u) + phi) / beta) (zeta - gamma) + gamma, 0, 1)        u uniform in (0, 1)
//! P(g ≠ 0) = sigma(phi - beta log(-gamma / zeta))
//! evaluation: g = clip(sigma(phi) (zeta - gamma) + gamma, 0, 1)
//! ```
//!
//! The loss is that of the task and of two terms, with C the expected density of ranks that are not 0, b = `density`:
//!
//! ```text
//! orth_weight mean_m (||PᵀP - I||² + ||QQᵀ - I||²) + lambda (C - b)²        lambda <- lambda + eta_lambda (C - b)²
//! ```
//!
//! Up to the share `t_start` of all steps the gates are 1; then they are learned up to the share `t_end`. After that step
//! ranks are chosen, the gates of those that stay are multiplied into P, and they train on without gates and without the
//! orthogonality term. Until then a folder holds phi, and is evaluated with the gates of evaluation; afterwards it holds the
//! ranks that stay, `extracted` says so, and `rank_pattern` has the size of each module, which may be 0.
//!
//! # Departures
//!
//! We know the article's equations from a survey that restates them (arXiv 2601.22708), not the article's text. Ours are
//! the start (Q normal of variance 1 / n_in, P = 0, phi = 2.5 and a little noise), the density weighted by parameters, the
//! mean over modules, plain ascent of lambda, and what follows `t_end`: ranks are chosen by phi up to the budget, since many
//! more have positive gates than the expected density says (`extract = "positive"` keeps those), and a chosen rank whose
//! gate is 0 starts anew with P = 0. phi stays within ±10.
//!
//! ```
//! use lowrank_salora::SaloraConfig;
//! let config: SaloraConfig = serde_json::from_str(r#"{"r": 4, "lora_alpha": 6, "density": 0.375}"#)?;
//! assert_eq!(config.scale(), 1.5);
//! // Gates are learned in steps 101 to 700 of 1000.
//! assert_eq!(config.window(1000), (100, 700));
//! // With a phi of 0 the gate of evaluation is a half, and one that is drawn is open with probability 0.83.
//! let gates = config.gates();
//! assert!((gates.settled(0.0) - 0.5).abs() < 1e-12);
//! assert!((gates.open_at(0.0) - 0.8318).abs() < 1e-4);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod config;
mod controller;
mod density;
mod extraction;
mod family;
mod gate;
mod layer;
mod phase;

pub use config::{BudgetUnit, Extract, Reduction, SaloraConfig};
pub use density::{Ranks, density_gap, expected_density, orthogonality};
pub use extraction::{positive, top_budget};
pub use family::Salora;
pub use gate::{HardConcrete, uniform};
