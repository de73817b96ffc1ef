//! How AdaLoRA attaches, reads what PEFT wrote, and exports.

use crate::allocation::{Allocation, RUN, Triplet};
use crate::config::AdaloraConfig;
use crate::layer::Layer;
use candle_core::DType;
use lowrank_adapter::{
    Attach, Attachment, Error, Export, Family, Finite, Init, Kind, LORA_B, Result, SiteId, Spec,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroU64;

/// Low-rank adaptation with ranks that are allocated while training.
#[derive(Debug)]
pub struct Adalora;

const A: &str = "lora_A";
const E: &str = "lora_E";
const B: &str = "lora_B";
/// 1 where the last choice kept a rank, in checkpoints alone.
const KEPT: &str = "adalora_kept";

impl Family for Adalora {
    type Config = AdaloraConfig;
    const NAME: &'static str = "adalora";

    fn fixed() -> Vec<(&'static str, Value)> {
        vec![
            ("alora_invocation_tokens", Value::Null),
            ("alpha_pattern", json!({})),
            ("arrow_config", Value::Null),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("eva_config", Value::Null),
            ("init_lora_weights", json!(true)),
            ("kasa_config", Value::Null),
            ("layer_replication", Value::Null),
            ("loftq_config", json!({})),
            ("lora_bias", json!(false)),
            ("lora_ga_config", Value::Null),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("monteclora_config", Value::Null),
            ("qalora_group_size", json!(16)),
            ("target_parameters", Value::Null),
            ("trainable_token_indices", Value::Null),
            ("use_bdlora", Value::Null),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("use_rslora", json!(false)),
            ("velora_config", Value::Null),
        ]
    }

    /// PEFT takes them from LoRA's configuration and does nothing with them here, or nothing that a file depends on.
    fn notes() -> &'static [&'static str] {
        &[
            "alpha_pattern",
            "corda_config",
            "eva_config",
            "init_lora_weights",
            "lora_ga_config",
            "use_rslora",
        ]
    }

    fn lacks() -> &'static [&'static str] {
        &["orth_squared"]
    }

    /// PEFT's, which is LoRA's.
    fn targeted_bias() -> String {
        "lora_only".into()
    }

    fn sites(shapes: &BTreeMap<String, Vec<usize>>) -> BTreeMap<String, (usize, usize)> {
        let pair = |(name, a): (&String, &Vec<usize>)| {
            let path = name.strip_suffix(&format!(".{A}"))?;
            let b = shapes.get(&format!("{path}.{B}"))?;
            match (a.as_slice(), b.as_slice()) {
                (&[_, n_in], &[n_out, _]) => Some((path.to_owned(), (n_out, n_in))),
                _ => None,
            }
        };
        shapes.iter().filter_map(pair).collect()
    }

    /// Leaves out the ranks that were not kept, and says which of init_r are left.
    fn export(mut export: Export<AdaloraConfig>) -> Result<Export<AdaloraConfig>> {
        let run = export.scratch(RUN)?.to_vec1::<u32>()?;
        let (total, chosen) = (run[0], run[1] != 0);
        // PEFT refuses a file without a number of steps, or one that leaves none to allocate in.
        let least = export.config.tinit.saturating_add(export.config.tfinal);
        let total = NonZeroU64::new(total.into()).or(export.config.total_step);
        let total = total.unwrap_or(NonZeroU64::MIN.saturating_add(least));
        export.config.total_step = Some(total);
        if export.config.lora_alpha.get() <= 0.0 {
            let ranks = Finite::new(export.config.init_r.get() as f64);
            export.config.lora_alpha = ranks.unwrap_or(export.config.lora_alpha);
        }
        if !chosen {
            return Ok(export);
        }
        let names = export.tensors.iter().map(|(name, _)| name);
        let paths = names.filter_map(|name| name.strip_suffix(&format!(".{E}")));
        let paths: Vec<String> = paths.map(str::to_owned).collect();
        let mut pattern = export.config.rank_pattern.take().unwrap_or_default();
        for path in paths {
            let of_site = |name: &str| format!("{path}.{name}");
            let kept = numbers(export.scratch(&of_site(KEPT))?)?;
            let e = export
                .tensors
                .iter()
                .find(|(name, _)| *name == of_site(E))
                .ok_or_else(|| Error::MissingTensor { name: of_site(E) })?;
            // A rank that has come back since the last choice is part of what the adapter does.
            let live = kept.iter().zip(numbers(&e.1)?);
            let live: Vec<bool> = live.map(|(kept, e)| *kept != 0.0 || e != 0.0).collect();
            for (name, axis) in [(A, 0), (E, 0), (B, 1)] {
                export.keep(&of_site(name), axis, &live)?;
            }
            let ranks = export.config.init_r.get();
            let before = pattern.remove(&of_site(E));
            let mut live = live.into_iter();
            let after = before.unwrap_or_else(|| vec![true; ranks]);
            let after = after.into_iter();
            let after = after.map(|had| had && live.next().unwrap_or_default());
            pattern.insert(of_site(E), after.collect());
        }
        export.config.rank_pattern = Some(pattern);
        Ok(export)
    }

    fn attach(&self, config: &AdaloraConfig, cx: &mut Attach<'_>) -> Result<Attachment> {
        if config.r != Self::default_r() {
            tracing::warn!(
                "`r = {}` has no effect on AdaLoRA, whose rank is `init_r = {}`",
                config.r,
                config.init_r
            );
        }
        check_pattern(config, cx)?;
        let run = Spec::new(RUN, 2).dtype(DType::U32).kind(Kind::Scratch);
        let run = cx.shared(run)?;
        let mut triplets = Vec::new();
        let mut attachment = Attachment::per_site(cx, |cx, site| {
            let (layer, triplet) = layer(config, cx, site)?;
            triplets.push(triplet);
            Ok(Box::new(layer))
        })?;
        let controller = Allocation::new(config, triplets, run)?;
        attachment.controller = Some(Box::new(controller));
        Ok(attachment)
    }
}

