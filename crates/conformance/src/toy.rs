//! A small model with weights that are drawn, not read: three LLaMA-like blocks in which no matrix is square.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Ask, Batch, Embedding, Error, KvCache, Linear, Model, Norm, Part, Pass, Result, Tokens,
    UNSUPERVISED, causal_mask,
};
use lowrank_frozen::{Encoding, FrozenEmbedding, FrozenLinear, Nf4, Stored};
use lowrank_ops as ops;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{RotaryScaling, RotaryTable};

/// The number of tokens that the model knows.
pub const VOCABULARY: usize = 29;

const HIDDEN: usize = 10;
const HEADS: usize = 3;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 6;
const INNER: usize = 14;
const BLOCKS: usize = 3;
const EPS: f64 = 1e-5;

/// Where the head's weight comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Its own tensor.
    Own,
    /// The embedding's.
    Tied,
}

/// The model. Two of the same encoding and head are equal; an f32 one is an f64 one, rounded.
#[derive(Debug)]
pub struct Toy {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: Norm,
    head: Linear,
    rotary: RotaryTable,
}

#[derive(Debug)]
struct Block {
    attention_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    mlp_norm: Norm,
    up: Linear,
    down: Linear,
}

impl Toy {
    /// A model whose matrices are held in `encoding`: f32, f64, f16, bf16 or NF4, not blocks. Its vectors are f64 if they
    /// are, else f32.
    ///
    /// # Errors
    /// If matrices cannot be held so.
    pub fn new(encoding: impl Into<Encoding>, head: Head) -> Result<Self> {
        let encoding = encoding.into();
        Self::rounded(encoding, encoding, head)
    }

    /// [`Self::new`] of `encoding` with the numbers that matrices have once they were held in `first`.
    ///
    /// # Errors
    /// If matrices cannot be held in one of them.
    pub fn rounded(
        first: impl Into<Encoding>,
        encoding: impl Into<Encoding>,
        head: Head,
    ) -> Result<Self> {
        let (first, encoding) = (first.into(), encoding.into());
        let computed = match encoding {
            Encoding::Plain(DType::F64) => DType::F64,
            _ => DType::F32,
        };
        let matrix = |name: &str, shape: [usize; 2], fan_in: usize| -> Result<Stored> {
            let stored = held(&drawn(name, &shape, fan_in, DType::F64)?, first)?;
            match first == encoding {
                true => Ok(stored),
                false => held(&stored.to_dense()?, encoding),
            }
        };
        let vector = |name: &str, n: usize, fan_in: usize| -> Result<Tensor> {
            drawn(name, &[n], fan_in, computed)
        };
        let linear = |path: &str, n_out: usize, n_in: usize| -> Result<Linear> {
            let weight = matrix(&format!("{path}.weight"), [n_out, n_in], n_in)?;
            Ok(Linear::new(path, FrozenLinear::stored(weight)))
        };
        let biased = |path: &str, n_out: usize, n_in: usize| -> Result<Linear> {
            let weight = matrix(&format!("{path}.weight"), [n_out, n_in], n_in)?;
            let bias = vector(&format!("{path}.bias"), n_out, n_in)?;
            let base = FrozenLinear::stored(weight).with_bias(Some(bias));
            Ok(Linear::new(path, base))
        };
        let norm = |path: &str| -> Result<Norm> {
            let weight = (vector(&format!("{path}.weight"), HIDDEN, HIDDEN)? + 1.0)?;
            Ok(Norm::rms(path, weight, EPS))
        };
        let block = |i: usize| -> Result<Block> {
            let at = |name: &str| format!("model.layers.{i}.{name}");
            Ok(Block {
                attention_norm: norm(&at("input_layernorm"))?,
                q: biased(&at("self_attn.q_proj"), HEADS * HEAD_DIM, HIDDEN)?,
                k: linear(&at("self_attn.k_proj"), KV_HEADS * HEAD_DIM, HIDDEN)?,
                v: linear(&at("self_attn.v_proj"), KV_HEADS * HEAD_DIM, HIDDEN)?,
                o: linear(&at("self_attn.o_proj"), HIDDEN, HEADS * HEAD_DIM)?,
                mlp_norm: norm(&at("post_attention_layernorm"))?,
                up: linear(&at("mlp.up_proj"), INNER, HIDDEN)?,
                down: biased(&at("mlp.down_proj"), HIDDEN, INNER)?,
            })
        };
        let table = matrix("model.embed_tokens.weight", [VOCABULARY, HIDDEN], 1)?;
        let table = FrozenEmbedding::new(table);
        let head = match head {
            Head::Own => linear("lm_head", VOCABULARY, HIDDEN)?,
            Head::Tied => Linear::tied("lm_head", table.head(), "model.embed_tokens"),
        };
        Ok(Self {
            embedding: Embedding::frozen("model.embed_tokens", table),
            blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
            norm: norm("model.norm")?,
            head,
            rotary: RotaryTable::new(HEAD_DIM, 100.0, &RotaryScaling::None)?,
        })
    }

