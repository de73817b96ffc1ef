//! LLaMA, from the first to 3.x, and what shares its form: SmolLM2, TinyLlama, Mistral, Qwen2.
//!
//! A block is h + O(attention(rotate(Q(n)), rotate(K(n)), V(n))) with n = norm(h), and then
//! h + down(silu(gate(m)) * up(m)) with m = norm(h).

use crate::checkpoint::{Checkpoint, Precision};
use crate::classes::{Bias, Classes, last_tokens};
use crate::{LlamaConfig, Result, checks};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Ask, Batch, Embedding, KvCache, Linear, Model, Norm, Part, Pass, Result as AdapterResult,
    causal_mask,
};
use lowrank_frozen::{FrozenEmbedding, FrozenLinear, Weights};
use lowrank_ops::{self as ops, RotaryTable};

const EMBEDDING: &str = "model.embed_tokens";
const NORM: &str = "model.norm";
const HEAD: &str = "lm_head";
const SCORE: &str = "score";

/// A LLaMA. Its parts have the paths that transformers gives them.
#[derive(Debug)]
pub struct Llama {
    config: LlamaConfig,
    rotary: RotaryTable,
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    /// If the head gives rows their classes.
    classes: Option<Classes>,
}

#[derive(Debug)]
struct Block {
    input_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// Builds the model. Names, shapes and dtypes of all tensors are compared with the configuration first; then each
    /// tensor is read once. A tied head shares the embedding's weight.
    ///
    /// # Errors
    /// If a tensor is missing, unused, misshapen, not finite, cannot be read or cannot be held in this precision.
    pub fn new(config: LlamaConfig, weights: &dyn Weights, precision: Precision) -> Result<Self> {
        Self::with_head(config, weights, precision, None)
    }

