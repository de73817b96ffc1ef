//! What the family declares at each site, and what its folders hold.

use crate::AloraConfig;
use crate::layer::Layer;
use crate::rounds::Reallocation;
use lowrank_adapter::{
    Attach, Attachment, Export, Family, Init, Kind, LORA_B, Result, SiteId, Spec,
};
use std::collections::BTreeSet;

/// The family.
#[derive(Debug)]
pub struct Alora;

const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

impl Family for Alora {
    type Config = AloraConfig;
    const NAME: &'static str = "alora";

    /// Live ranks only, and how many each module has.
    fn export(mut export: Export<AloraConfig>) -> Result<Export<AloraConfig>> {
        let suffix = format!(".{A}");
        let of_site = |(name, _): &(String, _)| name.strip_suffix(&suffix).map(str::to_owned);
        let paths: Vec<String> = export.tensors.iter().filter_map(of_site).collect();
        for path in paths {
            // An adapter that was read from a folder has no gates: its pattern holds.
            let Some(live) = export.live(&path)? else {
                continue;
            };
            export.keep(&format!("{path}.{A}"), 0, &live)?;
            export.keep(&format!("{path}.{B}"), 1, &live)?;
            let ranks = live.iter().filter(|live| **live).count();
            export.config.rank_pattern.0.insert(path, ranks);
        }
        Ok(export)
    }

    fn attach(&self, config: &AloraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        config.check()?;
        let ids: Vec<SiteId> = cx.site_ids().collect();
        let roles: BTreeSet<&str> = ids.iter().map(|&id| cx.site(id).role.as_str()).collect();
        let moved = config.n_a.unwrap_or(roles.len());
        let paths: Vec<String> = ids.iter().map(|&id| cx.site(id).path.clone()).collect();
        cx.warn_of_unused("rank_pattern", &config.rank_pattern)?;
        let mut gates = Vec::new();
        let mut attachment = Attachment::per_site(cx, |cx, site| {
            let layer = layer(config, moved, cx, site)?;
            gates.extend(layer.gate.clone());
            Ok(Box::new(layer))
        })?;
        if !gates.is_empty() {
            let controller = Reallocation::new(config.clone(), moved, paths, &gates)?;
            attachment.controller = Some(Box::new(controller));
        }
        Ok(attachment)
    }
}

fn layer(config: &AloraConfig, moved: usize, cx: &mut Attach<'_>, site: SiteId) -> Result<Layer> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let rank = config.rank_pattern.get(&path, config.r.get())?;
    let mut capacity = rank;
    if !cx.loads() {
        cx.check_rank(site, rank)?;
        // What it may gain in all rounds.
        let gains = usize::try_from(config.rounds).unwrap_or(usize::MAX);
        let gains = moved.saturating_mul(gains);
        // A module without ranks never gets any.
        if rank > 0 {
            capacity = rank.saturating_add(gains).min(n_out.min(n_in));
        }
    }
    // What has no ranks has nothing to train.
    let kind = match capacity {
        0 => Kind::Saved,
        _ => Kind::Trained,
    };
    let a = Spec::new(A, (capacity, n_in)).kind(kind);
    let a = cx.declare(site, a.init(Init::KaimingUniform).rank_axis(0))?;
    let b = Spec::new(B, (n_out, capacity)).kind(kind).group(LORA_B);
    let b = cx.declare(site, b.rank_axis(1))?;
    let mut gate = None;
    if !cx.loads() {
        let slots = cx.gate(site, capacity)?;
        let live: Vec<bool> = (0..capacity).map(|slot| slot < rank).collect();
        slots.keep(&live)?;
        gate = Some(slots);
    }
    Ok(Layer {
        a,
        b,
        gate,
        scale: config.scale(),
        dropout: config.lora_dropout.get(),
        path,
    })
}
