//! config.json of a LLaMA, out of the metadata of its GGUF file.

use super::metadata::{Metadata, required};
use serde_json::{Map, Value, json};

const ARCHITECTURE: &str = "general.architecture";

/// Keys below `llama.` that are read, or that say nothing about what a model computes.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// What the configuration takes from the tensors.
pub(super) struct Tensors<'a> {
    /// Rows of the embedding.
    pub(super) vocab: Option<usize>,
    /// Whether the head has a weight of its own.
    pub(super) head: bool,
    /// Whether the query projection has a bias.
    pub(super) attention_bias: bool,
    /// Whether the gate projection has a bias.
    pub(super) mlp_bias: bool,
    /// By what the rotary frequencies are divided, `rope_freqs.weight`.
    pub(super) frequencies: Option<&'a [f32]>,
}

/// The heads of queries and keys, which llama.cpp's order of their rows depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) key: usize,
}

impl Heads {
    pub(super) fn read(metadata: &Metadata) -> Result<Self, String> {
        let query = positive(metadata, "llama.attention.head_count")?;
        let key = match metadata.count("llama.attention.head_count_kv")? {
            Some(_) => positive(metadata, "llama.attention.head_count_kv")?,
            None => query,
        };
        Ok(Self { query, key })
    }
}

pub(super) fn check_architecture(metadata: &Metadata) -> Result<(), String> {
    match required(ARCHITECTURE, metadata.text(ARCHITECTURE))? {
        "llama" => Ok(()),
        _ => Err(format!(
            "`{ARCHITECTURE}` = {} is not yet supported (only \"llama\" is)",
            metadata.shown(ARCHITECTURE)
        )),
    }
}

/// The object that config.json would hold.
pub(super) fn config(
    metadata: &Metadata,
    tensors: &Tensors<'_>,
) -> Result<Map<String, Value>, String> {
    for key in metadata.keys("llama.") {
        let whole = format!("llama.{key}");
        // Of this one it is `false` that would change the model.
        let says_nothing = metadata.is_empty(&whole) != (key == "attention.causal");
        if !KNOWN.contains(&key) && !says_nothing {
            return Err(format!(
                "unknown metadata `{whole}` with the value {}, which may change what the model computes",
                metadata.shown(&whole)
            ));
        }
    }
    let hidden = positive(metadata, "llama.embedding_length")?;
    let heads = Heads::read(metadata)?;
    let mut fields = Map::new();
    let mut put = |field: &str, value: Value| drop(fields.insert(field.to_owned(), value));
    put("architectures", json!(["LlamaForCausalLM"]));
    put("attention_bias", tensors.attention_bias.into());
    put("attention_dropout", 0.0.into());
    if let Some(id) = metadata.count("tokenizer.ggml.bos_token_id")? {
        put("bos_token_id", id.into());
    }
    if let Some(ends) = ends(metadata)? {
        put("eos_token_id", ends);
    }
    if let Some(width) = head_dim(metadata, hidden, heads.query)? {
        put("head_dim", width.into());
    }
    put("hidden_act", "silu".into());
    put("hidden_size", hidden.into());
    // The spread that such models start from; nothing computes with it.
    put("initializer_range", (hidden as f64).sqrt().recip().into());
    put(
        "intermediate_size",
        positive(metadata, "llama.feed_forward_length")?.into(),
    );
    put(
        "max_position_embeddings",
        positive(metadata, "llama.context_length")?.into(),
    );
    put("mlp_bias", tensors.mlp_bias.into());
    put("model_type", "llama".into());
    put("num_attention_heads", heads.query.into());
    put(
        "num_hidden_layers",
        positive(metadata, "llama.block_count")?.into(),
    );
    put("num_key_value_heads", heads.key.into());
    if let Some(id) = metadata.count("tokenizer.ggml.padding_token_id")? {
        put("pad_token_id", id.into());
    }
    put("pretraining_tp", 1.into());
    let eps = "llama.attention.layer_norm_rms_epsilon";
    put("rms_norm_eps", required(eps, metadata.real(eps))?.into());
    put("rope_scaling", scaling(metadata, tensors.frequencies)?);
    let theta = metadata.real("llama.rope.freq_base")?;
    put("rope_theta", theta.unwrap_or(10_000.0).into());
    put("tie_word_embeddings", (!tensors.head).into());
    put("torch_dtype", "float32".into());
    put("use_cache", true.into());
    put("vocab_size", vocab(metadata, tensors)?.into());
    Ok(fields)
}

fn positive(metadata: &Metadata, key: &str) -> Result<usize, String> {
    match required(key, metadata.count(key))? {
        0 => Err(format!("`{key}` is 0, expected an integer above 0")),
        count => Ok(count),
    }
}

