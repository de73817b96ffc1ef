//! Folders to write to: in use, not empty, not writable, or what is being read.

use lowrank::format::FolderLock;
use lowrank_tests::{binary, place::Place};
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const RUN: &str = "[model]\nsource = \"model\"\n[adapter]\nr = 3\nlora_alpha = 5\n[data]\ntrain = [\"rows.jsonl\"]\n[train]\nsteps = 2\n[output]\ndir = \"out\"\n";
const MERGE: [&str; 5] = ["merge", "--model", "model", "--adapter", "adapter"];

fn place() -> Place {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_init", "adapter");
    place.write("run.toml", RUN);
    place
}

fn merge_to<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&MERGE[..], &["--out", out], more].concat()
}

#[test]
fn a_folder_that_is_held_by_another_run() {
    let place = place();
    fs::create_dir(place.path("out")).unwrap();
    let held = FolderLock::acquire(&place.path("out")).unwrap();
    let expected = "/out is in use by another run; wait for it to end or choose another folder";
    for mode in [&[][..], &["--resume"], &["--overwrite"]] {
        place.refuses(&[&["train", "run.toml"], mode].concat(), 1, &[expected]);
    }
    drop(held);
    drop(place.run(&["train", "run.toml"]).ok());
}

#[test]
fn two_runs_at_once() {
    let place = place();
    let mut first = Command::new(binary::path().unwrap())
        .args(["train", "run.toml", "--set", "train.steps=1000000000"])
        .current_dir(place.path(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let begun = || fs::read(place.path("out/metrics.jsonl")).is_ok_and(|text| !text.is_empty());
    while !begun() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the first run does not begin"
        );
        thread::yield_now();
    }
    let second = place.run(&["train", "run.toml", "--overwrite"]);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!((second.code, second.stdout.as_str()), (1, ""));
    let expected = "/out is in use by another run; wait for it to end or choose another folder\n";
    assert!(second.stderr.ends_with(expected), "{}", second.stderr);
    assert!(!place.text("out/metrics.jsonl").is_empty());
    // The lock ends with the process that held it.
    drop(place.run(&["train", "run.toml", "--overwrite"]).ok());
    assert_eq!(place.json_lines("out/metrics.jsonl").len(), 2);
}

#[test]
fn a_folder_that_is_not_empty() {
    let place = place();
    place.write("out/notes.txt", "mine");
    let expected = "/out is not empty: continue its run with `--resume`, replace it with `--overwrite`, or choose another `output.dir`";
    place.refuses(
        &["train", "run.toml"],
        2,
        &["error: output folder ", expected],
    );
    drop(place.run(&["train", "run.toml", "--overwrite"]).ok());
    assert_eq!(place.text("out/notes.txt"), "mine");
    let adapter = place.read("out/adapter/adapter_model.safetensors");
    place.refuses(
        &["train", "run.toml", "--set", "train.seed=7"],
        2,
        &[expected],
    );
    assert_eq!(place.read("out/adapter/adapter_model.safetensors"), adapter);
    // What is wrong with the run file is found before the old run is removed.
    let wrong = ["--set", "train.groups.bias.weight_decay=0.1"];
    place.refuses(
        &[&["train", "run.toml", "--overwrite"], &wrong[..]].concat(),
        2,
        &["error: run.toml: `train.groups.bias` names a group that no trained tensor belongs to; there are `default`, `lora_B`"],
    );
    place.refuses(
        &["train", "run.toml", "--resume", "--set", "train.seed=7"],
        2,
        &["`train.seed` was 42, now it is 7"],
    );
}

#[test]
fn folders_that_cannot_be_made() {
    let place = place();
    let set = "output.dir=rows.jsonl/out";
    place.refuses(
        &["train", "run.toml", "--set", set],
        1,
        &["/rows.jsonl/out: Not a directory"],
    );
    place.refuses(
        &["train", "run.toml", "--set", "output.dir=rows.jsonl"],
        1,
        &["/rows.jsonl: Not a directory"],
    );
    place.refuses(
        &merge_to("rows.jsonl/out", &[]),
        1,
        &["rows.jsonl/out: Not a directory"],
    );
    place.refuses(
        &merge_to("rows.jsonl", &["--force"]),
        1,
        &[
            "error: ",
            "/rows.jsonl already exists and is not a folder; choose another folder",
        ],
    );
    assert!(place.text("rows.jsonl").starts_with("{\"input_ids\""));
}

