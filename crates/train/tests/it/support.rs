//! A model of two attending blocks, and a low-rank family with everything that a trainer must cope with.

use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Adapter, AdapterConfig, Ask, Attach, Attached, Attachment, Batch, Controller, Embedding,
    Family, Init, KvCache, Linear, Mask, Masks, Merge, Model, Outcome, Param, Part, Pass, Probe,
    RankGate, Records, Result, SiteId, Source, Spec, Start, State, Step, attach,
};
use lowrank_data::{ChoiceExample, Example, UNSUPERVISED};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose, Stream};
use lowrank_ops::{self as ops, Grads};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

pub const VOCAB: usize = 11;
const HIDDEN: usize = 6;
const WIDE: usize = 10;
const HEADS: usize = 2;

/// Random numbers for tests.
pub fn stream(name: &str) -> Stream {
    Key::new(5, Purpose::Test).site(name).stream()
}

fn matrix(name: &str, rows: usize, columns: usize, dtype: DType) -> Tensor {
    let mut stream = stream(name);
    let numbers: Vec<f64> = (0..rows * columns).map(|_| 0.4 * stream.normal()).collect();
    let tensor = Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap();
    tensor.to_dtype(dtype).unwrap()
}

pub struct Tiny {
    embedding: Embedding,
    blocks: Vec<(Linear, Linear)>,
    head: Linear,
}

impl Tiny {
    pub fn new(dtype: DType) -> Self {
        let linear = |path: String, n_out, n_in| {
            let base = FrozenLinear::new(matrix(&path, n_out, n_in, dtype), None).unwrap();
            Linear::new(path, base)
        };
        let block = |i| {
            let up = linear(format!("layers.{i}.up"), WIDE, HIDDEN);
            (up, linear(format!("layers.{i}.down"), HIDDEN, WIDE))
        };
        Self {
            embedding: Embedding::new("embed", matrix("embed", VOCAB, HIDDEN, dtype)),
            blocks: vec![block(0), block(1)],
            head: linear("head".into(), VOCAB, HIDDEN),
        }
    }
}

impl Model for Tiny {
    fn model_type(&self) -> &str {
        "tiny-test"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        visit(Part::Embedding(&mut self.embedding));
        for (up, down) in &mut self.blocks {
            visit(Part::Linear(up));
            visit(Part::Linear(down));
        }
        visit(Part::Head(&mut self.head));
    }

    fn embed(&self, batch: &Batch, pass: &mut Pass) -> Result<Tensor> {
        self.embedding.forward_tokens(batch.tokens(), pass)
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(
        &self,
        i: usize,
        h: &Tensor,
        batch: &Batch,
        kv: Option<&mut KvCache>,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        let (up, down) = &self.blocks[i];
        let (rows, length, _) = h.dims3()?;
        let wide = up.forward(h, pass)?;
        let q = wide
            .reshape((rows, length, HEADS, WIDE / HEADS))?
            .transpose(1, 2)?
            .contiguous()?;
        // Without positions the order of tokens would not matter; a ramp over heads is enough to make it.
        let (mask, (k, v)) = match kv {
            Some(kv) => (kv.mask(batch), kv.append(i, &q, &q)?),
            None => (lowrank_adapter::causal_mask(batch), (q.clone(), q.clone())),
        };
        let seen = ops::attention(&q, &k, &v, &mask, 0.7)?;
        let seen = seen
            .transpose(1, 2)?
            .contiguous()?
            .reshape((rows, length, WIDE))?;
        Ok((h + down.forward(&seen, pass)?)?)
    }

    fn head(&self, h: &Tensor, batch: &Batch, ask: &Ask, pass: &mut Pass) -> Result<Tensor> {
        let (rows, length, hidden) = h.dims3()?;
        let h = h.reshape((rows * length, hidden))?;
        match ask {
            Ask::Losses => {
                let (at, targets): (Vec<u32>, Vec<u32>) = batch.targets().into_iter().unzip();
                let logits = self.head.forward(&ops::gather_rows(&h, &at)?, pass)?;
                pass.cross_entropy(&logits, &targets)
            }
            Ask::Logits(at) => self.head.forward(&ops::gather_rows(&h, at)?, pass),
            Ask::Classes | Ask::Hidden => Err(ask.refused("stub")),
        }
    }
}

/// A low-rank family with dropout, gates, an auxiliary loss and a controller.
pub struct Stub;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct StubConfig {
    pub r: usize,
    pub dropout: f64,
    /// Weight of the auxiliary loss.
    pub auxiliary: f64,
    /// Weight of the penalty.
    pub penalty: f64,
    /// A slot is revived, another masked, every so many steps; 0 = never.
    pub revive_every: u64,
    /// Declares a tensor that takes part in nothing.
    pub dead: bool,
    /// Makes a gradient NaN at this step.
    pub poison_at: u64,
    /// Asks the probe at this step.
    pub probe_at: u64,
}

impl Default for StubConfig {
    fn default() -> Self {
        Self {
            r: 3,
            dropout: 0.0,
            auxiliary: 0.0,
            penalty: 0.0,
            revive_every: 0,
            dead: false,
            poison_at: 0,
            probe_at: 0,
        }
    }
}

impl Family for Stub {
    type Config = StubConfig;
    const NAME: &'static str = "stub";