impl Adalora {
    fn default_r() -> usize {
        AdaloraConfig::default().r
    }
}

/// Patterns are of targeted modules, and of init_r ranks each.
fn check_pattern(config: &AdaloraConfig, cx: &Attach<'_>) -> Result<()> {
    let refuse = |what: String| Err(Error::Config { what });
    let ranks = config.init_r.get();
    let names: Vec<String> = cx
        .site_ids()
        .map(|id| format!("{}.{E}", cx.site(id).path))
        .collect();
    for (name, pattern) in config.rank_pattern.iter().flatten() {
        if !names.contains(name) {
            return refuse(format!(
                "`rank_pattern` has an entry for `{name}`, which is of no targeted module"
            ));
        }
        if pattern.len() != ranks {
            return refuse(format!(
                "`rank_pattern` has {} entries for `{name}`, expected one for each of init_r = {ranks} ranks",
                pattern.len()
            ));
        }
    }
    Ok(())
}

fn layer(config: &AdaloraConfig, cx: &mut Attach<'_>, site: SiteId) -> Result<(Layer, Triplet)> {
    let (n_out, n_in) = cx.site(site).dims();
    let path = cx.site(site).path.clone();
    let pattern = config.rank_pattern.as_ref();
    let pattern = pattern.and_then(|pattern| pattern.get(&format!("{path}.{E}")));
    let rank = match pattern {
        Some(pattern) => pattern.iter().filter(|has| **has).count(),
        None => config.init_r.get(),
    };
    cx.check_rank(site, rank)?;
    // Nothing can be learned of tensors without numbers.
    let kind = if rank == 0 {
        Kind::Saved
    } else {
        Kind::Trained
    };
    let normal = || Init::Normal { std: 0.02 };
    let a = Spec::new(A, (rank, n_in)).rank_axis(0).init(normal());
    let e = Spec::new(E, (rank, 1)).rank_axis(0);
    let b = Spec::new(B, (n_out, rank)).rank_axis(1).group(LORA_B);
    let b = b.init(normal());
    let kept = Spec::new(KEPT, rank).kind(Kind::Scratch).init(Init::Ones);
    // In the order of PEFT's files.
    let (a, b, e) = (
        cx.declare(site, a.kind(kind))?,
        cx.declare(site, b.kind(kind))?,
        cx.declare(site, e.kind(kind))?,
    );
    let triplet = Triplet {
        path: path.clone(),
        a: a.clone(),
        e: e.clone(),
        b: b.clone(),
        kept: cx.declare(site, kept)?,
    };
    let layer = Layer {
        a,
        e,
        b,
        scale: config.scale(),
        dropout: config.lora_dropout.get(),
        path,
    };
    Ok((layer, triplet))
}

fn numbers(tensor: &candle_core::Tensor) -> Result<Vec<f64>> {
    Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}
