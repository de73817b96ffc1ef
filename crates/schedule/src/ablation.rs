//! AB-LoRA's score: what the held-out loss says of the model without a rank, and of a model with that rank alone.

use crate::score::{Components, Score};
use crate::{Error, Result};
use candle_core::{DType, Tensor};
use lowrank_adapter::{GateId, Masks, Probe};
use std::num::NonZeroUsize;

/// IS(r) = S(M) - S(M without r) + S(M with r alone), S being minus the mean held-out loss (ALoRA, Liu et al. 2024,
/// Eq. 5). With r alone, all other ranks of all sites are off.
#[derive(Debug, Clone, Copy)]
pub struct Ablation {
    rows: NonZeroUsize,
    noise: Option<f64>,
}

impl Ablation {
    /// Asks about so many held-out rows.
    #[must_use]
    pub const fn new(rows: NonZeroUsize) -> Self {
        Self { rows, noise: None }
    }
}

/// A gate with its slots as numbers.
struct Slots {
    gate: GateId,
    live: Vec<bool>,
    /// What it is with all live slots, and with none.
    all: Tensor,
    none: Tensor,
    dtype: DType,
}

impl Slots {
    fn of(site: &Components) -> Result<Self> {
        let Some(gate) = &site.gate else {
            return Err(Error::State {
                what: "a site without a gate cannot be scored by ablation".into(),
            });
        };
        let dtype = gate
            .gated()
            .next()
            .map_or(DType::F32, |param| param.dtype());
        let live = gate.live()?;
        let mask = |live: &[bool]| mask(live, dtype);
        Ok(Self {
            gate: gate.id().clone(),
            all: mask(&live)?,
            none: mask(&vec![false; live.len()])?,
            live,
            dtype,
        })
    }

    fn ranks(&self) -> impl Iterator<Item = usize> {
        let live = self.live.iter().enumerate();
        live.filter_map(|(slot, live)| live.then_some(slot))
    }
}

fn mask(live: &[bool], dtype: DType) -> Result<Tensor> {
    let numbers: Vec<f64> = live.iter().map(|&live| f64::from(u8::from(live))).collect();
    let mask = Tensor::from_vec(numbers, live.len(), &candle_core::Device::Cpu)?;
    Ok(mask.to_dtype(dtype)?)
}

impl Score for Ablation {
    fn held_out(&self) -> Option<NonZeroUsize> {
        Some(self.rows)
    }

    fn noise(&self) -> Option<f64> {
        self.noise
    }

    fn scores(&mut self, sites: &[Components], probe: &mut dyn Probe) -> Result<Vec<Vec<f64>>> {
        let sites: Vec<Slots> = sites.iter().map(Slots::of).collect::<Result<_>>()?;
        let of = |pick: fn(&Slots) -> &Tensor| -> Masks {
            let masks = sites
                .iter()
                .map(|site| (site.gate.clone(), pick(site).clone()));
            masks.collect()
        };
        let (whole, base) = (of(|site| &site.all), of(|site| &site.none));
        let mut questions = vec![whole.clone()];
        for site in &sites {
            for slot in site.ranks() {
                let mut without = site.live.clone();
                without[slot] = false;
                let mut alone = vec![false; site.live.len()];
                alone[slot] = true;
                for (rest, keep) in [(&whole, without), (&base, alone)] {
                    let mut masks = rest.clone();
                    masks.insert(site.gate.clone(), mask(&keep, site.dtype)?);
                    questions.push(masks);
                }
            }
        }
        let losses = probe.losses(&questions)?;
        if losses.len() != questions.len() {
            return Err(Error::Length {
                what: "answers of the probe",
                got: losses.len(),
                expected: questions.len(),
            });
        }
        // Alone it runs as a batch of its own, among the others as part of a larger one.
        if let Some(alone) = probe.losses(&questions[..1])?.first() {
            self.noise = Some((alone - losses[0]).abs());
        }
        let (whole, mut pairs) = (losses[0], losses[1..].chunks_exact(2));
        let mut scores = Vec::with_capacity(sites.len());
        for site in &sites {
            let mut of_site = vec![0.0; site.live.len()];
            for (slot, pair) in site.ranks().zip(&mut pairs) {
                let (without, alone) = (pair[0], pair[1]);
                of_site[slot] = without - whole - alone;
            }
            scores.push(of_site);
        }
        Ok(scores)
    }
}
