//! The laws. Each takes a case and says what is wrong with it.

pub(crate) mod control;
pub(crate) mod files;
pub(crate) mod forward;
pub(crate) mod gradient;
pub(crate) mod masks;
pub(crate) mod merging;
pub(crate) mod packing;
pub(crate) mod selection;
