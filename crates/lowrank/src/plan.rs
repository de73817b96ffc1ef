//! What a run will be, without running it.

use crate::Result;
use crate::base::Base;
use crate::run::{Method, NAME, Prepared};
use lowrank_adapter::target::is_saved;
use lowrank_adapter::{
    Attached, Batch, Footprint, Kind, Memory, Model, Param, Part, Pass, Selection, Tokens,
    footprint,
};
use lowrank_data::{FileSummary, UNSUPERVISED};
use lowrank_frozen::logits_at_once;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_train::{RunFile, rss_mb};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What [`plan`] found; keys as the binary prints them.
#[derive(Debug, Clone, Serialize)]
pub struct RunPlan {
    /// What the targets match, in the order of the forward pass; every module under full training.
    pub sites: Vec<PlannedSite>,
    /// Scalars that are trained.
    pub trainable_parameters: usize,
    /// Those of the base, a tied head counted once, and those of the adapter's file.
    pub total_parameters: usize,
    /// What the run needs, in MiB.
    pub memory_mb: MemoryEstimate,
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of the training data.
    pub examples: usize,
    /// Those that lose their right end.
    pub truncated: usize,
    /// The first row of the training data as the model reads it.
    pub example: Rendered,
    /// Rows that are held out.
    pub held_out: usize,
    /// Whether the tokenised rows of the training data are kept in files, and not all of them in memory.
    pub cached: bool,
    /// The files of the training data.
    pub files: Vec<PlannedFile>,
}

/// A file of the training data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFile {
    /// Where it is.
    pub path: PathBuf,
    /// The kind of its rows.
    pub kind: String,
    /// How many rows are trained on.
    pub rows: usize,
    /// How many of them an epoch takes, one that comes twice counted twice.
    pub per_epoch: usize,
}

/// A module that trains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedSite {
    /// Its path.
    pub site: String,
    /// How many components its update starts with; none if the method has no ranks.
    pub rank: Option<usize>,
    /// Scalars of its own that are trained.
    pub parameters: usize,
}

/// What a run holds in memory at its peak, in MiB, by part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MemoryEstimate {
    /// The base, as it is held.
    pub weights: f64,
    /// The adapter's tensors.
    pub adapter: f64,
    /// What the optimiser keeps: two moments of everything that is trained under AdamW.
    pub optimizer: f64,
    /// What blocks keep for the backward pass of the largest micro-batch, or the gradients if they are more, and the
    /// work space of one block if it is more than the logits'.
    pub activations: f64,
    /// Logits at the supervised positions of that micro-batch, with their gradient.
    pub logits: f64,
    /// What the planning process holds beside weights and adapter, and a run like it: the program itself, the tokenizer, the
    /// rows, pages of files that the system may drop at any time (0 where the system does not tell). With it what
    /// threads work in, and what the allocator keeps beside what is used.
    pub overhead: f64,
    /// All of them.
    pub total: f64,
}

/// A row in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rendered {
    /// What each token adds to the text; its number if the model has no tokenizer.
    pub tokens: Vec<String>,
    /// Whether the token's prediction counts in the loss. Nothing predicts the first.
    pub supervised: Vec<bool>,
    /// Whether there is a tokenizer, so that tokens join to a text; not among the keys.
    #[serde(skip)]
    pub is_text: bool,
}

