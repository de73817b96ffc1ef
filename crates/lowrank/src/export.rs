//! Any adapter whose update is a plain low-rank one, as LoRA.

use crate::adapters::{StrictBase, load_adapter};
use crate::base::Base;
use crate::paths::real;
use crate::{Error, Result};
use candle_core::Tensor;
use lowrank_adapter::target::Targets;
use lowrank_adapter::{
    AdapterConfig, Attached, BiasMode, Common, Part, Selection, Source, Start, attach,
};
use lowrank_data::Classes;
use lowrank_format::{AtomicFolder, CONFIG_FILE, Existing, LowrankJson, PeftFolder};
use lowrank_merge::{Comparison, PlainSite, compare, compare_classes, plain, probe_tokens};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The family that a plain low-rank update belongs to.
const LORA: &str = "lora";

/// A plain LoRA adapter that was written.
#[derive(Debug)]
pub struct Plain {
    /// Its folder.
    pub folder: PathBuf,
    /// Its modules, in the order of the forward pass; those of rank 0 are not written.
    pub sites: Vec<ExportedSite>,
    /// False if it only comes near to the adapter.
    pub exact: bool,
    /// How far the model with the one and with the other are apart.
    pub comparison: Comparison,
}

/// A module of a [`Plain`].
#[derive(Debug, Clone, PartialEq)]
pub struct ExportedSite {
    /// The module's path.
    pub site: String,
    /// The rank.
    pub rank: usize,
    /// See [`PlainSite::residual`].
    pub residual: Option<f64>,
}

/// Reads an adapter folder and writes it as a plain LoRA adapter of the same base, whole or not at all. What will be written
/// is attached beside the adapter first and compared with it.
///
/// # Errors
/// If the adapter cannot be read, its update is not of the form s B A, or the folder cannot be written.
pub fn export_lora(
    base: &mut Base,
    adapter: &Path,
    out: &Path,
    existing: Existing,
) -> Result<Plain> {
    if real(out).starts_with(real(adapter)) || real(adapter).starts_with(real(out)) {
        return Err(Error::Usage(format!(
            "the output folder {} and the adapter's folder {} lie within each other; choose another",
            out.display(),
            adapter.display()
        )));
    }
    let holds = out
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if existing == Existing::Replace && holds && !out.join(CONFIG_FILE).exists() {
        return Err(Error::Usage(format!(
            "the output folder {} is neither empty nor an adapter's, so it is not replaced; choose another",
            out.display()
        )));
    }
    let (from, to) = ("default", "plain");
    let attached = load_adapter(base, from, adapter, StrictBase::No)?;
    let sites = plain(base.model.as_mut(), from)?;
    let written = Written::of(base, &attached, &sites)?;
    let start = Start::Saved {
        tensors: written.tensors.iter().cloned().collect(),
        seed: 0,
    };
    attach(base.model.as_mut(), to, &written.config, start).map_err(Error::within(out))?;
    let mut sequences = probe_tokens(base.info.vocab_size);
    for ids in &mut sequences {
        ids.truncate(base.info.max_position_embeddings);
    }
    let model = base.model.as_ref();
    let (one, other) = (Selection::one(from), Selection::one(to));
    let comparison = match base.classes {
        Some(_) => compare_classes((model, &one), (model, &other), &sequences)?,
        None => compare((model, &one), (model, &other), &sequences)?,
    };

    let folder = AtomicFolder::create(out, existing)?;
    let tensors = written.tensors.iter();
    let tensors = tensors.map(|(name, tensor)| (name.as_str(), tensor));
    let names = base.classes.as_ref().map_or(&[][..], Classes::names);
    let lowrank = LowrankJson::new(LORA, &base.fingerprint()?).with_labels(names);
    let config = written.config.to_peft();
    PeftFolder::write(folder.path(), &config, tensors, &lowrank, None)?;
    Ok(Plain {
        folder: folder.commit()?,
        exact: sites.iter().all(|site| site.update.exact),
        comparison,
        sites: sites
            .into_iter()
            .map(|site| {
                Ok(ExportedSite {
                    rank: site.update.a.dim(0)?,
                    site: site.path,
                    residual: site.residual,
                })
            })
            .collect::<Result<_>>()?,
    })
}

struct Written {
    config: AdapterConfig,
    tensors: Vec<(String, Tensor)>,
}

