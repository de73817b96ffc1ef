//! Every family from its example run file to the end: it trains, resumes to the bit, saves, loads, evaluates the same, merges
//! or says why not, and becomes plain LoRA or says why not.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use lowrank::registry::FAMILIES;
use lowrank_tests::binary::{self, Ended};
use lowrank_tests::place::Place;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// So many steps, with a checkpoint in the middle.
const STEPS: u64 = 8;

/// What makes a family's decisions fall into few steps.
fn hurried(family: &str, model: &str) -> Vec<&'static str> {
    let mut sets = match family {
        "alora" => vec![
            "adapter.k1_steps=2",
            "adapter.k2_steps=4",
            "adapter.rounds=2",
            "adapter.probe_examples=2",
        ],
        "adalora" => vec!["adapter.tinit=1", "adapter.tfinal=2"],
        _ => Vec::new(),
    };
    if family == "alora" && model != "tiny" {
        // Two losses a rank: fewer ranks.
        sets.push(r"adapter.target_modules='.*\.29\..*_proj'");
    }
    sets
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A model, and the rows that its runs take.
struct Stage {
    place: Place,
    model: &'static str,
    sets: Vec<String>,
    length: usize,
}

/// The file with the held-out rows.
const HELD_OUT: &str = "held-out.jsonl";

impl Stage {
    fn train(&self, family: &str, dir: &str, more: &[&str]) -> Ended {
        let run = format!("docs/examples/{family}.toml");
        let output = format!("output.dir={}", self.place.path(dir).display());
        let mut arguments = vec!["train", &run, "--set", &output, "--json"];
        for set in self
            .sets
            .iter()
            .map(String::as_str)
            .chain(hurried(family, self.model))
        {
            arguments.extend(["--set", set]);
        }
        arguments.extend(more);
        binary::run(&root(), &arguments)
    }

    fn lines(&self, dir: &str) -> Vec<Value> {
        let mut lines = self.place.json_lines(&format!("{dir}/metrics.jsonl"));
        for line in &mut lines {
            for key in ["tokens_per_second", "peak_rss_mb"] {
                line.as_object_mut().unwrap().remove(key);
            }
        }
        lines
    }

