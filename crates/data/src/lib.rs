//! From files of rows to batches of tokens: readers, tokenisation, masking, order, packing, batching.
//!
//! A [`Dataset`] reads JSON lines, CSV, TSV or Parquet (one kind of row a file, see [`Kind`]) and holds every row as an [`Example`]:
//! tokens, and which of them are supervised. A [`Plan`] says which rows each optimiser step takes, for a whole run
//! and from any step on; a [`Packing`] joins rows into sequences. [`Padded`] lays rows, or sequences, side by side for a
//! forward pass.
//!
//! [`ChatTemplate`] writes messages as a model's own template does, and [`TextStream`] turns tokens that come one at a
//! time into text.
//!
//! Nothing here knows tensors: results are plain vectors. `labels[i]` supervises the prediction of token i, so the
//! first token of a row never counts.
//!
//! ```
//! use lowrank_data::{Example, Length, Order, Packing, Padded, Plan, UNSUPERVISED};
//! use std::num::NonZeroUsize;
//!
//! let examples = [
//!     Example { ids: vec![5, 6, 7], labels: vec![UNSUPERVISED, 6, 7], ..Example::default() },
//!     Example { ids: vec![8, 9], labels: vec![UNSUPERVISED, 9], ..Example::default() },
//! ];
//! let two = NonZeroUsize::new(2).expect("2 is not 0");
//! let order = Order { seed: 42, shuffle: false, len: two };
//! let plan = Plan::new(order, two, NonZeroUsize::MIN, Length::Epochs(3));
//! assert_eq!(plan.total_steps(), 3);
//!
//! let batch = |plan: &Plan| {
//!     let step = plan.steps_after(0).next().expect("a step");
//!     let sequences = step.micro_batches[0].iter();
//!     Padded::pack(sequences.map(|sequence| sequence.iter().map(|&row| &examples[row])))
//! };
//! let padded = batch(&plan);
//! assert_eq!(padded.ids, [5, 6, 7, 8, 9, 0]);
//! assert_eq!(padded.segments, [1, 1, 1, 1, 1, 0]);
//! assert_eq!((padded.tokens(), padded.supervised()), (5, 3));
//!
//! // Packed into sequences of five tokens, an epoch is one sequence, and a step takes two.
//! let five = NonZeroUsize::new(5).expect("5 is not 0");
//! let plan = plan.packed(Packing::new(&examples, five))?;
//! assert_eq!(plan.total_steps(), 2);
//! let packed = batch(&plan);
//! assert_eq!(packed.ids, [5, 6, 7, 8, 9, 5, 6, 7, 8, 9]);
//! assert_eq!(packed.segments, [1, 1, 1, 2, 2, 1, 1, 1, 2, 2]);
//! assert_eq!(packed.positions, [0, 1, 2, 0, 1, 0, 1, 2, 0, 1]);
//! # Ok::<(), lowrank_data::Error>(())
//! ```

mod answer;
mod batch;
mod cache;
mod chat;
mod chat_date;
mod chat_functions;
mod chat_marks;
mod chat_mask;
mod chat_row;
mod classes;
mod columns;
mod dataset;
mod encoded;
mod error;
mod example;
mod examples;
mod groups;
mod guard;
mod instruction;
mod lines;
mod mixture;
mod order;
mod packing;
mod parts;
mod reader;
mod record;
mod row;
mod source;
mod stored;
mod stream;
mod table;
mod texts;
mod tokenizer;

pub use answer::Answer;
pub use batch::Padded;
pub use cache::Cache;
pub use chat::{ChatTemplate, GenerationPrompt, Message};
pub use chat_date::ChatDate;
pub use classes::{Classes, Expected, Form, MAX_CLASSES};
pub use dataset::{Dataset, FileSummary, Options, Summary};
pub use error::{Error, Problem, Result};
pub use example::{ChoiceExample, Example, Reference, UNSUPERVISED};
pub use examples::Examples;
pub use groups::Lengths;
pub use mixture::Mixture;
pub use order::{Length, Order, Plan, StepRows, Steps, Stream};
pub use packing::{Packing, Sequence};
pub use row::Kind;
pub use source::{check_supported, named_files};
pub use stream::{StopStrings, TextStream};
pub use texts::read_texts;
pub use tokenizer::{Special, Templated, Tokenizer};