/// Resolves a run file as [`train`](crate::train) does, and says what would happen. `origin` is the file, for messages.
/// Nothing is written but the tokenised rows of large files, which the run will use, and what the run's folder holds does not
/// matter.
///
/// # Errors
/// As [`train`](crate::train), up to its first step.
pub fn plan(run: &RunFile, origin: &Path) -> Result<RunPlan> {
    let mut prepared = Prepared::new(run, origin)?;
    let (weights, base_parameters) = weigh(prepared.base.model.as_mut());
    let (params, sites) = match &prepared.method {
        Method::Whole(params) => (params.as_slice(), modules(params)),
        Method::Adapter(attached) => {
            let sites = adapted(attached, &prepared.outlook.trained)?;
            (attached.params.as_slice(), sites)
        }
    };
    let saved = params
        .iter()
        .filter(|param| param.info().kind != Kind::Scratch);
    let saved: usize = saved.map(Param::elem_count).sum();
    let (adapter, added) = match &prepared.method {
        // The parameters are the base.
        Method::Whole(_) => (0, 0),
        Method::Adapter(_) => (params.iter().map(bytes).sum(), saved),
    };
    let outlook = &prepared.outlook;
    let held = Held::new(&prepared.base, params, &outlook.trained)?;
    let need = need(&prepared, &held);
    let parts = [
        weights,
        adapter,
        outlook.moments,
        need.activations,
        need.logits,
    ];
    let megabytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let program = held.resident.map_or(0.0, |resident| {
        (resident - megabytes(weights + adapter)).max(0.0)
    });
    let used = megabytes(need.activations + need.logits);
    let gaps = |most: f64| ((1.0 - ROUNDING) * used).min(most);
    let evaluates = prepared.held_out.is_some();
    let kept = ROUNDING * used + gaps(GAPS) + if evaluates { gaps(GAPS / 2.0) } else { 0.0 };
    let overhead = program + WORK_SPACES + kept;
    let summary = prepared.data.summary();
    Ok(RunPlan {
        trainable_parameters: outlook.trainable_parameters,
        total_parameters: base_parameters + added,
        memory_mb: MemoryEstimate {
            weights: megabytes(parts[0]),
            adapter: megabytes(parts[1]),
            optimizer: megabytes(parts[2]),
            activations: megabytes(parts[3]),
            logits: megabytes(parts[4]),
            overhead,
            total: megabytes(parts.iter().sum()) + overhead,
        },
        steps: outlook.steps.total_steps(),
        examples: summary.rows,
        truncated: summary.truncated,
        example: render(&prepared)?,
        held_out: prepared
            .held_out
            .as_ref()
            .map_or(0, |data| data.rows().get()),
        cached: prepared.data.is_cached(),
        files: summary.files.iter().map(planned_file).collect(),
        sites,
    })
}

/// The share of what is used by which the allocator rounds sizes up. Measured, as the next two.
const ROUNDING: f64 = 0.15;

/// Freed memory stays for the next result of about its size, and results of other sizes do not fit into all of its gaps:
/// as much again as is used, up to so many MiB, and to half of them if there are evaluations, which have sizes of their own.
const GAPS: f64 = 30.0;

/// Stacks and buffers of threads, and first pages of the allocator's, in MiB.
const WORK_SPACES: f64 = 8.0;
fn planned_file(file: &FileSummary) -> PlannedFile {
    PlannedFile {
        path: file.path.clone(),
        kind: file.kind.to_string(),
        rows: file.rows,
        per_epoch: file.per_epoch,
    }
}

fn bytes(param: &Param) -> usize {
    param.elem_count() * param.dtype().size_in_bytes()
}

/// The targeted modules, and those that train whole beside them.
fn adapted(attached: &Attached, trained: &[Param]) -> Result<Vec<PlannedSite>> {
    let site = |path: &String| {
        let prefix = format!("{path}.");
        let own = || {
            let params = attached.params.iter();
            params.filter(|param| param.name().starts_with(&prefix))
        };
        let trained = own().filter(|param| trained.contains(param));
        let gates = attached.gates.iter();
        let mut gates =
            gates.filter(|gate| gate.gated().any(|param| own().any(|own| own == param)));
        let rank = match gates.next() {
            Some(gate) => Some(gate.live()?.into_iter().filter(|live| *live).count()),
            None => own().find_map(|param| Some(param.shape().dims()[param.info().rank_axis?])),
        };
        Ok(PlannedSite {
            site: path.clone(),
            rank,
            parameters: trained.map(|param| attached.live_count(param)).sum(),
        })
    };
    let mut sites = attached
        .sites
        .iter()
        .map(site)
        .collect::<Result<Vec<_>>>()?;
    sites.extend(modules(attached.params.iter().filter(|param| {
        let path = param.name().rsplit_once('.').map_or("", |(path, _)| path);
        is_saved(path, attached.config.common.modules_to_save())
    })));
    Ok(sites)
}

