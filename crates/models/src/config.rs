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
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
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
        fields.only(
            "quantization_config",
            |_| false,
            "weights that are not quantised",
        )?;
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
