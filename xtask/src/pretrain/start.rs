//! The embedded model before it has learned anything.

use super::draw::Draw;
use super::tokenizer::vocab_size;
use anyhow::Result;
use candle_core::{Device, Tensor};
use serde_json::{Map, Value, json};

const HIDDEN: usize = 128;
const INNER: usize = 384;
const LAYERS: usize = 4;
const HEADS: usize = 6;
const KEY_HEADS: usize = 2;
const HEAD: usize = 32;
/// The longest text it reads, in tokens.
pub const POSITIONS: usize = 512;

/// config.json.
pub fn config() -> Map<String, Value> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "eos_token_id": [0, 2],
        "head_dim": HEAD,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "num_key_value_heads": KEY_HEADS,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "vocab_size": vocab_size(),
    });
    match config {
        Value::Object(config) => config,
        _ => Map::new(),
    }
}

/// The tensors: normal numbers of variance 1 / inputs, and less in what adds to the residual stream, so that its
/// variance does not grow with the number of layers.
pub fn tensors() -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    let mut add = |name: String, n_out: usize, n_in: usize, deviation: f64| -> Result<()> {
        let mut draw = Draw::new(&name, 0);
        let numbers: Vec<f32> = (0..n_out * n_in)
            .map(|_| (deviation * draw.normal()) as f32)
            .collect();
        tensors.push((
            name,
            Tensor::from_vec(numbers, (n_out, n_in), &Device::Cpu)?,
        ));
        Ok(())
    };
    let spread = |n_in: usize| (1.0 / n_in as f64).sqrt();
    let residual = (1.0 / (2 * LAYERS) as f64).sqrt();
    let (query, key) = (HEADS * HEAD, KEY_HEADS * HEAD);
    // The embedding is the head as well: numbers this small make the first guesses nearly even.
    add(
        "model.embed_tokens.weight".into(),
        vocab_size(),
        HIDDEN,
        0.05,
    )?;
    for i in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{i}.{part}_proj.weight");
        add(name("self_attn.q"), query, HIDDEN, spread(HIDDEN))?;
        add(name("self_attn.k"), key, HIDDEN, spread(HIDDEN))?;
        add(name("self_attn.v"), key, HIDDEN, spread(HIDDEN))?;
        add(name("self_attn.o"), HIDDEN, query, residual * spread(query))?;
        add(name("mlp.gate"), INNER, HIDDEN, spread(HIDDEN))?;
        add(name("mlp.up"), INNER, HIDDEN, spread(HIDDEN))?;
        add(name("mlp.down"), HIDDEN, INNER, residual * spread(INNER))?;
    }
    let norms = (0..LAYERS).flat_map(|i| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|norm| format!("model.layers.{i}.{norm}.weight"))
    });
    for name in norms.chain(["model.norm.weight".to_owned()]) {
        tensors.push((
            name,
            Tensor::from_vec(vec![1f32; HIDDEN], HIDDEN, &Device::Cpu)?,
        ));
    }
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(tensors)
}
