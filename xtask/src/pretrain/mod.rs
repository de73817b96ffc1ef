//! `cargo xtask pretrain`: makes the embedded model `tiny` and the quick start's data from nothing but this program.
//!
//! A generator writes a corpus about a small invented world, a tokenizer is trained on it, and a LLaMA of random numbers
//! learns it through a run file like any other (`family = "full"`). On one machine, with one number of threads, the same
//! bytes come out every time.

mod corpus;
mod draw;
mod facts;
mod letters;
mod start;
mod tokenizer;
mod world;

use anyhow::{Context, Result};
use candle_core::DType;
use letters::Half;
use lowrank::adapter::Selection;
use lowrank::format::{Existing, PYTORCH, python_json, write_safetensors};
use lowrank::models::Precision;
use lowrank::training::{EvalLine, Mode, Progress, RunFile, StepLine};
use lowrank::{Base, merge_into};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The token that ends a text.
pub const END: &str = "<|endoftext|>";
/// Begins a turn of a conversation.
pub const START_OF_TURN: &str = "<|im_start|>";
/// Ends a turn of a conversation.
pub const END_OF_TURN: &str = "<|im_end|>";

/// Texts that are learned from.
const TRAIN: u64 = 20_000;
/// Texts that are not.
const HELD_OUT: u64 = 200;
/// Texts that the tokenizer is trained on.
const TOKENIZER: u64 = 4_000;

/// Where the model lies in the repository.
const MODEL: &str = "crates/models/tiny";
/// The files of the model.
const FILES: [&str; 4] = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// Where the quick start's data lies.
const EXAMPLES: &str = "docs/examples";

/// What to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// The data files and the model.
    All,
    /// The data files, which take no time.
    Data,
}

/// Writes the data files, then works under `target/pretrain`, and replaces the model's files at the end.
pub fn run(root: &Path, make: Make) -> Result<()> {
    let examples = root.join(EXAMPLES);
    for (name, text) in example_files() {
        write(&examples.join(name), &text)?;
    }
    if make == Make::Data {
        return Ok(());
    }
    let work = root.join("target/pretrain");
    fs::create_dir_all(work.join("start"))?;
    let train: Vec<String> = (0..TRAIN).map(|i| corpus::text("train", i)).collect();
    write(&work.join("train.jsonl"), &text_rows(&train))?;
    let start = work.join("start");
    let tokenizer = tokenizer::train(train.iter().take(TOKENIZER as usize).map(String::as_str))?;
    write(&start.join("tokenizer.json"), &tokenizer)?;
    write_json(&start.join("tokenizer_config.json"), &tokenizer::config())?;
    write_json(&start.join("config.json"), &start::config().into())?;
    let tensors = start::tensors()?;
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    write_safetensors(&start.join("model.safetensors"), named, PYTORCH)?;
    drop(tensors);

    let path = work.join("run.toml");
    let text = run_file(&work, &examples);
    write(&path, &text)?;
    let run = RunFile::parse(&text, &path, &[])?;
    let trained = lowrank::train(&run, &path, Mode::Overwrite, &mut Shown::default())?;

    // Half the bits are enough for what it knows, and half the bytes for every build.
    let folder = trained.result.to_string_lossy().into_owned();
    let mut base = Base::open(&folder, Precision::AsStored)?;
    let half = work.join("half");
    let written = merge_into(
        &mut base,
        &Selection::none(),
        Some(DType::BF16),
        &half,
        Existing::Replace,
    )?;
    let model = root.join(MODEL);
    fs::create_dir_all(&model)?;
    for name in FILES {
        fs::copy(written.folder.join(name), model.join(name))
            .with_context(|| format!("cannot copy {name} to {}", model.display()))?;
    }
    eprintln!("made {}", model.display());
    Ok(())
}

/// The data files of the repository, by name: the letters, and texts that the model has not seen.
fn example_files() -> [(&'static str, String); 3] {
    let held_out: Vec<String> = (0..HELD_OUT).map(|i| corpus::text("held-out", i)).collect();
    [
        ("letters-train.jsonl", lines(&letters::rows(Half::Train))),
        (
            "letters-held-out.jsonl",
            lines(&letters::rows(Half::HeldOut)),
        ),
        ("tiny-held-out.jsonl", text_rows(&held_out)),
    ]
}

fn run_file(work: &Path, examples: &Path) -> String {
    let path = |path: &Path| toml::Value::from(path.display().to_string());
    format!(
        r#"[model]
source = {}
[adapter]
family = "full"
[data]
train = [{}]
eval = [{}]
max_length = 256
[train]
epochs = 1
batch_size = 16
learning_rate = 4e-3
schedule = "cosine"
warmup_steps = 100
betas = [0.9, 0.98]
weight_decay = 0.05
eval_every = 250
seed = {}
[output]
dir = {}
"#,
        path(&work.join("start")),
        path(&work.join("train.jsonl")),
        path(&examples.join("tiny-held-out.jsonl")),
        draw::SEED,
        path(&work.join("run")),
    )
}

fn text_rows(texts: &[String]) -> String {
    lines(
        &texts
            .iter()
            .map(|text| json!({"text": text}))
            .collect::<Vec<_>>(),
    )
}

fn lines(rows: &[Value]) -> String {
    rows.iter().fold(String::new(), |mut text, row| {
        let _ = writeln!(text, "{row}");
        text
    })
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, &format!("{}\n", python_json(value)))
}

