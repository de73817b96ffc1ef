//! Runs that keep the best, end early, or are stopped: what they leave, and that a resumed run ends with the same bits.

use crate::runs::{Copies, End, Log, Setting, names, stirred};
use crate::support::{examples, questions, run_file};
use lowrank_data::{Reference, UNSUPERVISED};
use lowrank_train::{Error, Mode, Progress, RunFile, Summary};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// So fast that held-out rows get worse again.
const FAST: &str = "batch_size = 2\nlearning_rate = 0.1\nweight_decay = 0.1\nlabel_smoothing = 0.1\nneftune_noise_alpha = 2\n";

fn evaluations(end: &End) -> Vec<(u64, f64)> {
    let line =
        |line: &serde_json::Value| Some((line["step"].as_u64()?, line.get("eval_loss")?.as_f64()?));
    end.metrics.iter().filter_map(line).collect()
}

/// Every moment that a kill could have left, resumed.
fn resume_everywhere(
    setting: &Setting,
    run: &RunFile,
    dir: &Path,
    copies: Vec<PathBuf>,
    whole: &(Summary, End),
) {
    assert!(copies.len() > 15);
    for copy in copies {
        let (summary, end) = setting.run(&copy, Mode::Resume, run, &mut ()).unwrap();
        assert_eq!(end, whole.1, "{}", copy.display());
        assert_eq!(
            (summary.best, summary.ended_early),
            (whole.0.best, whole.0.ended_early)
        );
        assert_eq!(summary.steps, whole.0.steps);
        let kept = |dir: &Path| names(&dir.join("checkpoints"));
        assert_eq!(kept(&copy), kept(dir), "{}", copy.display());
    }
}

fn copied(
    root: &Path,
    setting: &Setting,
    keys: &str,
) -> (PathBuf, RunFile, Vec<PathBuf>, (Summary, End)) {
    let dir = root.join("run");
    let run = run_file(&dir, keys);
    let mut copies = Copies {
        dir: dir.clone(),
        to: root.join("copies"),
        made: Vec::new(),
    };
    let whole = setting.run(&dir, Mode::Fresh, &run, &mut copies).unwrap();
    (dir, run, copies.made, whole)
}

#[test]
fn the_best_is_kept_loaded_and_found_again() {
    let root = tempfile::tempdir().unwrap();
    let setting = stirred();
    let keys = format!("{FAST}steps = 14\neval_every = 2\nsave_every = 3\n");
    let (dir, run, copies, whole) =
        copied(root.path(), &setting, &format!("{keys}load_best = true"));
    let losses = evaluations(&whole.1);
    assert_eq!(losses.len(), 8);
    let best = losses[1..].iter().fold(
        losses[1],
        |best, next| if next.1 < best.1 { *next } else { best },
    );
    assert!(
        best.0 < 12,
        "the test needs rows that get worse again: {losses:?}"
    );
    let found = whole.0.best.unwrap();
    assert_eq!((found.step, found.value), best);
    // The newest two, and the best.
    let steps: BTreeSet<u64> = [best.0, 12, 14].into();
    let expected: Vec<String> = steps.iter().map(|step| format!("step-{step:06}")).collect();
    assert_eq!(names(&dir.join("checkpoints")), expected);
    resume_everywhere(&setting, &run, &dir, copies, &whole);

    // What is trained at the end is what a run of so many steps gives.
    let short = run_file(
        &root.path().join("short"),
        &format!("{FAST}steps = {}\n", best.0),
    );
    let (_, short) = setting
        .run(&root.path().join("short"), Mode::Fresh, &short, &mut ())
        .unwrap();
    assert_eq!(whole.1.params, short.params);
    assert_eq!(whole.1.controller, short.controller);
    // And without the key, the last step's; the best is told all the same, and not kept.
    let last = run_file(&root.path().join("last"), &keys);
    let (summary, last) = setting
        .run(&root.path().join("last"), Mode::Fresh, &last, &mut ())
        .unwrap();
    assert_ne!(last.params, whole.1.params);
    assert_eq!(
        (last.metrics, summary.best),
        (whole.1.metrics, whole.0.best)
    );
    assert_eq!(
        names(&root.path().join("last/checkpoints")),
        ["step-000012", "step-000014"]
    );
}

