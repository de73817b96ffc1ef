//! Rows, caches, refusals, order, batches, chats and text that streams, checked from outside.
//!
//! The modules are marked as tests so that their helpers may unwrap, as tests may.

#[cfg(test)]
mod batch;
#[cfg(test)]
mod cache;
#[cfg(test)]
mod chat;
#[cfg(test)]
mod groups;
#[cfg(test)]
mod helpers;
#[cfg(test)]
mod labels;
#[cfg(test)]
mod masks;
#[cfg(test)]
mod mixture;
#[cfg(test)]
mod order;
#[cfg(test)]
mod packing;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod rows;
#[cfg(test)]
mod stream;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tokenizer;
