//! Attaching an adapter to a model: choosing sites, declaring tensors, reading saved ones.

use crate::attached::{Attached, Pair};
use crate::config::{AdapterConfig, BiasMode};
use crate::family::Attachment;
use crate::gate::{GATE, GateId, RankGate};
use crate::linear::{Linear, Weight};
use crate::model::{Model, Part};
use crate::pass::Chain;
use crate::site::{Site, SiteId};
use crate::spec::{Init, Spec};
use crate::target::{Matcher, Pattern, Targets, default_targets, is_saved};
use crate::{Error, Result};
use candle_core::{DType, Device, Tensor};
use lowrank_frozen::FrozenLinear;
use lowrank_ops::rng::{Key, Purpose};
use lowrank_ops::{Kind, Param, ParamInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where initial values come from.
#[derive(Debug, Clone)]
pub enum Start {
    /// Drawn as declared, keyed by this seed.
    Seed(u64),
    /// Read: every declared tensor must be there, and every tensor must be declared.
    Saved {
        /// By name, without `base_model.model.`.
        tensors: BTreeMap<String, Tensor>,
        /// Keys what files do not hold: scratch tensors, and what gates draw later.
        seed: u64,
    },
}

/// What a family is given: the sites, and the means to declare tensors.
#[derive(Debug)]
pub struct Attach<'a> {
    owner: Arc<str>,
    sites: &'a [Site],
    dtype: DType,
    device: Device,
    seed: u64,
    saved: Option<BTreeMap<String, Tensor>>,
    params: Vec<Param>,
    inits: Vec<Init>,
    chains: usize,
    gates: Vec<RankGate>,
    pairs: Vec<Pair>,
}

