//! LLaMA, from the first to 3.x, and what shares its form: SmolLM2, TinyLlama, Mistral, Qwen2.
//!
//! A block is h + O(attention(rotate(Q(n)), rotate(K(n)), V(n))) with n = norm(h), and then
//! h + down(silu(gate(m)) * up(m)) with m = norm(h).

use crate::checkpoint::{Checkpoint, Precision, differ};
use crate::classes::{Bias, Classes, last_tokens};
use crate::renamed::Renamed;
use crate::{LlamaConfig, Result, checks};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    Ask, Batch, Embedding, KvCache, Linear, Model, Norm, Part, Pass, Result as AdapterResult,
    causal_mask,
};
use lowrank_frozen::{FrozenEmbedding, FrozenLinear, Weights};
use lowrank_ops::{self as ops, RotaryTable};

/// What the paths of everything but the head begin with in every class but the bare one.
const PREFIX: &str = "model.";
const EMBEDDING: &str = "embed_tokens";
const NORM: &str = "norm";
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
    top: Top,
}

/// What stands on the last norm.
#[derive(Debug)]
enum Top {
    /// Gives the next tokens.
    Language(Linear),
    /// Gives rows their classes.
    Classes(Linear, Classes),
    None,
}

/// What is to stand there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    Language,
    Classes(Classes),
    None,
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
        Self::with_head(config, weights, precision, Wanted::Language)
    }

    /// With another head than the one for tokens, or none. One for classes reads the last token of a row. Checkpoints may be of
    /// any of transformers' classes; without a head, paths are those of the bare one.
    pub(crate) fn with_head(
        config: LlamaConfig,
        weights: &dyn Weights,
        precision: Precision,
        wanted: Wanted,
    ) -> Result<Self> {
        let prefix = match wanted {
            Wanted::Language | Wanted::Classes(_) => PREFIX,
            Wanted::None => "",
        };
        let weights = &Renamed::new(weights, |stored| current(stored, prefix));
        let (head_weight, table) = (format!("{HEAD}.weight"), format!("{prefix}{EMBEDDING}"));
        let table_weight = format!("{table}.weight");
        let is_language = matches!(wanted, Wanted::Language);
        let tied = is_language
            && config.tie_word_embeddings
            && !differ(weights, &head_weight, &table_weight)?;
        // Early checkpoints store the frequencies; some of tied models store the head too.
        let ignored = |name: &str| {
            let head = name == head_weight && (tied || !is_language);
            let score = name == format!("{SCORE}.weight") && matches!(wanted, Wanted::None);
            head || score || name.ends_with(".rotary_emb.inv_freq")
        };
        let hidden = config.hidden_size;
        let head = match &wanted {
            Wanted::None => Vec::new(),
            Wanted::Language if tied => Vec::new(),
            Wanted::Language => vec![(head_weight.clone(), vec![config.vocab_size, hidden])],
            Wanted::Classes(classes) => {
                let dims = (classes.num_labels.get(), hidden);
                Classes::tensors(weights, SCORE, dims, Bias::None)
            }
        };
        let needed = tensors(&config, prefix).chain(head);
        let checkpoint = Checkpoint::new(weights, precision, needed, ignored)?;
        let rotary = RotaryTable::new(config.head_dim, config.rope_theta, &config.rope_scaling)?;
        let embedding = FrozenEmbedding::new(checkpoint.table(&table_weight)?);
        let blocks = (0..config.num_hidden_layers)
            .map(|i| Block::new(&config, format!("{prefix}layers.{i}"), &checkpoint))
            .collect::<Result<_>>()?;
        let norm = norm(&checkpoint, &format!("{prefix}{NORM}"), config.rms_norm_eps)?;
        let top = match wanted {
            Wanted::None => Top::None,
            Wanted::Language if tied => {
                Top::Language(Linear::tied(HEAD, embedding.head(), &*table))
            }
            Wanted::Language => {
                let head = checkpoint.table(&head_weight)?;
                Top::Language(Linear::new(HEAD, FrozenLinear::stored(head)))
            }
            Wanted::Classes(classes) => {
                let dims = (classes.num_labels.get(), hidden);
                let head = classes.linear(&checkpoint, SCORE, dims, Bias::None)?;
                Top::Classes(head, classes)
            }
        };
        Ok(Self {
            rotary,
            embedding: Embedding::frozen(table, embedding),
            blocks,
            norm,
            top,
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
        (head, classes): (&Linear, &Classes),
        h: &Tensor,
        batch: &Batch,
        ask: &Ask,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        let padding = self.config.pad_token_id;
        if matches!(ask, Ask::Classes) {
            let positions = last_tokens(batch, padding, 0..batch.tokens().rows as u32);
            let x = self.picked(h, &positions, pass)?;
            return head.forward(&x, pass);
        }
        let rows = batch.row_targets().into_iter().map(|(row, _)| row);
        let positions = last_tokens(batch, padding, rows);
        if positions.is_empty() {
            return Ok(Tensor::zeros(0, self.dtype(), h.device())?);
        }
        let x = self.picked(h, &positions, pass)?;
        classes.losses(head, &x, batch, pass)
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
        match &mut self.top {
            Top::Language(head) | Top::Classes(head, _) => visit(Part::Head(head)),
            Top::None => {}
        }
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
        let head = match (ask, &self.top) {
            (Ask::Hidden, _) => return self.norm.forward_rms(h, pass),
            (Ask::Losses | Ask::Classes, Top::Classes(head, classes)) => {
                return self.classify((head, classes), h, batch, ask, pass);
            }
            (Ask::Losses | Ask::Logits(_), Top::Language(head)) => head,
            _ => return Err(ask.refused(self.model_type())),
        };
        let (positions, targets): (Vec<u32>, Vec<u32>) = match ask {
            Ask::Logits(positions) => (positions.clone(), Vec::new()),
            _ => batch.targets().into_iter().unzip(),
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
            Ask::Losses => head.cross_entropy(&x, &targets, pass),
            _ => head.forward(&x, pass),
        }
    }
}

impl Block {
    fn new(config: &LlamaConfig, path: String, checkpoint: &Checkpoint<'_>) -> Result<Self> {
        let path = |part: &str| format!("{path}.{part}");
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

/// What transformers calls a stored tensor in a class whose paths begin so.
fn current(stored: &str, prefix: &str) -> String {
    let inner = stored.strip_prefix(PREFIX).unwrap_or(stored);
    let is_head = [HEAD, SCORE].iter().any(|head| inner.starts_with(head));
    match is_head {
        true => stored.to_owned(),
        false => format!("{prefix}{inner}"),
    }
}

/// Every tensor of the checkpoint but the head's with its shape, in the order of the forward pass. Lazy: a file may claim any number
/// of layers.
fn tensors<'a>(
    config: &'a LlamaConfig,
    prefix: &'a str,
) -> impl Iterator<Item = (String, Vec<usize>)> + use<'a> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let first = (format!("{prefix}{EMBEDDING}.weight"), vec![vocab, hidden]);
    let last = (format!("{prefix}{NORM}.weight"), vec![hidden]);
    let layer = move |i| block_tensors(config, &format!("{prefix}layers.{i}"));
    std::iter::once(first)
        .chain((0..config.num_hidden_layers).flat_map(layer))
        .chain([last])
}

fn block_tensors(config: &LlamaConfig, path: &str) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, key) = (config.query_size(), config.key_size());
    let (inputs, output) = (
        config.attention_bias.has("q"),
        config.attention_bias.has("o"),
    );
    let mlp = config.mlp_bias;
    let mut tensors = Vec::new();
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("{path}.{norm}.weight"), vec![hidden]));
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
        tensors.push((format!("{path}.{name}.weight"), vec![n_out, n_in]));
        if bias {
            tensors.push((format!("{path}.{name}.bias"), vec![n_out]));
        }
    }
    tensors
}
