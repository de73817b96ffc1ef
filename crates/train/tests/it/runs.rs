//! Whole runs: what is written when, and that a resumed run ends with the bits of one that was not interrupted.

use crate::support::{StubConfig, all_bits, attached, bits, examples, questions, run_file};
use candle_core::DType;
use lowrank_adapter::Controller;
use lowrank_data::{Example, Reference, UNSUPERVISED};
use lowrank_train::{
    Checkpoint, Error, EvalLine, Mode, Progress, Rows, RunFile, RunFolder, Started, StepLine,
    Summary, Trainable, train,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// What a run leaves: every parameter, the controller's state, the metrics without times.
#[derive(Debug, PartialEq)]
pub struct End {
    pub params: Vec<(String, Vec<u64>)>,
    pub controller: (String, Vec<u64>),
    pub metrics: Vec<Value>,
}

fn metrics(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn timeless(mut lines: Vec<Value>) -> Vec<Value> {
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.remove("tokens_per_second");
        line.remove("peak_rss_mb");
    }
    lines
}

pub struct Setting {
    pub config: StubConfig,
    pub dtype: DType,
    pub train: Vec<Example>,
    pub eval: Vec<Example>,
    pub references: Vec<Reference>,
}

impl Setting {
    pub fn new() -> Self {
        Self {
            config: StubConfig::default(),
            dtype: DType::F32,
            train: examples(7),
            eval: examples(3),
            references: Vec::new(),
        }
    }

    pub fn run(
        &self,
        dir: &Path,
        mode: Mode,
        run: &RunFile,
        progress: &mut dyn Progress,
    ) -> Result<(Summary, End), Error> {
        let (model, mut attached) = attached(self.dtype, &self.config);
        let params = attached.params.clone();
        let folder = RunFolder::open(dir, mode)?;
        let rows = Rows {
            train: (&self.train).into(),
            eval: (&self.eval).into(),
            references: &self.references,
            classes: None,
        };
        let mut trainable = Trainable::adapter(&model, &mut attached);
        let summary = train(&folder, run, &mut trainable, rows, progress)?;
        let state = trainable
            .controller
            .as_ref()
            .map(|controller: &&mut dyn Controller| controller.state().unwrap());
        let state = state.unwrap();
        let end = End {
            params: all_bits(&params),
            controller: (state.values.to_string(), bits(&state.tensors["mean"])),
            metrics: timeless(metrics(dir)),
        };
        Ok((summary, end))
    }
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Copies the folder whenever something was written, as a crash at that moment would leave it.
pub struct Copies {
    pub dir: PathBuf,
    pub to: PathBuf,
    pub made: Vec<PathBuf>,
}

impl Copies {
    fn copy(&mut self, name: String) {
        let to = self.to.join(format!("{:03}-{name}", self.made.len()));
        copy(&self.dir, &to);
        self.made.push(to);
    }
}

impl Progress for Copies {
    fn step(&mut self, line: &StepLine) {
        self.copy(format!("step-{}", line.step));
    }
    fn evaluated(&mut self, line: &EvalLine) {
        self.copy(format!("evaluation-{}", line.step));
    }
    fn saved(&mut self, step: u64, path: &Path) {
        assert_eq!(path, self.dir.join(format!("checkpoints/step-{step:06}")));
        self.copy(format!("saved-{step}"));
    }
}

#[derive(Default)]
pub struct Log {
    pub started: Option<Started>,
    pub evaluations: Vec<u64>,
    pub saved: Vec<u64>,
    pub warnings: Vec<String>,
    pub notices: Vec<String>,
}

impl Progress for Log {
    fn started(&mut self, start: &Started) {
        self.started = Some(start.clone());
    }
    fn evaluated(&mut self, line: &EvalLine) {
        self.evaluations.push(line.step);
    }
    fn saved(&mut self, step: u64, _: &Path) {
        self.saved.push(step);
    }
    fn warning(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
    fn notice(&mut self, message: &str) {
        self.notices.push(message.to_owned());
    }
}

pub const STIRRED: &str = "batch_size = 2\naccumulate = 2\nlearning_rate = 0.05\nschedule = \"cosine\"\nwarmup_steps = 2\n\
     weight_decay = 0.1\n";

pub fn stirred() -> Setting {
    let config = StubConfig {
        dropout: 0.2,
        auxiliary: 0.1,
        penalty: 0.02,
        revive_every: 3,
        probe_at: 4,
        ..StubConfig::default()
    };
    Setting {
        config,
        ..Setting::new()
    }
}

#[test]
fn a_run_resumed_at_any_moment_ends_with_the_same_bits() {
    for (dtype, keys, packing, expected) in [
        (
            DType::F32,
            "epochs = 5\nsave_every = 2\neval_every = 3\n",
            false,
            &[0, 2, 4, 6, 8, 9][..],
        ),
        (
            DType::F64,
            "steps = 7\nsave_every = 1\nrecompute = true\n",
            false,
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
        (
            DType::F32,
            "epochs = 5\nsave_every = 1\neval_every = 1\n",
            true,
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
        (
            DType::F32,
            "steps = 7\nsave_every = 1\noptimizer = \"sgd\"\nmomentum = 0.8\nnesterov = true\n",
            false,
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
        // Nothing but ages.
        (
            DType::F64,
            "steps = 7\nsave_every = 1\noptimizer = \"sgd\"\n",
            false,
            &[0, 1, 2, 3, 4, 5, 6, 7],
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let setting = Setting { dtype, ..stirred() };
        let dir = root.path().join("run");
        let mut run = run_file(&dir, &format!("{STIRRED}{keys}"));
        if packing {
            // The steps of every epoch begin in another place of it.
            run.data.packing = true;
            run.data.max_length = std::num::NonZeroUsize::new(7).unwrap();
        }
        let mut copies = Copies {
            dir: dir.clone(),
            to: root.path().join("copies"),
            made: Vec::new(),
        };
        let (summary, end) = setting.run(&dir, Mode::Fresh, &run, &mut copies).unwrap();
        assert_eq!(summary.resumed_after, None);
        let mut resumed_after = Vec::new();
        for copy in copies.made {
            // What a kill in the middle of writing leaves.
            fs::create_dir_all(copy.join("checkpoints/.step-000099.aB3xyZ.tmp/half")).unwrap();
            fs::write(copy.join(".run.toml.Xy12ab.tmp"), "half").unwrap();
            let mut lines = fs::read(copy.join("metrics.jsonl")).unwrap();
            lines.extend(b"{\"step\":9,\"loss\":1.0,\"lr\":0.1,\"grad_norm\":1.0,\"tok");
            fs::write(copy.join("metrics.jsonl"), lines).unwrap();

            let (summary, again) = setting.run(&copy, Mode::Resume, &run, &mut ()).unwrap();
            assert_eq!(again, end, "{}", copy.display());
            assert!(summary.last_step.is_some() && summary.last_evaluation.is_some());
            resumed_after.push(summary.resumed_after.unwrap_or(0));
            assert!(
                names(&copy)
                    .iter()
                    .chain(&names(&copy.join("checkpoints")))
                    .all(|name| !name.contains("tmp"))
            );
            assert_eq!(
                fs::read(copy.join("run.toml")).unwrap(),
                fs::read(dir.join("run.toml")).unwrap()
            );
        }
        assert!(resumed_after.is_sorted() && resumed_after.len() > 15);
        resumed_after.dedup();
        // Every checkpoint was resumed from, the last one with nothing left to do.
        assert_eq!(resumed_after, expected);
    }
}

#[test]
fn lines_are_written_at_the_right_steps_with_the_documented_fields() {
    for (keys, steps, evaluations, saved, kept) in [
        ("steps = 5", 5, vec![0, 5], vec![5], vec!["step-000005"]),
        (
            "steps = 6\neval_every = 3\nsave_every = 3",
            6,
            vec![0, 3, 6],
            vec![3, 6],
            vec!["step-000003", "step-000006"],
        ),
        (
            "steps = 5\neval_every = 2\nsave_every = 1\nkeep_checkpoints = 3",
            5,
            vec![0, 2, 4, 5],
            vec![1, 2, 3, 4, 5],
            vec!["step-000003", "step-000004", "step-000005"],
        ),
        // 7 rows, 2 a step: the last step of each run is short, and epochs are not cut at steps.
        (
            "epochs = 1\nbatch_size = 2",
            4,
            vec![0, 4],
            vec![4],
            vec!["step-000004"],
        ),
        (
            "epochs = 3\nbatch_size = 2",
            11,
            vec![0, 11],
            vec![11],
            vec!["step-000011"],
        ),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("deep/run");
        let run = run_file(&dir, keys);
        let mut log = Log::default();
        let setting = Setting::new();
        let (summary, _) = setting.run(&dir, Mode::Fresh, &run, &mut log).unwrap();
        assert_eq!(
            (summary.steps, &log.evaluations, &log.saved),
            (steps, &evaluations, &saved),
            "{keys}"
        );
        assert_eq!(names(&dir.join("checkpoints")), kept);
        assert_eq!(log.warnings, [""; 0]);
        let started = log.started.unwrap();
        // Two blocks: A [3, 6] and B [10, 3], A [3, 10] and B [6, 3].
        assert_eq!(
            (
                started.done,
                started.total,
                started.rows,
                started.trainable_parameters
            ),
            (0, steps, 7, 192)
        );

        let lines = metrics(&dir);
        let (evaluated, trained): (Vec<_>, Vec<_>) = lines
            .iter()
            .partition(|line| line.get("eval_loss").is_some());
        let step = |line: &&Value| line["step"].as_u64().unwrap();
        assert_eq!(evaluated.iter().map(step).collect::<Vec<_>>(), evaluations);
        assert_eq!(
            trained.iter().map(step).collect::<Vec<_>>(),
            (1..=steps).collect::<Vec<_>>()
        );
        assert!(lines.iter().map(|line| line["step"].as_u64()).is_sorted());
        let eval_tokens: usize = setting.eval.iter().map(|row| row.ids.len()).sum();
        for line in evaluated {
            assert_eq!(
                line.as_object().unwrap().keys().collect::<Vec<_>>(),
                ["step", "eval_loss", "eval_tokens"]
            );
            assert_eq!(line["eval_tokens"].as_u64(), Some(eval_tokens as u64));
        }
        let mut tokens = 0;
        for line in &trained {
            let fields: Vec<_> = line.as_object().unwrap().keys().collect();
            let expected = [
                "step",
                "loss",
                "lr",
                "grad_norm",
                "tokens",
                "tokens_per_second",
                "peak_rss_mb",
            ];
            assert_eq!(fields, expected);
            assert!(
                line["tokens_per_second"].as_f64().unwrap() > 0.0
                    && line["grad_norm"].as_f64().unwrap() > 0.0
            );
            tokens += line["tokens"].as_u64().unwrap() as usize;
        }
        let all: usize = setting.train.iter().map(|row| row.ids.len()).sum();
        match run.train.length {
            lowrank_data::Length::Epochs(epochs) => assert_eq!(tokens, all * epochs as usize),
            // A batch of 8 spans two epochs of 7 rows.
            lowrank_data::Length::Steps(steps) => assert!(tokens > all * steps as usize),
        }
        assert_eq!(summary.last_step.unwrap().step, steps);
        assert_eq!(summary.last_evaluation.unwrap().step, steps);
        assert_eq!(
            fs::read_to_string(dir.join("run.toml")).unwrap(),
            run.resolved()
        );
    }
}

#[test]
fn training_lowers_the_loss_and_choices_have_an_accuracy() {
    let root = tempfile::tempdir().unwrap();
    let (eval, asked): (Vec<_>, Vec<_>) = questions(6).into_iter().unzip();
    let references = asked.into_iter().map(Reference::Choices).collect();
    let setting = Setting {
        train: eval.clone(),
        eval,
        references,
        dtype: DType::F32,
        config: StubConfig::default(),
    };
    let run = run_file(
        root.path(),
        "steps = 60\nlearning_rate = 0.05\neval_every = 30",
    );
    setting
        .run(root.path(), Mode::Fresh, &run, &mut ())
        .unwrap();
    let lines = metrics(root.path());
    let of = |field: &str| -> Vec<f64> {
        lines
            .iter()
            .filter_map(|line| line.get(field)?.as_f64())
            .collect()
    };
    let (losses, accuracies) = (of("eval_loss"), of("eval_accuracy"));
    assert_eq!((losses.len(), accuracies.len()), (3, 3));
    assert!(losses[2] < 0.5 * losses[0], "{losses:?}");
    assert!(accuracies[2] > accuracies[0], "{accuracies:?}");
}

#[test]
fn incomplete_and_foreign_checkpoints_are_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let (setting, dir) = (stirred(), root.path().join("run"));
    let run = run_file(
        &dir,
        &format!("{STIRRED}steps = 6\nsave_every = 2\nkeep_checkpoints = 3"),
    );
    let (_, end) = setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let checkpoints = dir.join("checkpoints");
    fs::remove_file(checkpoints.join("step-000006/moments.safetensors")).unwrap();
    let params = checkpoints.join("step-000004/params.safetensors");
    let bytes = fs::read(&params).unwrap();
    fs::write(&params, &bytes[..bytes.len() / 2]).unwrap();
    fs::create_dir(checkpoints.join("step-000008")).unwrap();
    copy(
        &checkpoints.join("step-000002"),
        &checkpoints.join("step-000005"),
    );
    copy(&checkpoints.join("step-000002"), &checkpoints.join("mine"));
    copy(
        &checkpoints.join("step-000002"),
        &checkpoints.join("step-7"),
    );
    fs::write(checkpoints.join("step-000003"), "a file").unwrap();
    let mut log = Log::default();
    let (summary, again) = setting.run(&dir, Mode::Resume, &run, &mut log).unwrap();
    assert_eq!(summary.resumed_after, Some(2));
    assert_eq!(again, end);
    assert_eq!(log.warnings.len(), 4, "{:?}", log.warnings);
    let path = checkpoints.join("step-000006");
    assert!(Checkpoint::open(&path).unwrap().record().step == 6);
    assert!(names(&checkpoints).contains(&"mine".to_owned()));
}

#[test]
fn checkpoints_that_a_kill_kept_are_removed_on_resuming() {
    let root = tempfile::tempdir().unwrap();
    let (setting, dir) = (stirred(), root.path().join("run"));
    let keys = format!("{STIRRED}steps = 6\nsave_every = 2\n");
    let run = run_file(&dir, &format!("{keys}keep_checkpoints = 3"));
    let (_, end) = setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let checkpoints = dir.join("checkpoints");
    // Killed after the last checkpoint was written and while the first was being removed, with one too many left.
    fs::create_dir_all(checkpoints.join(".step-000000.old/half")).unwrap();
    assert_eq!(names(&checkpoints).len(), 4);
    let run = run_file(&dir, &format!("{keys}keep_checkpoints = 2"));
    let (summary, again) = setting.run(&dir, Mode::Resume, &run, &mut ()).unwrap();
    assert_eq!((summary.resumed_after, again), (Some(6), end));
    assert_eq!(names(&checkpoints), ["step-000004", "step-000006"]);
}

#[test]
fn a_step_without_anything_supervised_has_no_loss() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let mut setting = Setting::new();
    setting.train[1].labels.fill(UNSUPERVISED);
    let mut run = run_file(dir, "steps = 3\nbatch_size = 1");
    run.data.shuffle = false;
    let mut log = Log::default();
    setting.run(dir, Mode::Fresh, &run, &mut log).unwrap();
    assert_eq!(
        log.warnings,
        ["step 2: nothing in its rows is supervised; nothing was updated"]
    );
    let steps: Vec<Value> = metrics(dir)
        .into_iter()
        .filter(|line| line.get("lr").is_some())
        .collect();
    assert!(steps[0]["loss"].is_f64() && steps[2]["loss"].is_f64());
    assert_eq!(steps[1]["loss"], Value::Null);
    let table = fs::read_to_string(dir.join("metrics.csv")).unwrap();
    assert!(table.contains("\r\n2,,0.0002,"), "{table}");
    let events = dir.join("tb").read_dir().unwrap().next().unwrap().unwrap();
    let events = fs::read(events.path()).unwrap();
    let times = |tag: &[u8]| {
        events
            .windows(tag.len())
            .filter(|bytes| *bytes == tag)
            .count()
    };
    assert_eq!((times(b"train/loss"), times(b"train/lr")), (2, 3));
}

#[test]
fn skipped_steps_are_logged_and_warned_of() {
    let root = tempfile::tempdir().unwrap();
    let config = StubConfig {
        poison_at: 2,
        ..StubConfig::default()
    };
    let setting = Setting {
        config,
        ..Setting::new()
    };
    let run = run_file(root.path(), "steps = 3\non_non_finite = \"skip\"");
    let mut log = Log::default();
    setting
        .run(root.path(), Mode::Fresh, &run, &mut log)
        .unwrap();
    assert_eq!(
        log.warnings,
        ["step 2: the loss or a gradient is not finite; nothing was updated"]
    );
    let losses: Vec<_> = metrics(root.path())
        .into_iter()
        .filter(|line| line.get("lr").is_some())
        .collect();
    assert_eq!(losses.len(), 3);

    // Without the key the run stops, and what was written until then can be resumed.
    let dir = root.path().join("stopped");
    let run = run_file(&dir, "steps = 3\nsave_every = 1");
    let message = setting
        .run(&dir, Mode::Fresh, &run, &mut ())
        .unwrap_err()
        .to_string();
    assert!(
        message.starts_with("step 2: the gradient of `layers.0.down.stub_B.weight`"),
        "{message}"
    );
    assert_eq!(names(&dir.join("checkpoints")), ["step-000001"]);
}

#[test]
fn what_is_not_finite_is_not_saved() {
    let root = tempfile::tempdir().unwrap();
    // The first rate is 0, the second makes every update overflow.
    let keys = "steps = 2\nsave_every = 1\nwarmup_steps = 1\nlearning_rate = 1e39\n";
    for skip in ["", "on_non_finite = \"skip\""] {
        let dir = root.path().join(format!("run{}", skip.len()));
        let run = run_file(&dir, &format!("{keys}{skip}"));
        let message = Setting::new()
            .run(&dir, Mode::Fresh, &run, &mut ())
            .unwrap_err()
            .to_string();
        let expected = "step 2: `layers.0.up.stub_A.weight` is no longer finite; try a lower";
        assert!(message.starts_with(expected), "{message}");
        assert_eq!(names(&dir.join("checkpoints")), ["step-000001"]);
    }
}

#[test]
fn folders_are_not_lost_and_held_by_one_run() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("out");
    let (setting, run) = (Setting::new(), run_file(&dir, "steps = 1"));
    // What a run leaves that was killed before it wrote anything is as good as nothing.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(".lock"), "").unwrap();
    setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    fs::create_dir(dir.join("adapter")).unwrap();
    fs::write(dir.join("notes.txt"), "mine").unwrap();
    let error = RunFolder::open(&dir, Mode::Fresh).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "output folder {} is not empty: continue its run with `--resume`, replace it with `--overwrite`, or choose \
             another `output.dir`",
            dir.display()
        )
    );
    assert!(error.is_usage());
    setting.run(&dir, Mode::Overwrite, &run, &mut ()).unwrap();
    assert_eq!(
        names(&dir),
        [
            ".lock",
            "checkpoints",
            "metrics.csv",
            "metrics.jsonl",
            "notes.txt",
            "report.html",
            "run.toml",
            "tb"
        ]
    );
    assert_eq!(metrics(&dir).len(), 3);

    let held = RunFolder::open(&dir, Mode::Resume).unwrap();
    for mode in [Mode::Fresh, Mode::Resume, Mode::Overwrite] {
        let error = RunFolder::open(&dir, mode).unwrap_err();
        let expected = "is in use by another run; wait for it to end or choose another folder";
        assert_eq!(error.to_string(), format!("{} {expected}", dir.display()));
        assert!(!error.is_usage());
    }
    drop(held);

    // What is called as a run's results are, but was made by no run, is neither replaced now nor removed by a later run.
    let foreign = root.path().join("foreign");
    fs::create_dir_all(foreign.join("model")).unwrap();
    fs::write(foreign.join("model/weights"), "precious").unwrap();
    for mode in [Mode::Resume, Mode::Overwrite] {
        let error = RunFolder::open(&foreign, mode).unwrap_err();
        assert!(error.is_usage());
        assert_eq!(
            error.to_string(),
            format!(
                "{} was not made by a run (there is no run.toml beside it), and would be replaced by this one; move it \
                 away or choose another `output.dir`",
                foreign.join("model").display()
            )
        );
    }
    assert_eq!(names(&foreign), ["model"]);
    assert_eq!(
        fs::read_to_string(foreign.join("model/weights")).unwrap(),
        "precious"
    );

    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let message = RunFolder::open(&file.join("sub"), Mode::Fresh)
        .unwrap_err()
        .to_string();
    assert!(message.contains(&file.display().to_string()), "{message}");
}

#[test]
fn no_rows_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let setting = Setting {
        train: Vec::new(),
        ..Setting::new()
    };
    let run = run_file(root.path(), "steps = 1");
    let message = setting
        .run(root.path(), Mode::Fresh, &run, &mut ())
        .unwrap_err()
        .to_string();
    assert_eq!(message, "the training data has no rows");
}
