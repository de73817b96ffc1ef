//! From files of rows to batches of tokens: readers, tokenisation, masking, order, batching.
//!
//! A [`Dataset`] reads JSON lines (one kind of row a file, see [`Kind`]) and holds every row as an [`Example`]:
//! tokens, and which of them are supervised. A [`Plan`] says which rows each optimiser step takes, for a whole run
//! and from any step on. [`Padded`] lays rows side by side for a forward pass.
//!
//! Nothing here knows tensors: results are plain vectors. `labels[i]` supervises the prediction of token i, so the
//! first token of a row never counts.
//!
//! ```
//! use lowrank_data::{Example, Length, Order, Padded, Plan, UNSUPERVISED};
//! use std::num::NonZeroUsize;
//!
//! let examples = [
//!     Example { ids: vec![5, 6, 7], labels: vec![UNSUPERVISED, 6, 7], truncated: false },
//!     Example { ids: vec![8, 9], labels: vec![UNSUPERVISED, 9], truncated: false },
//! ];
//! let two = NonZeroUsize::new(2).expect("2 is not 0");
//! let plan = Plan {
//!     order: Order { seed: 42, shuffle: false, len: two },
//!     batch_size: two,
//!     accumulate: NonZeroUsize::MIN,
//!     length: Length::Epochs(3),
//! };
//! assert_eq!(plan.total_steps(), 3);
//!
//! let step = plan.steps_after(0).next().expect("the plan has three steps");
//! let batch = Padded::collate(step.micro_batches[0].iter().map(|&row| &examples[row]));
//! assert_eq!(batch.ids, [5, 6, 7, 8, 9, 0]);
//! assert_eq!(batch.segments, [1, 1, 1, 1, 1, 0]);
//! assert_eq!((batch.tokens(), batch.supervised()), (5, 3));
//! ```

mod batch;
mod dataset;
mod error;
mod example;
mod lines;
mod order;
mod row;
mod source;
mod tokenizer;

pub use batch::Padded;
pub use dataset::{Dataset, FileSummary, Options, Summary};
pub use error::{Error, Problem, Result};
pub use example::{ChoiceExample, Example, Reference, UNSUPERVISED};
pub use order::{Length, Order, Plan, StepRows, Steps, Stream};
pub use row::Kind;
pub use tokenizer::{Special, Tokenizer};
