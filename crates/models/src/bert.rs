//! BERT, RoBERTa and what shares their form: MiniLM.
//!
//! A block is m = norm(h + O(attention(Q(h), K(h), V(h)))), and then norm(m + down(activation(up(m)))); every token sees
//! all tokens of its text. Training drops numbers where transformers does, but for attention's probabilities.

mod tensors;
mod top;

use crate::bert_config::{Activation, BertConfig};
use crate::checkpoint::{Checkpoint, Precision};
use crate::{Head, Result, checks};
use candle_core::Tensor;
use lowrank_adapter::{
    Ask, Batch, Embedding, Error as AdapterError, KvCache, Linear, Model, Norm, Part, Pass, Reach,
    Result as AdapterResult, causal_mask,
};
use lowrank_frozen::{FrozenEmbedding, FrozenLinear, Weights};
use lowrank_ops as ops;
use tensors::{Plan, renamed};
use top::Top;

/// A BERT or RoBERTa. Its parts have the paths that transformers gives them in the class that has this head:
/// `bert.encoder.layer.0.attention.self.query` in all but the model without one.
#[derive(Debug)]
pub struct Bert {
    config: BertConfig,
    words: Embedding,
    positions: Embedding,
    types: Embedding,
    norm: Norm,
    blocks: Vec<Block>,
    top: Top,
}

#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

impl Bert {
    /// Builds the model. Names, shapes and dtypes of all tensors are compared with the configuration first; then each tensor
    /// is read once. Checkpoints may be of any of transformers' classes: heads that are not asked for are left where
    /// they are, and what a classifier lacks is drawn.
    ///
    /// # Errors
    /// If a tensor is missing, unused, misshapen, not finite, cannot be read or cannot be held in this precision, or if the
    /// checkpoint has no head that predicts tokens and one is wanted.
    pub fn new(
        config: BertConfig,
        weights: &dyn Weights,
        precision: Precision,
        head: Head,
    ) -> Result<Self> {
        let weights = renamed(weights, &config, head);
        let plan = Plan::new(&config, &weights, head)?;
        let checkpoint = Checkpoint::new(&weights, precision, plan.needed(), |name| {
            plan.ignores(name)
        })?;
        let path = |part: &str| format!("{}{part}", plan.prefix());
        let embedding = |part: &str| -> Result<(String, FrozenEmbedding)> {
            let path = path(&format!("embeddings.{part}_embeddings"));
            let table = checkpoint.table(&format!("{path}.weight"))?;
            Ok((path, FrozenEmbedding::new(table)))
        };
        let (words_path, words) = embedding("word")?;
        let (positions_path, positions) = embedding("position")?;
        let (types_path, types) = embedding("token_type")?;
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(&config, &path(&format!("encoder.layer.{i}")), &checkpoint))
            .collect::<Result<_>>()?;
        let top = Top::new(&config, &plan, &checkpoint, (&words_path, &words))?;
        Ok(Self {
            norm: norm(&checkpoint, path("embeddings.LayerNorm"), &config)?,
            words: Embedding::frozen(words_path, words),
            positions: Embedding::frozen(positions_path, positions),
            types: Embedding::frozen(types_path, types),
            blocks,
            top,
            config,
        })
    }

    /// What it was built from.
    #[must_use]
    pub const fn config(&self) -> &BertConfig {
        &self.config
    }

    /// What training's dropout leaves of what the module at `path` gave.
    fn dropped(&self, x: Tensor, path: &str, pass: &Pass) -> AdapterResult<Tensor> {
        dropped(x, self.config.hidden_dropout_prob, path, pass)
    }
}

impl Activation {
    fn of(self, x: &Tensor) -> AdapterResult<Tensor> {
        Ok(match self {
            Self::Gelu => ops::gelu(x)?,
            Self::GeluTanh => ops::gelu_tanh(x)?,
            Self::Relu => x.relu()?,
        })
    }
}

/// The base's own dropout is keyed apart from that of adapters at the same path.
fn dropped(x: Tensor, p: f64, path: &str, pass: &Pass) -> AdapterResult<Tensor> {
    match pass.dropout(p, &format!("{path}.base"))? {
        Some(dropout) => Ok(dropout.of(&x)?),
        None => Ok(x),
    }
}