/// A line every hundred steps.
#[derive(Default)]
struct Shown {
    total: u64,
}

impl Progress for Shown {
    fn started(&mut self, start: &lowrank::training::Started) {
        self.total = start.total;
        eprintln!(
            "{} steps, {} parameters",
            start.total, start.trainable_parameters
        );
    }

    fn step(&mut self, line: &StepLine) {
        if line.step.is_multiple_of(100) {
            let loss = line.loss.unwrap_or(f64::NAN);
            let (step, total) = (line.step, self.total);
            eprintln!(
                "step {step}/{total}  loss {loss:.4}  {:.0} tokens/s",
                line.tokens_per_second
            );
        }
    }

    fn evaluated(&mut self, line: &EvalLine) {
        let loss = line.eval_loss.unwrap_or(f64::NAN);
        eprintln!(
            "step {}  held-out loss {loss:.4}, perplexity {:.3}",
            line.step,
            loss.exp()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn digest(bytes: impl AsRef<[u8]>) -> String {
        let hash = Sha256::digest(bytes);
        hash.iter().take(8).fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
    }

    /// The corpus is what the embedded model was made from: whoever changes the generator makes the model anew.
    #[test]
    fn the_corpus_is_the_same_every_time() {
        let texts: String = (0..2_000)
            .map(|i| corpus::text("train", i) + "\n")
            .collect();
        assert_eq!(digest(texts), "cc58151361997ec1");
    }

    #[test]
    fn the_model_starts_from_the_same_numbers_every_time() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("model.safetensors");
        let tensors = start::tensors()?;
        let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        write_safetensors(&path, named, PYTORCH)?;
        assert_eq!(digest(fs::read(path)?), "8ebb1fff94f821eb");
        Ok(())
    }

    #[test]
    fn the_repository_holds_what_is_made() -> Result<()> {
        let root = crate::root();
        let read = |path: &str| -> Result<String> {
            let path = root.join(path);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        for (name, text) in example_files() {
            assert!(
                read(&format!("{EXAMPLES}/{name}"))? == text,
                "{name} is old"
            );
        }
        let texts: Vec<String> = (0..TOKENIZER).map(|i| corpus::text("train", i)).collect();
        let tokenizer = tokenizer::train(texts.iter().map(String::as_str))?;
        // Merging a model copies the files beside it.
        assert!(read(&format!("{MODEL}/tokenizer.json"))? == tokenizer);
        let config = format!("{}\n", python_json(&tokenizer::config()));
        assert_eq!(read(&format!("{MODEL}/tokenizer_config.json"))?, config);
        Ok(())
    }

    /// Neither a letter nor a desk, so that the quick start teaches something.
    #[test]
    fn the_corpus_holds_nothing_of_the_quick_starts_task() {
        let rows = [Half::Train, Half::HeldOut].map(letters::rows).concat();
        let letter = |row: &Value| {
            let prompt = row["prompt"].as_str().unwrap_or_default();
            let letter = prompt.strip_prefix("Letter: ");
            let letter =
                letter.and_then(|rest| rest.strip_suffix(" Question: Which desk? Answer:"));
            letter.expect("a prompt is a letter").to_owned()
        };
        let letters: Vec<String> = rows.iter().map(letter).collect();
        for i in 0..TRAIN {
            let text = corpus::text("train", i);
            assert!(
                !text.contains("Letter:") && !text.contains("desk"),
                "{text}"
            );
            for desk in letters::DESKS {
                assert!(!text.contains(desk), "{text}");
            }
            if i < TRAIN / 20 {
                let found = letters.iter().find(|letter| text.contains(letter.as_str()));
                assert_eq!(found, None);
            }
        }
    }

    #[test]
    fn no_held_out_text_was_learned() {
        let held_out: std::collections::BTreeSet<String> =
            (0..HELD_OUT).map(|i| corpus::text("held-out", i)).collect();
        assert_eq!(held_out.len() as u64, HELD_OUT);
        for i in 0..TRAIN {
            let text = corpus::text("train", i);
            assert!(!held_out.contains(&text), "{text}");
        }
    }
}
