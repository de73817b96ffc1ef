//! Small random models for the tests of this crate.
#![expect(dead_code, reason = "every test file uses a part of this")]
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{Ask, Batch, Model, Pass, Selection, Tokens, UNSUPERVISED, run};
use lowrank_frozen::{Error, Result, TensorInfo, Weights};
use lowrank_models::{Biases, Llama, LlamaConfig, Precision};
use lowrank_ops::rng::{Key, Purpose};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What transformers wrote into the folder of a case, and computed with it.
pub struct Zoo {
    pub config: Value,
    pub weights: Memory,
    pub expected: BTreeMap<String, Tensor>,
    folder: PathBuf,
}

impl Zoo {
    pub fn open(case: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/zoo");
        let folder = folder.join(case);
        Self {
            config: read(&folder.join("config.json")),
            weights: Memory(tensors(&folder.join("model.safetensors"))),
            expected: tensors(&folder.join("expected.safetensors")),
            folder,
        }
    }

    /// How many tokens each row has.
    pub fn lengths(&self) -> Vec<usize> {
        self.listed("lengths")
    }

    /// Its rows, padded, with types of tokens and labels of tokens or rows.
    pub fn batch(&self) -> Batch {
        let lengths = self.lengths();
        let length = lengths.iter().copied().max().unwrap();
        let ids: Vec<Vec<u32>> = self.listed("ids");
        let types: Vec<Vec<u32>> = self.listed("types");
        let labels: Option<Vec<Vec<i32>>> = self.listed("labels");
        let row_labels: Option<Vec<Option<f64>>> = self.listed("row_labels");
        let size = ids.len() * length;
        let of = |at: usize| (at / length, at % length);
        let tokens = Tokens {
            rows: ids.len(),
            length,
            segments: (0..size)
                .map(|at| u32::from(of(at).1 < lengths[of(at).0]))
                .collect(),
            positions: (0..size).map(|at| of(at).1 as u32).collect(),
            ids: ids.concat(),
        };
        let labels = labels.map_or(vec![UNSUPERVISED; size], |labels| labels.concat());
        let batch = Batch::new(tokens, labels).unwrap();
        let batch = batch.with_types(types.concat()).unwrap();
        match row_labels {
            Some(labels) => batch.with_row_labels(labels).unwrap(),
            None => batch,
        }
    }

    fn listed<T: serde::de::DeserializeOwned>(&self, what: &str) -> T {
        serde_json::from_value(read(&self.folder.join("batch.json"))[what].clone()).unwrap()
    }
}

pub fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1().unwrap()
}

/// A checkpoint in memory.
#[derive(Debug, Clone)]
pub struct Memory(pub BTreeMap<String, Tensor>);

impl Weights for Memory {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensor = self.0.get(name)?;
        Some(TensorInfo {
            shape: tensor.dims().to_vec(),
            encoding: tensor.dtype().into(),
        })
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        self.0.get(name).cloned().ok_or_else(|| Error::Missing {
            origin: self.origin(),
            name: name.to_owned(),
        })
    }

    fn origin(&self) -> String {
        "memory".to_owned()
    }
}

impl Memory {
    /// Random f64 weights of every tensor that a LLaMA of this configuration has in transformers.
    pub fn random(config: &LlamaConfig, seed: u64) -> Self {
        let (hidden, inner, vocab) = (
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
        );
        let query = config.num_attention_heads * config.head_dim;
        let key = config.num_key_value_heads * config.head_dim;
        let (inputs, output) = match config.attention_bias {
            Biases::None => (false, false),
            Biases::Inputs => (true, false),
            Biases::All => (true, true),
        };
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![vocab, hidden]),
            ("model.norm.weight".into(), vec![hidden]),
        ];
        if !config.tie_word_embeddings {
            shapes.push(("lm_head.weight".into(), vec![vocab, hidden]));
        }
        for i in 0..config.num_hidden_layers {
            let path = format!("model.layers.{i}");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.push((format!("{path}.{norm}.weight"), vec![hidden]));
            }
            for (name, n_out, n_in, bias) in [
                ("self_attn.q_proj", query, hidden, inputs),
                ("self_attn.k_proj", key, hidden, inputs),
                ("self_attn.v_proj", key, hidden, inputs),
                ("self_attn.o_proj", hidden, query, output),
                ("mlp.gate_proj", inner, hidden, config.mlp_bias),
                ("mlp.up_proj", inner, hidden, config.mlp_bias),
                ("mlp.down_proj", hidden, inner, config.mlp_bias),
            ] {
                shapes.push((format!("{path}.{name}.weight"), vec![n_out, n_in]));
                if bias {
                    shapes.push((format!("{path}.{name}.bias"), vec![n_out]));
                }
            }
        }
        let draw = |(name, shape): (String, Vec<usize>)| {
            let mut stream = Key::new(seed, Purpose::Test).site(&name).stream();
            // Large enough for attention to prefer some keys clearly.
            let deviation = match shape[..] {
                [_, n_in] => 1.5 / (n_in as f64).sqrt(),
                _ => 0.3,
            };
            let centre = if name.contains("norm") { 1.0 } else { 0.0 };
            let numbers = (0..shape.iter().product()).map(|_| centre + deviation * stream.normal());
            let numbers: Vec<f64> = numbers.collect();
            let tensor = Tensor::from_vec(numbers, shape, &Device::Cpu).unwrap();
            (name, tensor)
        };
        Self(shapes.into_iter().map(draw).collect())
    }

    /// The same without one tensor.
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// The same numbers in another dtype.
    pub fn cast(&self, dtype: DType) -> Self {
        let cast =
            |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.to_dtype(dtype).unwrap());
        Self(self.0.iter().map(cast).collect())
    }
}

