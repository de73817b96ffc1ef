//! What an adapter or a model is, without running it.

use crate::base::{embedded_config, is_gguf};
use crate::{Error, Result};
use candle_core::Tensor;
use lowrank_adapter::target::Targets;
use lowrank_adapter::{
    AdapterConfig, Ask, Attached, Batch, KvCache, Linear, Model, Part, Pass, ResidualBase, Source,
    Start, attach,
};
use lowrank_format::{CONFIG_FILE, Checkpoint, Gguf, PeftFolder, Safetensors, read_json_object};
use lowrank_frozen::{FrozenLinear, Weights};
use lowrank_models::Embedded;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// What [`inspect`] found; keys as the binary prints them.
#[derive(Debug, Serialize)]
pub struct Inspection {
    /// `adapter` or `model`.
    pub kind: &'static str,
    /// The family's name, or the model type.
    pub family: String,
    /// The tag in the adapter's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peft_type: Option<String>,
    /// The configuration as it stands.
    pub config: Map<String, Value>,
    /// Trained scalars, for an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trainable_parameters: Option<usize>,
    /// Scalars in the file.
    pub file_parameters: usize,
    /// Where the base model was, for an adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// One entry a targeted module.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteSummary>,
    /// Every tensor.
    pub tensors: Vec<TensorSummary>,
}

/// What an adapter does to one module.
#[derive(Debug, Serialize)]
pub struct SiteSummary {
    /// The module's path.
    pub site: String,
    /// The rank of its update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// The factor of its update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The Frobenius norm of its update.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta_norm: Option<f64>,
}

/// A tensor's name, dtype and shape.
#[derive(Debug, Serialize)]
pub struct TensorSummary {
    /// The key in the file, for an adapter without `base_model.model.`.
    pub name: String,
    /// What its numbers are stored as: `f32`, `bf16`, `q4_1`.
    pub dtype: &'static str,
    /// The shape.
    pub shape: Vec<usize>,
}

/// Says what the folder or GGUF file at `path` is, or the embedded model of that name.
///
/// # Errors
/// If it is neither an adapter nor a model, or is damaged.
pub fn inspect(path: &Path) -> Result<Inspection> {
    if let Some(model) = path.to_str().and_then(Embedded::named) {
        let file = Safetensors::embedded(model.weights, model.name)?;
        inspect_model(&file, embedded_config(model))
    } else if is_gguf(path) {
        let gguf = Gguf::open(path)?;
        inspect_model(&gguf, gguf.config().clone())
    } else if path.join(CONFIG_FILE).exists() || !path.join("config.json").exists() {
        inspect_adapter(path)
    } else {
        let checkpoint = Checkpoint::open(path)?;
        inspect_model(&checkpoint, read_json_object(&path.join("config.json"))?)
    }
}

fn inspect_model(weights: &dyn Weights, config: Map<String, Value>) -> Result<Inspection> {
    let mut tensors = Vec::new();
    for name in weights.names() {
        let Some(info) = weights.info(name) else {
            // Reading it says why it cannot be.
            weights.tensor(name)?;
            continue;
        };
        tensors.push(TensorSummary {
            name: name.to_owned(),
            dtype: info.encoding.name(),
            shape: info.shape,
        });
    }
    let model_type = config.get("model_type").and_then(Value::as_str);
    Ok(Inspection {
        kind: "model",
        family: model_type.unwrap_or("unknown").to_owned(),
        peft_type: None,
        trainable_parameters: None,
        file_parameters: count(&tensors),
        base: None,
        sites: Vec::new(),
        config,
        tensors,
    })
}

fn inspect_adapter(path: &Path) -> Result<Inspection> {
    let files = PeftFolder::read(path)?;
    let in_config = Error::within(path.join(CONFIG_FILE));
    let family = lowrank_registry::by_peft_type(&files.peft_type).map_err(&in_config)?;
    // Whatever the base was, the file's own tensors are what is described.
    let config = AdapterConfig::parse(family, &files.config, Source::AdapterFolder)
        .and_then(|config| config.read_as(Some(ResidualBase::Residual)))
        .map_err(&in_config)?;
    let tensors: Vec<TensorSummary> = files
        .tensors
        .iter()
        .map(|(name, tensor)| TensorSummary {
            name: name.clone(),
            dtype: tensor.dtype().as_str(),
            shape: tensor.dims().to_vec(),
        })
        .collect();
    // Integers are indices, which nothing trains.
    let trained = files.tensors.values().filter(|t| t.dtype().is_float());
    let trained = trained.map(Tensor::elem_count).sum();
    let sites = summarise_sites(&config, files.tensors).map_err(Error::within(path))?;
    Ok(Inspection {
        kind: "adapter",
        family: family.name().to_owned(),
        peft_type: Some(files.peft_type),
        trainable_parameters: Some(trained),
        file_parameters: count(&tensors),
        base: config.common.base_model_name_or_path.clone(),
        config: files.config,
        sites,
        tensors,
    })
}