impl Written {
    fn of(base: &mut Base, attached: &Attached, sites: &[PlainSite]) -> Result<Self> {
        let mut tensors = Vec::new();
        let mut written = Vec::new();
        for site in sites {
            let (path, update) = (&site.path, &site.update);
            let rank = update.a.dim(0)?;
            // PEFT knows no rank of 0.
            if rank == 0 {
                // A trained bias belongs to a targeted module: an update of zeros makes it one.
                let bias = [format!("{path}.base_layer.bias"), format!("{path}.bias")];
                if attached
                    .params
                    .iter()
                    .any(|param| bias.iter().any(|name| name == param.name()))
                {
                    let zeros = |shape: (usize, usize)| {
                        Tensor::zeros(shape, update.a.dtype(), update.a.device())
                    };
                    let (a, b) = (zeros((1, update.a.dim(1)?))?, zeros((update.b.dim(0)?, 1))?);
                    tensors.push((format!("{path}.lora_A.weight"), a));
                    tensors.push((format!("{path}.lora_B.weight"), b));
                    written.push((path.clone(), 1, update.scale));
                }
                continue;
            }
            tensors.push((format!("{path}.lora_A.weight"), update.a.contiguous()?));
            tensors.push((format!("{path}.lora_B.weight"), update.b.contiguous()?));
            written.push((path.clone(), rank, update.scale));
        }
        if written.is_empty() {
            return Err(Error::Usage(
                "no module of the adapter has a rank, so there is nothing to write".into(),
            ));
        }
        tensors.extend(whole_tensors(base, attached)?);
        let family = lowrank_registry::by_name(LORA)?;
        let old = &attached.config.common;
        let bias = match old.bias_mode()? {
            BiasMode::Targeted => format!("{LORA}_only"),
            _ => old.bias.clone(),
        };
        let paths = written.iter().map(|(path, ..)| path.clone()).collect();
        let config = AdapterConfig {
            common: Common {
                target_modules: Some(Targets::List(paths)),
                exclude_modules: None,
                layers_to_transform: None,
                layers_pattern: None,
                bias,
                ..old.clone()
            },
            ..AdapterConfig::parse(family, &ranks(&written), Source::AdapterFolder)?
        };
        Ok(Self { config, tensors })
    }
}

/// LoRA's keys for ranks and scales: the most frequent rank and its scale for all, patterns for the others.
fn ranks(sites: &[(String, usize, f64)]) -> Map<String, Value> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, rank, _) in sites {
        *counts.entry(*rank).or_default() += 1;
    }
    let common = counts.into_iter().max_by_key(|(_, count)| *count);
    let rank = common.map_or(1, |(rank, _)| rank);
    let alpha = |rank: usize, scale: f64| scale * rank as f64;
    let scale = sites.iter().find(|(_, of, _)| *of == rank);
    let common = alpha(rank, scale.map_or(1.0, |(_, _, scale)| *scale));
    let (mut ranks, mut alphas) = (Map::new(), Map::new());
    for (path, of, scale) in sites {
        if *of != rank {
            ranks.insert(path.clone(), (*of).into());
        }
        let alpha = alpha(*of, *scale);
        if alpha.to_bits() != common.to_bits() {
            alphas.insert(path.clone(), alpha.into());
        }
    }
    let keys = json!({
        "r": rank, "lora_alpha": common, "rank_pattern": ranks, "alpha_pattern": alphas,
    });
    keys.as_object().cloned().unwrap_or_default()
}

/// Biases and whole modules that the adapter trains: they are carried over as they are.
fn whole_tensors(base: &mut Base, attached: &Attached) -> Result<Vec<(String, Tensor)>> {
    let mut names = Vec::new();
    base.model.parts(&mut |part| {
        let path = match &part {
            Part::Linear(linear) | Part::Head(linear) => linear.path(),
            Part::Embedding(embedding) => embedding.path(),
            Part::Norm(norm) => norm.path(),
        };
        for name in ["weight", "bias", "base_layer.bias"] {
            names.push(format!("{path}.{name}"));
        }
    });
    let params = attached.params.iter();
    let whole = params.filter(|param| names.iter().any(|name| name == param.name()));
    whole
        .map(|param| Ok((param.name().to_owned(), param.value())))
        .collect()
}
