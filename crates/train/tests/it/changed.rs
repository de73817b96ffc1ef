//! Runs that are resumed as others than they were: what is refused, and what is said.

use crate::runs::{Log, STIRRED, Setting, copy, stirred};
use crate::support::{StubConfig, examples, questions, run_file};
use lowrank_data::Reference;
use lowrank_train::{Mode, RunFile};
use std::fs;

#[test]
fn changed_settings_are_refused_by_name_and_free_ones_are_not() {
    let root = tempfile::tempdir().unwrap();
    let (setting, dir) = (stirred(), root.path().join("run"));
    let keys = format!("{STIRRED}steps = 4\nsave_every = 2\n");
    let run = run_file(&dir, &keys);
    setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let lines = fs::read(dir.join("metrics.jsonl")).unwrap();
    let resolved = fs::read(dir.join("run.toml")).unwrap();
    let refused = |run: &RunFile, setting: &Setting, what: &str| {
        let error = setting.run(&dir, Mode::Resume, run, &mut ()).unwrap_err();
        let checkpoint = dir.join("checkpoints/step-000004");
        let expected = format!(
            "cannot resume from {}: {what}; restore what it was, or start anew with `--overwrite`",
            checkpoint.display()
        );
        assert_eq!(error.to_string(), expected);
        assert!(error.is_usage());
        // Nothing has been touched.
        assert_eq!(fs::read(dir.join("metrics.jsonl")).unwrap(), lines);
        assert_eq!(fs::read(dir.join("run.toml")).unwrap(), resolved);
    };
    let changed = keys
        .replace("batch_size = 2", "batch_size = 3")
        .replace("\"cosine\"", "\"linear\"");
    let what = "`train.batch_size` was 2, now it is 3, `train.schedule` was \"cosine\", now it is \"linear\"";
    refused(&run_file(&dir, &changed), &setting, what);
    let mut other = run.clone();
    other.adapter.keys.insert("r".into(), 4.into());
    refused(&other, &setting, "`adapter.r` was absent, now it is 4");
    let fewer = Setting {
        train: examples(5),
        ..stirred()
    };
    refused(
        &run,
        &fewer,
        "`the number of rows of data.train` was 7, now it is 5",
    );
    let mut edited = stirred();
    let last = edited.train[2].labels.last_mut().unwrap();
    *last = (*last + 1) % 5;
    let error = edited.run(&dir, Mode::Resume, &run, &mut ()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains(": `the content of data.train` was \""),
        "{message}"
    );
    // What judges a run, and what methods look at, is a part of it.
    let mut edited = stirred();
    let last = edited.eval[1].ids.last_mut().unwrap();
    *last = (*last + 1) % 5;
    let error = edited.run(&dir, Mode::Resume, &run, &mut ()).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains(": `the content of data.eval` was \"") && error.is_usage(),
        "{message}"
    );
    let shorter = run_file(&dir, &keys.replace("steps = 4", "steps = 3"));
    refused(
        &shorter,
        &setting,
        "`the number of steps` was 4, now it is 3",
    );

    // A longer run under another name goes on, and says so in the run file.
    let moved = root.path().join("moved");
    copy(&dir, &moved);
    let longer = keys.replace("steps = 4", "steps = 6").replace(
        "save_every = 2",
        "save_every = 1\neval_every = 2\nrecompute = true",
    );
    let mut log = Log::default();
    let (summary, end) = setting
        .run(&moved, Mode::Resume, &run_file(&moved, &longer), &mut log)
        .unwrap();
    let expected = "4 steps were done at the learning rates of a run of 4 steps, the others follow those of 6: a run of 6 \
                    steps from the start would differ";
    assert_eq!(log.warnings, [expected]);
    assert_eq!((summary.resumed_after, summary.steps), (Some(4), 6));
    let steps: Vec<_> = end
        .metrics
        .iter()
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4, 5, 6]);
    assert!(
        fs::read_to_string(moved.join("run.toml"))
            .unwrap()
            .contains("steps = 6")
    );

    // A run by epochs ends with a short step, which a longer run would not have had.
    let short = root.path().join("short");
    setting
        .run(
            &short,
            Mode::Fresh,
            &run_file(&short, &format!("{STIRRED}epochs = 1")),
            &mut (),
        )
        .unwrap();
    let longer = run_file(&short, &format!("{STIRRED}epochs = 2"));
    let message = setting
        .run(&short, Mode::Resume, &longer, &mut ())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("`the number of rows that 2 steps take` was 7, now it is 8"),
        "{message}"
    );
}

#[test]
fn other_questions_are_other_rows() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let run = run_file(dir, "steps = 1");
    let (eval, references): (Vec<_>, Vec<_>) = questions(3)
        .into_iter()
        .map(|(row, question)| (row, Reference::Choices(question)))
        .unzip();
    let setting = |references: Vec<Reference>| Setting {
        eval: eval.clone(),
        references,
        ..Setting::new()
    };
    let first = setting(references.clone());
    first.run(dir, Mode::Fresh, &run, &mut ()).unwrap();
    first.run(dir, Mode::Resume, &run, &mut ()).unwrap();
    for change in 0..5 {
        let mut references = references.clone();
        let Reference::Choices(question) = &mut references[1] else {
            panic!("{references:?}")
        };
        match change {
            0 => question.gold = None,
            1 => question.choices[0].push(3),
            2 => question.choice_bytes[2] += 1,
            3 => question.prompt[0] ^= 1,
            _ => references[1] = Reference::Answer("42".to_owned()),
        }
        let error = setting(references).run(dir, Mode::Resume, &run, &mut ());
        let message = error.unwrap_err().to_string();
        assert!(
            message.contains("`the content of data.eval` was"),
            "{message}"
        );
    }
}

#[test]
fn a_method_that_hears_of_another_end_is_warned_of_at_fixed_rates() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let setting = stirred();
    let run = run_file(dir, "steps = 2");
    setting.run(dir, Mode::Fresh, &run, &mut ()).unwrap();
    let mut log = Log::default();
    setting
        .run(dir, Mode::Resume, &run_file(dir, "steps = 3"), &mut log)
        .unwrap();
    assert_eq!(
        log.warnings,
        [
            "2 steps were done as the method allocates in a run of 2 steps, the others as in one of 3: a run of 3 steps from \
             the start may differ"
        ]
    );
}

#[test]
fn a_checkpoint_of_another_adapter_is_refused_by_tensor() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path();
    let run = run_file(dir, "steps = 1");
    Setting::new().run(dir, Mode::Fresh, &run, &mut ()).unwrap();
    let wider = Setting {
        config: StubConfig {
            r: 4,
            ..StubConfig::default()
        },
        ..Setting::new()
    };
    let message = wider
        .run(dir, Mode::Resume, &run, &mut ())
        .unwrap_err()
        .to_string();
    let file = dir.join("checkpoints/step-000001/params.safetensors");
    let expected = "tensor `layers.0.up.stub_A.weight` is f32 [3, 6], expected f32 [4, 6]";
    assert_eq!(message, format!("{}: {expected}", file.display()));
}