/// The step that a run ends after, by the definition.
fn gives_up(losses: &[(u64, f64)], patience: usize, threshold: f64) -> Option<u64> {
    let (mut best, mut stale) = (f64::INFINITY, 0);
    for (step, loss) in &losses[1..] {
        stale = if best - loss > threshold {
            0
        } else {
            stale + 1
        };
        best = best.min(*loss);
        if stale >= patience {
            return Some(*step);
        }
    }
    None
}

#[test]
fn a_run_without_hope_ends_early_and_more_patience_takes_it_on() {
    let root = tempfile::tempdir().unwrap();
    let setting = stirred();
    let keys = format!("{FAST}steps = 30\neval_every = 1\nsave_every = 4\nkeep_checkpoints = 1\n");
    let patient = run_file(&root.path().join("patient"), &keys);
    let (_, patient) = setting
        .run(&root.path().join("patient"), Mode::Fresh, &patient, &mut ())
        .unwrap();
    let losses = evaluations(&patient);
    let mut ends = BTreeSet::new();
    for (patience, threshold) in [(2, 0.0), (3, 0.0), (3, 0.02)] {
        let end = gives_up(&losses, patience, threshold).unwrap();
        assert!(end > 3 && end < 28, "{losses:?}");
        ends.insert(end);
        let root = tempfile::tempdir().unwrap();
        let more = format!(
            "{keys}early_stopping_patience = {patience}\nearly_stopping_threshold = {threshold:?}\nload_best = true\n"
        );
        let (dir, run, copies, whole) = copied(root.path(), &setting, &more);
        assert_eq!((whole.0.steps, whole.0.ended_early), (end, true));
        assert!(whole.1.metrics[..] == patient.metrics[..whole.1.metrics.len()]);
        let best = whole.0.best.unwrap().step;
        let page = fs::read_to_string(dir.join("report.html")).unwrap();
        let said = format!(
            "<p>Ended early, after step {end} of 30: evaluations were no longer better. The result is that of step {best}, \
             the best evaluation.</p>"
        );
        assert!(page.contains(&said), "{page}");
        let kept: BTreeSet<String> = [best, end].map(|step| format!("step-{step:06}")).into();
        assert_eq!(names(&dir.join("checkpoints")), Vec::from_iter(kept));
        resume_everywhere(&setting, &run, &dir, copies, &whole);
        // Resumed as it is, it says so again; with more patience it goes on as if it had had it from the start.
        let mut log = Log::default();
        let (again, _) = setting.run(&dir, Mode::Resume, &run, &mut log).unwrap();
        assert_eq!((again.steps, again.resumed_after), (end, Some(end)));
        let said = format!(
            "ended early, after step {end} of 30: {patience} evaluations in a row were not better, the best after step {best}"
        );
        assert_eq!(log.notices[0], said);
        assert_eq!(log.saved, [0; 0]);
        let mut more = run.clone();
        more.train.judging.patience = None;
        more.train.judging.threshold = 0.0;
        let (summary, on) = setting.run(&dir, Mode::Resume, &more, &mut ()).unwrap();
        assert_eq!((summary.steps, summary.ended_early), (30, false));
        assert_eq!(on.metrics, patient.metrics);
    }
    assert!(ends.len() > 1, "{ends:?}");
}

/// Asks the run to stop when it has asked so many times.
struct Impatient {
    asked: u32,
    stops_at: u32,
    saved: Vec<u64>,
}

impl Progress for Impatient {
    fn saved(&mut self, step: u64, _: &Path) {
        self.saved.push(step);
    }
    fn stops(&mut self) -> bool {
        self.asked += 1;
        self.asked > self.stops_at
    }
}

#[test]
fn a_run_that_is_stopped_has_saved_and_goes_on_to_the_same_bits() {
    let asked = questions(4);
    let (eval, references) = asked
        .into_iter()
        .map(|(row, question)| (row, Reference::Choices(question)))
        .unzip();
    let choices = Setting {
        eval,
        references,
        ..stirred()
    };
    let losses = Setting {
        eval: examples(4),
        ..stirred()
    };
    for (setting, metric) in [(choices, "accuracy"), (losses, "loss")] {
        check_stops(&setting, metric);
    }
}

