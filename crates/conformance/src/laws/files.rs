//! Laws about what is written, read and drawn.

use crate::case::{Case, NAME, OTHER, SEED, evaluated, randomise, share, tokens, training};
use crate::compare::{Verdict, differs, require, same_bits};
use crate::toy::{Head, Toy};
use candle_core::{DType, Tensor};
use lowrank_adapter::{
    AdapterConfig, Attached, Exported, Kind, Memory, Selection, Source, Start, attach, sweep,
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

type Tensors = BTreeMap<String, Tensor>;

/// Names and values, in order of declaration.
type Declared = Vec<(String, Tensor)>;

pub(crate) fn save_load(case: &Case) -> Verdict {
    let (toy, attached) = case.trained(DType::F32)?;
    let Exported {
        config,
        tensors: exported,
    } = attached.exported()?;
    let saved: Tensors = exported.iter().cloned().collect();
    require(saved.len() == exported.len(), || {
        format!("{} tensors under {} names", exported.len(), saved.len())
    })?;

    let shapes = saved
        .iter()
        .map(|(name, value)| (name.clone(), value.dims().to_vec()));
    let found = case.config.family.sites(&shapes.collect());
    require(
        found
            .keys()
            .eq(attached.sites.iter().collect::<BTreeSet<_>>()),
        || {
            format!(
                "`Family::sites` finds {found:?} in the saved file, the sites are {:?}",
                attached.sites
            )
        },
    )?;

    let mut second = Toy::new(DType::F32, Head::Own)?;
    let loaded = attach(
        &mut second,
        OTHER,
        &config,
        Start::Saved {
            tensors: saved.clone(),
            seed: 5,
        },
    )?;
    same_bits(
        "logits after loading",
        &evaluated(&second, &Selection::one(OTHER))?,
        &evaluated(&toy, &Selection::one(NAME))?,
    )?;
    let Exported {
        config: config_again,
        tensors: again,
    } = loaded.exported()?;
    require(config_again.to_peft() == config.to_peft(), || {
        format!("{config:?} was saved as {config_again:?} the second time")
    })?;
    require(again.len() == exported.len(), || {
        format!(
            "{} tensors were saved, then {}",
            exported.len(),
            again.len()
        )
    })?;
    for ((name, value), (again_name, again)) in exported.iter().zip(&again) {
        require(name == again_name, || {
            format!("`{name}` was saved as `{again_name}` the second time")
        })?;
        same_bits(name, again, value)?;
    }

    let base = evaluated(&Toy::new(DType::F32, Head::Own)?, &Selection::none())?;
    for (name, value) in &saved {
        let mut missing = saved.clone();
        missing.remove(name);
        refused(&attached, &config, missing, "is missing", name)?;
        let mut misshapen = saved.clone();
        misshapen.insert(name.clone(), Tensor::stack(&[value, value], 0)?);
        refused(&attached, &config, misshapen, "of another shape", name)?;
    }
    for name in [
        "stray.weight".to_owned(),
        format!("{}.stray", attached.sites[0]),
    ] {
        let mut extra = saved.clone();
        extra.insert(name.clone(), base.clone());
        refused(&attached, &config, extra, "that nobody declared", &name)?;
    }
    Ok(())
}

/// Loading must fail with the tensor's name and leave the model as it was.
fn refused(
    attached: &Attached,
    saved: &AdapterConfig,
    tensors: Tensors,
    what: &str,
    name: &str,
) -> Verdict {
    let mut toy = Toy::new(DType::F32, Head::Own)?;
    let result = attach(&mut toy, OTHER, saved, Start::Saved { tensors, seed: 5 });
    let Err(error) = result else {
        return require(false, || format!("a tensor {what} was accepted: `{name}`"));
    };
    let message = error.to_string();
    require(message.contains(&format!("`{name}`")), || {
        format!("a tensor {what} (`{name}`) is answered with \"{message}\", which does not name it")
    })?;
    // The name is free again: nothing was attached.
    attach(&mut toy, OTHER, &attached.config, Start::Seed(SEED))?;
    Ok(())
}

pub(crate) fn config_round_trip(case: &Case) -> Verdict {
    let (_, attached) = case.fresh(DType::F32)?;
    let family = case.config.family;
    family.check(&Map::new())?;
    for config in [&case.config, &attached.config] {
        let written = config.to_peft();
        let text = Value::Object(written.clone()).to_string();
        let Ok(Value::Object(keys)) = text.parse() else {
            return require(false, || format!("not an object: {text}"));
        };
        let read = AdapterConfig::parse(family, &keys, Source::AdapterFolder)?;
        let again = Value::Object(read.to_peft()).to_string();
        require(again == text, || format!("{text} was read as {again}"))?;
        require(read.own == config.own, || {
            format!("{:?} became {:?}", config.own, read.own)
        })?;
    }
    for (key, value) in &case.keys {
        let kept = match case.config.own.get(key) {
            Some(kept) => Some(kept.clone()),
            None => case.config.to_peft().get(key).cloned(),
        };
        // 6 and 6.0 are the same number, and different values to serde.
        let number = value.as_f64();
        let same = kept.as_ref() == Some(value)
            || number.is_some() && kept.as_ref().and_then(Value::as_f64) == number;
        require(same, || format!("`{key} = {value}` became {kept:?}"))?;
    }
    for key in family.defaults().keys().filter(|key| key.len() > 3) {
        let misspelt = format!("{key}q");
        let mut keys = case.keys.clone();
        keys.insert(misspelt.clone(), Value::Null);
        let answer = match AdapterConfig::parse(family, &keys, Source::RunFile) {
            Ok(_) => "acceptance".to_owned(),
            Err(error) => error.to_string(),
        };
        let names = answer.contains(&format!("`{misspelt}`"));
        require(
            names && answer.contains(&format!("did you mean `{key}`")),
            || format!("the unknown key `{misspelt}` is answered with {answer}"),
        )?;
    }
    Ok(())
}

pub(crate) fn same_seed(case: &Case) -> Verdict {
    let run = || -> Verdict<_> {
        let (toy, attached) = case.fresh(DType::F32)?;
        let start = start(&attached)?;
        randomise(&attached.params, 1)?;
        let batch = tokens()?;
        let trained = attached.trained();
        let swept = sweep(
            &toy,
            &batch,
            &mut training(),
            &trained,
            share(&batch),
            Memory::Keep,
        )?;
        Ok((start, swept))
    };
    let ((start, swept), (start_again, swept_again)) = (run()?, run()?);
    for ((name, value), (_, again)) in start.iter().zip(&start_again) {
        same_bits(name, again, value)?;
    }
    same_bits("losses", &swept_again.losses, &swept.losses)?;
    for ((param, grad), (_, again)) in swept.grads.iter().zip(swept_again.grads.iter()) {
        same_bits(&format!("the gradient of `{}`", param.name()), again, grad)?;
    }
    Ok(())
}

pub(crate) fn other_seed(case: &Case) -> Verdict {
    let (one, other) = starts(case)?;
    let mut tensors = one.iter().zip(&other);
    let differing = tensors.find(|((name, value), (_, other))| differs(name, other, value).is_ok());
    require(differing.is_some(), || {
        format!("another seed starts all {} tensors alike", one.len())
    })
}

pub(crate) fn no_seed(case: &Case) -> Verdict {
    let (one, other) = starts(case)?;
    one.iter()
        .zip(&other)
        .try_for_each(|((name, value), (_, other))| same_bits(name, other, value))
}

/// The starts under two seeds.
fn starts(case: &Case) -> Verdict<(Declared, Declared)> {
    let (_, one) = case.fresh(DType::F32)?;
    let other = case.attach(&mut Toy::new(DType::F32, Head::Own)?, NAME, SEED + 1)?;
    Ok((start(&one)?, start(&other)?))
}

fn start(attached: &Attached) -> Verdict<Declared> {
    let kept = attached
        .params
        .iter()
        .filter(|param| param.info().kind != Kind::Scratch);
    kept.map(|param| Ok((param.name().to_owned(), param.snapshot()?)))
        .collect()
}
