//! How many ranks there may be, which of them matter, and where they go: the decisions of every family with gates.
//!
//! A [`Budget`] says how many ranks may live after each step and whether that is the step to decide; a [`Score`] says
//! how much each is worth; an [`Allocator`] turns scores into what lives. All three are deterministic, and none knows a
//! family: what a decision does to tensors is the family's own affair.
//!
//! ```
//! use lowrank_schedule::{Allocator, Budget, Shape};
//! // AdaLoRA's budget: two modules of 12 ranks that end with 8.
//! let budget = Budget { first: 24, last: 16, shape: Shape::Cubic, warmup: 10, cooldown: 20, every: 5 };
//! let at = budget.at(20, 100);
//! assert_eq!((at.ranks, at.due), (21, true));
//! // The three best of five ranks, none of the sites emptied.
//! let allocator = Allocator { floor: 1, ..Allocator::default() };
//! let kept = allocator.top(&[vec![0.9, 0.8, 0.7], vec![0.1, 0.2]], 3)?;
//! assert_eq!(kept, [vec![true, true, false], vec![false, true]]);
//! # Ok::<(), lowrank_schedule::Error>(())
//! ```

mod ablation;
mod allocator;
mod budget;
mod error;
mod score;
mod sensitivity;
mod simple;

pub use ablation::Ablation;
pub use allocator::{Allocator, Moves, above_threshold};
pub use budget::{Allotment, Budget, Shape, ramp};
pub use error::{Error, Result};
pub use score::{Components, Score};
pub use sensitivity::Sensitivity;
pub use simple::{GateValue, Magnitude};
