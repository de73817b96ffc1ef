//! What a run leaves for people.

use crate::runs::{Copies, Setting, stirred};
use crate::support::run_file;
use lowrank_report::{Lines, cut};
use lowrank_train::Mode;
use std::fs;
use std::path::{Path, PathBuf};

const KEYS: &str = "steps = 6\nbatch_size = 2\nsave_every = 2\neval_every = 3\n";

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.join("tb").read_dir().into_iter().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Steps of all events in a folder, which are whole: one number for each line of the metrics. Lengths and steps are read
/// here; that the bytes are right is tested beside the encoder.
fn steps(dir: &Path) -> Vec<u64> {
    let mut steps = Vec::new();
    for file in event_files(dir) {
        let bytes = fs::read(&file).unwrap();
        assert_eq!(cut(&bytes, Some(u64::MAX)), bytes, "{}", file.display());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let event = &rest[12..12 + length];
            // The time has nine bytes; a step below 128, one behind its key.
            match &event[9..] {
                [0x10, step, 0x2a, ..] => steps.push(u64::from(*step)),
                // A version, or the start of a session.
                [0x1a, ..] | [0x10, _, 0x3a, ..] => {}
                other => panic!("{other:?}"),
            }
            rest = &rest[16 + length..];
        }
    }
    steps
}

fn logged(dir: &Path) -> Vec<u64> {
    let text = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["step"].as_u64().unwrap()
    });
    lines.collect()
}

#[test]
fn a_run_leaves_events_a_table_and_a_page() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("<b>first");
    let run = run_file(&dir, KEYS);
    Setting::new()
        .run(&dir, Mode::Fresh, &run, &mut ())
        .unwrap();
    assert_eq!(steps(&dir), logged(&dir));
    assert_eq!(steps(&dir), [0, 1, 2, 3, 3, 4, 5, 6, 6]);
    assert_eq!(event_files(&dir).len(), 1);

    let table = fs::read_to_string(dir.join("metrics.csv")).unwrap();
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(
        rows[0].trim_end(),
        "step,loss,lr,grad_norm,tokens,tokens_per_second,peak_rss_mb,eval_loss,eval_tokens"
    );
    assert_eq!(rows.len(), 8);
    let lines = Lines::parse(&fs::read_to_string(dir.join("metrics.jsonl")).unwrap());
    for (table, key, at) in [
        (&lines.steps, "loss", 1),
        (&lines.evaluations, "eval_loss", 7),
    ] {
        for (step, number) in table.column(key).unwrap().points() {
            let cells: Vec<&str> = rows[*step as usize + 1].trim_end().split(',').collect();
            assert_eq!(cells[at].parse::<f64>().unwrap(), *number);
        }
    }

    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("<h1>&lt;b&gt;first</h1>") && !page.contains("<b>"));
    assert!(page.contains("<dd>6 of 6</dd>") && page.contains("<figcaption>Loss"));
    // Rows and held-out rows of the setting.
    assert!(page.contains("<dd>7</dd>") && page.contains("<dd>3</dd>"));
}

#[test]
fn resumed_runs_show_every_step_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let run = run_file(&dir, KEYS);
    let setting = stirred();
    let mut copies = Copies {
        dir: dir.clone(),
        to: root.path().join("copies"),
        made: Vec::new(),
    };
    setting.run(&dir, Mode::Fresh, &run, &mut copies).unwrap();
    let whole = logged(&dir);
    let table = |dir: &Path| {
        let text = fs::read_to_string(dir.join("metrics.csv")).unwrap();
        // Rates and memory differ from run to run.
        let rows = text
            .lines()
            .map(|row| row.split(',').take(4).map(str::to_owned).collect());
        rows.collect::<Vec<Vec<String>>>()
    };
    assert!(copies.made.len() > 8);
    for copy in &copies.made {
        // A kill in the middle of a record, and in the middle of rewriting a file.
        for file in event_files(copy) {
            let mut bytes = fs::read(&file).unwrap();
            let half = bytes.len() / 2;
            bytes.extend_from_within(half..half + 11);
            fs::write(&file, bytes).unwrap();
        }
        fs::create_dir_all(copy.join("tb")).unwrap();
        fs::write(copy.join("tb/.events.out.tfevents.1.x.tmp"), "half").unwrap();
        fs::write(copy.join("tb/notes.txt"), "mine").unwrap();
        let before = event_files(copy);
        setting.run(copy, Mode::Resume, &run, &mut ()).unwrap();
        fs::remove_file(copy.join("tb/notes.txt")).unwrap();
        assert_eq!(steps(copy), whole, "{}", copy.display());
        assert_eq!(table(copy), table(&dir));
        let after = event_files(copy);
        assert!(after.len() <= before.len() && after.is_sorted());
    }
    // Nothing is left to do: no file begins.
    let files = event_files(&dir);
    setting.run(&dir, Mode::Resume, &run, &mut ()).unwrap();
    assert_eq!(event_files(&dir), files);
    assert_eq!(steps(&dir), whole);
    // Anew, over what was there.
    setting.run(&dir, Mode::Overwrite, &run, &mut ()).unwrap();
    assert_eq!(steps(&dir), whole);
    assert_eq!(event_files(&dir).len(), 1);
}

#[test]
fn files_follow_those_of_a_clock_that_was_ahead() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let setting = Setting::new();
    let run = run_file(&dir, "steps = 2\nsave_every = 1\n");
    setting.run(&dir, Mode::Fresh, &run, &mut ()).unwrap();
    let ahead = dir.join("tb/events.out.tfevents.9999999998.0000.lowrank");
    fs::rename(&event_files(&dir)[0], &ahead).unwrap();
    let longer = run_file(&dir, "steps = 4\nsave_every = 1\n");
    setting.run(&dir, Mode::Resume, &longer, &mut ()).unwrap();
    assert_eq!(
        event_files(&dir),
        [
            ahead.clone(),
            ahead.with_file_name("events.out.tfevents.9999999998.0001.lowrank")
        ]
    );
    assert_eq!(steps(&dir), logged(&dir));
}

#[test]
fn a_run_that_fails_says_so_on_its_page() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("run");
    let mut setting = Setting::new();
    setting.config.poison_at = 3;
    let error = setting
        .run(&dir, Mode::Fresh, &run_file(&dir, KEYS), &mut ())
        .unwrap_err();
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    let said = error.to_string().replace('"', "&quot;");
    assert!(
        page.contains(&format!("Stopped after step 2 of 6: {said}")),
        "{page}"
    );
    assert_eq!(steps(&dir), [0, 1, 2]);
}

/// What stands in the way of a file ends the run with the file's name.
#[test]
fn files_that_cannot_be_written_are_named() {
    for name in ["report.html", "metrics.csv"] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        fs::create_dir_all(dir.join(name).join("x")).unwrap();
        fs::write(dir.join("run.toml"), "").unwrap();
        let run = run_file(&dir, KEYS);
        let error = Setting::new().run(&dir, Mode::Resume, &run, &mut ());
        let error = error.unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
