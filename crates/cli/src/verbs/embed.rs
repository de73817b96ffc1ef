//! `lowrank embed`.

use crate::arguments::EmbedArguments;
use crate::output::print;
use crate::verbs::{attach, check_output};
use anyhow::Result;
use lowrank::data::{Example, Options};
use lowrank::format::{PYTORCH, write_safetensors};
use lowrank::training::peak_rss_mb;
use lowrank::{Base, Error, Scale, device, embed, precision};
use serde::Serialize;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Where rows are cut unless something else is said.
const MAX_LENGTH: NonZeroUsize = NonZeroUsize::new(512).expect("not zero");

#[derive(Serialize)]
struct Report {
    out: PathBuf,
    rows: usize,
    dimensions: usize,
    pooling: &'static str,
    normalized: bool,
    tokens: usize,
    truncated: usize,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_rss_mb: Option<f64>,
}

/// Turns texts into vectors.
pub fn run(arguments: &EmbedArguments) -> Result<ExitCode> {
    let precision = precision(&arguments.dtype)?;
    let inputs = &arguments.data;
    check_output("--out", &arguments.out, &arguments.model, inputs)?;
    if arguments.out.exists() && !arguments.force {
        return Err(Error::Usage(format!(
            "--out {}: the file exists; --force replaces it",
            arguments.out.display()
        ))
        .into());
    }
    let device = device(arguments.device)?;
    let started = Instant::now();
    let adapters = arguments.model.adapters.iter();
    let adapters = adapters.map(|source| source.path.as_path());
    let base = Base::open_to_embed(&arguments.model.model, precision, adapters)?;
    let (base, selection) = attach(&arguments.model, base, &device)?;
    let rows = open_rows(arguments, &base)?;
    let scale = match arguments.normalize {
        true => Scale::Unit,
        false => Scale::AsIs,
    };
    let how = (arguments.pooling.into(), scale);
    let embedded = embed(&base, &selection, &rows, how, arguments.batch_size)?;
    let tensors = [("embeddings", &embedded.embeddings)];
    write_safetensors(&arguments.out, tensors, PYTORCH)?;
    let report = Report {
        out: arguments.out.clone(),
        rows: rows.len(),
        dimensions: base.info.hidden_size,
        pooling: arguments.pooling.name(),
        normalized: arguments.normalize,
        tokens: embedded.tokens,
        truncated: embedded.truncated,
        seconds: started.elapsed().as_secs_f64(),
        peak_rss_mb: peak_rss_mb(),
    };
    print(&report, arguments.json, "")?;
    Ok(ExitCode::SUCCESS)
}

fn open_rows(arguments: &EmbedArguments, base: &Base) -> lowrank::Result<Vec<Example>> {
    let limit = base.info.max_position_embeddings;
    let max_length = match arguments.max_length {
        Some(length) if length.get() > limit => {
            return Err(Error::Usage(format!(
                "--max-length {length}: the model reads at most {limit} tokens (`max_position_embeddings`)"
            )));
        }
        Some(length) => length,
        None => {
            let made_for = base.sentence_length()?.unwrap_or(MAX_LENGTH);
            NonZeroUsize::new(limit).map_or(made_for, |limit| limit.min(made_for))
        }
    };
    let options = Options {
        max_length,
        end_token: None,
        vocab: base.info.vocab_size,
        limit: arguments.limit,
    };
    lowrank::open_texts(&arguments.data, base, &options)
}