/// config.json of a small model: six query heads over two key heads, whose width is not hidden / heads; biases, llama3
/// scaling, a tied head.
pub fn rich() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 29, "hidden_size": 20, "intermediate_size": 26,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 96, "hidden_act": "silu",
        "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true, "eos_token_id": [2, 7], "pad_token_id": 1,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 6.0, "low_freq_factor": 1.5,
            "high_freq_factor": 4.5, "original_max_position_embeddings": 24
        }
    })
}

/// config.json of a small model as transformers 4 wrote it: no biases, its own head, linear scaling.
pub fn plain() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40, "hidden_act": "silu",
        "rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.5}, "eos_token_id": 2
    })
}

/// config.json of a small Mistral whose window is shorter than most texts.
pub fn windowed() -> Value {
    json!({
        "model_type": "mistral", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10,
        "sliding_window": 3, "max_position_embeddings": 40, "rope_theta": 1000.0
    })
}

/// config.json of a small Qwen2 with a window in its last block.
pub fn qwen2() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 23, "hidden_size": 24, "intermediate_size": 34,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3,
        "use_sliding_window": true, "sliding_window": 2, "max_window_layers": 2,
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "max_position_embeddings": 40, "rope_theta": 1000.0, "tie_word_embeddings": true
    })
}

/// `base` with other fields on top.
pub fn with(mut base: Value, fields: Value) -> Value {
    for (field, value) in object(&fields) {
        base[field] = value.clone();
    }
    base
}

pub fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}

pub fn config(value: &Value) -> LlamaConfig {
    LlamaConfig::from_json(object(value), "config.json").unwrap()
}

pub fn model(value: &Value, seed: u64) -> (Llama, Memory) {
    let config = config(value);
    let weights = Memory::random(&config, seed);
    let model = Llama::new(config, &weights, Precision::AsStored).unwrap();
    (model, weights)
}

/// Random token ids.
pub fn text(length: usize, vocab: u64, seed: u64) -> Vec<u32> {
    let mut stream = Key::new(seed, Purpose::Test).stream();
    (0..length).map(|_| stream.below(vocab) as u32).collect()
}

/// A rectangle of texts, one a row, each supervised from its second token on.
pub fn rectangle(texts: &[Vec<u32>], length: usize) -> Batch {
    let mut tokens = Tokens {
        rows: texts.len(),
        length,
        ids: Vec::new(),
        segments: Vec::new(),
        positions: Vec::new(),
    };
    let mut labels = Vec::new();
    for text in texts {
        for at in 0..length {
            let id = text.get(at).copied();
            tokens.ids.push(id.unwrap_or(0));
            tokens.segments.push(u32::from(id.is_some()));
            tokens.positions.push(at as u32);
            labels.push(id.map_or(UNSUPERVISED, |id| id as i32));
        }
    }
    Batch::new(tokens, labels).unwrap()
}

pub fn evaluate(model: &dyn Model, batch: &Batch, ask: &Ask) -> Tensor {
    let mut pass = Pass::evaluation(Selection::none());
    run(model, batch, ask, None, &mut pass).unwrap()
}

/// The logits of every position of one text.
pub fn logits(model: &dyn Model, text: &[u32]) -> Vec<Vec<f64>> {
    let batch = Batch::sequence(text, 0).unwrap();
    let positions = (0..text.len() as u32).collect();
    rows(&evaluate(model, &batch, &Ask::Logits(positions)))
}

pub fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
    tensor.to_dtype(DType::F64).unwrap().to_vec2().unwrap()
}

#[track_caller]
pub fn assert_near(got: &[Vec<f64>], expected: &[Vec<f64>], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (row, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (column, (got, expected)) in got.iter().zip(expected).enumerate() {
            let error = (got - expected).abs();
            assert!(
                error <= tolerance,
                "row {row}, column {column}: {got} against {expected}"
            );
        }
    }
}