    fn attend(
        &self,
        i: usize,
        x: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let block = &self.blocks[i];
        let (rows, length, _) = x.dims3()?;
        let split = |x: Tensor, heads: usize| -> Result<Tensor> {
            let x = x.reshape((rows, length, heads, HEAD_DIM))?;
            Ok(x.transpose(1, 2)?.contiguous()?)
        };
        let positions = &batch.tokens().positions;
        let q = split(block.q.forward(x, pass)?, HEADS)?;
        let k = split(block.k.forward(x, pass)?, KV_HEADS)?;
        let v = split(block.v.forward(x, pass)?, KV_HEADS)?;
        let q = ops::rotary(&q, &self.rotary, positions)?;
        let k = ops::rotary(&k, &self.rotary, positions)?;
        let (mask, k, v) = match kv {
            Some(kv) => {
                let mask = kv.mask(batch);
                let (k, v) = kv.append(i, &k, &v)?;
                (mask, k, v)
            }
            None => (causal_mask(batch), k, v),
        };
        let y = ops::attention(&q, &k, &v, &mask, (HEAD_DIM as f64).powf(-0.5))?;
        let y = y.transpose(1, 2)?.contiguous()?;
        block
            .o
            .forward(&y.reshape((rows, length, HEADS * HEAD_DIM))?, pass)
    }
}

impl Model for Toy {
    fn model_type(&self) -> &str {
        "toy"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        visit(Part::Embedding(&mut self.embedding));
        for block in &mut self.blocks {
            visit(Part::Norm(&mut block.attention_norm));
            for linear in [&mut block.q, &mut block.k, &mut block.v, &mut block.o] {
                visit(Part::Linear(linear));
            }
            visit(Part::Norm(&mut block.mlp_norm));
            visit(Part::Linear(&mut block.up));
            visit(Part::Linear(&mut block.down));
        }
        visit(Part::Norm(&mut self.norm));
        visit(Part::Head(&mut self.head));
    }

    fn embed(&self, batch: &Batch, pass: &mut Pass) -> Result<Tensor> {
        self.embedding.forward_tokens(batch.tokens(), pass)
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
    ) -> Result<Tensor> {
        let block = &self.blocks[i];
        let x = block.attention_norm.forward_rms(h, pass)?;
        let h = (h + self.attend(i, &x, batch, kv, pass)?)?;
        let x = block.mlp_norm.forward_rms(&h, pass)?;
        let up = block.up.forward(&x, pass)?;
        Ok((&h + block.down.forward(&ops::swiglu(&up, &up)?, pass)?)?)
    }

    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> Result<Tensor> {
        let (positions, targets): (Vec<u32>, Vec<u32>) = match ask {
            Ask::Losses => batch.targets().into_iter().unzip(),
            Ask::Logits(positions) => (positions.clone(), Vec::new()),
            Ask::Classes | Ask::Hidden => return Err(ask.refused("toy")),
        };
        let (rows, length, hidden) = h.dims3()?;
        let h = ops::gather_rows(&h.reshape((rows * length, hidden))?, &positions)?;
        let logits = self.head.forward(&self.norm.forward_rms(&h, pass)?, pass)?;
        match ask {
            Ask::Losses => pass.cross_entropy(&logits, &targets),
            _ => Ok(logits),
        }
    }
}

/// Random tokens: each row is a list of segment lengths, padded on the right to the longest row. About three tokens in
/// four supervise.
///
/// # Errors
/// If there are no tokens.
pub fn batch(seed: u64, rows: &[&[usize]]) -> Result<Batch> {
    let longest = rows.iter().map(|row| row.iter().sum()).max().unwrap_or(0);
    padded(seed, rows, longest)
}

/// [`batch`], padded (or cut) to `length`; the tokens do not depend on it.
///
/// # Errors
/// If there are no tokens.
pub fn padded(seed: u64, rows: &[&[usize]], length: usize) -> Result<Batch> {
    let mut tokens = Tokens {
        rows: rows.len(),
        length,
        ids: Vec::new(),
        segments: Vec::new(),
        positions: Vec::new(),
    };
    let mut labels = Vec::new();
    let mut stream = Key::new(seed, Purpose::Test).site("tokens").stream();
    for (row, lengths) in rows.iter().enumerate() {
        for (segment, &length) in (1..).zip(*lengths) {
            for position in 0..length as u32 {
                let id = stream.below(VOCABULARY as u64) as u32;
                let supervised = stream.below(4) != 0;
                tokens.ids.push(id);
                tokens.segments.push(segment);
                tokens.positions.push(position);
                labels.push(if supervised { id as i32 } else { UNSUPERVISED });
            }
        }
        let end = (row + 1) * length;
        for list in [&mut tokens.ids, &mut tokens.segments, &mut tokens.positions] {
            list.resize(end, 0);
        }
        labels.resize(end, UNSUPERVISED);
    }
    Batch::new(tokens, labels)
}

/// A matrix in an encoding.
fn held(matrix: &Tensor, encoding: Encoding) -> Result<Stored> {
    match encoding {
        Encoding::Plain(dtype) => Ok(Stored::new(matrix.to_dtype(dtype)?)?),
        Encoding::Nf4 { double } => {
            let numbers = matrix.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
            Ok(Stored::nf4(
                Nf4::quantise(&numbers, double)?,
                matrix.dims2()?,
            )?)
        }
        Encoding::Blocks(block) => Err(Error::Other(format!(
            "rows of the toy are no whole number of {} blocks",
            block.name()
        ))),
    }
}

/// Normal numbers of standard deviation 1 / sqrt(fan_in), keyed by the name.
fn drawn(name: &str, shape: &[usize], fan_in: usize, dtype: DType) -> Result<Tensor> {
    let mut stream = Key::new(11, Purpose::Test).site(name).stream();
    let std = (fan_in as f64).powf(-0.5);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| std * stream.normal())
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?)
}