impl Attach<'_> {
    /// The targeted layers, in the order of the forward pass.
    pub fn site_ids(&self) -> impl Iterator<Item = SiteId> + use<> {
        (0..self.sites.len()).map(SiteId)
    }

    /// A targeted layer: path, layer, role, dims, base.
    #[must_use]
    pub fn site(&self, site: SiteId) -> &Site {
        &self.sites[site.0]
    }

    /// Warns of expressions of a pattern that match none of the sites; `key` is what the pattern is called.
    ///
    /// # Errors
    /// If an expression is malformed.
    pub fn warn_of_unused<T: Copy>(&self, key: &str, pattern: &Pattern<T>) -> Result<()> {
        let paths = self.sites.iter().map(|site| site.path.as_str());
        pattern.warn_of_unused(key, paths)
    }

    /// Refuses a rank that the site's matrix cannot have. Files may hold more: conversions double ranks.
    ///
    /// # Errors
    /// [`Error::RankTooLarge`], if the adapter is new.
    pub fn check_rank(&self, site: SiteId, rank: usize) -> Result<()> {
        let (n_out, n_in) = self.sites[site.0].dims();
        if rank > n_out.min(n_in) && !self.loads() {
            return Err(Error::RankTooLarge { rank, n_out, n_in });
        }
        Ok(())
    }

    /// True if trained and saved tensors are read, so that how they would start does not matter.
    #[must_use]
    pub const fn loads(&self) -> bool {
        self.saved.is_some()
    }

    /// Keys what is drawn for the start of a site, beside what [`Init`] draws.
    #[must_use]
    pub fn key(&self, site: SiteId, what: &str) -> Key {
        let path = &self.sites[site.0].path;
        Key::new(self.seed, Purpose::Init).site(&format!("{path}.{what}"))
    }

    /// Declares a tensor of one site: that trains it, counts it, saves it, loads it and prunes it.
    ///
    /// # Errors
    /// If a saved tensor is missing or has another shape.
    pub fn declare(&mut self, site: SiteId, spec: Spec) -> Result<Param> {
        let name = format!("{}.{}", self.sites[site.0].path, spec.name);
        self.declare_as(name, spec)
    }

    /// Declares a tensor of all sites together.
    ///
    /// # Errors
    /// As [`declare`](Self::declare).
    pub fn shared(&mut self, spec: Spec) -> Result<Param> {
        self.declare_as(spec.name.clone(), spec)
    }

    /// A mask over the ranks of a site, shared with the controller. It prunes and revives those tensors of the site
    /// that were declared with a rank axis before it.
    ///
    /// # Errors
    /// If the mask cannot be declared.
    pub fn gate(&mut self, site: SiteId, rank: usize) -> Result<RankGate> {
        let prefix = format!("{}.", self.sites[site.0].path);
        let index = self.gates.len();
        let spec = Spec::new(format!("{}{index}", GATE.trim_start_matches('.')), rank)
            .init(Init::Ones)
            .kind(Kind::Scratch);
        let mask = self.declare(site, spec)?;
        let id = GateId {
            owner: Arc::clone(&self.owner),
            index,
        };
        let gated = self.params.iter().zip(&self.inits);
        let gated = gated
            .filter(|(param, _)| {
                param.info().rank_axis.is_some() && param.name().starts_with(&prefix)
            })
            .map(|(param, init)| (param.clone(), init.clone()))
            .collect();
        let gate = RankGate {
            id,
            mask,
            gated,
            key: Key::new(self.seed, Purpose::Revive),
        };
        self.gates.push(gate.clone());
        Ok(gate)
    }

    /// Says that a layer's weight differs from a constant by `scale` b a, and by nothing else that trains: what optimisers
    /// that treat the two together may take. `a` is `[r, n_in]`, `b` `[n_out, r]`.
    pub fn pair(&mut self, a: &Param, b: &Param, scale: f64) {
        self.pairs.push(Pair {
            a: a.clone(),
            b: b.clone(),
            scale,
        });
    }

    /// A slot for what one layer leaves to the next.
    pub fn chain(&mut self) -> Chain {
        self.chains += 1;
        Chain {
            owner: Arc::clone(&self.owner),
            index: self.chains - 1,
        }
    }

    fn declare_as(&mut self, name: String, spec: Spec) -> Result<Param> {
        let dtype = spec.dtype.unwrap_or(self.dtype);
        let value = match &mut self.saved {
            Some(saved) if spec.kind != Kind::Scratch => {
                let value = saved
                    .remove(&name)
                    .ok_or_else(|| Error::MissingTensor { name: name.clone() })?;
                if value.shape() != &spec.shape {
                    return Err(Error::TensorShape {
                        name,
                        got: value.dims().to_vec(),
                        expected: spec.shape.dims().to_vec(),
                    });
                }
                // Numbers are converted, integers would wrap.
                let fits = match dtype.is_float() {
                    true => value.dtype().is_float(),
                    false => value.dtype() == dtype,
                };
                if !fits {
                    return Err(Error::TensorType {
                        name,
                        got: value.dtype().as_str(),
                        expected: dtype.as_str(),
                    });
                }
                value.to_dtype(dtype)?
            }
            _ => spec.init.draw(
                &spec.shape,
                Key::new(self.seed, Purpose::Init).site(&name),
                dtype,
            )?,
        };
        let info = ParamInfo {
            owner: Arc::clone(&self.owner),
            index: self.params.len(),
            name,
            kind: spec.kind,
            group: spec.group,
            rank_axis: spec.rank_axis,
            decay: spec.decay,
            learning_rate: spec.learning_rate,
        };
        let param = Param::new(info, &value.to_device(&self.device)?)?;
        self.params.push(param.clone());
        self.inits.push(spec.init);
        Ok(param)
    }

    /// A parameter that starts as a copy of a base tensor and trains in its place.
    fn declare_copy(&mut self, name: String, base: &Tensor) -> Result<Param> {
        self.declare_as(
            name.clone(),
            Spec::new(name, base.shape().clone()).init(Init::Value(base.clone())),
        )
    }
}

