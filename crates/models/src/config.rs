//! config.json of the LLaMA kind.

use crate::fields::{Fields, shown};
use crate::{Error, Result, rope};
use lowrank_ops::RotaryScaling;
use serde_json::{Map, Value};

/// The kinds of models that can be loaded, for messages.
pub(crate) const SUPPORTED: &str = "llama";

/// Kinds of models that are planned.
const PLANNED: [&str; 3] = ["bert", "mistral", "qwen2"];

/// Fields that say nothing about what a forward pass computes: provenance, storage, generation, training.
const IGNORED: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "do_sample",
    "dtype",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "max_length",
    "max_sequence_length",
    "model_type",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// What config.json says of a LLaMA. Where a field is absent it has the default of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads of a block.
    pub num_attention_heads: usize,
    /// Key and value heads of a block; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square inside every norm.
    pub rms_norm_eps: f64,
    /// How many positions a sequence may have.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RotaryScaling,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// Whether the four attention projections have biases.
    pub attention_bias: bool,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// The tokens that end a text; empty if the file names none.
    pub eos_token_ids: Vec<u32>,
}

impl LlamaConfig {
    /// Reads the object that config.json holds; `origin` is the file, for messages.
    ///
    /// # Errors
    /// If `model_type` is not `llama`, a field is missing, out of range, not yet supported, or unknown and not empty.
    pub fn from_json(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        check_model_type(config, origin)?;
        let mut fields = Fields::new(config, origin);
        fields.ignore(IGNORED);
        let vocab_size = fields.size("vocab_size")?;
        let hidden_size = fields.size("hidden_size")?;
        let intermediate_size = fields.size("intermediate_size")?;
        let layers = fields.size("num_hidden_layers")?;
        let heads = fields.size("num_attention_heads")?;
        let hidden_size = fields.required("hidden_size", hidden_size)?;
        let heads = fields.required("num_attention_heads", heads)?;
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let expected = format!("a divisor of `hidden_size` = {hidden_size}");
                return Err(fields.wrong("num_attention_heads", &heads.into(), expected));
            }
        };
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", &head_dim.into(), "an even number"));
        }
        let kv_heads = fields.size("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of `num_attention_heads` = {heads}");
            return Err(fields.wrong("num_key_value_heads", &kv_heads.into(), expected));
        }
        let max_position_embeddings = fields.size("max_position_embeddings")?.unwrap_or(2048);
        let (rope_theta, rope_scaling) = rope::read(&mut fields)?;
        let config = Self {
            vocab_size: fields.required("vocab_size", vocab_size)?,
            hidden_size,
            intermediate_size: fields.required("intermediate_size", intermediate_size)?,
            num_hidden_layers: fields.required("num_hidden_layers", layers)?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            eos_token_ids: fields.tokens("eos_token_id")?,
        };
        let is_one = |value: &Value| value.as_f64() == Some(1.0);
        let is_zero = |value: &Value| value.as_f64() == Some(0.0);
        let is_silu = |value: &Value| value == "silu";
        fields.only("hidden_act", is_silu, "\"silu\"")?;
        fields.only("pretraining_tp", is_one, "1")?;
        fields.only("partial_rotary_factor", is_one, "1.0")?;
        fields.only("attention_dropout", is_zero, "0.0")?;
        fields.only("rope_interleaved", |value| value == false, "false")?;
        check_quantisation(&mut fields)?;
        fields.only("sliding_window", |_| false, "null")?;
        config.check_sizes(&fields)?;
        fields.finish()?;
        Ok(config)
    }

    /// Width of all query heads.
    pub(crate) fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads, or of all value heads.
    pub(crate) fn key_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Every product of sizes that a shape or an offset is made of must be a number.
    fn check_sizes(&self, fields: &Fields<'_>) -> Result<()> {
        let heads = self.num_attention_heads.checked_mul(self.head_dim);
        let hidden = Some(self.hidden_size);
        for (field, value, other) in [
            (
                "head_dim",
                self.head_dim,
                heads.map(|_| self.num_attention_heads),
            ),
            ("hidden_size", self.hidden_size, heads),
            ("intermediate_size", self.intermediate_size, hidden),
            ("vocab_size", self.vocab_size, hidden),
        ] {
            let bytes = other.and_then(|other| value.checked_mul(other)?.checked_mul(8));
            if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
                return Err(fields.wrong(field, &value.into(), "a size that fits into memory"));
            }
        }
        Ok(())
    }
}

/// Fields of `quantization_config` that change no stored number. What is computed in is for the run to say, how scales are
/// held and which layers are left out for the weights.
const IGNORED_QUANTISATION: &[&str] = &[
    "_load_in_4bit",
    "_load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
];

/// Refuses all weights that are quantised by others than bitsandbytes, or by it to something else than NF4.
fn check_quantisation(fields: &mut Fields<'_>) -> Result<()> {
    const FIELD: &str = "quantization_config";
    let Some(config) = fields.object(FIELD)? else {
        return Ok(());
    };
    let mut inner = fields.inside(config, "quantization_config.");
    inner.ignore(IGNORED_QUANTISATION);
    let eight = inner.flag("load_in_8bit")?;
    let four = inner.flag("load_in_4bit")?;
    // Early files name no method, and these two fields are nobody else's.
    match inner.word("quant_method")? {
        Some("bitsandbytes") => {}
        None if four || eight => {}
        Some(method) => {
            return Err(inner.not_yet("quant_method", &method.into(), "\"bitsandbytes\""));
        }
        None => {
            let value = Value::Object(config.clone());
            return Err(fields.not_yet(FIELD, &value, "NF4 of bitsandbytes"));
        }
    }
    if eight {
        return Err(inner.not_yet("load_in_8bit", &true.into(), "NF4, `load_in_4bit`"));
    }
    if !four {
        return Err(inner.not_yet("load_in_4bit", &false.into(), "true"));
    }
    // transformers reads a missing field so.
    match inner.word("bnb_4bit_quant_type")?.unwrap_or("fp4") {
        "nf4" => inner.finish(),
        kind => Err(inner.not_yet("bnb_4bit_quant_type", &kind.into(), "\"nf4\"")),
    }
}

/// Refuses every kind of model but LLaMA.
fn check_model_type(config: &Map<String, Value>, origin: &str) -> Result<()> {
    let mut fields = Fields::new(config, origin);
    let kind = fields.word("model_type")?;
    match fields.required("model_type", kind)? {
        "llama" => Ok(()),
        kind if PLANNED.contains(&kind) => {
            Err(fields.not_yet("model_type", &kind.into(), SUPPORTED))
        }
        kind => Err(Error::UnknownModel {
            origin: origin.to_owned(),
            value: shown(&kind.into()),
            suggestion: lowrank_adapter::nearest(kind, ["llama"]),
            supported: SUPPORTED,
        }),
    }
}