/// Stops a run with four held-out rows wherever it asks whether to go on.
fn check_stops(setting: &Setting, metric: &str) {
    let root = tempfile::tempdir().unwrap();
    let keys = format!(
        "{FAST}steps = 9\neval_every = 2\nsave_every = 4\nkeep_checkpoints = 9\nload_best = true\nbest_metric = \"{metric}\"\nearly_stopping_patience = 5\n"
    );
    let run = run_file(&root.path().join("whole"), &keys);
    let mut none = Impatient {
        asked: 0,
        stops_at: u32::MAX,
        saved: Vec::new(),
    };
    let (_, whole) = setting
        .run(&root.path().join("whole"), Mode::Fresh, &run, &mut none)
        .unwrap();
    // Before and between 2 batches of 6 evaluations, and after 8 steps and before the first.
    assert_eq!(none.asked, 6 * 3 + 9);
    let mut seen = BTreeSet::new();
    for stops_at in 0..none.asked {
        let dir = root.path().join(stops_at.to_string());
        let mut once = Impatient {
            asked: 0,
            stops_at,
            saved: Vec::new(),
        };
        let error = setting.run(&dir, Mode::Fresh, &run, &mut once).unwrap_err();
        let Error::Interrupted { step, total } = error else {
            panic!("{error}")
        };
        assert_eq!(
            error.to_string(),
            format!("stopped after step {step} of {total}, as asked; go on with `--resume`")
        );
        seen.insert(step);
        assert_eq!(total, 9);
        // The step is saved, and once only.
        assert_eq!(once.saved.last().copied().unwrap_or(0), step);
        assert!(once.saved.is_sorted_by(|a, b| a < b), "{:?}", once.saved);
        assert!(step == 0 || dir.join(format!("checkpoints/step-{step:06}")).is_dir());
        // Stopped a second time as soon as it can be, it has lost nothing.
        let mut at_once = Impatient {
            asked: 0,
            stops_at: 0,
            saved: Vec::new(),
        };
        let again = setting.run(&dir, Mode::Resume, &run, &mut at_once);
        assert!(matches!(again, Err(Error::Interrupted { step: again, .. }) if again == step));
        let (_, end) = setting.run(&dir, Mode::Resume, &run, &mut ()).unwrap();
        assert_eq!(end, whole, "{stops_at}");
    }
    assert_eq!(seen, (0..=9).collect());
}

#[test]
fn a_best_checkpoint_that_is_lost_is_said_to_be() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let setting = stirred();
    let keys = format!("{FAST}steps = 14\neval_every = 2\nsave_every = 3\nload_best = true\n");
    let run = run_file(&dir, &keys);
    let (summary, _) = setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let best = summary.best.unwrap().step;
    fs::remove_dir_all(dir.join(format!("checkpoints/step-{best:06}"))).unwrap();
    fs::remove_dir_all(dir.join("checkpoints/step-000014")).unwrap();
    let mut log = Log::default();
    let (summary, end) = setting.run(&dir, Mode::Resume, &run, &mut log).unwrap();
    assert_eq!(log.warnings.len(), 1);
    let said = &log.warnings[0];
    assert!(
        said.starts_with("the checkpoint of the best evaluation is lost ("),
        "{said}"
    );
    assert!(said.contains(&format!("step-{best:06}")), "{said}");
    // Of those after it the checkpoints of steps 12 and 14 are there.
    let losses = evaluations(&end);
    let of = |step: u64| losses.iter().find(|line| line.0 == step).unwrap().1;
    let other = if of(12) <= of(14) { 12 } else { 14 };
    assert_eq!(summary.best.map(|best| best.step), Some(other));
    // The next resumption says so again, and finds the same.
    let mut log = Log::default();
    let (again, _) = setting.run(&dir, Mode::Resume, &run, &mut log).unwrap();
    assert_eq!((again.best, again.result_of), (summary.best, other));
    assert_eq!(log.warnings.len(), 1);
}