fn count(tensors: &[TensorSummary]) -> usize {
    let elements = |tensor: &TensorSummary| tensor.shape.iter().product::<usize>();
    tensors.iter().map(elements).sum()
}

/// Attaches the adapter to a model of which only the targeted shapes are known, and asks each site for its update.
fn summarise_sites(
    config: &AdapterConfig,
    mut tensors: BTreeMap<String, Tensor>,
) -> lowrank_adapter::Result<Vec<SiteSummary>> {
    let shape = |(name, tensor): (&String, &Tensor)| (name.clone(), tensor.dims().to_vec());
    let shapes = tensors.iter().map(shape).collect();
    let dims = config.family.sites(&shapes);
    if dims.is_empty() {
        return Ok(Vec::new());
    }
    let mut outline = Outline::new(&dims);
    let mut config = config.clone();
    config.common.target_modules = Some(Targets::List(dims.keys().cloned().collect()));
    config.common.exclude_modules = None;
    config.common.layers_to_transform = None;
    config.common.layers_pattern = None;
    config.common.modules_to_save = None;
    "none".clone_into(&mut config.common.bias);
    // Biases and whole modules belong to the base's own shapes, which are not known here.
    let belongs = |name: &String| {
        dims.keys()
            .any(|path| is_in(name, path) && !is_base(name, path))
    };
    tensors.retain(|name, _| belongs(name));
    let Attached { name, sites, .. } = attach(
        &mut outline,
        "inspected",
        &config,
        Start::Saved { tensors, seed: 0 },
    )?;
    let mut summaries = Vec::new();
    for linear in &outline.linears {
        let low_rank = match linear.adapter(&name) {
            Some(adapter) => adapter.low_rank()?,
            None => None,
        };
        summaries.push(SiteSummary {
            site: linear.path().to_owned(),
            rank: low_rank.as_ref().map(|update| update.a.dims()[0]),
            scale: low_rank.as_ref().map(|update| update.scale),
            delta_norm: low_rank.map(|update| update.norm()).transpose()?,
        });
    }
    debug_assert_eq!(summaries.len(), sites.len());
    Ok(summaries)
}

fn is_in(name: &str, path: &str) -> bool {
    name.strip_prefix(path)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn is_base(name: &str, path: &str) -> bool {
    let rest = &name[path.len()..];
    matches!(rest, ".weight" | ".bias" | ".base_layer.bias")
}

/// A model of linear layers without weights.
struct Outline {
    linears: Vec<Linear>,
}

impl Outline {
    fn new(dims: &BTreeMap<String, (usize, usize)>) -> Self {
        let linear = |(path, &(n_out, n_in)): (&String, &(usize, usize))| {
            Linear::new(path, FrozenLinear::absent(n_out, n_in))
        };
        let mut order: Vec<(&String, &(usize, usize))> = dims.iter().collect();
        order.sort_by_cached_key(|(path, _)| natural(path));
        Self {
            linears: order.into_iter().map(linear).collect(),
        }
    }
}

/// Sorts layer 2 before layer 10: methods may join a layer to the one before it.
fn natural(path: &str) -> Vec<(usize, &str)> {
    let parts = path.split('.');
    parts
        .map(|part| (part.parse().unwrap_or(usize::MAX), part))
        .collect()
}

fn no_weights() -> lowrank_adapter::Error {
    lowrank_adapter::Error::Other("a model that is only inspected has no weights to run".into())
}

impl Model for Outline {
    fn model_type(&self) -> &str {
        "outline"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        for linear in &mut self.linears {
            visit(Part::Linear(linear));
        }
    }

    fn embed(&self, _: &Batch, _: &mut Pass) -> lowrank_adapter::Result<Tensor> {
        Err(no_weights())
    }

    fn blocks(&self) -> usize {
        0
    }

    fn block(
        &self,
        _: usize,
        _: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        _: &mut Pass,
    ) -> lowrank_adapter::Result<Tensor> {
        Err(no_weights())
    }

    fn head(
        &self,
        _: &Tensor,
        _: &Batch,
        _: &Ask,
        _: &mut Pass,
    ) -> lowrank_adapter::Result<Tensor> {
        Err(no_weights())
    }
}
