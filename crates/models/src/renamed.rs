//! Checkpoints under other names than they store.

use candle_core::Tensor;
use lowrank_frozen::{Error as FrozenError, Result as FrozenResult, Stored, TensorInfo, Weights};
use std::collections::BTreeMap;

/// A checkpoint whose tensors are called as the wanted class calls them in transformers.
pub(crate) struct Renamed<'a> {
    inner: &'a dyn Weights,
    /// The names in the file by those that they stand for.
    names: BTreeMap<String, String>,
}

impl<'a> Renamed<'a> {
    /// `current` gives what a stored tensor is called; whatever claims a name that is taken keeps its own.
    pub(crate) fn new(inner: &'a dyn Weights, current: impl Fn(&str) -> String) -> Self {
        let mut names = BTreeMap::new();
        for stored in inner.names() {
            let name = current(stored);
            let name = if names.contains_key(&name) {
                stored.to_owned()
            } else {
                name
            };
            names.insert(name, stored.to_owned());
        }
        Self { inner, names }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Calls a tensor something else, if it is there.
    pub(crate) fn rename(&mut self, name: &str, to: &str) {
        if let Some(stored) = self.names.remove(name) {
            self.names.insert(to.to_owned(), stored);
        }
    }

    fn stored_name(&self, name: &str) -> FrozenResult<&str> {
        let stored = self.names.get(name).map(String::as_str);
        stored.ok_or_else(|| FrozenError::Missing {
            origin: self.origin(),
            name: name.to_owned(),
        })
    }
}

impl Weights for Renamed<'_> {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.inner.info(self.names.get(name)?)
    }

    fn tensor(&self, name: &str) -> FrozenResult<Tensor> {
        self.inner.tensor(self.stored_name(name)?)
    }

    fn stored(&self, name: &str) -> FrozenResult<Stored> {
        self.inner.stored(self.stored_name(name)?)
    }

    fn origin(&self) -> String {
        self.inner.origin()
    }
}