#[cfg(unix)]
#[test]
fn a_folder_without_permission_to_write() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = place();
    let locked = place.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(locked.join("probe"), "").is_ok() {
        // The superuser may write anywhere.
        return;
    }
    let denied = "Permission denied";
    place.refuses(
        &["train", "run.toml", "--set", "output.dir=locked/out"],
        1,
        &["/locked/out: ", denied],
    );
    place.refuses(
        &["train", "run.toml", "--set", "output.dir=locked"],
        1,
        &["/locked/.lock: ", denied],
    );
    place.refuses(&merge_to("locked/out", &[]), 1, &["locked: ", denied]);
    let logits = ["--data", "rows.jsonl", "--logits", "locked/l.safetensors"];
    place.refuses(
        &[&["eval", "--model", "model"], &logits[..]].concat(),
        1,
        &["locked: ", denied],
    );
}

#[test]
fn merging_over_something() {
    let place = place();
    drop(place.run(&merge_to("merged", &[])).ok());
    let before = place.read("merged/model.safetensors");
    let exists = "/merged already exists and is not empty; choose another folder or ask for it to be replaced";
    place.refuses(&merge_to("merged", &[]), 1, &["error: ", exists]);
    assert_eq!(place.read("merged/model.safetensors"), before);
    place.write("merged/extra.json", "{}");
    drop(place.run(&merge_to("merged", &["--force"])).ok());
    assert!(!place.path("merged/extra.json").exists());
    place.write("notes/diary.txt", "mine");
    let other = "error: the output folder notes is neither empty nor a model's, so it is not replaced; choose another";
    place.refuses(&merge_to("notes", &["--force"]), 2, &[other]);
}

#[test]
fn merging_over_the_base() {
    let place = place();
    let inside = |out: &str| {
        format!(
            "error: the output folder {out} lies inside the base model's folder model; choose another"
        )
    };
    for out in ["model", "model/merged", "model/../model/merged", "./model"] {
        for force in [&[][..], &["--force"]] {
            place.refuses(&merge_to(out, force), 2, &[&inside(out)]);
        }
    }
    // The folder around the base looks like a model's.
    place.write("config.json", "{}");
    place.refuses(
        &merge_to(".", &["--force"]),
        2,
        &["error: the output folder . contains the base model's folder model; choose another"],
    );
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model", place.path("link")).unwrap();
        place.refuses(&merge_to("link/merged", &[]), 2, &[&inside("link/merged")]);
    }
}

#[test]
fn a_run_does_not_write_over_what_it_reads() {
    let place = place();
    let refuse = |sets: &[&str], key: &str| {
        let mut arguments = vec!["train", "run.toml", "--overwrite"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        let expected = format!(
            "error: run.toml: `{key}` lies inside `output.dir`, which the run writes to; choose another folder"
        );
        place.refuses(&arguments, 2, &[&expected]);
    };
    refuse(&["output.dir=model"], "model.source = \"model\"");
    refuse(&["model.source=out/model"], "model.source = \"out/model\"");
    refuse(
        &["output.dir=adapter", "adapter={init_from=\"adapter\"}"],
        "adapter.init_from = \"adapter\"",
    );
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("model", place.path("link")).unwrap();
        refuse(&["output.dir=link"], "model.source = \"model\"");
        refuse(
            &["model.source=link", "output.dir=model"],
            "model.source = \"link\"",
        );
    }
    let inside = |sets: &[&str], key: &str| {
        let mut arguments = vec!["train", "run.toml"];
        for set in sets {
            arguments.extend(["--set", set]);
        }
        let expected = format!(
            "error: run.toml: `{key}` contains `output.dir`, and a run writes nothing into what it reads; choose another folder"
        );
        place.refuses(&arguments, 2, &[&expected]);
    };
    inside(&["output.dir=model/runs/a"], "model.source = \"model\"");
    inside(&["output.dir=new/../model/a"], "model.source = \"model\"");
    inside(
        &["output.dir=adapter/out", "adapter={init_from=\"adapter\"}"],
        "adapter.init_from = \"adapter\"",
    );
    #[cfg(unix)]
    inside(&["output.dir=link/out"], "model.source = \"model\"");
}

#[test]
fn what_no_run_has_made_is_not_replaced() {
    let place = place();
    for (name, file) in [
        ("adapter", "adapter/adapter_config.json"),
        ("model", "model/config.json"),
        ("metrics.jsonl", "metrics.jsonl"),
        ("checkpoints", "checkpoints/mine/notes.txt"),
    ] {
        let file = format!("mine/{file}");
        place.write(&file, "mine");
        for mode in ["--overwrite", "--resume"] {
            let expected = format!(
                "/mine/{name} was not made by a run (there is no run.toml beside it), and would be replaced by this one; \
                 move it away or choose another `output.dir`"
            );
            let arguments = ["train", "run.toml", mode, "--set", "output.dir=mine"];
            place.refuses(&arguments, 2, &[&expected]);
        }
        assert_eq!(place.text(&file), "mine");
        fs::remove_dir_all(place.path("mine")).unwrap();
    }
}