/// The token that ends a text, and the one that ends a turn if it is another.
fn ends(metadata: &Metadata) -> Result<Option<Value>, String> {
    let text = metadata.count("tokenizer.ggml.eos_token_id")?;
    let turn = metadata.count("tokenizer.ggml.eot_token_id")?;
    Ok(match (text, turn) {
        (Some(text), Some(turn)) if text != turn => Some(json!([text, turn])),
        (text, turn) => text.or(turn).map(Value::from),
    })
}

/// The width of a head, if it is not what the other sizes imply.
fn head_dim(metadata: &Metadata, hidden: usize, heads: usize) -> Result<Option<usize>, String> {
    let implied = hidden.is_multiple_of(heads).then_some(hidden / heads);
    let width = metadata.count("llama.attention.key_length")?.or(implied);
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        let other = metadata.count(key)?;
        if other.is_some() && other != width {
            return Err(format!(
                "`{key}` = {} is not yet supported (only the width of a head, {}, is)",
                metadata.shown(key),
                width.map_or("which is unknown".to_owned(), |width| width.to_string())
            ));
        }
    }
    Ok(width.filter(|_| width != implied))
}

fn vocab(metadata: &Metadata, tensors: &Tensors<'_>) -> Result<usize, String> {
    let key = "llama.vocab_size";
    match (metadata.count(key)?, tensors.vocab) {
        (Some(claimed), Some(rows)) if claimed != rows => Err(format!(
            "`{key}` is {claimed}, but `token_embd.weight` has {rows} rows"
        )),
        (claimed, rows) => rows
            .or(claimed)
            .ok_or_else(|| "tensor `token_embd.weight` is missing".to_owned()),
    }
}

fn scaling(metadata: &Metadata, frequencies: Option<&[f32]>) -> Result<Value, String> {
    let kind = metadata.text("llama.rope.scaling.type")?;
    let linear = match kind {
        None | Some("none") => None,
        Some("linear") => {
            let key = "llama.rope.scaling.factor";
            Some(json!({"rope_type": "linear", "factor": required(key, metadata.real(key))?}))
        }
        Some(_) => {
            let key = "llama.rope.scaling.type";
            return Err(format!(
                "`{key}` = {} is not yet supported (only \"none\" and \"linear\" are)",
                metadata.shown(key)
            ));
        }
    };
    let Some(frequencies) = frequencies.filter(|all| all.iter().any(|&one| one != 1.0)) else {
        return Ok(linear.unwrap_or(Value::Null));
    };
    if linear.is_some() {
        return Err("it has both `rope_freqs.weight` and `llama.rope.scaling.type`".to_owned());
    }
    let theta = metadata.real("llama.rope.freq_base")?.unwrap_or(10_000.0);
    llama3(theta, frequencies).ok_or_else(|| {
        "tensor `rope_freqs.weight` is not yet supported with these values (only those of LLaMA 3.1 to 3.3 are)"
            .to_owned()
    })
}

/// The scaling of LLaMA 3.1 to 3.3, of which GGUF keeps only what every frequency is divided by: its parameters but for
/// the factor are always the same, and the factor is the largest divisor.
fn llama3(theta: f64, divisors: &[f32]) -> Option<Value> {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const CONTEXT: f64 = 8192.0;
    let factor = f64::from(divisors.iter().copied().reduce(f32::max)?);
    let expected = |i: usize| {
        let power = i as f64 / divisors.len() as f64;
        let length = 2.0 * std::f64::consts::PI * theta.powf(power);
        if length < CONTEXT / HIGH {
            1.0
        } else if length > CONTEXT / LOW {
            factor
        } else {
            let smooth = (CONTEXT / length - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    let near = |(i, &divisor): (usize, &f32)| (f64::from(divisor) / expected(i) - 1.0).abs() < 1e-3;
    divisors.iter().enumerate().all(near).then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": CONTEXT as usize,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaling_of_llama_3_is_recognised_by_its_divisors() {
        // 64 frequencies of base 500000 for LLaMA 3.1: up to the 29th as they are, from the 36th on a factor of 8.
        let mut divisors = vec![1f32; 64];
        for (i, divisor) in divisors.iter_mut().enumerate() {
            let length = 2.0 * std::f64::consts::PI * 500_000f64.powf(i as f64 / 64.0);
            *divisor = match length {
                short if short < 2048.0 => 1.0,
                long if long > 8192.0 => 8.0,
                between => {
                    let smooth = (8192.0 / between - 1.0) / 3.0;
                    (1.0 / ((1.0 - smooth) / 8.0 + smooth)) as f32
                }
            };
        }
        assert_eq!((divisors[28], divisors[35]), (1.0, 8.0));
        assert!(divisors[29] > 1.0 && divisors[34] < 8.0);
        let scaling = llama3(500_000.0, &divisors).unwrap();
        assert_eq!(
            scaling,
            json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            })
        );
        assert_eq!(llama3(10_000.0, &divisors), None);
        divisors[31] *= 1.01;
        assert_eq!(llama3(500_000.0, &divisors), None);
    }
}