/// The modules that the parameters belong to, in order.
fn modules<'a>(params: impl IntoIterator<Item = &'a Param>) -> Vec<PlannedSite> {
    let mut sites: Vec<PlannedSite> = Vec::new();
    for param in params {
        let name = param.name();
        let path = name.rsplit_once('.').map_or(name, |(path, _)| path);
        match sites.last_mut().filter(|site| site.site == path) {
            Some(site) => site.parameters += param.elem_count(),
            None => sites.push(PlannedSite {
                site: path.to_owned(),
                rank: None,
                parameters: param.elem_count(),
            }),
        }
    }
    sites
}

/// Bytes and numbers of the base.
fn weigh(model: &mut dyn Model) -> (usize, usize) {
    let (mut bytes, mut numbers) = (0, 0);
    model.parts(&mut |part| match part {
        // A tied head is the embedding.
        Part::Linear(linear) | Part::Head(linear) if linear.tied_to().is_some() => {}
        Part::Linear(linear) | Part::Head(linear) => {
            let (n_out, n_in) = linear.base().dims();
            let bias = linear.base().bias();
            bytes += linear.base().bytes();
            numbers += n_out * n_in + bias.map_or(0, candle_core::Tensor::elem_count);
        }
        Part::Embedding(embedding) => {
            bytes += embedding.weight.bytes();
            numbers += embedding.weight.elem_count();
        }
        Part::Norm(norm) => {
            for weight in std::iter::once(&norm.weight).chain(&norm.bias) {
                bytes += weight.bytes();
                numbers += weight.elem_count();
            }
        }
    });
    (bytes, numbers)
}

/// What a step needs beside weights, adapter and moments, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Need {
    activations: usize,
    logits: usize,
}

/// A micro-batch in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Size {
    /// Places, padding included.
    tokens: usize,
    supervised: usize,
}

/// So many rows are looked at: a run may go on for ever.
const LOOKED_AT: usize = 1_000_000;

/// The sizes of the run's micro-batches.
fn sizes(prepared: &Prepared) -> BTreeSet<Size> {
    let examples = prepared.data.examples();
    let (mut sizes, mut seen) = (BTreeSet::new(), 0);
    let steps = prepared.outlook.steps.steps_after(0);
    let micro_batches = steps.flat_map(|step| step.micro_batches);
    for sequences in micro_batches {
        let tokens = |rows: &Vec<usize>| rows.iter().map(|&row| examples.tokens(row)).sum();
        let longest: usize = sequences.iter().map(tokens).max().unwrap_or(0);
        let rows = || sequences.iter().flatten();
        sizes.insert(Size {
            tokens: sequences.len() * longest,
            supervised: rows().map(|&row| examples.supervised(row)).sum(),
        });
        seen += rows().count();
        if seen >= LOOKED_AT {
            break;
        }
    }
    sizes
}

/// Where the head is changed: logits, their gradient, and the sum that it is added to.
const COPIES_OF_LOGITS: usize = 3;

