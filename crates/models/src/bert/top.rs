//! What stands on an encoder: the head that predicts masked tokens, a classifier, or nothing.

use super::tensors::{Names, Plan};
use super::{dense, dropped, norm};
use crate::bert_config::{Activation, BertConfig};
use crate::checkpoint::Checkpoint;
use crate::classes::{Bias, Classes};
use crate::kind::Kind;
use crate::{Head, Result, checks};
use candle_core::Tensor;
use lowrank_adapter::{
    Ask, Batch, Error as AdapterError, Linear, Norm, Part, Pass, Result as AdapterResult,
};
use lowrank_frozen::{FrozenEmbedding, FrozenLinear};
use lowrank_ops as ops;

#[derive(Debug)]
pub(super) enum Top {
    Language(Language),
    Classes(Classifier),
    /// The pooler answers no question, but is part of the model.
    None {
        pooler: Option<Linear>,
    },
}

/// Predicts the token in each place.
#[derive(Debug)]
pub(super) struct Language {
    transform: Linear,
    activation: Activation,
    norm: Norm,
    decoder: Linear,
}

/// Reads a text's first token.
#[derive(Debug)]
pub(super) struct Classifier {
    pooler: Linear,
    out: Linear,
    classes: Classes,
}

impl Top {
    pub(super) fn new(
        config: &BertConfig,
        plan: &Plan<'_>,
        checkpoint: &Checkpoint<'_>,
        (words, table): (&str, &FrozenEmbedding),
    ) -> Result<Self> {
        let names = Names::of(config.kind);
        Ok(match plan.head() {
            Head::Language => {
                let weight = if plan.tied() {
                    table.head()
                } else {
                    let weight = checkpoint.table(&format!("{}.weight", names.decoder))?;
                    FrozenLinear::stored(weight)
                };
                let weight = weight.with_bias(Some(checkpoint.vector(names.bias)?));
                Self::Language(Language {
                    transform: dense(checkpoint, names.transform.into())?,
                    // RoBERTa's has an activation of its own.
                    activation: match config.kind {
                        Kind::Bert => config.hidden_act,
                        _ => Activation::Gelu,
                    },
                    norm: norm(checkpoint, names.norm.into(), config)?,
                    decoder: if plan.tied() {
                        Linear::tied(names.decoder, weight, words)
                    } else {
                        Linear::new(names.decoder, weight)
                    },
                })
            }
            Head::Classes { num_labels, seed } => {
                let classes = Classes {
                    num_labels,
                    seed,
                    deviation: config.initializer_range,
                };
                let hidden = config.hidden_size;
                let pooler = if plan.draws(names.pooler) {
                    classes.linear(checkpoint, names.pooler, (hidden, hidden), Bias::One)?
                } else {
                    dense(checkpoint, names.pooler.into())?
                };
                let size = (num_labels.get(), hidden);
                Self::Classes(Classifier {
                    pooler,
                    out: classes.linear(checkpoint, names.classes, size, Bias::One)?,
                    classes,
                })
            }
            Head::None => {
                let pooler = plan
                    .pools()
                    .then(|| dense(checkpoint, "pooler.dense".into()));
                Self::None {
                    pooler: pooler.transpose()?,
                }
            }
        })
    }

    pub(super) fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        match self {
            Self::Language(head) => {
                visit(Part::Linear(&mut head.transform));
                visit(Part::Norm(&mut head.norm));
                visit(Part::Head(&mut head.decoder));
            }
            Self::Classes(head) => {
                visit(Part::Linear(&mut head.pooler));
                visit(Part::Head(&mut head.out));
            }
            Self::None { pooler } => {
                if let Some(pooler) = pooler {
                    visit(Part::Linear(pooler));
                }
            }
        }
    }

    pub(super) fn answer(
        &self,
        config: &BertConfig,
        h: &Tensor,
        batch: &Batch,
        ask: &Ask,
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        match (self, ask) {
            (_, Ask::Hidden) => Ok(h.clone()),
            (Self::Language(head), Ask::Losses) => {
                let (positions, targets): (Vec<u32>, Vec<u32>) =
                    batch.targets_in_place().into_iter().unzip();
                checks::vocabulary(targets.iter().copied(), config.vocab_size, "label")?;
                if positions.is_empty() {
                    return Ok(Tensor::zeros(0, h.dtype(), h.device())?);
                }
                let x = head.transformed(&at(h, &positions)?, pass)?;
                head.decoder.cross_entropy(&x, &targets, pass)
            }
            (Self::Language(head), Ask::Logits(positions)) => {
                if positions.is_empty() {
                    let none = (0, config.vocab_size);
                    return Ok(Tensor::zeros(none, h.dtype(), h.device())?);
                }
                let x = head.transformed(&at(h, positions)?, pass)?;
                head.decoder.forward(&x, pass)
            }
            (Self::Classes(head), Ask::Classes) => {
                let rows: Vec<u32> = (0..batch.tokens().rows as u32).collect();
                let x = head.pooled(config, h, batch, &rows, pass)?;
                head.out.forward(&x, pass)
            }
            (Self::Classes(head), Ask::Losses) => {
                let targets = batch.row_targets();
                if targets.is_empty() {
                    return Ok(Tensor::zeros(0, h.dtype(), h.device())?);
                }
                let rows: Vec<u32> = targets.iter().map(|(row, _)| *row).collect();
                let x = head.pooled(config, h, batch, &rows, pass)?;
                head.classes.losses(&head.out, &x, batch, pass)
            }
            _ => Err(ask.refused(config.kind.name())),
        }
    }
}

impl Language {
    /// What the decoder reads of some hidden states.
    fn transformed(&self, x: &Tensor, pass: &mut Pass) -> AdapterResult<Tensor> {
        let x = self.activation.of(&self.transform.forward(x, pass)?)?;
        self.norm.forward_layer(&x, pass)
    }
}

impl Classifier {
    /// What the layer of classes reads of some rows: [rows, hidden].
    fn pooled(
        &self,
        config: &BertConfig,
        h: &Tensor,
        batch: &Batch,
        rows: &[u32],
        pass: &mut Pass,
    ) -> AdapterResult<Tensor> {
        one_text_a_row(batch)?;
        let length = batch.tokens().length as u32;
        let first: Vec<u32> = rows.iter().map(|row| row * length).collect();
        let mut x = at(h, &first)?;
        let p = config.classifier_dropout;
        if config.kind != Kind::Bert {
            x = dropped(x, p, self.pooler.path(), pass)?;
        }
        let x = self.pooler.forward(&x, pass)?.tanh()?;
        dropped(x, p, self.out.path(), pass)
    }
}

/// The hidden states at some flat positions, [positions, hidden].
fn at(h: &Tensor, positions: &[u32]) -> AdapterResult<Tensor> {
    let (rows, tokens, hidden) = h.dims3()?;
    let h = h.reshape((rows * tokens, hidden))?;
    Ok(ops::gather_rows(&h, positions)?)
}

/// A classifier reads one token a row, its first.
fn one_text_a_row(batch: &Batch) -> AdapterResult<()> {
    let tokens = batch.tokens();
    for (row, segments) in tokens.segments.chunks(tokens.length).enumerate() {
        let text = segments[0];
        if text == 0 {
            let what = format!("row {row} of the batch does not begin with a token");
            return Err(AdapterError::Other(what));
        }
        if segments.iter().any(|other| *other != text && *other != 0) {
            let what = format!(
                "row {row} of the batch holds several texts: rows that are classified are not packed"
            );
            return Err(AdapterError::Other(what));
        }
    }
    Ok(())
}
