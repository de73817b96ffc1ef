//! Texts as vectors: what is left of a model's last hidden states when they are pooled.

use crate::base::{Base, BaseFiles};
use crate::{Error, Result, hub};
use candle_core::{DType, Tensor};
use lowrank_adapter::{Ask, Pass, Selection, Tokens, run};
use lowrank_data::Example;
use lowrank_format::PeftFolder;
use lowrank_models::{Head, Precision, classes_of};
use std::num::NonZeroUsize;
use std::path::Path;

/// What becomes of the hidden states of a text's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean, padding left out.
    #[default]
    Mean,
    /// The first token's, `[CLS]` of encoders.
    Cls,
    /// The last token's, which has read everything in a model that reads onward.
    Last,
}

/// How long a vector is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// As it comes.
    #[default]
    AsIs,
    /// 1, so that the product of two is their cosine.
    Unit,
}

/// Texts as vectors.
#[derive(Debug)]
pub struct Embedded {
    /// `[rows, hidden]` in f32, in the order of the rows.
    pub embeddings: Tensor,
    /// How many tokens were read.
    pub tokens: usize,
    /// How many rows lost their right end.
    pub truncated: usize,
}

impl Base {
    /// Opens a base of which nothing but hidden states will be asked, in the class that these adapters were trained in: their
    /// sites are called as there.
    ///
    /// # Errors
    /// As [`Self::open`], and if an adapter folder is damaged.
    pub fn open_to_embed<'a>(
        source: &str,
        precision: Precision,
        adapters: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self> {
        let files = BaseFiles::open(source)?;
        let mut head = Head::None;
        for folder in adapters {
            if let Some(found) = head_of(folder, &files)? {
                head = found;
            }
        }
        files.load(precision, head)
    }
}

/// The head of the class that an adapter's sites belong to; none if it is the class without one.
fn head_of(folder: &Path, base: &BaseFiles) -> Result<Option<Head>> {
    let files = PeftFolder::read(&hub::adapter(folder)?)?;
    let classifier = |num_labels| Head::Classes {
        num_labels,
        seed: 0,
    };
    if let Some(classes) = crate::adapters::classes_in(&files)? {
        return Ok(Some(classifier(classes.count())));
    }
    let begins = |starts: &[&str]| {
        let mut names = files.tensors.keys();
        names.any(|name| starts.iter().any(|start| name.starts_with(start)))
    };
    if begins(&["cls.", "lm_head."]) {
        return Ok(Some(Head::Language));
    }
    // Any class but the bare one has the prefix, and one with classes needs nothing that a checkpoint may lack.
    let rows = |name: &str| files.tensors.get(name)?.dims().first().copied();
    let stored = classes_of(rows).or_else(|| base.stored_classes());
    let classifier = classifier(stored.unwrap_or(NonZeroUsize::MIN));
    Ok(begins(&["bert.", "roberta.", "model."]).then_some(classifier))
}

/// Runs rows in batches of about the same length and pools each one's hidden states.
///
/// # Errors
/// If a row is longer than the model reads, or its vector is not finite; whatever the model refuses.
pub fn embed(
    base: &Base,
    selection: &Selection,
    rows: &[Example],
    (pooling, scale): (Pooling, Scale),
    batch_size: NonZeroUsize,
) -> Result<Embedded> {
    let width = base.info.hidden_size;
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| rows[row].ids.len());
    let mut numbers = vec![0f32; rows.len() * width];
    for chunk in order.chunks(batch_size.get()) {
        let batch = lowrank_train::batch(chunk.iter().map(|&row| &rows[row]))?;
        let mut pass = Pass::evaluation(selection.clone());
        let hidden = run(base.model.as_ref(), &batch, &Ask::Hidden, None, &mut pass)?;
        let hidden: Vec<f64> = hidden.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        let tokens = batch.tokens();
        for (place, &row) in chunk.iter().enumerate() {
            let states = &hidden[place * tokens.length * width..][..tokens.length * width];
            let vector = scaled(pooled(states, tokens, place, pooling), scale);
            if vector.iter().any(|x| !x.is_finite()) {
                return Err(Error::NotFinite { row });
            }
            let into = &mut numbers[row * width..][..width];
            for (into, x) in into.iter_mut().zip(vector) {
                *into = x as f32;
            }
        }
    }
    let device = candle_core::Device::Cpu;
    Ok(Embedded {
        embeddings: Tensor::from_vec(numbers, (rows.len(), width), &device)?,
        tokens: rows.iter().map(|row| row.ids.len()).sum(),
        truncated: rows.iter().filter(|row| row.truncated).count(),
    })
}

/// One vector of the states `[length, width]` of the row at `place`.
fn pooled(states: &[f64], tokens: &Tokens, place: usize, pooling: Pooling) -> Vec<f64> {
    let width = states.len() / tokens.length;
    let segments = &tokens.segments[place * tokens.length..][..tokens.length];
    let count = segments.iter().filter(|segment| **segment != 0).count();
    // Rows are padded on the right.
    let own = &states[..count * width];
    match pooling {
        Pooling::Cls => own[..width].to_vec(),
        Pooling::Last => own[(count - 1) * width..].to_vec(),
        Pooling::Mean => {
            let mut sum = vec![0.0; width];
            for state in own.chunks(width) {
                for (sum, x) in sum.iter_mut().zip(state) {
                    *sum += x;
                }
            }
            sum.iter_mut().for_each(|sum| *sum /= count as f64);
            sum
        }
    }
}

fn scaled(mut vector: Vec<f64>, scale: Scale) -> Vec<f64> {
    if scale == Scale::Unit {
        let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
        // sentence-transformers divides by at least this.
        let length = if length < 1e-12 { 1e-12 } else { length };
        vector.iter_mut().for_each(|x| *x /= length);
    }
    vector
}