#[test]
fn without_a_best_the_last_is_the_result_and_that_is_said() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let mut setting = Setting::new();
    for row in &mut setting.eval {
        row.labels.fill(UNSUPERVISED);
    }
    let run = run_file(&dir, "steps = 4\neval_every = 1\nload_best = true\n");
    let mut log = Log::default();
    let (summary, _) = setting.run(&dir, Mode::Fresh, &run, &mut log).unwrap();
    assert_eq!((summary.result_of, summary.best), (4, None));
    assert_eq!(
        log.warnings,
        [
            "no evaluation after a step gave a loss that is a number: `train.load_best` has nothing to load, and the result \
             is that of the last step, 4"
        ]
    );
}

#[test]
fn the_result_s_evaluation_is_told_beside_the_last_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let keys = format!("{FAST}steps = 14\neval_every = 2\nload_best = true\n");
    let run = run_file(&dir, &keys);
    let setting = stirred();
    let (summary, _) = setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let best = summary.best.unwrap();
    let of_result = summary.result_evaluation.unwrap();
    assert!(best.step < 14);
    assert_eq!((summary.result_of, of_result.step), (best.step, best.step));
    assert_eq!(of_result.eval_loss, Some(best.value));
    assert_eq!(summary.last_evaluation.unwrap().step, 14);
    // As well where all lines were there before.
    let (again, _) = setting.run(&dir, Mode::Resume, &run, &mut ()).unwrap();
    assert_eq!(again.result_evaluation, Some(of_result));
}

#[test]
fn what_cannot_be_compared_is_refused_before_anything_is_trained() {
    let root = tempfile::tempdir().unwrap();
    let none = || Setting {
        eval: Vec::new(),
        ..Setting::new()
    };
    let error = |setting: Setting, keys: &str| {
        let dir = root.path().join("run");
        let run = run_file(&dir, &format!("steps = 4\neval_every = 1\n{keys}"));
        let ran = setting.run(&dir, Mode::Resume, &run, &mut ());
        assert!(!dir.join("run.toml").exists());
        let error = ran.unwrap_err();
        assert!(error.is_usage(), "{error}");
        error
    };
    for keys in [
        "early_stopping_patience = 2",
        "load_best = true",
        "best_metric = \"accuracy\"",
    ] {
        let error = error(none(), keys);
        assert!(matches!(error, Error::NothingToJudge), "{error}");
    }
    let (eval, mut references): (Vec<_>, Vec<_>) = questions(4)
        .into_iter()
        .map(|(row, question)| (row, Reference::Choices(question)))
        .unzip();
    let asked = |references: &[Reference]| Setting {
        eval: eval.clone(),
        references: references.to_vec(),
        ..Setting::new()
    };
    let told = |metric: &str, known: &str| {
        format!(
            "`train.best_metric = \"{metric}\"` is no metric of this task, expected one of: {known}"
        )
    };
    let keys = "best_metric = \"matthews\"";
    let said = error(Setting::new(), keys).to_string();
    assert_eq!(said, told("matthews", "loss"));
    let said = error(asked(&references), keys).to_string();
    assert_eq!(said, told("matthews", "loss, accuracy"));
    for reference in &mut references {
        if let Reference::Choices(question) = reference {
            question.gold = None;
        }
    }
    let said = error(asked(&references), "best_metric = \"accuracy\"").to_string();
    assert_eq!(said, told("accuracy", "loss"));
    references[3] = Reference::None;
    let said = error(asked(&references), "best_metric = \"mse\"").to_string();
    assert_eq!(said, told("mse", "loss"));

    // To evaluate now and then what is not there does no harm, and is said.
    let dir = root.path().join("other");
    let run = run_file(&dir, "steps = 2\neval_every = 7\n");
    let mut log = Log::default();
    none().run(&dir, Mode::Fresh, &run, &mut log).unwrap();
    assert_eq!(
        log.warnings,
        [
            "`train.eval_every` is 7, and there are no held-out rows: name some in `data.eval`, or nothing is evaluated"
        ]
    );
}
