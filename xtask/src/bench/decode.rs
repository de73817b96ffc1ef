//! Opening, attaching, switching and greedy decoding, measured in this process.

use crate::bench::report::{Line, Measure};
use crate::bench::{count, object, word};
use anyhow::Result;
use lowrank::adapter::{
    AdapterConfig, Ask, Attached, Batch, KvCache, Pass, Selection, Source, Start, Tokens,
    UNSUPERVISED,
};
use lowrank::format::Existing;
use lowrank::models::{Continuation, Limits, Sampling};
use lowrank::training::peak_rss_mb;
use lowrank::{Base, StrictBase, load_adapter, precision, save_adapter};
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

/// Attaches LoRA on all linear layers, with its first values.
fn attach(base: &mut Base, name: &str) -> Result<Attached> {
    let family = lowrank::registry::by_name("lora")?;
    let keys = object([
        ("r", json!(8)),
        ("lora_alpha", json!(16)),
        ("target_modules", json!("all-linear")),
    ]);
    let config = AdapterConfig::parse(family, &keys, Source::RunFile)?;
    Ok(lowrank::adapter::attach(
        base.model.as_mut(),
        name,
        &config,
        Start::Seed(1),
    )?)
}

fn open(root: &Path, request: &Map<String, Value>) -> Result<Base> {
    let source = word(request, "model")?;
    let here = root.join(source);
    let source = if here.exists() {
        here.display().to_string()
    } else {
        source.to_owned()
    };
    Ok(Base::open(&source, precision(word(request, "dtype")?)?)?)
}

fn limits(base: &Base, new: usize) -> Limits {
    Limits {
        max_new_tokens: NonZeroUsize::new(new).unwrap_or(NonZeroUsize::MIN),
        positions: base.info.max_position_embeddings,
        // As many tokens everywhere.
        end_tokens: Vec::new(),
    }
}

/// Measures opening and what follows in this process.
///
/// # Errors
/// If the model cannot be opened.
pub fn load(root: &Path, request: &Map<String, Value>) -> Result<Line> {
    let repeats = count(request, "repeats")?;
    let start = Instant::now();
    let mut base = open(root, request)?;
    let opened = start.elapsed().as_secs_f64();
    let prompt: Vec<u32> = (1..=8).collect();
    let limits = limits(&base, 1);
    Continuation::new(
        base.model.as_ref(),
        Selection::none(),
        &prompt,
        Sampling::GREEDY,
        limits,
    )?
    .next()
    .transpose()?;
    let first = start.elapsed().as_secs_f64();
    // What opening takes; the fingerprint that is written below reads the whole file.
    let peak = peak_rss_mb();
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("adapter");
    let made = attach(&mut base, "made")?;
    save_adapter(&made, &base.fingerprint()?, &path, Existing::Refuse)?;
    let mut attaching = Vec::new();
    for at in 0..repeats.max(2) {
        let start = Instant::now();
        load_adapter(&mut base, &format!("read{at}"), &path, StrictBase::No)?;
        attaching.push(start.elapsed().as_secs_f64());
    }
    let batch = Batch::sequence(&prompt, 0)?;
    let pass = |name: &str| -> Result<f64> {
        let start = Instant::now();
        let mut pass = Pass::evaluation(Selection::one(name));
        lowrank::adapter::run(
            base.model.as_ref(),
            &batch,
            &Ask::Logits(vec![7]),
            None,
            &mut pass,
        )?;
        Ok(start.elapsed().as_secs_f64())
    };
    pass("read0")?;
    pass("read1")?;
    let (mut stayed, mut switched) = (Vec::new(), Vec::new());
    for at in 0..2 * repeats {
        let name = ["read0", "read1"][at % 2];
        switched.push(pass(name)?);
        stayed.push(pass(name)?);
    }
    let mut measures = vec![
        Measure::new("open_seconds", "s", vec![opened]),
        Measure::new("first_token_seconds", "s", vec![first]),
        Measure::new("attach_seconds", "s", attaching),
        Measure::new("pass_seconds", "s", stayed),
        Measure::new("switched_seconds", "s", switched),
    ];
    measures.extend(peak.map(|peak| Measure::new("peak_rss", "MiB", vec![peak])));
    Ok(Line {
        measures,
        ..Line::default()
    })
}