impl Model for Bert {
    fn model_type(&self) -> &str {
        self.config.kind.name()
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        for embedding in [&mut self.words, &mut self.positions, &mut self.types] {
            visit(Part::Embedding(embedding));
        }
        visit(Part::Norm(&mut self.norm));
        for block in &mut self.blocks {
            for linear in [&mut block.query, &mut block.key, &mut block.value] {
                visit(Part::Linear(linear));
            }
            visit(Part::Linear(&mut block.attention));
            visit(Part::Norm(&mut block.attention_norm));
            visit(Part::Linear(&mut block.up));
            visit(Part::Linear(&mut block.down));
            visit(Part::Norm(&mut block.norm));
        }
        self.top.parts(visit);
    }

    fn embed(&self, batch: &Batch, pass: &mut Pass) -> AdapterResult<Tensor> {
        let (tokens, config) = (batch.tokens(), &self.config);
        checks::vocabulary(tokens.ids.iter().copied(), config.vocab_size, "token")?;
        checks::positions(tokens, config.positions())?;
        let none = vec![0; tokens.ids.len()];
        let types = batch.types().unwrap_or(&none);
        let limit = config.type_vocab_size;
        if let Some(kind) = types.iter().find(|kind| **kind as usize >= limit) {
            return Err(AdapterError::Other(format!(
                "type {kind} of a token is not among the model's {limit} (`type_vocab_size`)"
            )));
        }
        let first = config.first_position as u32;
        let positions: Vec<u32> = (tokens.positions.iter().zip(&tokens.segments))
            // Padding may be numbered beyond the table.
            .map(|(position, segment)| first + if *segment == 0 { 0 } else { *position })
            .collect();
        let shape = (tokens.rows, tokens.length);
        let words = self.words.forward_tokens(tokens, pass)?;
        let positions = self.positions.forward(&positions, shape, pass)?;
        let types = self.types.forward(types, shape, pass)?;
        let sum = ops::add(&ops::add(&words, &types)?, &positions)?;
        let h = self.norm.forward_layer(&sum, pass)?;
        self.dropped(h, self.norm.path(), pass)
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(
        &self,
        i: usize,
        h: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        if kv.is_some() {
            return Err(AdapterError::Other(format!(
                "a {} reads texts as a whole and cannot continue them",
                self.model_type()
            )));
        }
        let (block, d) = (&self.blocks[i], self.config.head_dim());
        let q = block.query.forward(h, pass)?;
        let k = block.key.forward(h, pass)?;
        let v = block.value.forward(h, pass)?;
        let mask = causal_mask(batch).reaching(Reach::All);
        let scale = 1.0 / (d as f64).sqrt();
        let p = self.config.attention_probs_dropout_prob;
        let dropout = pass.dropout(p, &format!("{}.attention.base", block.query.path()))?;
        let seen = ops::unrotated_attention(&q, &k, &v, d, &mask, scale, dropout)?;
        let seen = block.attention.forward(&seen, pass)?;
        let seen = self.dropped(seen, block.attention.path(), pass)?;
        let h = block
            .attention_norm
            .forward_layer(&ops::add(h, &seen)?, pass)?;
        let inner = self.config.hidden_act.of(&block.up.forward(&h, pass)?)?;
        let y = block.down.forward(&inner, pass)?;
        let y = self.dropped(y, block.down.path(), pass)?;
        block.norm.forward_layer(&ops::add(&h, &y)?, pass)
    }

    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> AdapterResult<Tensor> {
        self.top.answer(&self.config, h, batch, ask, pass)
    }
}

impl Block {
    fn new(config: &BertConfig, path: &str, checkpoint: &Checkpoint<'_>) -> Result<Self> {
        let linear = |part: &str| dense(checkpoint, format!("{path}.{part}"));
        let norm = |part: &str| norm(checkpoint, format!("{path}.{part}"), config);
        Ok(Self {
            query: linear("attention.self.query")?,
            key: linear("attention.self.key")?,
            value: linear("attention.self.value")?,
            attention: linear("attention.output.dense")?,
            attention_norm: norm("attention.output.LayerNorm")?,
            up: linear("intermediate.dense")?,
            down: linear("output.dense")?,
            norm: norm("output.LayerNorm")?,
        })
    }
}

fn dense(checkpoint: &Checkpoint<'_>, path: String) -> Result<Linear> {
    let weight = FrozenLinear::stored(checkpoint.matrix(&format!("{path}.weight"))?);
    let bias = checkpoint.vector(&format!("{path}.bias"))?;
    Ok(Linear::new(path, weight.with_bias(Some(bias))))
}

fn norm(checkpoint: &Checkpoint<'_>, path: String, config: &BertConfig) -> Result<Norm> {
    let weight = checkpoint.vector(&format!("{path}.weight"))?;
    let bias = checkpoint.vector(&format!("{path}.bias"))?;
    Ok(Norm::layer(path, weight, bias, config.layer_norm_eps))
}
