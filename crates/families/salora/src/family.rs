//! How SaLoRA attaches, and what an adapter folder holds.

use crate::SaloraConfig;
use crate::controller::{Gatekeeper, Module};
use crate::layer::{Gates, Layer};
use crate::phase::{Phase, PhaseParam};
use candle_core::{Device, Tensor};
use lowrank_adapter::target::Pattern;
use lowrank_adapter::{
    Attach, Attachment, Export, Family, Init, Kind, LORA_B, Result, SiteId, Spec,
};
use std::collections::BTreeMap;

/// Structure-aware low-rank adaptation.
#[derive(Debug)]
pub struct Salora;

const Q: &str = "lora_A.weight";
const P: &str = "lora_B.weight";
const PHI: &str = "salora_phi";

/// Where phi starts, P(g != 0) = 0.98 with a test-time gate of 1, and the deviation that breaks ties.
const START: (f64, f64) = (2.5, 0.01);

impl Family for Salora {
    type Config = SaloraConfig;
    const NAME: &'static str = "salora";

    /// After extraction: the ranks that stay, without phi.
    fn export(mut export: Export<SaloraConfig>) -> Result<Export<SaloraConfig>> {
        if Phase::of(&export)? != Some(Phase::Extracted) {
            return Ok(export);
        }
        let names = export.tensors.iter();
        let paths: Vec<String> = names
            .filter_map(|(name, _)| name.strip_suffix(Q)?.strip_suffix('.').map(str::to_owned))
            .collect();
        let mut ranks = BTreeMap::new();
        for path in paths {
            let keep = export.live(&path)?.unwrap_or_default();
            if !keep.is_empty() {
                export.keep(&format!("{path}.{Q}"), 0, &keep)?;
                export.keep(&format!("{path}.{P}"), 1, &keep)?;
                let phi = format!("{path}.{PHI}");
                export.tensors.retain(|(name, _)| *name != phi);
            }
            ranks.insert(path, keep.into_iter().filter(|&kept| kept).count());
        }
        export.config.rank_pattern = Pattern(ranks);
        export.config.extracted = true;
        Ok(export)
    }

    fn attach(&self, config: &SaloraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.check(cx)?;
        let start = match config.t_start.get() {
            0.0 => Phase::Learning,
            _ => Phase::Open,
        };
        let phase = match config.extracted {
            true => None,
            false => Some(PhaseParam::declare(cx, start)?),
        };
        let mut modules = Vec::new();
        let mut attachment = Attachment::per_site(cx, |cx, site| {
            let layer = layer(config, phase.as_ref(), cx, site)?;
            if let Some(gates) = &layer.gates {
                let (n_out, n_in) = cx.site(site).dims();
                modules.push(Module {
                    path: layer.path.clone(),
                    cost: n_out + n_in,
                    q: layer.q.clone(),
                    p: layer.p.clone(),
                    gates: gates.clone(),
                });
            }
            Ok(Box::new(layer))
        })?;
        if let Some(phase) = phase {
            let controller = Gatekeeper::new(config.clone(), phase, modules);
            attachment.controller = Some(Box::new(controller));
        }
        Ok(attachment)
    }
}

fn layer(
    config: &SaloraConfig,
    phase: Option<&PhaseParam>,
    cx: &mut Attach<'_>,
    site: SiteId,
) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let rank = config.rank(&path)?;
    cx.check_rank(site, rank)?;
    // There is nothing to train in a tensor without numbers, but the file holds it.
    let kind = if rank == 0 {
        Kind::Saved
    } else {
        Kind::Trained
    };
    let std = (n_in as f64).powf(-0.5);
    let q = Spec::new(Q, (rank, n_in)).rank_axis(0).kind(kind);
    let p = Spec::new(P, (n_out, rank))
        .rank_axis(1)
        .group(LORA_B)
        .kind(kind);
    let mut layer = Layer {
        q: cx.declare(site, q.init(Init::Normal { std }))?,
        p: cx.declare(site, p)?,
        gates: None,
        scale: config.scale(),
        dropout: config.lora_dropout.get(),
        path,
    };
    if let Some(phase) = phase.filter(|_| rank > 0) {
        let mut stream = cx.key(site, PHI).stream();
        let (mean, std) = START;
        let start: Vec<f64> = (0..rank).map(|_| mean + std * stream.normal()).collect();
        let start = Init::Value(Tensor::new(start, &Device::Cpu)?);
        let phi = Spec::new(PHI, rank).init(start).no_decay();
        layer.gates = Some(Gates {
            phi: cx.declare(site, phi.learning_rate(config.gate_lr.get()))?,
            phase: phase.clone(),
            live: cx.gate(site, rank)?,
            law: config.gates(),
        });
    }
    Ok(layer)
}