/// Attaches an adapter under `name`. Nothing is attached if it fails.
///
/// # Errors
/// If nothing matches the targets, the configuration does not fit, or a saved tensor is missing, unused or misshapen.
pub fn attach(
    model: &mut dyn Model,
    name: &str,
    config: &AdapterConfig,
    start: Start,
) -> Result<Attached> {
    check_name(model, name)?;
    let mut config = config.clone();
    let matcher = resolve_targets(model, &mut config)?;
    let sites = find_sites(model, &matcher)?;
    let dtype = sites[0].base.dtype();
    let (seed, saved) = match start {
        Start::Seed(seed) => (seed, None),
        Start::Saved { tensors, seed } => (seed, Some(tensors)),
    };
    let mut cx = Attach {
        owner: name.into(),
        sites: &sites,
        dtype,
        device: sites[0].base.device(),
        seed,
        saved,
        params: Vec::new(),
        inits: Vec::new(),
        chains: 0,
        gates: Vec::new(),
        pairs: Vec::new(),
    };
    let Attachment {
        adapters,
        controller,
    } = config.family.attach(&config.own, &mut cx)?;
    if adapters.len() != sites.len() {
        let what = format!(
            "{} made {} adapters for {} sites",
            config.family.name(),
            adapters.len(),
            sites.len()
        );
        return Err(Error::Other(what));
    }
    let paths: BTreeSet<&str> = sites.iter().map(|site| site.path.as_str()).collect();
    let replaced = declare_replacements(model, &config, &paths, &mut cx)?;
    if let Some(unused) = cx.saved.iter().flatten().map(|(name, _)| name).next() {
        let targets = format!("{} modules by {}", sites.len(), matcher.described());
        return Err(Error::UnusedTensor {
            name: unused.clone(),
            targets,
        });
    }
    let Attach {
        owner,
        params,
        gates,
        pairs,
        ..
    } = cx;

    // Everything that can fail has happened.
    let mut adapters = adapters.into_iter();
    model.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part {
            if paths.contains(linear.path()) {
                let adapter = adapters
                    .next()
                    .expect("one adapter a site, in the order of the parts");
                linear.attach(&owner, adapter);
            }
            if let Some(weight) = replaced.get(&format!("{}.weight", linear.path())) {
                linear.train_weight(weight.clone());
            }
            if let Some(bias) = replaced.get(&format!("{}.bias", linear.path())) {
                linear.train_bias(bias.clone());
            }
        } else {
            for weight in weights_of(part) {
                if let Some(param) = replaced.get(weight.name()) {
                    weight.train(param.clone());
                }
            }
        }
    });
    let sites = sites.into_iter().map(|site| site.path).collect();
    Ok(Attached {
        name: owner,
        config,
        params,
        sites,
        gates,
        pairs,
        controller,
    })
}

/// Removes an adapter; the model is then what it was before.
pub fn detach(model: &mut dyn Model, name: &str) {
    model.parts(&mut |part| match part {
        Part::Linear(linear) | Part::Head(linear) => linear.remove(name),
        part => weights_of(part)
            .into_iter()
            .for_each(|weight| weight.remove(name)),
    });
}

