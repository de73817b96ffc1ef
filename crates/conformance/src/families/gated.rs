//! Layers with rank gates, and a controller that masks and revives their slots.

use super::{dropped, shares};
use candle_core::{DType, Device, Tensor};
use lowrank_adapter::{
    Adapter, Attach, Attachment, Controller, Error, Family, Init, Mask, Masks, Merge, Outcome,
    Param, Pass, Probability, Probe, RankGate, Records, Result, Revival, SiteId, Spec, State, Step,
};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::{self as ops, Grads};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::num::NonZeroUsize;

/// The keys of [`Gated`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct GatedConfig {
    /// The slots of each site.
    pub r: NonZeroUsize,
    /// The update is multiplied by alpha / r.
    pub alpha: f64,
    /// After these steps slots are masked.
    pub mask_at: Vec<u64>,
    /// How many are masked, over all sites together.
    pub mask_count: usize,
    /// After these steps as many masked slots are revived.
    pub revive_at: Vec<u64>,
    /// The factor of the squares of A in the penalty.
    pub penalty: f64,
    /// Dropout of the input.
    pub dropout: Probability,
}

impl Default for GatedConfig {
    fn default() -> Self {
        Self {
            r: NonZeroUsize::new(3).expect("3 is not 0"),
            alpha: 4.5,
            mask_at: vec![3, 8],
            mask_count: 7,
            revive_at: vec![6],
            penalty: 0.01,
            dropout: Probability::default(),
        }
    }
}

/// y = W x + s B (m * A x) with a mask m of zeros and ones over the slots.
///
/// After the steps of `mask_at` the controller masks the slots whose gradient times value is least; the first time it
/// asks the probe whether those or the least active ones are the better choice. After the steps of `revive_at` masked
/// slots come back with fresh values.
#[derive(Debug, Clone, Copy)]
pub struct Gated;

#[derive(Debug)]
struct Layer {
    path: String,
    site: SiteId,
    slots: Slots,
    config: GatedConfig,
}

#[derive(Debug, Clone)]
struct Slots {
    /// `[r, n_in]`.
    a: Param,
    /// `[n_out, r]`.
    b: Param,
    gate: RankGate,
}

impl Family for Gated {
    type Config = GatedConfig;
    const NAME: &'static str = "gated";

    fn attach(&self, config: &GatedConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        let rank = config.r.get();
        let mut sites = Vec::new();
        let mut attachment = Attachment::per_site(cx, |cx, site| {
            let (n_out, n_in) = cx.site(site).dims();
            let a = Spec::new("lora_A.weight", (rank, n_in)).init(Init::KaimingUniform);
            let b = Spec::new("lora_B.weight", (n_out, rank));
            let slots = Slots {
                a: cx.declare(site, a.rank_axis(0))?,
                b: cx.declare(site, b.rank_axis(1))?,
                gate: cx.gate(site, rank)?,
            };
            sites.push(slots.clone());
            Ok(Box::new(Layer {
                path: cx.site(site).path.clone(),
                site,
                slots,
                config: config.clone(),
            }))
        })?;
        attachment.controller = Some(Box::new(Gardener {
            budget: rank * sites.len(),
            scores: vec![vec![0.0; rank]; sites.len()],
            activity: vec![vec![0.0; rank]; sites.len()],
            asked: Vec::new(),
            sites,
            config: config.clone(),
        }));
        Ok(attachment)
    }
}

impl Layer {
    fn scale(&self) -> f64 {
        self.config.alpha / self.config.r.get() as f64
    }

    /// s (m * A x) and the columns of B that it is multiplied by; nothing if no slot lives.
    fn down(&self, x: &Tensor, pass: &mut Pass) -> Result<Option<(Tensor, Tensor)>> {
        let x = dropped(x, self.config.dropout, &self.path, pass)?;
        let (a, b) = (self.slots.a.get(pass), self.slots.b.get(pass));
        let (h, b) = match pass.mask(&self.slots.gate)? {
            Mask::All => (ops::linear(&x, &a, None)?, b),
            Mask::Live(slots) if slots.is_empty() => return Ok(None),
            Mask::Live(slots) => {
                let slots = Tensor::new(slots, &Device::Cpu)?;
                let h = ops::linear(&x, &a.index_select(&slots, 0)?, None)?;
                (h, b.index_select(&slots, 1)?)
            }
            Mask::Given(mask) => (ops::linear(&x, &a, None)?.broadcast_mul(&mask)?, b),
        };
        let h = (h * self.scale())?;
        if pass.training() {
            let activity = self.activity(&h, pass)?;
            pass.record(self.site, "activity", &activity);
        }
        Ok(Some((h, b)))
    }