    /// With a head for classes in the place of the one for tokens, if so many are given. It reads the last token of a row.
    pub(crate) fn with_head(
        config: LlamaConfig,
        weights: &dyn Weights,
        precision: Precision,
        classes: Option<Classes>,
    ) -> Result<Self> {
        let tied = config.tie_word_embeddings;
        // Early checkpoints store the frequencies; some of tied models store the head too, which transformers ignores.
        let ignored = |name: &str| {
            let head = tied && name == format!("{HEAD}.weight");
            if head {
                let origin = weights.origin();
                tracing::warn!("{origin}: `{name}` is ignored: the head is tied to `{EMBEDDING}`");
            }
            let other = classes.is_some() && name == format!("{HEAD}.weight");
            head || other || name.ends_with(".rotary_emb.inv_freq")
        };
        let hidden = config.hidden_size;
        let head = match &classes {
            None if tied => Vec::new(),
            None => vec![(format!("{HEAD}.weight"), vec![config.vocab_size, hidden])],
            Some(classes) => {
                let dims = (classes.num_labels.get(), hidden);
                Classes::tensors(weights, SCORE, dims, Bias::None)
            }
        };
        let needed = tensors(&config).chain(head);
        let checkpoint = Checkpoint::new(weights, precision, needed, ignored)?;
        let rotary = RotaryTable::new(config.head_dim, config.rope_theta, &config.rope_scaling)?;
        let table = FrozenEmbedding::new(checkpoint.table(&format!("{EMBEDDING}.weight"))?);
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(&config, i, &checkpoint))
            .collect::<Result<_>>()?;
        let norm = norm(&checkpoint, NORM, config.rms_norm_eps)?;
        let head = match &classes {
            None if tied => Linear::tied(HEAD, table.head(), EMBEDDING),
            None => {
                let head = checkpoint.table(&format!("{HEAD}.weight"))?;
                Linear::new(HEAD, FrozenLinear::stored(head))
            }
            Some(classes) => {
                let dims = (classes.num_labels.get(), hidden);
                classes.linear(&checkpoint, SCORE, dims, Bias::None)?
            }
        };
        Ok(Self {
            rotary,
            embedding: Embedding::frozen(EMBEDDING, table),
            blocks,
            norm,
            head,
            classes,
            config,
        })
    }

    /// What it was built from.
    #[must_use]
    pub const fn config(&self) -> &LlamaConfig {
        &self.config
    }

    fn dtype(&self) -> DType {
        self.embedding.weight.dtype()
    }

    /// `[rows, tokens, heads * head_dim]` -> `[rows, heads, tokens, head_dim]`.
    fn split(&self, x: &Tensor, heads: usize) -> AdapterResult<Tensor> {
        let (rows, tokens, _) = x.dims3()?;
        let x = x.reshape((rows, tokens, heads, self.config.head_dim))?;
        Ok(x.transpose(1, 2)?)
    }

    fn attend(
        &self,
        i: usize,
        x: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        let (block, config) = (&self.blocks[i], &self.config);
        let turn = (&self.rotary, &*batch.tokens().positions);
        let reach = config.reach(i);
        let scale = 1.0 / (config.head_dim as f64).sqrt();
        let q = block.q.forward(x, pass)?;
        let k = block.k.forward(x, pass)?;
        let v = block.v.forward(x, pass)?;
        let y = match kv {
            None => {
                ops::self_attention(&q, &k, &v, turn, &causal_mask(batch).reaching(reach), scale)?
            }
            Some(kv) => {
                let q = ops::rotary(&self.split(&q, config.num_attention_heads)?, turn.0, turn.1)?;
                let k = ops::rotary(&self.split(&k, config.num_key_value_heads)?, turn.0, turn.1)?;
                let (k, v) = kv.append(i, &k, &self.split(&v, config.num_key_value_heads)?)?;
                let mask = kv.mask(batch).reaching(reach);
                let y = ops::attention_cached(&q, &k, &v, &mask, scale)?.transpose(1, 2)?;
                let (rows, tokens, ..) = y.dims4()?;
                y.reshape((rows, tokens, config.query_size()))?
            }
        };
        block.o.forward(&y, pass)
    }

    /// The last norm at these flat positions. They are picked first: neither norms nor logits of others ever exist.
    fn picked(&self, h: &Tensor, positions: &[u32], pass: &mut Pass) -> AdapterResult<Tensor> {
        let (rows, tokens, hidden) = h.dims3()?;
        let x = ops::gather_rows(&h.reshape((rows * tokens, hidden))?, positions)?;
        self.norm.forward_rms(&x, pass)
    }

    fn classify(
        &self,
        classes: &Classes,
        h: &Tensor,
        batch: &Batch,
        ask: &Ask,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        if matches!(ask, Ask::Classes) {
            let positions = last_tokens(batch, 0..batch.tokens().rows as u32);
            let x = self.picked(h, &positions, pass)?;
            return self.head.forward(&x, pass);
        }
        let rows = batch.row_targets().into_iter().map(|(row, _)| row);
        let positions = last_tokens(batch, rows);
        if positions.is_empty() {
            return Ok(Tensor::zeros(0, self.dtype(), h.device())?);
        }
        let x = self.picked(h, &positions, pass)?;
        classes.losses(&self.head, &x, batch, pass)
    }
}

impl Model for Llama {
    fn model_type(&self) -> &str {
        self.config.kind.name()
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        visit(Part::Embedding(&mut self.embedding));
        for block in &mut self.blocks {
            visit(Part::Norm(&mut block.input_norm));
            for linear in [&mut block.q, &mut block.k, &mut block.v, &mut block.o] {
                visit(Part::Linear(linear));
            }
            visit(Part::Norm(&mut block.post_norm));
            for linear in [&mut block.gate, &mut block.up, &mut block.down] {
                visit(Part::Linear(linear));
            }
        }
        visit(Part::Norm(&mut self.norm));
        visit(Part::Head(&mut self.head));
    }

