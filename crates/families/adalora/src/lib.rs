//! AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): ranks that are taken, while training, from where they matter least.
//!
//! With W `[n_out, n_in]` frozen, A `[r, n_in]`, E `[r, 1]` and B `[n_out, r]` trained, r = `init_r`:
//!
//! ```text
//! y = x Wᵀ + bias + s (drop(x) (E ∘ A)ᵀ) Bᵀ        s = lora_alpha / (init_r + 1e-5)
//! ```
//!
//! E starts at 0. The loss has a penalty beside it, which keeps the rows of A and the columns of B near to orthonormal, so that E
//! is like the singular values of the update: `orth_reg_weight` times the mean over all A and B of ‖A Aᵀ - I‖_F and
//! ‖Bᵀ B - I‖_F.
//!
//! After every update the score of a rank is what [`Sensitivity`](lowrank_schedule::Sensitivity) says of its row of A, column of B
//! and number of E, added up. Until `tinit` steps there are as many ranks as at first; then their number over all modules falls
//! with the third power of what is left of the schedule, to `target_r` a module when `tfinal` steps are left. Every `deltaT`
//! steps the ranks of the lowest scores have their E set to 0. E stays trained, so that a rank may come back until `tfinal`
//! steps are left; then the choice is made once more and holds. Nobody calls `update_and_allocate`: the trainer does.
//!
//! Equal to PEFT 0.21.2, which departs from the paper in that the penalty is a mean of norms and not a sum of their squares
//! (`orth_squared` is the paper's), in dividing by init_r + 1e-5, also when ranks are gone, and in the scores' means: E's
//! score counts whole, A's and B's as the mean over their rows and columns. Equals at the threshold fall together, so that
//! fewer ranks than the budget may be left. Our departures from PEFT:
//!
//! - steps count from 1, so that `tfinal = 0` chooses for good after the last step;
//! - a budget that takes nothing (`target_r` not below the ranks there are) masks nothing, where PEFT fails;
//! - `total_step` is the number of steps of the run, whatever is given, and is written with the adapter;
//! - `lora_alpha` of 0 or less means init_r, also in a file whose ranks are gone (there PEFT takes the ranks that are left);
//! - a folder that is written while ranks may still come back keeps those that have come back;
//! - going on from a folder whose ranks are gone keeps them gone, and writes a pattern of all init_r ranks.
//!
//! ```
//! use lowrank_adalora::AdaloraConfig;
//! let config: AdaloraConfig = serde_json::from_str(r#"{"init_r": 12, "lora_alpha": 32}"#)?;
//! assert!((config.scale() - 32.0 / 12.00001).abs() < 1e-12);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod allocation;
mod config;
mod family;
mod layer;

pub use config::AdaloraConfig;
pub use family::Adalora;
