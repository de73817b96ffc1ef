//! config.json of the BERT kind.

use crate::Result;
use crate::fields::Fields;
use crate::kind::Kind;
use crate::quantisation::check_quantisation;
use crate::sizes::{Sizes, check_size};
use serde_json::{Map, Value};

/// Fields that say nothing about what a forward pass computes: provenance, storage, training, and what old files say of
/// a pooler that nobody builds.
const IGNORED: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "_num_labels",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "classifier_activation",
    "cls_token_id",
    "directionality",
    "dtype",
    "finetuning_task",
    "gradient_checkpointing",
    "id2label",
    "label2id",
    "mask_token_id",
    "max_length",
    "model_type",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "problem_type",
    "return_dict",
    "sep_token_id",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

/// The function between the two layers of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// x times the share of the normal distribution below it.
    Gelu,
    /// The same with a hyperbolic tangent in the error function's place.
    GeluTanh,
    /// x where it is above 0.
    Relu,
}

/// What config.json says of a BERT or RoBERTa. Where a field is absent it has the default of transformers.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// [`Kind::Bert`] or one of RoBERTa's.
    pub kind: Kind,
    /// Number of tokens.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of a block; divides the hidden size.
    pub num_attention_heads: usize,
    /// Added to the variance inside every norm.
    pub layer_norm_eps: f64,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// How many types a token may have.
    pub type_vocab_size: usize,
    /// The activation of feed-forward blocks.
    pub hidden_act: Activation,
    /// The row of the first position: RoBERTa's come behind the padding token's.
    pub first_position: usize,
    /// Deviation of what a head is drawn with.
    pub initializer_range: f64,
    /// Dropout behind the embedding, attention and feed-forward blocks, in training.
    pub hidden_dropout_prob: f64,
    /// Dropout of what tokens take from each other in attention, in training.
    pub attention_probs_dropout_prob: f64,
    /// Dropout in front of a classifier, in training.
    pub classifier_dropout: f64,
    /// Whether the head's weight is the embedding's.
    pub tie_word_embeddings: bool,
    /// The tokens that end a text; empty if the file names none.
    pub eos_token_ids: Vec<u32>,
}

impl BertConfig {
    /// Reads the object that config.json holds; `origin` is the file, for messages.
    ///
    /// # Errors
    /// If `model_type` is neither `bert`, `roberta` nor `xlm-roberta`, or a field is missing, out of range, not yet supported,
    /// or unknown and not empty.
    pub fn from_json(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        let kind = Kind::of(config, origin)?;
        let mut fields = Fields::new(config, origin);
        if !matches!(kind, Kind::Bert | Kind::Roberta | Kind::XlmRoberta) {
            let expected = "\"bert\", \"roberta\" or \"xlm-roberta\"";
            return Err(fields.wrong("model_type", &kind.name().into(), expected));
        }
        fields.ignore(IGNORED);
        let sizes = Sizes::read(&mut fields)?;
        sizes.head_dim(&fields)?;
        let max_position_embeddings = fields.size("max_position_embeddings")?.unwrap_or(512);
        let dropout = fields.probability("hidden_dropout_prob")?.unwrap_or(0.1);
        let attention_dropout = fields.probability("attention_probs_dropout_prob")?;
        let eos = fields.tokens("eos_token_id")?;
        let config = Self {
            kind,
            vocab_size: sizes.vocab_size,
            hidden_size: sizes.hidden_size,
            intermediate_size: sizes.intermediate_size,
            num_hidden_layers: sizes.num_hidden_layers,
            num_attention_heads: sizes.num_attention_heads,
            layer_norm_eps: fields.positive("layer_norm_eps")?.unwrap_or(1e-12),
            max_position_embeddings,
            type_vocab_size: fields.size("type_vocab_size")?.unwrap_or(2),
            hidden_act: activation(&mut fields)?,
            first_position: first_position(&mut fields, kind, max_position_embeddings)?,
            initializer_range: fields.positive("initializer_range")?.unwrap_or(0.02),
            hidden_dropout_prob: dropout,
            attention_probs_dropout_prob: attention_dropout.unwrap_or(0.1),
            classifier_dropout: fields.probability("classifier_dropout")?.unwrap_or(dropout),
            tie_word_embeddings: fields.flag_or("tie_word_embeddings", true)?,
            eos_token_ids: eos,
        };
        let is_false = |value: &Value| value == false;
        let is_absolute = |value: &Value| value == "absolute";
        let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        fields.only("position_embedding_type", is_absolute, "\"absolute\"")?;
        fields.only("is_decoder", is_false, "false")?;
        fields.only("add_cross_attention", is_false, "false")?;
        fields.only("pruned_heads", is_empty, "{}")?;
        check_quantisation(&mut fields)?;
        config.check_sizes(&fields)?;
        fields.finish()?;
        Ok(config)
    }

    /// Width of a head.
    pub(crate) const fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// How many tokens a text may have.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.max_position_embeddings - self.first_position
    }

    /// Every product of sizes that a shape or an offset is made of must be a number.
    fn check_sizes(&self, fields: &Fields<'_>) -> Result<()> {
        for (field, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ] {
            check_size(fields, field, value, Some(self.hidden_size))?;
        }
        Ok(())
    }
}

fn activation(fields: &mut Fields<'_>) -> Result<Activation> {
    match fields.word("hidden_act")?.unwrap_or("gelu") {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => {
            let supported = "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\"";
            Err(fields.not_yet("hidden_act", &other.into(), supported))
        }
    }
}

/// transformers numbers RoBERTa's positions from the padding token's id on.
fn first_position(fields: &mut Fields<'_>, kind: Kind, limit: usize) -> Result<usize> {
    const FIELD: &str = "pad_token_id";
    let padding = fields.tokens(FIELD)?;
    if kind == Kind::Bert {
        return Ok(0);
    }
    let padding = match padding[..] {
        [] => 1,
        [padding] => padding,
        _ => return Err(fields.wrong(FIELD, &padding.into(), "one token id")),
    };
    match usize::try_from(padding) {
        Ok(id) if limit > 1 && id < limit - 1 => Ok(id + 1),
        _ => {
            let expected = format!(
                "an id that leaves room for positions below {limit} (`max_position_embeddings`)"
            );
            Err(fields.wrong(FIELD, &padding.into(), expected))
        }
    }
}