    fn embed(&self, batch: &Batch, pass: &mut Pass) -> AdapterResult<Tensor> {
        let tokens = batch.tokens();
        checks::vocabulary(tokens.ids.iter().copied(), self.config.vocab_size, "token")?;
        checks::positions(tokens, self.config.max_position_embeddings)?;
        self.embedding.forward_tokens(tokens, pass)
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
        let block = &self.blocks[i];
        let x = block.input_norm.forward_rms(h, pass)?;
        let y = self.attend(i, &x, batch, kv, pass)?;
        let (h, x) = block.post_norm.add_forward_rms(h, &y, pass)?;
        let gated = ops::swiglu(&block.gate.forward(&x, pass)?, &block.up.forward(&x, pass)?)?;
        Ok(ops::add(&h, &block.down.forward(&gated, pass)?)?)
    }

    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> AdapterResult<Tensor> {
        let (positions, targets): (Vec<u32>, Vec<u32>) = match (ask, &self.classes) {
            (Ask::Hidden, _) => return self.norm.forward_rms(h, pass),
            (Ask::Losses | Ask::Classes, Some(classes)) => {
                return self.classify(classes, h, batch, ask, pass);
            }
            (Ask::Losses, None) => batch.targets().into_iter().unzip(),
            (Ask::Logits(positions), None) => (positions.clone(), Vec::new()),
            (Ask::Logits(_), Some(_)) | (Ask::Classes, None) => {
                return Err(ask.refused(self.model_type()));
            }
        };
        checks::vocabulary(targets.iter().copied(), self.config.vocab_size, "label")?;
        if positions.is_empty() {
            return Ok(match ask {
                Ask::Losses => Tensor::zeros(0, self.dtype(), h.device())?,
                _ => Tensor::zeros((0, self.config.vocab_size), self.dtype(), h.device())?,
            });
        }
        let x = self.picked(h, &positions, pass)?;
        match ask {
            Ask::Losses => self.head.cross_entropy(&x, &targets, pass),
            _ => self.head.forward(&x, pass),
        }
    }
}

impl Block {
    fn new(config: &LlamaConfig, i: usize, checkpoint: &Checkpoint<'_>) -> Result<Self> {
        let path = |part: &str| format!("model.layers.{i}.{part}");
        let attention = |name: &str| {
            linear(
                checkpoint,
                path(&format!("self_attn.{name}_proj")),
                config.attention_bias.has(name),
            )
        };
        let feed_forward = |name: &str| {
            linear(
                checkpoint,
                path(&format!("mlp.{name}_proj")),
                config.mlp_bias,
            )
        };
        let norm = |name: &str| norm(checkpoint, &path(name), config.rms_norm_eps);
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            q: attention("q")?,
            k: attention("k")?,
            v: attention("v")?,
            o: attention("o")?,
            post_norm: norm("post_attention_layernorm")?,
            gate: feed_forward("gate")?,
            up: feed_forward("up")?,
            down: feed_forward("down")?,
        })
    }
}

fn linear(checkpoint: &Checkpoint<'_>, path: String, bias: bool) -> Result<Linear> {
    let weight = FrozenLinear::stored(checkpoint.matrix(&format!("{path}.weight"))?);
    let bias = bias
        .then(|| checkpoint.vector(&format!("{path}.bias")))
        .transpose()?;
    Ok(Linear::new(path, weight.with_bias(bias)))
}

fn norm(checkpoint: &Checkpoint<'_>, path: &str, eps: f64) -> Result<Norm> {
    Ok(Norm::rms(
        path,
        checkpoint.vector(&format!("{path}.weight"))?,
        eps,
    ))
}

/// Every tensor of the checkpoint but the head's with its shape, in the order of the forward pass. Lazy: a file may claim any number
/// of layers.
fn tensors(config: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> + use<'_> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let first = (format!("{EMBEDDING}.weight"), vec![vocab, hidden]);
    let last = (format!("{NORM}.weight"), vec![hidden]);
    std::iter::once(first)
        .chain((0..config.num_hidden_layers).flat_map(|i| block_tensors(config, i)))
        .chain([last])
}

fn block_tensors(config: &LlamaConfig, i: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, key) = (config.query_size(), config.key_size());
    let (inputs, output) = (
        config.attention_bias.has("q"),
        config.attention_bias.has("o"),
    );
    let mlp = config.mlp_bias;
    let mut tensors = Vec::new();
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("model.layers.{i}.{norm}.weight"), vec![hidden]));
    }
    for (name, n_out, n_in, bias) in [
        ("self_attn.q_proj", query, hidden, inputs),
        ("self_attn.k_proj", key, hidden, inputs),
        ("self_attn.v_proj", key, hidden, inputs),
        ("self_attn.o_proj", hidden, query, output),
        ("mlp.gate_proj", inner, hidden, mlp),
        ("mlp.up_proj", inner, hidden, mlp),
        ("mlp.down_proj", hidden, inner, mlp),
    ] {
        tensors.push((format!("model.layers.{i}.{name}.weight"), vec![n_out, n_in]));
        if bias {
            tensors.push((format!("model.layers.{i}.{name}.bias"), vec![n_out]));
        }
    }
    tensors
}
