//! What a run shows to people, made from its `metrics.jsonl`: a table for spreadsheets, events for TensorBoard, and a page for a browser.
//!
//! Everything here is text or bytes in, text or bytes out: no file is opened, nothing can fail, and whatever a file
//! holds, no part of it is taken for markup. Keys are not known by name: any number that a line of the metrics has
//! gets its column and its plot.
//!
//! ```
//! use lowrank_report::{Lines, csv};
//!
//! let lines = Lines::parse("{\"step\":0,\"eval_loss\":2.5}\n{\"step\":1,\"loss\":2.25,\"lr\":0.001}\n");
//! assert_eq!(csv(&lines), "step,loss,lr,eval_loss\r\n0,,,2.5\r\n1,2.25,0.001,\r\n");
//! ```

mod axis;
mod chart;
mod csv;
mod escape;
mod events;
mod lines;
mod numbers;
mod page;
mod ranks;
mod style;

pub use csv::csv;
pub use escape::escaped;
pub use events::{cut, scalars, start, version};
pub use lines::{Column, Kind, Line, Lines, Table};
pub use page::{Run, page};
