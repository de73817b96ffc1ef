//! Runs of the binary, and what they leave.

use crate::folders::{names, tree};
use lowrank::format::FolderLock;
use lowrank::ops::rng::{Key, Purpose, Stream};
use lowrank_tests::{binary, golden};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Of the run file, whose rows are 50 to train on and 10 to evaluate on.
pub const KEEP: usize = 2;
pub const EVAL_EVERY: u64 = 7;

/// A run file with its rows. Runs differ in the parents of their folders only.
pub struct Scene {
    root: TempDir,
}

impl Scene {
    pub fn new(keys: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut random = Key::new(29, Purpose::Test).stream();
        for (file, rows) in [("train.jsonl", 50), ("eval.jsonl", 10)] {
            let lines: Vec<String> = (0..rows).map(|_| row(&mut random).to_string()).collect();
            fs::write(root.path().join(file), lines.join("\n") + "\n").unwrap();
        }
        let model = golden::folder().join("models/plain");
        let text = format!(
            "model.source = {model:?}\n\
             data = {{ train = [\"train.jsonl\"], eval = [\"eval.jsonl\"] }}\n\
             output.dir = \"set by the command\"\n\
             [adapter]\n\
             r = 4\n\
             lora_alpha = 6\n\
             lora_dropout = 0.2\n\
             target_modules = \"all-linear\"\n\
             [train]\n\
             batch_size = 3\n\
             accumulate = 2\n\
             learning_rate = 5e-3\n\
             warmup_steps = 9\n\
             weight_decay = 0.01\n\
             eval_every = {EVAL_EVERY}\n\
             keep_checkpoints = {KEEP}\n\
             {keys}\n"
        );
        fs::write(root.path().join("run.toml"), text).unwrap();
        Self { root }
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.path().join(name).join("run")
    }

    pub fn train(&self, folder: &Path, flags: &[&str]) -> Command {
        let mut command = Command::new(binary::path().unwrap());
        command
            .current_dir(self.root.path())
            .args(["--quiet", "train", "run.toml", "--set"])
            .arg(format!("output.dir={folder:?}"))
            .args(flags);
        command
    }

    /// Runs to the end.
    pub fn finish(&self, folder: &Path, flags: &[&str]) -> End {
        let output = self.train(folder, flags).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        End::of(folder)
    }
}

impl Scene {
    /// Makes the folder `whole` what it would be if the run of `last` steps that left `expected` had been killed at step
    /// `killed`, after an earlier checkpoint, and checks that it then goes on to the same bytes.
    pub fn check_killed(&self, expected: &End, killed: u64, last: u64) {
        let folder = self.folder("whole");
        let newest = format!("step-{last:06}");
        fs::remove_dir_all(folder.join("adapter")).unwrap();
        fs::remove_dir_all(folder.join("checkpoints").join(&newest)).unwrap();
        let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<Value>(line).unwrap()["step"].as_u64();
        let lines = text.split_inclusive('\n');
        let early: String = lines.filter(|line| step(line) <= Some(killed)).collect();
        fs::write(folder.join("metrics.jsonl"), early).unwrap();
        let resumed = self.finish(&folder, &["--resume"]);
        assert!(resumed.adapter == expected.adapter, "adapter/");
        assert_eq!(resumed.metrics, expected.metrics);
        let kept = |end: &End| {
            let files = end.checkpoints.iter();
            files
                .filter(|(name, _)| name.starts_with(&newest))
                .map(|(name, bytes)| (name.clone(), bytes.clone()))
                .collect::<Vec<_>>()
        };
        assert!(!kept(expected).is_empty() && kept(&resumed) == kept(expected));
    }
}

/// 6 to 23 tokens, of which the first third is unsupervised.
fn row(random: &mut Stream) -> Value {
    let length = 6 + random.below(18);
    let ids: Vec<u64> = (0..length).map(|_| 3 + random.below(94)).collect();
    let label = |(i, &id): (u64, &u64)| if i < length / 3 { -100 } else { id as i64 };
    let labels: Vec<i64> = (0..).zip(&ids).map(label).collect();
    json!({"input_ids": ids, "labels": labels})
}

/// What a run leaves.
#[derive(Debug, PartialEq)]
pub struct End {
    pub adapter: BTreeMap<String, Vec<u8>>,
    pub checkpoints: BTreeMap<String, Vec<u8>>,
    pub run: String,
    pub metrics: Vec<Value>,
}

impl End {
    fn of(folder: &Path) -> Self {
        assert_eq!(
            names(folder),
            [
                ".lock",
                "adapter",
                "checkpoints",
                "metrics.csv",
                "metrics.jsonl",
                "report.html",
                "run.toml",
                "tb"
            ]
        );
        drop(FolderLock::acquire(folder).unwrap());
        let run = fs::read_to_string(folder.join("run.toml")).unwrap();
        let dir = format!("dir = {folder:?}\n");
        assert!(run.contains(&dir), "{run}");
        Self {
            adapter: tree(&folder.join("adapter")),
            checkpoints: tree(&folder.join("checkpoints")),
            run: run.replace(&dir, ""),
            metrics: metrics(folder),
        }
    }

    pub fn check_against(&self, expected: &Self, what: &str) {
        assert!(self.adapter == expected.adapter, "{what}: adapter/");
        assert!(
            self.checkpoints == expected.checkpoints,
            "{what}: checkpoints/"
        );
        assert_eq!(self.run, expected.run, "{what}");
        assert_eq!(self.metrics, expected.metrics, "{what}");
    }
}

/// The whole lines, without what no two runs have in common.
pub fn metrics(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    lines
        .map(|line| {
            let mut value: Value = serde_json::from_str(line).unwrap();
            let fields = value.as_object_mut().unwrap();
            if fields.contains_key("loss") {
                assert!(fields.remove("tokens_per_second").unwrap().as_f64() > Some(0.0));
                fields.remove("peak_rss_mb");
            }
            value
        })
        .collect()
}