/// Makes every weight of the model a parameter, in place (`family = "full"`): the base is held once, and a tied head
/// stays tied. Select `name` to train it.
///
/// # Errors
/// If a weight cannot be trained in the form it is stored in.
pub fn train_all(model: &mut dyn Model, name: &str) -> Result<Vec<Param>> {
    check_name(model, name)?;
    let owner: Arc<str> = name.into();
    let mut params: Vec<Param> = Vec::new();
    let mut declare = |key: String, value: &Tensor| -> Result<Param> {
        if let Some(param) = params.iter().find(|param| param.name() == key) {
            return Ok(param.clone());
        }
        let info = ParamInfo {
            owner: Arc::clone(&owner),
            index: params.len(),
            name: key,
            kind: Kind::Trained,
            group: "default",
            rank_axis: None,
            decay: true,
            learning_rate: None,
        };
        let param = Param::new(info, value)?;
        params.push(param.clone());
        Ok(param)
    };
    let mut failed = None;
    model.parts(&mut |part| {
        let visit = || -> Result<()> {
            match part {
                Part::Linear(linear) | Part::Head(linear) => {
                    let home = linear.tied_to().unwrap_or(linear.path());
                    let weight = declare(format!("{home}.weight"), &linear.base().weight()?)?;
                    let bias = linear.base().bias().cloned();
                    let bias = bias
                        .map(|bias| declare(format!("{}.bias", linear.path()), &bias))
                        .transpose()?;
                    linear.train_base(weight, bias)
                }
                part => weights_of(part).into_iter().try_for_each(|weight| {
                    let base = weight.base()?;
                    weight.train_base(declare(weight.name().to_owned(), &base)?);
                    Ok(())
                }),
            }
        };
        if failed.is_none() {
            failed = visit().err();
        }
    });
    failed.map_or(Ok(params), Err)
}

fn weights_of(part: Part<'_>) -> Vec<&mut Weight> {
    match part {
        Part::Linear(_) | Part::Head(_) => Vec::new(),
        Part::Embedding(embedding) => vec![&mut embedding.weight],
        Part::Norm(norm) => std::iter::once(&mut norm.weight)
            .chain(&mut norm.bias)
            .collect(),
    }
}

/// PEFT looks tensors up by names that contain the adapter's: a dot or a slash, or a name inside a tensor prefix,
/// would make files that cannot be read back.
fn check_name(model: &mut dyn Model, name: &str) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::Adapter {
            name: name.to_owned(),
            what: what.to_owned(),
        })
    };
    if name.is_empty() || name.contains(['.', '/']) {
        return refuse("a name must not be empty or contain `.` or `/`");
    }
    if ["lora_", "hada_", "lokr_", "vera_lambda_", "ia3_"]
        .iter()
        .any(|prefix| prefix.contains(name))
    {
        return refuse("this name is part of a tensor prefix; choose another");
    }
    let mut taken = false;
    model.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part {
            taken |= linear.adapter(name).is_some();
        }
    });
    if taken {
        refuse("an adapter of that name is attached already")
    } else {
        Ok(())
    }
}

/// Replaces "all-linear" and an absent `target_modules` by a list; this list is what is saved.
fn resolve_targets(model: &mut dyn Model, config: &mut AdapterConfig) -> Result<Matcher> {
    let targets = match &config.common.target_modules {
        Some(targets) if targets.is_all_linear() => {
            // PEFT refuses layers beside any string, this word among them.
            config.common.matcher(targets)?;
            Targets::List(all_linear(model))
        }
        Some(targets) => targets.clone(),
        None => match default_targets(model.model_type()) {
            Some(names) => Targets::List(names.iter().map(|&name| name.to_owned()).collect()),
            None => {
                return Err(Error::config(format!(
                    "`target_modules` is absent and PEFT has no default for model type `{}`; give a list of names or \
                     \"all-linear\"",
                    model.model_type()
                )));
            }
        },
    };
    if let Targets::List(list) = &targets
        && list.is_empty()
    {
        return Err(Error::config("`target_modules` is an empty list"));
    }
    let matcher = config.common.matcher(&targets)?;
    config.common.target_modules = Some(targets);
    Ok(matcher)
}

