//! Where adapters attach: the linear layers of a model.

use lowrank_frozen::FrozenLinear;

/// Names a site within one attachment: its position in the model's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(pub(crate) usize);

impl SiteId {
    /// Position in site order, from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// One targeted linear layer.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its name within the attachment.
    pub id: SiteId,
    /// The Hugging Face path, `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// The layer's number, the first one in the path.
    pub layer: Option<usize>,
    /// The last component of the path, `q_proj`.
    pub role: String,
    /// The frozen layer itself (a cheap alias).
    pub base: FrozenLinear,
}

impl Site {
    pub(crate) fn new(id: SiteId, path: &str, base: FrozenLinear) -> Self {
        Self {
            id,
            path: path.to_owned(),
            layer: path.split('.').find_map(|part| part.parse().ok()),
            role: path.rsplit('.').next().unwrap_or(path).to_owned(),
            base,
        }
    }

    /// (n_out, n_in) of the weight.
    #[must_use]
    pub fn dims(&self) -> (usize, usize) {
        self.base.dims()
    }
}
