//! Which tensors a BERT is made of, what they are called in checkpoints of any of its classes, and which of them may be
//! missing or left over.

use crate::bert_config::BertConfig;
use crate::checkpoint::differ;
use crate::kind::Kind;
use crate::renamed::Renamed;
use crate::{Error, Head, Result};
use lowrank_frozen::Weights;

/// Heads that some class of transformers has; those that are not asked for are left where they are.
const HEADS: [&str; 4] = ["classifier.", "cls.", "lm_head.", "qa_outputs."];

/// A checkpoint under the names that the wanted class has in transformers: checkpoints of the bare model have no prefix,
/// and the first ones called a norm's numbers gamma and beta.
pub(super) fn renamed<'a>(
    weights: &'a dyn Weights,
    config: &BertConfig,
    head: Head,
) -> Renamed<'a> {
    let (base, prefix) = (base(config.kind), prefix(config.kind, head));
    let mut renamed = Renamed::new(weights, |stored| current(stored, base, prefix));
    // The bias of the decoder is stored once or twice.
    let Names { decoder, bias, .. } = Names::of(config.kind);
    if !renamed.has(bias) {
        renamed.rename(&format!("{decoder}.bias"), bias);
    }
    renamed
}

/// What transformers would call a stored tensor today.
fn current(stored: &str, base: &str, prefix: &str) -> String {
    let name = match stored {
        _ if stored.ends_with("LayerNorm.gamma") => stored.replace(".gamma", ".weight"),
        _ if stored.ends_with("LayerNorm.beta") => stored.replace(".beta", ".bias"),
        _ => stored.to_owned(),
    };
    let inner = name.strip_prefix(base).unwrap_or(&name);
    let parts = ["embeddings.", "encoder.", "pooler."];
    if parts.iter().any(|part| inner.starts_with(part)) {
        format!("{prefix}{inner}")
    } else {
        name
    }
}

const fn base(kind: Kind) -> &'static str {
    match kind {
        Kind::Bert => "bert.",
        _ => "roberta.",
    }
}

/// What the encoder's paths begin with in the class that has this head.
const fn prefix(kind: Kind, head: Head) -> &'static str {
    match head {
        Head::None => "",
        Head::Language | Head::Classes { .. } => base(kind),
    }
}

/// What the parts of the heads are called.
pub(super) struct Names {
    /// Everything of the head that predicts tokens begins so.
    pub(super) language: &'static str,
    pub(super) transform: &'static str,
    pub(super) norm: &'static str,
    pub(super) decoder: &'static str,
    pub(super) bias: &'static str,
    /// The layer before the classes.
    pub(super) pooler: &'static str,
    pub(super) classes: &'static str,
}

impl Names {
    pub(super) const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Bert => Self {
                language: "cls.predictions.",
                transform: "cls.predictions.transform.dense",
                norm: "cls.predictions.transform.LayerNorm",
                decoder: "cls.predictions.decoder",
                bias: "cls.predictions.bias",
                pooler: "bert.pooler.dense",
                classes: "classifier",
            },
            _ => Self {
                language: "lm_head.",
                transform: "lm_head.dense",
                norm: "lm_head.layer_norm",
                decoder: "lm_head.decoder",
                bias: "lm_head.bias",
                pooler: "classifier.dense",
                classes: "classifier.out_proj",
            },
        }
    }
}

/// What is read of a checkpoint, what is drawn instead, and what is left there.
pub(super) struct Plan<'a> {
    config: &'a BertConfig,
    head: Head,
    /// Layers of a classifier that the checkpoint lacks.
    drawn: Vec<&'static str>,
    /// Whether a model without a head has a pooler.
    pools: bool,
    /// Whether the head's weight is the embedding's.
    tied: bool,
    origin: String,
}

impl<'a> Plan<'a> {
    pub(super) fn new(config: &'a BertConfig, weights: &Renamed<'_>, head: Head) -> Result<Self> {
        let names = Names::of(config.kind);
        let origin = weights.origin();
        let has = |path: &str| {
            ["weight", "bias"]
                .iter()
                .any(|part| weights.has(&format!("{path}.{part}")))
        };
        let mut drawn = Vec::new();
        match head {
            Head::None => {}
            Head::Language => {
                let mut all = weights.names().into_iter();
                if !all.any(|name| name.starts_with(names.language)) {
                    return Err(Error::NoHead {
                        origin,
                        module: names.language.trim_end_matches('.'),
                    });
                }
            }
            Head::Classes { .. } => {
                drawn.extend(
                    [names.pooler, names.classes]
                        .iter()
                        .filter(|path| !has(path)),
                );
                if !drawn.is_empty() {
                    let drawn = drawn.join("`, `");
                    tracing::info!(
                        "{origin}: `{drawn}` is not there: it is drawn, and says nothing before it is trained"
                    );
                }
            }
        }
        let decoder = format!("{}.weight", names.decoder);
        let prefix = prefix(config.kind, head);
        let table = format!("{prefix}embeddings.word_embeddings.weight");
        Ok(Self {
            config,
            head,
            drawn,
            pools: has("pooler.dense"),
            tied: config.tie_word_embeddings
                && (head != Head::Language || !differ(weights, &decoder, &table)?),
            origin,
        })
    }