/// The names of every linear layer but the head: last components where they tell the head apart, else full paths.
fn all_linear(model: &mut dyn Model) -> Vec<String> {
    let (mut paths, mut heads) = (Vec::new(), BTreeSet::new());
    model.parts(&mut |part| match part {
        Part::Linear(linear) => paths.push(linear.path().to_owned()),
        Part::Head(linear) => drop(heads.insert(last(linear.path()).to_owned())),
        Part::Embedding(_) | Part::Norm(_) => {}
    });
    let names: BTreeSet<String> = paths
        .into_iter()
        .map(|path| {
            if heads.contains(last(&path)) {
                path
            } else {
                last(&path).to_owned()
            }
        })
        .collect();
    names.into_iter().collect()
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn find_sites(model: &mut dyn Model, matcher: &Matcher) -> Result<Vec<Site>> {
    let mut sites: Vec<Site> = Vec::new();
    let mut known = BTreeSet::new();
    // Of the modules that are left out again.
    let mut named = 0;
    let mut embeddings: Vec<String> = Vec::new();
    let mut failed = None;
    model.parts(&mut |part| {
        let (path, base) = match part {
            Part::Linear(linear) | Part::Head(linear) => {
                (linear.path().to_owned(), Some(linear.base().clone()))
            }
            Part::Embedding(embedding) => (embedding.path().to_owned(), None),
            Part::Norm(_) => return,
        };
        match (matcher.matches(&path), base) {
            (Ok(true), Some(base)) => sites.push(Site::new(SiteId(sites.len()), &path, base)),
            (Ok(true), None) => embeddings.push(path),
            (Ok(false), Some(_)) => {
                named += usize::from(matcher.names(&path).is_ok_and(|named| named));
                known.insert(last(&path).to_owned());
            }
            (Ok(false), None) => {}
            (Err(error), _) => failed = Some(error),
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if let Some(path) = embeddings.first() {
        return Err(Error::NotYet {
            key: "target_modules".into(),
            value: format!(
                "{} (it matches the embedding `{path}`)",
                matcher.described()
            ),
            only: None,
        });
    }
    if sites.is_empty() {
        let what = format!("target_modules = {}", matcher.described());
        if named > 0 {
            return Err(Error::config(format!(
                "{what} names {named} modules, and `exclude_modules`, `modules_to_save` and `layers_to_transform` leave \
                 none of them"
            )));
        }
        return Err(Error::NoTarget {
            what,
            known: known.into_iter().collect(),
        });
    }
    Ok(sites)
}

/// Declares what trains in place of base tensors: `modules_to_save`, and biases. Keyed by the checkpoint's names.
fn declare_replacements(
    model: &mut dyn Model,
    config: &AdapterConfig,
    targeted: &BTreeSet<&str>,
    cx: &mut Attach<'_>,
) -> Result<BTreeMap<String, Param>> {
    let saved = config.common.modules_to_save();
    if saved.iter().any(String::is_empty) {
        return Err(Error::config(
            "`modules_to_save` has an empty name, which would match every module",
        ));
    }
    let mode = config.common.bias_mode()?;
    let mut replaced = BTreeMap::new();
    let mut matched: BTreeSet<&str> = BTreeSet::new();
    let mut failed = None;
    model.parts(&mut |part| {
        let visit = || -> Result<()> {
            match &part {
                Part::Linear(linear) | Part::Head(linear) => {
                    linear_replacements(linear, saved, &mode, targeted, cx, &mut replaced)?;
                    note_matches(linear.path(), saved, &mut matched);
                }
                Part::Embedding(embedding) => note_matches(embedding.path(), saved, &mut matched),
                Part::Norm(norm) => note_matches(norm.path(), saved, &mut matched),
            }
            for weight in weights_of(part) {
                let path = weight.name().rsplit_once('.').map_or("", |(path, _)| path);
                let bias = weight.name().ends_with(".bias") && mode == BiasMode::All;
                if is_saved(path, saved) || bias {
                    let name = weight.name().to_owned();
                    replaced.insert(name.clone(), cx.declare_copy(name, &weight.base()?)?);
                }
            }
            Ok(())
        };
        if failed.is_none() {
            failed = visit().err();
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let unused =
        |entry: &&String| !matched.contains(entry.as_str()) && !config.common.may_be_absent(entry);
    match saved.iter().find(unused) {
        Some(entry) => {
            let mut known = BTreeSet::new();
            model.parts(&mut |part| {
                known.insert(match part {
                    Part::Linear(linear) | Part::Head(linear) => last(linear.path()).to_owned(),
                    Part::Embedding(embedding) => last(embedding.path()).to_owned(),
                    Part::Norm(norm) => last(norm.path()).to_owned(),
                });
            });
            let what = format!("modules_to_save = [\"{entry}\"]");
            Err(Error::NoTarget {
                what,
                known: known.into_iter().collect(),
            })
        }
        None => Ok(replaced),
    }
}

/// PEFT stores the whole base weight of a targeted embedding or head beside the adapter. It must be this base's.
fn check_stored_base(path: &str, base: &FrozenLinear, cx: &mut Attach<'_>) -> Result<()> {
    let name = format!("{path}.base_layer.weight");
    let Some(stored) = cx.saved.as_mut().and_then(|saved| saved.remove(&name)) else {
        return Ok(());
    };
    let weight = base.weight()?;
    if stored.shape() != weight.shape() {
        return Err(Error::TensorShape {
            name,
            got: stored.dims().to_vec(),
            expected: weight.dims().to_vec(),
        });
    }
    let stored = stored.to_device(weight.device())?;
    let square = (stored.to_dtype(weight.dtype())? - &weight)?
        .sqr()?
        .sum_all()?;
    if square.to_dtype(DType::F64)?.to_scalar::<f64>()? > 0.0 {
        return Err(Error::Other(format!(
            "tensor `{name}` of the adapter differs from this base model's weight: the adapter belongs to another base"
        )));
    }
    Ok(())
}

/// With `bias = "all"` PEFT stores the biases of whole modules several times over; the plain name counts.
fn forget_copies(path: &str, cx: &mut Attach<'_>) {
    let Some(saved) = &mut cx.saved else { return };
    saved.remove(&format!("{path}.original_module.bias"));
    if let Some(copy) = saved.remove(&format!("{path}.modules_to_save.bias")) {
        saved.entry(format!("{path}.bias")).or_insert(copy);
    }
}

fn note_matches<'a>(path: &str, saved: &'a [String], matched: &mut BTreeSet<&'a str>) {
    matched.extend(
        saved
            .iter()
            .filter(|entry| is_saved(path, std::slice::from_ref(entry)))
            .map(String::as_str),
    );
}

fn linear_replacements(
    linear: &Linear,
    saved: &[String],
    mode: &BiasMode,
    targeted: &BTreeSet<&str>,
    cx: &mut Attach<'_>,
    replaced: &mut BTreeMap<String, Param>,
) -> Result<()> {
    let path = linear.path();
    let base: &FrozenLinear = linear.base();
    let is_target = targeted.contains(path);
    let whole = is_saved(path, saved);
    if whole && is_target {
        return Err(Error::config(format!(
            "`modules_to_save = {saved:?}` covers `{path}`, which `target_modules` targets; a module is either adapted or trained whole"
        )));
    }
    if is_target {
        check_stored_base(path, base, cx)?;
    }
    forget_copies(path, cx);
    if whole {
        // A tied head trained this way is untied: its own copy is saved, and the embedding stays.
        let key = format!("{path}.weight");
        replaced.insert(key.clone(), cx.declare_copy(key, &base.weight()?)?);
    }
    let trains_bias = whole || *mode == BiasMode::All || (*mode == BiasMode::Targeted && is_target);
    if let (Some(bias), true) = (base.bias(), trains_bias) {
        let key = format!("{path}.bias");
        // PEFT wraps a targeted module, so that its own bias lies one level down. Older files lack that level.
        let mut name = key.clone();
        if is_target {
            name = format!("{path}.base_layer.bias");
            if let Some(saved) = &mut cx.saved
                && let Some(value) = saved.remove(&key)
            {
                saved.insert(name.clone(), value);
            }
        }
        replaced.insert(key, cx.declare_copy(name, bias)?);
    }
    Ok(())
}
