//! The shapes of a model and the floating-point operations of a training step.

use anyhow::{Context, Result};
use lowrank::format::{Gguf, read_json_object};
use lowrank::models::{Embedded, LlamaConfig};
use std::path::Path;

/// What is trained, as far as the number of operations goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub length: usize,
    /// Rank of the adapters on all linear layers; none if every weight is trained.
    pub rank: Option<usize>,
}

impl Work {
    /// Tokens of a step.
    pub const fn tokens(self) -> usize {
        self.batch * self.length
    }
}

/// The configuration of a model, without opening its weights.
///
/// # Errors
/// If there is no such model.
pub fn config(root: &Path, source: &str) -> Result<LlamaConfig> {
    let path = root.join(source);
    let config = match Embedded::named(source) {
        Some(model) => serde_json::from_str(model.config)?,
        None if path.is_dir() => read_json_object(&path.join("config.json"))?,
        None => Gguf::open(&path)
            .with_context(|| {
                format!("{source} is no model here: `cargo xtask fetch --only smollm2` makes one")
            })?
            .config()
            .clone(),
    };
    Ok(LlamaConfig::from_json(&config, source)?)
}

/// Width of all query heads.
pub const fn query_size(config: &LlamaConfig) -> usize {
    config.num_attention_heads * config.head_dim
}

/// (n_out, n_in) of the linear layers of a block: q, k, v, o, gate, up, down.
pub fn linears(config: &LlamaConfig) -> [(usize, usize); 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, key) = (
        query_size(config),
        config.num_key_value_heads * config.head_dim,
    );
    [
        (query, hidden),
        (key, hidden),
        (key, hidden),
        (hidden, query),
        (inner, hidden),
        (inner, hidden),
        (hidden, inner),
    ]
}

/// Multiplications and additions that a training step cannot do without, all tokens supervised:
///
/// - a frozen weight is passed twice (forward, and backward to its input), a trained one three times: 2 operations a weight,
///   token and pass. The head is one of them, at the positions that predict. The first block's q, k and v need no gradient of
///   their input under an adapter, since nothing before them is trained;
/// - adapters of rank r have r (n_in + n_out) weights a layer, passed three times;
/// - causal attention has two products of a query with every earlier key or its value (and its own) forward, four backward.
///
/// Norms, activations and the optimiser are left out: they are passes over memory. What is computed a second time under
/// recomputation, or beside a plain low-rank update by other families, is not counted: it lowers the share.
pub fn step_flops(config: &LlamaConfig, work: Work) -> f64 {
    let tokens = work.tokens() as f64;
    let predictions = (work.batch * work.length.saturating_sub(1)) as f64;
    let layers = config.num_hidden_layers as f64;
    let size = |(n_out, n_in): (usize, usize)| (n_out * n_in) as f64;
    let block: f64 = linears(config).into_iter().map(size).sum();
    let head = (config.vocab_size * config.hidden_size) as f64;
    let passes = if work.rank.is_some() { 2.0 } else { 3.0 };
    let weights = 2.0 * passes * (layers * block * tokens + head * predictions);
    let (unneeded, adapters) = match work.rank {
        None => (0.0, 0.0),
        Some(rank) => {
            let first: f64 = linears(config).into_iter().take(3).map(size).sum();
            let sides = |(n_out, n_in): (usize, usize)| (rank * (n_out + n_in)) as f64;
            let adapter: f64 = linears(config).into_iter().map(sides).sum();
            (2.0 * first * tokens, 6.0 * layers * adapter * tokens)
        }
    };
    weights - unneeded + adapters + 6.0 * attention_product_flops(config, work) * layers
}

/// Operations of one product of all queries of a block with the keys that they see.
pub fn attention_product_flops(config: &LlamaConfig, work: Work) -> f64 {
    let pairs = (work.batch * work.length * (work.length + 1) / 2) as f64;
    2.0 * pairs * query_size(config) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SmolLM2-135M, whose files a test may not need.
    pub(crate) fn smollm2() -> LlamaConfig {
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49_152, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 8192, "rope_theta": 100_000.0, "tie_word_embeddings": true, "hidden_act": "silu",
        });
        let config = config.as_object().expect("an object");
        LlamaConfig::from_json(config, "config.json").expect("a LLaMA")
    }

    #[test]
    fn the_reference_step_needs_590_gflop() {
        let work = Work {
            batch: 4,
            length: 256,
            rank: Some(8),
        };
        let flops = step_flops(&smollm2(), work);
        // 30 blocks of 3,538,944 weights and a head of 28,311,552; 2,442,240 weights of adapters; by hand:
        let blocks = 4.0 * 106_168_320.0 * 1024.0;
        let head = 4.0 * 28_311_552.0 * 1020.0;
        let first = 2.0 * 576.0 * 960.0 * 1024.0;
        let adapters = 6.0 * 2_442_240.0 * 1024.0;
        let attention = 30.0 * 6.0 * 2.0 * 576.0 * 131_584.0;
        assert_eq!(flops, blocks + head - first + adapters + attention);
        assert!((flops / 590e9 - 1.0).abs() < 0.03, "{flops}");
    }

    #[test]
    fn full_training_passes_every_weight_three_times() {
        let (config, length) = (smollm2(), 2);
        let work = Work {
            batch: 1,
            length,
            rank: None,
        };
        let attention = 30.0 * 6.0 * 2.0 * 576.0 * 3.0;
        let weights = 6.0 * (106_168_320.0 * 2.0 + 28_311_552.0);
        assert_eq!(step_flops(&config, work), weights + attention);
    }

    #[test]
    fn the_embedded_model_has_shapes() -> Result<()> {
        let config = config(Path::new("."), "tiny")?;
        assert_eq!(linears(&config)[0], (192, 128));
        assert_eq!(linears(&config)[6], (128, 384));
        Ok(())
    }
}