    fn attach(&self, config: &StubConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        let (mut gates, mut params) = (Vec::new(), Vec::new());
        let mut attachment = Attachment::per_site(cx, |cx, site| {
            let (n_out, n_in) = cx.site(site).dims();
            let start = Init::Normal { std: 0.3 };
            let a = Spec::new("stub_A.weight", (config.r, n_in))
                .init(Init::KaimingUniform)
                .rank_axis(0);
            let b = Spec::new("stub_B.weight", (n_out, config.r))
                .init(start)
                .rank_axis(1)
                .group("outer");
            let (a, b) = (cx.declare(site, a)?, cx.declare(site, b)?);
            let gate = cx.gate(site, config.r)?;
            gates.push(gate.clone());
            params.push(b.clone());
            let path = cx.site(site).path.clone();
            Ok(Box::new(Layer {
                site,
                path,
                a,
                b,
                gate,
                config: config.clone(),
            }))
        })?;
        if config.dead {
            let first = cx.site_ids().next().unwrap();
            cx.declare(first, Spec::new("stub_dead.weight", 5))?;
        }
        attachment.controller = Some(Box::new(Stirrer {
            config: config.clone(),
            gates,
            params,
            observed: 0.0,
            mean: Tensor::zeros(2, DType::F64, &Device::Cpu)?,
        }));
        Ok(attachment)
    }
}

#[derive(Debug)]
struct Layer {
    site: SiteId,
    path: String,
    a: Param,
    b: Param,
    gate: RankGate,
    config: StubConfig,
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let mut dropped = x.clone();
        if pass.training() {
            dropped = ops::dropout(x, self.config.dropout, pass.rng().site(&self.path))?;
        }
        let mut h = ops::linear(&dropped, &self.a.get(pass), None)?;
        let mask = match pass.mask(&self.gate)? {
            Mask::All => None,
            Mask::Given(mask) => Some(mask),
            Mask::Live(live) => {
                let mask: Vec<f64> = (0..self.config.r as u32)
                    .map(|slot| f64::from(u8::from(live.contains(&slot))))
                    .collect();
                Some(Tensor::from_vec(mask, self.config.r, &Device::Cpu)?)
            }
        };
        if let Some(mask) = mask {
            h = h.broadcast_mul(&mask.to_dtype(h.dtype())?)?;
        }
        pass.record(self.site, "h", &h);
        if pass.training() && self.config.auxiliary != 0.0 {
            let tokens = pass.tokens().unwrap();
            let live: Vec<f64> = tokens
                .segments
                .iter()
                .map(|&segment| f64::from(u8::from(segment != 0)))
                .collect();
            let live = Tensor::from_vec(live, (tokens.rows, tokens.length, 1), &Device::Cpu)?;
            let count = tokens.count() as f64;
            let sizes = h.sqr()?.broadcast_mul(&live.to_dtype(h.dtype())?)?;
            pass.add_loss(
                "size",
                (ops::sum_all(&sizes)? * (self.config.auxiliary / count))?,
            )?;
        }
        Ok(base.forward_plus(x, &(h * 1.7)?, &self.b.get(pass))?)
    }

    fn merge(&self, _: &Tensor, _: Option<&Tensor>, _: &mut Pass) -> Result<Merge> {
        Ok(Merge::InputDependent { why: "a stub" })
    }
}

/// Reads, rewrites, masks, revives and remembers.
#[derive(Debug)]
struct Stirrer {
    config: StubConfig,
    gates: Vec<RankGate>,
    params: Vec<Param>,
    observed: f64,
    mean: Tensor,
}

impl Controller for Stirrer {
    fn penalty(&self, _: Step, pass: &Pass) -> Result<Option<Tensor>> {
        if self.config.penalty == 0.0 {
            return Ok(None);
        }
        let mut sum = (ops::sum_all(&self.params[0].get(pass).sqr()?)? * self.config.penalty)?;
        for param in &self.params[1..] {
            sum = (sum + (ops::sum_all(&param.get(pass).sqr()?)? * self.config.penalty)?)?;
        }
        Ok(Some(sum))
    }

    fn observe(&mut self, _: Step, records: &Records) -> Result<()> {
        for (_, _, h) in records {
            self.observed = 0.9 * self.observed + 0.1 * ops::norm_squared(h)?;
        }
        Ok(())
    }

    fn after_backward(&mut self, step: Step, grads: &mut Grads) -> Result<()> {
        let param = &self.params[1];
        let grad = grads.get(param).unwrap().clone();
        // What is remembered must reach the parameters, or a resumed run could not show that it was forgotten.
        let mean: Vec<f64> = self.mean.to_vec1()?;
        let mut factor = 1.0 + 0.1 * (mean[0] + self.observed).tanh();
        if step.index == self.config.poison_at {
            factor = f64::NAN;
        }
        grads.insert(param, (&grad * factor)?);
        let new = Tensor::new(&[ops::norm_squared(&grad)?.sqrt(), 1.0], &Device::Cpu)?;
        self.mean = ((&self.mean * 0.8)? + (new * 0.2)?)?;
        Ok(())
    }

