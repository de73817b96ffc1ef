//! config.json of the LLaMA kind: LLaMA, Mistral and Qwen2.

use crate::fields::Fields;
use crate::kind::Kind;
use crate::quantisation::check_quantisation;
use crate::sizes::{Sizes, check_size};
use crate::{Result, rope};
use lowrank_adapter::Reach;
use lowrank_ops::RotaryScaling;
use serde_json::{Map, Value};
use std::num::NonZeroUsize;

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

/// Which of the four attention projections have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Biases {
    /// None.
    None,
    /// Those of queries, keys and values.
    Inputs,
    /// All four.
    All,
}

impl Biases {
    /// Whether the projection `name`_proj has one.
    pub(crate) fn has(self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Inputs => name != "o",
            Self::All => true,
        }
    }
}

/// What config.json says of a LLaMA, Mistral or Qwen2. Where a field is absent it has the default of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Which of the three.
    pub kind: Kind,
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
    /// Which attention projections have biases.
    pub attention_bias: Biases,
    /// Whether the three feed-forward projections have biases.
    pub mlp_bias: bool,
    /// How many tokens a query sees, itself among them, in the blocks from [`Self::window_from`] on; all before it if there
    /// is no window.
    pub sliding_window: Option<NonZeroUsize>,
    /// The first block that sees through the window.
    pub window_from: usize,
    /// The tokens that end a text; empty if the file names none.
    pub eos_token_ids: Vec<u32>,
    /// The token that a classifier looks past at the end of a row.
    pub pad_token_id: Option<u32>,
}

impl LlamaConfig {
    /// Reads the object that config.json holds; `origin` is the file, for messages.
    ///
    /// # Errors
    /// If `model_type` is neither `llama`, `mistral` nor `qwen2`, a field is missing, out of range, not yet supported, or unknown and not empty.
    pub fn from_json(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        let kind = Kind::of(config, origin)?;
        let mut fields = Fields::new(config, origin);
        let Some(defaults) = Defaults::of(kind) else {
            let expected = "\"llama\", \"mistral\" or \"qwen2\"";
            return Err(fields.wrong("model_type", &kind.name().into(), expected));
        };
        fields.ignore(IGNORED);
        let sizes = Sizes::read(&mut fields)?;
        let (layers, heads) = (sizes.num_hidden_layers, sizes.num_attention_heads);
        let head_dim = match fields.size("head_dim")? {
            Some(head_dim) => head_dim,
            None => sizes.head_dim(&fields)?,
        };
        if head_dim % 2 != 0 {
            return Err(fields.wrong("head_dim", &head_dim.into(), "an even number"));
        }
        // `null` means as many as queries, wherever the default lies.
        let absent = match defaults.kv_heads {
            Some(count) if !fields.has("num_key_value_heads") => count,
            _ => heads,
        };
        let kv_heads = fields.size("num_key_value_heads")?.unwrap_or(absent);
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of `num_attention_heads` = {heads}");
            return Err(fields.wrong("num_key_value_heads", &kv_heads.into(), expected));
        }
        let max_position_embeddings = fields.size("max_position_embeddings")?;
        let (sliding_window, window_from) = window(&mut fields, kind, layers)?;
        let (rope_theta, rope_scaling) = rope::read(&mut fields)?;
        let config = Self {
            kind,
            vocab_size: sizes.vocab_size,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings: max_position_embeddings.unwrap_or(defaults.positions),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: biases(&mut fields, kind)?,
            // Only LLaMA has the choice; elsewhere the field is as unknown as any.
            mlp_bias: kind == Kind::Llama && fields.flag("mlp_bias")?,
            sliding_window,
            window_from,
            eos_token_ids: fields.tokens("eos_token_id")?,
            pad_token_id: fields.token("pad_token_id")?,
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
        config.check_sizes(&fields)?;
        fields.finish()?;
        Ok(config)
    }

    /// How far the queries of a block see.
    #[must_use]
    pub fn reach(&self, block: usize) -> Reach {
        match self.sliding_window {
            Some(window) if block >= self.window_from => Reach::Window(window),
            _ => Reach::Before,
        }
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
            check_size(fields, field, value, other)?;
        }
        Ok(())
    }
}

/// What transformers takes where a field is absent, as far as it differs.
struct Defaults {
    positions: usize,
    /// None: as many as queries.
    kv_heads: Option<usize>,
}

impl Defaults {
    const fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Llama => Some(Self {
                positions: 2048,
                kv_heads: None,
            }),
            Kind::Mistral => Some(Self {
                positions: 4096 * 32,
                kv_heads: Some(8),
            }),
            Kind::Qwen2 => Some(Self {
                positions: 32768,
                kv_heads: Some(32),
            }),
            Kind::Bert | Kind::Roberta | Kind::XlmRoberta => None,
        }
    }
}

fn biases(fields: &mut Fields<'_>, kind: Kind) -> Result<Biases> {
    Ok(match kind {
        Kind::Qwen2 => Biases::Inputs,
        Kind::Llama if fields.flag("attention_bias")? => Biases::All,
        _ => Biases::None,
    })
}

/// The window, and the first block that sees through it.
fn window(
    fields: &mut Fields<'_>,
    kind: Kind,
    layers: usize,
) -> Result<(Option<NonZeroUsize>, usize)> {
    const FIELD: &str = "sliding_window";
    const ABSENT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
    if kind == Kind::Llama {
        fields.only(FIELD, |_| false, "null")?;
        return Ok((None, 0));
    }
    let given = fields.has(FIELD);
    let window = match fields.size(FIELD)?.and_then(NonZeroUsize::new) {
        None if !given => Some(ABSENT),
        window => window,
    };
    if kind == Kind::Mistral {
        return Ok((window, 0));
    }
    let used = fields.flag("use_sliding_window")?;
    let first = fields.count("max_window_layers")?.unwrap_or(28);
    let window = window.filter(|_| used);
    // A list of what each block does, which later files have, must say the same.
    if let Some(value) = fields.get("layer_types") {
        let word = |i: usize| match window {
            Some(_) if i >= first => "sliding_attention",
            _ => "full_attention",
        };
        let same = value.as_array().is_some_and(|words| {
            words.len() == layers && words.iter().enumerate().all(|(i, given)| given == word(i))
        });
        if !same {
            let supported = "what `sliding_window` and `max_window_layers` say";
            return Err(fields.not_yet("layer_types", value, supported));
        }
    }
    Ok((window, first))
}