    /// The mean square of each slot's activation over the tokens that are not padding, 0 where the slot is masked:
    /// `h` (.., live) -> `[r]` in f64.
    fn activity(&self, h: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        let live = h.dims()[h.rank() - 1];
        let rows = h.detach().to_dtype(DType::F64)?.reshape(((), live))?;
        let squares = rows.sqr()?;
        let means = match shares(pass) {
            Some(shares) => {
                let shares = Tensor::from_vec(shares, (squares.dim(0)?, 1), h.device())?;
                squares.broadcast_mul(&shares)?.sum(0)?
            }
            None => squares.mean(0)?,
        };
        let mut means = means.to_vec1::<f64>()?.into_iter();
        let slots = match pass.mask(&self.slots.gate)? {
            Mask::Live(slots) => slots,
            Mask::All | Mask::Given(_) => (0..live as u32).collect(),
        };
        let mut all = vec![0.0; self.slots.gate.capacity()];
        for slot in slots {
            all[slot as usize] = means.next().unwrap_or_default();
        }
        Ok(Tensor::new(all, h.device())?)
    }
}

impl Adapter for Layer {
    fn forward(&self, base: &FrozenLinear, x: &Tensor, pass: &mut Pass) -> Result<Tensor> {
        Ok(match self.down(x, pass)? {
            Some((h, b)) => base.forward_plus(x, &h, &b)?,
            None => base.forward(x)?,
        })
    }

    fn delta(
        &self,
        _base: &FrozenLinear,
        x: &Tensor,
        y_base: &Tensor,
        pass: &mut Pass,
    ) -> Result<Tensor> {
        Ok(match self.down(x, pass)? {
            Some((h, b)) => ops::linear(&h, &b, None)?,
            None => y_base.zeros_like()?,
        })
    }

    fn merge(&self, weight: &Tensor, _bias: Option<&Tensor>, pass: &mut Pass) -> Result<Merge> {
        let live = self.slots.gate.live()?;
        let mask: Vec<f64> = live.iter().map(|&live| f64::from(u8::from(live))).collect();
        let mask = Tensor::new(mask, weight.device())?.to_dtype(weight.dtype())?;
        let b = self.slots.b.get(pass).broadcast_mul(&mask)?;
        let update = b.matmul(&self.slots.a.get(pass))?;
        Ok(Merge::Exact(
            ops::add_scaled(weight, &update, self.scale())?.into(),
        ))
    }
}

/// Masks and revives.
#[derive(Debug)]
struct Gardener {
    sites: Vec<Slots>,
    config: GatedConfig,
    /// How many slots may live.
    budget: usize,
    /// Averages of |gradient * value| by site and slot.
    scores: Vec<Vec<f64>>,
    /// The latest mean squares of activations by site and slot.
    activity: Vec<Vec<f64>>,
    /// What the probe answered.
    asked: Vec<f64>,
}

impl Gardener {
    /// The `mask_count` live slots for which `values` is least, as (site, slot).
    fn least(&self, values: &[Vec<f64>]) -> Result<Vec<(usize, usize)>> {
        let mut order = Vec::new();
        for (site, (slots, values)) in self.sites.iter().zip(values).enumerate() {
            for (slot, live) in slots.gate.live()?.into_iter().enumerate() {
                if live {
                    order.push((values[slot], (site, slot)));
                }
            }
        }
        order.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        order.truncate(self.config.mask_count);
        Ok(order.into_iter().map(|(_, slot)| slot).collect())
    }

    /// What lives at each site without these slots.
    fn without(&self, slots: &[(usize, usize)]) -> Result<Vec<Vec<bool>>> {
        let mut keep: Vec<Vec<bool>> = self
            .sites
            .iter()
            .map(|slots| slots.gate.live())
            .collect::<Result<_>>()?;
        for &(site, slot) in slots {
            keep[site][slot] = false;
        }
        Ok(keep)
    }

    fn question(&self, keep: &[Vec<bool>]) -> Result<Masks> {
        let mut masks = Masks::new();
        for (slots, keep) in self.sites.iter().zip(keep) {
            let mask: Vec<f64> = keep.iter().map(|&live| f64::from(u8::from(live))).collect();
            let mask = Tensor::new(mask, &Device::Cpu)?.to_dtype(slots.a.dtype())?;
            masks.insert(slots.gate.id().clone(), mask);
        }
        Ok(masks)
    }