    fn after_update(&mut self, step: Step, _: &Grads, probe: &mut dyn Probe) -> Result<Outcome> {
        if step.index == self.config.probe_at {
            let gate = &self.gates[0];
            let mask = Tensor::zeros(gate.capacity(), DType::F64, &Device::Cpu)?;
            let masked: Masks = BTreeMap::from([(gate.id().clone(), mask)]);
            self.mean = Tensor::from_vec(probe.losses(&[Masks::new(), masked])?, 2, &Device::Cpu)?;
        }
        if self.config.revive_every == 0 || !step.index.is_multiple_of(self.config.revive_every) {
            return Ok(Outcome::default());
        }
        let mut revivals = Vec::new();
        for (i, gate) in self.gates.iter().enumerate() {
            let slot = (step.index as usize + i) % gate.capacity();
            revivals.extend(gate.revive(&[slot], step.index)?);
            let mut keep = vec![true; gate.capacity()];
            keep[(slot + 1) % gate.capacity()] = false;
            gate.keep(&keep)?;
        }
        Ok(revivals.into())
    }

    fn state(&self) -> Result<State> {
        let tensors = BTreeMap::from([("mean".to_owned(), self.mean.clone())]);
        Ok(State {
            values: self.observed.into(),
            tensors,
        })
    }

    fn restore(&mut self, mut state: State) -> Result<()> {
        self.observed = state.values.as_f64().unwrap();
        self.mean = state.tensors.remove("mean").unwrap();
        Ok(())
    }
}

/// The model with a stub attached to the blocks.
pub fn attached(dtype: DType, config: &StubConfig) -> (Tiny, Attached) {
    let mut model = Tiny::new(dtype);
    let keys = serde_json::to_value(config).unwrap();
    let mut keys = keys.as_object().unwrap().clone();
    keys.insert("target_modules".into(), "all-linear".into());
    let config = AdapterConfig::parse(&Stub, &keys, Source::RunFile).unwrap();
    let attached = attach(&mut model, "default", &config, Start::Seed(7)).unwrap();
    (model, attached)
}

/// Rows of different lengths with different numbers of supervised tokens.
pub fn examples(count: usize) -> Vec<Example> {
    let mut stream = stream("examples");
    (0..count)
        .map(|row| {
            let length = 2 + stream.below(6) as usize;
            let ids: Vec<u32> = (0..length)
                .map(|_| stream.below(VOCAB as u64) as u32)
                .collect();
            let labels = ids.iter().enumerate().map(|(i, &id)| {
                if i > 1 && (i + row) % 3 == 0 {
                    UNSUPERVISED
                } else {
                    id as i32
                }
            });
            Example {
                labels: labels.collect(),
                ids,
                ..Example::default()
            }
        })
        .collect()
}

/// Multiple choices, with the example that belongs to each.
pub fn questions(count: usize) -> Vec<(Example, ChoiceExample)> {
    let mut stream = stream("questions");
    (0..count)
        .map(|row| {
            let mut tokens = |most: u64| -> Vec<u32> {
                (0..=stream.below(most))
                    .map(|_| stream.below(VOCAB as u64) as u32)
                    .collect()
            };
            let prompt = tokens(5);
            let choices: Vec<Vec<u32>> = (0..3).map(|_| tokens(4)).collect();
            let gold = (row * 2) % 3;
            let end = 10;
            let mut ids = prompt.clone();
            ids.extend(&choices[gold]);
            ids.push(end);
            let mut labels = vec![UNSUPERVISED; prompt.len()];
            labels.extend(ids[prompt.len()..].iter().map(|&id| id as i32));
            let choice_bytes = choices.iter().map(|choice| 3 * choice.len() + 1).collect();
            let question = ChoiceExample {
                prompt,
                choices,
                gold: Some(gold),
                choice_bytes,
                truncated: false,
            };
            (
                Example {
                    ids,
                    labels,
                    ..Example::default()
                },
                question,
            )
        })
        .collect()
}

pub fn run_file(dir: &Path, train: &str) -> lowrank_train::RunFile {
    let text = format!(
        "model.source = \"none\"\ndata.train = [\"none.jsonl\"]\noutput.dir = {:?}\n[train]\n{train}",
        dir.display().to_string()
    );
    lowrank_train::RunFile::parse(&text, Path::new("run.toml"), &[]).unwrap()
}

pub fn bits(tensor: &Tensor) -> Vec<u64> {
    let flat = tensor.flatten_all().unwrap().to_dtype(DType::F64).unwrap();
    flat.to_vec1::<f64>()
        .unwrap()
        .into_iter()
        .map(f64::to_bits)
        .collect()
}

pub fn all_bits(params: &[Param]) -> Vec<(String, Vec<u64>)> {
    params
        .iter()
        .map(|param| (param.name().to_owned(), bits(&param.value())))
        .collect()
}