    pub(super) const fn prefix(&self) -> &'static str {
        prefix(self.config.kind, self.head)
    }

    pub(super) const fn head(&self) -> Head {
        self.head
    }

    pub(super) const fn tied(&self) -> bool {
        self.tied
    }

    pub(super) const fn pools(&self) -> bool {
        self.pools
    }

    pub(super) fn draws(&self, path: &str) -> bool {
        self.drawn.contains(&path)
    }

    /// Every tensor of the checkpoint with its shape, in the order of the forward pass. Lazy: a file may claim any number
    /// of layers.
    pub(super) fn needed(&self) -> impl Iterator<Item = (String, Vec<usize>)> + '_ {
        let config = self.config;
        let (hidden, prefix) = (config.hidden_size, self.prefix());
        let tables = [
            ("word", config.vocab_size),
            ("position", config.max_position_embeddings),
            ("token_type", config.type_vocab_size),
        ];
        let tables = tables.into_iter().map(move |(name, rows)| {
            let name = format!("{prefix}embeddings.{name}_embeddings.weight");
            (name, vec![rows, hidden])
        });
        let norm = pair(format!("{prefix}embeddings.LayerNorm"), vec![hidden]);
        let layers = (0..config.num_hidden_layers).flat_map(move |i| layer(config, prefix, i));
        tables.chain(norm).chain(layers).chain(self.head_tensors())
    }

    fn head_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let names = Names::of(self.config.kind);
        let mut tensors = Vec::new();
        match self.head {
            Head::None if self.pools => {
                tensors.extend(pair("pooler.dense".into(), vec![hidden, hidden]));
            }
            Head::None => {}
            Head::Language => {
                tensors.extend(pair(names.transform.into(), vec![hidden, hidden]));
                tensors.extend(pair(names.norm.into(), vec![hidden]));
                if !self.tied {
                    tensors.push((format!("{}.weight", names.decoder), vec![vocab, hidden]));
                }
                tensors.push((names.bias.into(), vec![vocab]));
            }
            Head::Classes { num_labels, .. } => {
                for (path, n_out) in [(names.pooler, hidden), (names.classes, num_labels.get())] {
                    if !self.draws(path) {
                        tensors.extend(pair(path.into(), vec![n_out, hidden]));
                    }
                }
            }
        }
        tensors
    }

    /// Whether a tensor that nobody reads may be there.
    pub(super) fn ignores(&self, name: &str) -> bool {
        let names = Names::of(self.config.kind);
        let buffer = name.ends_with("embeddings.position_ids")
            || name.ends_with("embeddings.token_type_ids");
        let twice = name == format!("{}.bias", names.decoder)
            || self.tied && name == format!("{}.weight", names.decoder);
        let wanted = match self.head {
            Head::Language => names.language,
            Head::Classes { .. } => "classifier.",
            Head::None => "pooler.",
        };
        let pooler = format!("{}pooler.", self.prefix());
        let mut heads = HEADS.into_iter().chain([pooler.as_str()]);
        let other = !name.starts_with(wanted) && heads.any(|head| name.starts_with(head));
        if other {
            tracing::info!("{}: `{name}` is not read: nothing asks for it", self.origin);
        }
        buffer || twice || other
    }
}

/// The weight and the bias of a module, the weight being of this shape.
fn pair(path: String, shape: Vec<usize>) -> [(String, Vec<usize>); 2] {
    let bias = vec![shape[0]];
    [
        (format!("{path}.weight"), shape),
        (format!("{path}.bias"), bias),
    ]
}

fn layer(config: &BertConfig, prefix: &str, i: usize) -> Vec<(String, Vec<usize>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let path = format!("{prefix}encoder.layer.{i}");
    [
        ("attention.self.query", vec![hidden, hidden]),
        ("attention.self.key", vec![hidden, hidden]),
        ("attention.self.value", vec![hidden, hidden]),
        ("attention.output.dense", vec![hidden, hidden]),
        ("attention.output.LayerNorm", vec![hidden]),
        ("intermediate.dense", vec![inner, hidden]),
        ("output.dense", vec![hidden, inner]),
        ("output.LayerNorm", vec![hidden]),
    ]
    .into_iter()
    .flat_map(|(part, shape)| pair(format!("{path}.{part}"), shape))
    .collect()
}
