//! Target matching: every specification of `targets.json` selects the modules, ranks and scales that PEFT selects.
#![expect(
    clippy::unwrap_used,
    reason = "a golden file that cannot be read fails the test"
)]

use candle_core::{DType, Device, Tensor};
use lowrank::adapter::{
    AdapterConfig, Ask, Batch, Error, KvCache, Linear, Model, Norm, Part, Pass, Result, Source,
    Start, attach,
};
use lowrank_frozen::FrozenLinear;
use lowrank_tests::golden::{folder, read_json};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Deserialize)]
struct Golden {
    models: BTreeMap<String, Modules>,
    specs: Vec<Specification>,
}

#[derive(Deserialize)]
struct Modules {
    linear: Vec<String>,
    others: Vec<String>,
}

#[derive(Deserialize)]
struct Specification {
    name: String,
    model: String,
    config: Map<String, Value>,
    #[serde(default)]
    adapted: Vec<Adapted>,
    #[serde(default)]
    saved: Vec<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Adapted {
    path: String,
    rank: usize,
    scale: f64,
}

/// Modules with the paths of the golden file; nothing runs.
struct Named {
    linears: Vec<Linear>,
    head: Option<Linear>,
    norms: Vec<Norm>,
}

impl Named {
    fn new(modules: &Modules, has_head: bool) -> Self {
        let weight = Tensor::ones((16, 12), DType::F32, &Device::Cpu).unwrap();
        let linear =
            |path: &String| Linear::new(path, FrozenLinear::new(weight.clone(), None).unwrap());
        let is_head = |path: &&String| has_head && path.as_str() == "lm_head";
        let scale = Tensor::ones(12, DType::F32, &Device::Cpu).unwrap();
        Self {
            linears: modules
                .linear
                .iter()
                .filter(|path| !is_head(path))
                .map(linear)
                .collect(),
            head: modules.linear.iter().find(is_head).map(linear),
            norms: modules
                .others
                .iter()
                .filter(|path| path.ends_with("norm"))
                .map(|path| Norm::rms(path, scale.clone(), 1e-5))
                .collect(),
        }
    }
}

impl Model for Named {
    fn model_type(&self) -> &str {
        "llama"
    }

    fn parts(&mut self, visit: &mut dyn FnMut(Part<'_>)) {
        self.linears
            .iter_mut()
            .for_each(|linear| visit(Part::Linear(linear)));
        self.head
            .iter_mut()
            .for_each(|head| visit(Part::Head(head)));
        self.norms
            .iter_mut()
            .for_each(|norm| visit(Part::Norm(norm)));
    }

    fn embed(&self, _: &Batch, _: &mut Pass) -> Result<Tensor> {
        Err(Error::Other("nothing runs".into()))
    }

    fn blocks(&self) -> usize {
        0
    }

    fn block(
        &self,
        _: usize,
        h: &Tensor,
        _: &Batch,
        _: Option<&mut KvCache>,
        _: &mut Pass,
    ) -> Result<Tensor> {
        Ok(h.clone())
    }

    fn head(&self, h: &Tensor, _: &Batch, _: &Ask, _: &mut Pass) -> Result<Tensor> {
        Ok(h.clone())
    }
}

fn check(golden: &Golden, specification: &Specification) {
    let Specification {
        name,
        model,
        config,
        ..
    } = specification;
    let mut model = Named::new(&golden.models[model], model == "plain");
    let family = lowrank::registry::by_name("lora").unwrap();
    let attached = AdapterConfig::parse(family, config, Source::AdapterFolder)
        .and_then(|config| attach(&mut model, "default", &config, Start::Seed(7)));
    let attached = match (attached, &specification.error) {
        (Err(_), Some(_)) => return,
        (Err(error), None) => panic!("{name}: {error}"),
        (Ok(attached), Some(_)) => panic!("{name}: PEFT refuses, we adapt {:?}", attached.sites),
        (Ok(attached), None) => attached,
    };

    let mut ours = BTreeMap::new();
    model.parts(&mut |part| {
        if let Part::Linear(linear) | Part::Head(linear) = part
            && let Some(adapter) = linear.adapter("default")
        {
            let update = adapter.low_rank().unwrap().unwrap();
            ours.insert(linear.path().to_owned(), (update.a.dims()[0], update.scale));
        }
    });
    let theirs: BTreeMap<String, (usize, f64)> = specification
        .adapted
        .iter()
        .map(|site| (site.path.clone(), (site.rank, site.scale)))
        .collect();
    let (our_paths, their_paths): (Vec<_>, Vec<_>) =
        (ours.keys().collect(), theirs.keys().collect());
    assert_eq!(our_paths, their_paths, "{name}");
    for (path, (rank, scale)) in &ours {
        let (their_rank, their_scale) = theirs[path];
        assert_eq!(*rank, their_rank, "{name}: {path}");
        assert!(
            (scale - their_scale).abs() < 1e-12,
            "{name}: {path} is scaled by {scale}, not {their_scale}"
        );
    }

    let whole = attached
        .params
        .iter()
        .map(|param| param.name())
        .filter(|name| !name.contains("lora_"));
    let whole: BTreeSet<String> = whole
        .map(|name| name.trim_end_matches(".weight").to_owned())
        .collect();
    assert_eq!(
        whole,
        specification.saved.iter().cloned().collect(),
        "{name}"
    );
}

#[test]
fn every_specification_selects_what_peft_selects() {
    let golden: Golden = read_json(&folder().join("targets.json")).unwrap();
    assert_eq!(golden.specs.len(), 40);
    golden
        .specs
        .iter()
        .for_each(|specification| check(&golden, specification));
}