    fn files(&self, dir: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(self.place.path(&format!("{dir}/adapter"))).unwrap();
        let entries = entries.map(|entry| entry.unwrap());
        let read = |entry: fs::DirEntry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        };
        entries.map(read).collect()
    }

    /// The held-out loss of a model, with or without an adapter.
    fn loss(&self, model: &str, adapter: Option<&Path>) -> f64 {
        let data = self.place.path(HELD_OUT).display().to_string();
        let adapter = adapter.map(|adapter| adapter.display().to_string());
        let length = self.length.to_string();
        let mut arguments = vec![
            "eval",
            "--model",
            model,
            "--data",
            &data,
            "--max-length",
            &length,
            "--dtype",
            "f32",
            "--json",
        ];
        if let Some(adapter) = &adapter {
            arguments.extend(["--adapter", adapter]);
        }
        binary::run(&root(), &arguments).json()["loss"]
            .as_f64()
            .unwrap()
    }

    fn check(&self, family: &str) {
        let whole = format!("{family}-whole");
        let _ = self.train(family, &whole, &[]).ok();
        let lines = self.lines(&whole);
        let steps: Vec<&Value> = lines.iter().filter(|line| line["loss"].is_f64()).collect();
        assert_eq!(steps.len() as u64, STEPS, "{family}");
        let evaluations: Vec<f64> = lines
            .iter()
            .filter_map(|line| line["eval_loss"].as_f64())
            .collect();
        let [before, after] = evaluations[..] else {
            panic!("{family}: {evaluations:?}");
        };
        assert!(after < before, "{family}: {before} {after}");

        // A run that was stopped after the checkpoint in the middle.
        let resumed = format!("{family}-resumed");
        let _ = self.train(family, &resumed, &[]).ok();
        let folder = self.place.path(&resumed);
        fs::remove_dir_all(folder.join(format!("checkpoints/step-{STEPS:06}"))).unwrap();
        fs::remove_dir_all(folder.join("adapter")).unwrap();
        let _ = self.train(family, &resumed, &["--resume"]).ok();
        assert_eq!(self.lines(&resumed), lines, "{family}");
        assert_eq!(self.files(&resumed), self.files(&whole), "{family}");

        // What was saved is what was trained.
        let adapter = self.place.path(&format!("{whole}/adapter"));
        let loss = self.loss(self.model, Some(&adapter));
        assert!(
            (loss - after).abs() <= 1e-5 * after,
            "{family}: {loss} {after}"
        );
        let gated = lines.iter().any(|line| line["event"] == "allocate");
        assert_eq!(
            gated,
            ["alora", "adalora", "salora"].contains(&family),
            "{family}"
        );
        let inspected = binary::run(
            &root(),
            &["inspect", &adapter.display().to_string(), "--json"],
        )
        .json();
        assert_eq!(inspected["family"], family);
        assert!(
            !inspected["sites"].as_array().unwrap().is_empty(),
            "{family}: {inspected}"
        );

        self.merges(family, &adapter, loss);
        self.exports(family, &adapter, loss);
    }

    /// As the capability matrix says of the family, or of this configuration.
    fn merges(&self, family: &str, adapter: &Path, loss: f64) {
        let out = self.place.path(&format!("{family}-merged"));
        let (adapter, out) = (adapter.display().to_string(), out.display().to_string());
        let arguments = [
            "merge",
            "--model",
            self.model,
            "--adapter",
            &adapter,
            "--out",
            &out,
            "--dtype",
            "f32",
            "--verify",
            "--json",
        ];
        let ended = binary::run(&root(), &arguments);
        if family == "mor" {
            assert_eq!(ended.code, 1);
            let reason = "the adapter's update depends on the input, so no merged weight equals it";
            assert!(ended.stderr.contains(reason), "{}", ended.stderr);
            assert!(!Path::new(&out).exists());
            return;
        }
        let report = ended.json();
        assert_eq!(report["exact"], true, "{family}: {report}");
        assert!(
            report["max_abs_logit_diff"].as_f64().unwrap() < 4e-4,
            "{family}: {report}"
        );
        let merged = self.loss(&out, None);
        assert!(
            (merged - loss).abs() <= 1e-4 * loss,
            "{family}: {merged} {loss}"
        );
        fs::remove_dir_all(out).unwrap();
    }

    fn exports(&self, family: &str, adapter: &Path, loss: f64) {
        let out = self.place.path(&format!("{family}-plain"));
        let (adapter, written) = (adapter.display().to_string(), out.display().to_string());
        let arguments = [
            "export",
            "--model",
            self.model,
            "--adapter",
            &adapter,
            "--to",
            "lora",
            "--out",
            &written,
            "--json",
        ];
        let ended = binary::run(&root(), &arguments);
        if family == "mor" {
            assert_eq!(ended.code, 1);
            assert!(
                ended.stderr.contains("is not of the form s B A"),
                "{}",
                ended.stderr
            );
            assert!(!out.exists());
            return;
        }
        let report = ended.json();
        assert_eq!(report["exact"], true, "{family}");
        assert!(
            report["max_residual"].as_f64().unwrap() < 1e-5,
            "{family}: {}",
            report["max_residual"]
        );
        assert!(
            report["max_abs_logit_diff"].as_f64().unwrap() < 4e-4,
            "{family}"
        );
        let plain = self.loss(self.model, Some(&out));
        assert!(
            (plain - loss).abs() <= 1e-4 * loss,
            "{family}: {plain} {loss}"
        );
        let inspected = binary::run(&root(), &["inspect", &written, "--json"]).json();
        assert_eq!(inspected["peft_type"], "LORA");
    }
}

/// Runs of so many rows a step, of so many tokens at most.
fn stage(model: &'static str, rows: usize, length: usize) -> Stage {
    let place = Place::new();
    let text = fs::read_to_string(root().join("docs/examples/letters-held-out.jsonl")).unwrap();
    let few: Vec<&str> = text.lines().take(2 * rows).collect();
    place.write(HELD_OUT, few.join("\n") + "\n");
    let half = STEPS / 2;
    let held_out = place.path(HELD_OUT).display().to_string();
    let sets = vec![
        format!("model.source={model}"),
        format!("train.steps={STEPS}"),
        format!("train.save_every={half}"),
        format!("train.batch_size={rows}"),
        "train.schedule=constant".to_owned(),
        format!("data.max_length={length}"),
        format!("data.eval=[{held_out:?}]"),
    ];
    Stage {
        place,
        model,
        sets,
        length,
    }
}

#[test]
fn every_family_goes_the_whole_way_on_tiny() {
    let stage = stage("tiny", 4, 96);
    for family in FAMILIES.iter().map(|family| family.name()) {
        stage.check(family);
    }
}

#[test]
fn every_family_goes_the_whole_way_on_smollm2() {
    let model = "models/SmolLM2-135M-Instruct";
    if !root().join(model).join("config.json").exists() {
        eprintln!("not run: SmolLM2 is missing, `cargo xtask fetch` brings it");
        return;
    }
    let stage = stage(model, 2, 32);
    for family in FAMILIES.iter().map(|family| family.name()) {
        stage.check(family);
    }
}