/// That of the micro-batch which needs most.
fn need(prepared: &Prepared, held: &Held) -> Need {
    let trained = &prepared.outlook.trained;
    let inputs: f64 = held.inputs.iter().sum();
    let graphs: f64 = held.graphs.iter().sum();
    let block = held.graphs.iter().copied().fold(0.0, f64::max);
    let train = &prepared.run.train;
    let (kept, work) = match train.memory {
        Memory::Keep => (graphs, block),
        Memory::Recompute => (inputs, 2.0 * block),
    };
    let number = trained
        .first()
        .map_or(0, |param| param.dtype().size_in_bytes());
    let classes = prepared.base.classes.as_ref();
    let vocab = classes.map_or(prepared.base.info.vocab_size, |classes| {
        classes.count().get()
    });
    let hidden = held.inputs.first().copied().unwrap_or(0.0);
    let gradients: usize = trained.iter().map(bytes).sum();
    let of = |size: Size| {
        let bytes = |a_token: f64| (a_token * size.tokens as f64) as usize;
        let logits = if !held.logits {
            // Of some rows at a time. The gradient of the hidden state is found with them, and scaled into a copy.
            let token = held.head + 2.0 * hidden;
            let at_once = logits_at_once(size.supervised, vocab) * number * vocab;
            at_once + (size.supervised as f64 * token) as usize
        } else {
            size.supervised * COPIES_OF_LOGITS * number * vocab
        };
        let kept = match train.accumulate.get() {
            // The graphs are gone when the last gradients come.
            1 => bytes(kept).max(gradients),
            _ => bytes(kept) + gradients,
        };
        Need {
            activations: kept + bytes(work).saturating_sub(logits),
            logits,
        }
    };
    let needs = sizes(prepared).into_iter().map(of);
    let largest = needs.max_by_key(|need| need.activations + need.logits);
    largest.unwrap_or_default()
}

/// Bytes that a token leaves in each block.
struct Held {
    inputs: Vec<f64>,
    graphs: Vec<f64>,
    /// What a supervised token leaves in the graph of the losses.
    head: f64,
    /// Whether its logits are in that graph.
    logits: bool,
    /// What the process held after a forward pass, in MiB: the weights have been read then.
    resident: Option<f64>,
}

impl Held {
    /// Runs two tiny batches through the model: what they differ in is what tokens need, the rest are parameters.
    fn new(base: &Base, params: &[Param], trained: &[Param]) -> Result<Self> {
        const FEW: usize = 2;
        let model = base.model.as_ref();
        let batch = |rows: usize| {
            let tokens = Tokens {
                rows,
                length: FEW,
                ids: vec![0; rows * FEW],
                segments: vec![1; rows * FEW],
                positions: (0..rows).flat_map(|_| 0..FEW as u32).collect(),
            };
            let batch = Batch::new(tokens, vec![0; rows * FEW])?;
            match base.classes {
                Some(_) => batch.with_row_labels(vec![Some(0.0); rows]),
                None => Ok(batch),
            }
        };
        let held = params.iter().filter(|param| !trained.contains(param));
        let held: Arc<BTreeSet<Param>> = Arc::new(held.cloned().collect());
        let key = Key::new(0, Purpose::Dropout).step(1);
        let pass = || {
            let pass = Pass::training_pass(Selection::one(NAME), key);
            pass.holding(Arc::clone(&held))
        };
        let found = |rows: usize| -> Result<Footprint> {
            let mut pass = pass();
            Ok(footprint(model, &batch(rows)?, &mut pass)?)
        };
        let (small, large) = (found(4)?, found(8)?);
        let resident = rss_mb();
        let slopes = |small: &[usize], large: &[usize]| -> Vec<f64> {
            let pairs = small.iter().zip(large);
            let slope = |(small, large): (&usize, &usize)| {
                large.saturating_sub(*small) as f64 / (4 * FEW) as f64
            };
            pairs.map(slope).collect()
        };
        Ok(Self {
            inputs: slopes(&small.inputs, &large.inputs),
            graphs: slopes(&small.graphs, &large.graphs),
            logits: large.logits,
            resident,
            // A row's first label predicts nothing.
            head: large.head.saturating_sub(small.head) as f64 / (4 * (FEW - 1)) as f64,
        })
    }
}

fn render(prepared: &Prepared) -> Result<Rendered> {
    let example = prepared.data.examples().get(0)?;
    let is_text = prepared.base.has_tokenizer();
    let tokens = if is_text {
        prepared.base.tokenizer()?.decode_tokens(&example.ids)?
    } else {
        example.ids.iter().map(u32::to_string).collect()
    };
    let counts = |(place, &label): (usize, &i32)| place > 0 && label != UNSUPERVISED;
    Ok(Rendered {
        tokens,
        supervised: example.labels.iter().enumerate().map(counts).collect(),
        is_text,
    })
}