#[test]
fn an_evaluation_does_not_overwrite_what_it_reads() {
    let place = place();
    let choices = r#"{"prompt":"a","completion":"b","choices":["b","c"],"answer":0}"#;
    place.add_tokenizer("model", 97);
    place.write("choices.jsonl", format!("{choices}\n"));
    let check = |more: &[&str], expected: &str| {
        let arguments = ["eval", "--model", "model", "--data", "choices.jsonl"];
        place.refuses(&[&arguments[..], more].concat(), 2, &[expected]);
    };
    let overwrite = "this would overwrite what is read";
    check(
        &["--predictions", "model/../choices.jsonl"],
        &format!("error: --predictions model/../choices.jsonl: {overwrite}"),
    );
    check(
        &["--logits", "model/model-00001-of-00003.safetensors"],
        &format!("error: --logits model/model-00001-of-00003.safetensors: {overwrite}"),
    );
    for (flag, file) in [
        ("--predictions", "adapter/adapter_config.json"),
        ("--logits", "model/../adapter/new.safetensors"),
    ] {
        check(
            &["--adapter", "adapter", flag, file],
            &format!("error: {flag} {file}: {overwrite}"),
        );
    }
    place.write("g/a.jsonl", format!("{choices}\n"));
    let arguments = ["eval", "--model", "model", "--data", "g/*.jsonl"];
    let expected = format!("error: --predictions g/a.jsonl: {overwrite}");
    place.refuses(
        &[&arguments[..], &["--predictions", "g/a.jsonl"]].concat(),
        2,
        &[&expected],
    );
    check(
        &["--predictions", "both", "--logits", "./both"],
        "error: --predictions and --logits are both ./both",
    );
}

/// A pipe stays a pipe, and a link a link.
#[cfg(unix)]
#[test]
fn an_evaluation_writes_through_links_and_into_no_pipe() {
    let place = place();
    place.add_tokenizer("model", 97);
    let choices = r#"{"prompt":"w1","completion":"w2","choices":["w2","w3"],"answer":0}"#;
    place.write("choices.jsonl", format!("{choices}\n"));
    place.write("old.jsonl", "old");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, place.path(name)).unwrap();
    link("old.jsonl", "link");
    link("nowhere", "dangling");
    let arguments = [
        "eval",
        "--model",
        "model",
        "--data",
        "choices.jsonl",
        "--predictions",
    ];
    assert_eq!(
        place.run(&[&arguments[..], &["link"]].concat()).ok().code,
        0
    );
    assert!(place.path("link").is_symlink());
    assert!(place.text("old.jsonl").starts_with('{'));
    let mut refused = vec!["dangling"];
    let made = Command::new("mkfifo").arg(place.path("pipe")).status();
    if made.is_ok_and(|status| status.success()) {
        refused.push("pipe");
    }
    for name in refused {
        let expected =
            format!("error: --predictions {name}: there is something that is no regular file");
        place.refuses(&[&arguments[..], &[name]].concat(), 2, &[&expected]);
    }
    assert!(place.path("dangling").is_symlink());
    let none = place.path("model/../pipe").symlink_metadata();
    assert!(none.is_err() || !none.unwrap().is_file());
}

#[test]
fn a_merge_does_not_write_into_its_adapter() {
    let place = place();
    let before = place.entries();
    let arguments = ["merge", "--model", "model", "--adapter", "adapter", "--out"];
    for out in [
        "adapter/merged",
        "model/../adapter",
        "new/../adapter/merged",
    ] {
        let expected = format!(
            "the output folder {out} lies inside the adapter's folder adapter; choose another"
        );
        place.refuses(&[&arguments[..], &[out]].concat(), 2, &[&expected]);
    }
    assert_eq!(place.entries(), before);
}

#[test]
fn a_loss_that_is_not_finite_is_no_result() {
    let place = place();
    let adapter = "x=adapter@1e300";
    place.refuses(
        &[
            "eval",
            "--model",
            "model",
            "--data",
            "rows.jsonl",
            "--adapter",
            adapter,
        ],
        1,
        &[
            "error: the loss is ",
            "the model or an adapter (or its weight) makes numbers that are not finite",
        ],
    );
}
