//! A small LLaMA in memory, in whatever encoding.

use super::SEED;
use crate::Result;
use candle_core::{DType, Device, Tensor};
use lowrank_frozen::{Encoding, Error as FrozenError, Nf4, Stored, TensorInfo, Weights};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Blocks of 256 numbers must fit into every row.
const HIDDEN: usize = 256;
const INNER: usize = 512;
const HEADS: usize = 4;
const HEAD_DIM: usize = 128;
const KEY_HEADS: usize = 1;
const VOCAB: usize = 80;
const LAYERS: usize = 2;

/// Its config.json.
pub fn config() -> Map<String, Value> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
        "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5, "tie_word_embeddings": true
    });
    config.as_object().cloned().unwrap_or_default()
}

/// What the weights of such a model are made of.
pub struct Drawn {
    numbers: BTreeMap<String, Tensor>,
    /// Blocks of whatever type, repeated as often as needed. A scale of 16 or 32 bits is finite and below 1 if its bytes
    /// are small; any bytes do for the rest.
    bytes: Vec<u8>,
}

impl Drawn {
    pub fn new() -> Result<Self> {
        let std = 1.0 / (HIDDEN as f64).sqrt();
        let draw = |(name, shape): (String, Vec<usize>)| {
            let numbers = normal(&name, &shape, std)?;
            Ok((name, numbers))
        };
        let mut stream = Key::new(SEED, Purpose::Test).site("blocks").stream();
        Ok(Self {
            numbers: shapes().into_iter().map(draw).collect::<Result<_>>()?,
            bytes: (0..4001).map(|_| stream.below(0x3c) as u8).collect(),
        })
    }
}

fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    let (query, key) = (HEADS * HEAD_DIM, KEY_HEADS * HEAD_DIM);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![query, HIDDEN]),
            ("self_attn.k_proj", vec![key, HIDDEN]),
            ("self_attn.v_proj", vec![key, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, query]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

/// The same weights, matrices in this encoding.
pub struct Encoded<'a>(pub &'a Drawn, pub Encoding);

impl Encoded<'_> {
    fn drawn(&self, name: &str) -> Result<&Tensor, FrozenError> {
        self.0
            .numbers
            .get(name)
            .ok_or_else(|| FrozenError::Missing {
                origin: self.origin(),
                name: name.to_owned(),
            })
    }
}

impl Weights for Encoded<'_> {
    fn names(&self) -> Vec<&str> {
        self.0.numbers.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let shape = self.0.numbers.get(name)?.dims().to_vec();
        let encoding = match (shape.len(), self.1) {
            // What is no matrix is never packed.
            (1, encoding) if encoding != Encoding::Plain(DType::F64) => DType::F32.into(),
            (_, encoding) => encoding,
        };
        Some(TensorInfo { shape, encoding })
    }

    fn tensor(&self, name: &str) -> Result<Tensor, FrozenError> {
        let dtype = match self.info(name).map(|info| info.encoding) {
            Some(Encoding::Plain(dtype)) => dtype,
            _ => DType::F32,
        };
        Ok(self.drawn(name)?.to_dtype(dtype)?)
    }

    fn stored(&self, name: &str) -> Result<Stored, FrozenError> {
        let (rows, columns) = self.drawn(name)?.dims2()?;
        let block = match self.1 {
            Encoding::Plain(_) => return Stored::new(self.tensor(name)?),
            Encoding::Blocks(block) => block,
            Encoding::Nf4 { double } => {
                let numbers = self.drawn(name)?.flatten_all()?.to_vec1()?;
                return Stored::nf4(Nf4::quantise(&numbers, double)?, (rows, columns));
            }
        };
        let size = rows * columns / block.numbers() * block.bytes();
        let bytes: Vec<u8> = self.0.bytes.iter().copied().cycle().take(size).collect();
        Stored::blocks(block, &bytes, (rows, columns))
    }

    fn origin(&self) -> String {
        "a model in memory".to_owned()
    }
}

/// Normal numbers in f32, keyed by `name`.
pub fn normal(name: &str, shape: &[usize], std: f64) -> candle_core::Result<Tensor> {
    let mut stream = Key::new(SEED, Purpose::Test).site(name).stream();
    let numbers: Vec<f32> = (0..shape.iter().product())
        .map(|_| (std * stream.normal()) as f32)
        .collect();
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}