/// Measures greedy decoding in this process.
///
/// # Errors
/// If the model cannot be opened.
pub fn generate(root: &Path, request: &Map<String, Value>) -> Result<Line> {
    let (new, repeats) = (count(request, "new_tokens")?, count(request, "repeats")?);
    let prompt: Vec<Vec<u32>> =
        serde_json::from_value(request.get("prompt").cloned().unwrap_or_default())?;
    let mut base = open(root, request)?;
    let selection = if request.get("adapter") == Some(&Value::Bool(true)) {
        attach(&mut base, "default")?;
        Selection::one("default")
    } else {
        Selection::none()
    };
    let (mut rates, mut firsts, mut ids) = (Vec::new(), Vec::new(), Vec::new());
    // The first time warms up.
    for at in 0..=repeats {
        let start = Instant::now();
        let mut first = None;
        let mut tick = || {
            first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        };
        ids = match prompt.as_slice() {
            [one] => {
                let tokens = Continuation::new(
                    base.model.as_ref(),
                    selection.clone(),
                    one,
                    Sampling::GREEDY,
                    limits(&base, new),
                )?;
                let mut ids = Vec::new();
                for token in tokens {
                    ids.push(token?);
                    tick();
                }
                ids
            }
            rows => several(&base, &selection, rows, new, &mut tick)?,
        };
        let (all, first) = (start.elapsed().as_secs_f64(), first.unwrap_or_default());
        if at > 0 {
            rates.push((prompt.len() * (new - 1)) as f64 / (all - first));
            firsts.push(first);
        }
    }
    let mut measures = vec![
        Measure::new("tokens_per_second", "tokens/s", rates),
        Measure::new("first_token_seconds", "s", firsts),
    ];
    measures.extend(peak_rss_mb().map(|peak| Measure::new("peak_rss", "MiB", vec![peak])));
    Ok(Line {
        axes: Map::new(),
        measures,
        facts: object([("ids", json!(ids))]),
    })
}

/// Continues several sequences of one length at once, and returns the new tokens of the first.
fn several(
    base: &Base,
    selection: &Selection,
    prompt: &[Vec<u32>],
    new: usize,
    tick: &mut dyn FnMut(),
) -> Result<Vec<u32>> {
    let mut cache = KvCache::new();
    let (mut unread, mut first) = (prompt.to_vec(), Vec::new());
    for _ in 0..new {
        let (rows, length) = (unread.len(), unread[0].len());
        let start = cache.len() as u32;
        let tokens = Tokens {
            rows,
            length,
            ids: unread.concat(),
            segments: vec![1; rows * length],
            positions: (0..rows)
                .flat_map(|_| start..start + length as u32)
                .collect(),
        };
        let batch = Batch::new(tokens, vec![UNSUPERVISED; rows * length])?;
        let last = (1..=rows).map(|row| (row * length - 1) as u32).collect();
        let mut pass = Pass::evaluation(selection.clone());
        let logits = lowrank::adapter::run(
            base.model.as_ref(),
            &batch,
            &Ask::Logits(last),
            Some(&mut cache),
            &mut pass,
        )?;
        let chosen = logits.argmax(1)?.to_vec1::<u32>()?;
        first.push(chosen[0]);
        unread = chosen.into_iter().map(|token| vec![token]).collect();
        tick();
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::step::random_tokens;

    fn request(batch: usize, adapter: bool) -> Map<String, Value> {
        object([
            ("model", json!("tiny")),
            ("dtype", json!("f32")),
            ("adapter", json!(adapter)),
            (
                "prompt",
                json!(vec![random_tokens(1536, 1, 7).concat(); batch]),
            ),
            ("new_tokens", json!(5)),
            ("repeats", json!(2)),
        ])
    }

    #[test]
    fn sequences_beside_each_other_are_written_as_one_alone() -> Result<()> {
        let root = crate::root();
        let alone = generate(&root, &request(1, false))?;
        let beside = generate(&root, &request(3, true))?;
        // B is 0: the adapter changes nothing.
        assert_eq!(alone.facts["ids"], beside.facts["ids"]);
        assert_eq!(alone.facts["ids"].as_array().map(Vec::len), Some(5));
        assert_eq!(beside.measures[0].values.len(), 2);
        Ok(())
    }

    #[test]
    fn opening_attaching_and_switching_are_measured() -> Result<()> {
        let request = object([
            ("model", json!("tiny")),
            ("dtype", json!("bf16")),
            ("repeats", json!(2)),
        ]);
        let line = load(&crate::root(), &request)?;
        let value = |name: &str| {
            line.measures
                .iter()
                .find(|m| m.name == name)
                .map(|m| m.values.clone())
        };
        let (open, first) = (
            value("open_seconds").expect("it is"),
            value("first_token_seconds").expect("it is"),
        );
        assert!(0.0 < open[0] && open[0] < first[0]);
        assert_eq!(value("attach_seconds").map(|values| values.len()), Some(2));
        assert_eq!(
            value("switched_seconds").map(|values| values.len()),
            Some(4)
        );
        Ok(())
    }
}