    fn mask(&mut self, probe: &mut dyn Probe) -> Result<()> {
        let mut chosen = self.least(&self.scores)?;
        if self.asked.is_empty() {
            let idle = self.least(&self.activity)?;
            let questions = [&chosen, &idle].map(|slots| self.question(&self.without(slots)?));
            let [by_score, by_activity] = questions;
            self.asked = probe.losses(&[by_score?, by_activity?])?;
            if self.asked[1] < self.asked[0] {
                chosen = idle;
            }
        }
        for (slots, keep) in self.sites.iter().zip(self.without(&chosen)?) {
            slots.gate.keep(&keep)?;
        }
        self.budget -= chosen.len();
        Ok(())
    }

    fn revive(&mut self, step: u64) -> Result<Vec<Revival>> {
        let mut revivals = Vec::new();
        let mut left = self.config.mask_count;
        for (site, slots) in self.sites.iter().enumerate() {
            let masked = slots.gate.live()?.into_iter().enumerate();
            let masked: Vec<usize> = masked
                .filter_map(|(slot, live)| (!live).then_some(slot))
                .take(left)
                .collect();
            if masked.is_empty() {
                continue;
            }
            left -= masked.len();
            self.budget += masked.len();
            for &slot in &masked {
                self.scores[site][slot] = 0.0;
            }
            revivals.extend(slots.gate.revive(&masked, step)?);
        }
        Ok(revivals)
    }
}

/// Sums of |gradient * value| over everything but the rank axis.
fn sensitivity(param: &Param, grads: &Grads, axis: usize) -> Result<Option<Vec<f64>>> {
    let Some(grad) = grads.get(param) else {
        return Ok(None);
    };
    let product = (grad * param.value())?.abs()?.to_dtype(DType::F64)?;
    Ok(Some(product.sum(1 - axis)?.to_vec1()?))
}

impl Controller for Gardener {
    fn penalty(&self, _step: Step, pass: &Pass) -> Result<Option<Tensor>> {
        let mut sum = None;
        for slots in &self.sites {
            let squares = (ops::sum_all(&slots.a.get(pass).sqr()?)? * self.config.penalty)?;
            sum = Some(match sum {
                Some(sum) => (sum + squares)?,
                None => squares,
            });
        }
        Ok(sum)
    }

    fn observe(&mut self, _step: Step, records: &Records) -> Result<()> {
        for (site, _, activity) in records {
            self.activity[site.index()] = activity.to_vec1()?;
        }
        Ok(())
    }

    fn after_backward(&mut self, _step: Step, grads: &mut Grads) -> Result<()> {
        for (slots, scores) in self.sites.iter().zip(&mut self.scores) {
            for (param, axis) in [(&slots.a, 0), (&slots.b, 1)] {
                for (score, new) in scores
                    .iter_mut()
                    .zip(sensitivity(param, grads, axis)?.into_iter().flatten())
                {
                    *score = 0.75 * *score + new;
                }
            }
        }
        Ok(())
    }

    fn after_update(
        &mut self,
        step: Step,
        _grads: &Grads,
        probe: &mut dyn Probe,
    ) -> Result<Outcome> {
        if self.config.mask_at.contains(&step.index) {
            self.mask(probe)?;
        }
        if self.config.revive_at.contains(&step.index) {
            return Ok(self.revive(step.index)?.into());
        }
        Ok(Outcome::default())
    }

    fn budget(&self) -> Option<usize> {
        Some(self.budget)
    }

    fn state(&self) -> Result<State> {
        let mut state = State {
            values: json!({"budget": self.budget, "asked": self.asked}),
            ..State::default()
        };
        for (name, rows) in [("scores", &self.scores), ("activity", &self.activity)] {
            state
                .tensors
                .insert(name.into(), Tensor::new(rows.clone(), &Device::Cpu)?);
        }
        Ok(state)
    }

    fn restore(&mut self, state: State) -> Result<()> {
        let foreign = |what: &str| Error::Other(format!("the state of `gated` lacks `{what}`"));
        let State { values, tensors } = state;
        let budget = values["budget"].as_u64().ok_or_else(|| foreign("budget"))?;
        let asked = values["asked"].as_array().ok_or_else(|| foreign("asked"))?;
        let rows = |name: &str| -> Result<Vec<Vec<f64>>> {
            Ok(tensors.get(name).ok_or_else(|| foreign(name))?.to_vec2()?)
        };
        (self.scores, self.activity) = (rows("scores")?, rows("activity")?);
        self.budget = budget as usize;
        self.asked = asked.iter().filter_map(serde_json::Value::as_f64).collect();
        Ok(())
    }
}
