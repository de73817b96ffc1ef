//! Verbs and flags.

use lowrank_tests::place::Place;

/// Refused with status 2, whatever lies in the folder.
fn check(arguments: &[&str], expected: &str) {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_init", "adapter");
    place.refuses(arguments, 2, &[expected]);
}

#[test]
fn verbs() {
    check(&["combine"], "error: `combine` is not yet supported");
    let export = [
        "export",
        "--model",
        "model",
        "--adapter",
        "adapter",
        "--out",
        "out",
    ];
    let with = |more: &[&'static str]| [&export[..], more].concat();
    check(
        &with(&["--to", "gguf"]),
        "error: `--to gguf` is not yet supported",
    );
    check(
        &with(&["--to", "lora", "--rank", "3"]),
        "error: `--rank`, an approximation of the update by so many ranks, is not yet supported",
    );
    check(
        &[
            "export",
            "--model",
            "model",
            "--adapter",
            "adapter",
            "--to",
            "lora",
            "--out",
            "adapter/plain",
        ],
        "error: the output folder adapter/plain and the adapter's folder adapter lie within each other; choose another",
    );
    check(
        &["evla"],
        "error: unknown verb `evla`, did you mean `eval`?",
    );
    check(
        &["frobnicate"],
        "error: unknown verb `frobnicate`, expected one of: chat, embed, eval, export, families, generate, inspect, merge, plan, train",
    );
    check(&[], "Usage: lowrank");
}

#[test]
fn flags() {
    const EVAL: [&str; 5] = ["eval", "--model", "model", "--data", "rows.jsonl"];
    let check_eval = |flags: &[&str], expected: &str| check(&[&EVAL[..], flags].concat(), expected);
    check_eval(
        &["--batch-szie", "3"],
        "error: unexpected argument '--batch-szie' found",
    );
    check_eval(
        &["--batch-size", "0"],
        "error: invalid value '0' for '--batch-size",
    );
    check_eval(&["--limit", "0"], "error: invalid value '0' for '--limit");
    check_eval(
        &["--max-length", "many"],
        "error: invalid value 'many' for '--max-length",
    );
    check_eval(
        &["--dtype", "f31"],
        "error: unknown dtype `f31`, expected as-stored, f32, bf16, f16, f64 or nf4",
    );
    check_eval(
        &["--task", "generate"],
        "error: --task generate needs rows with a prompt and what follows it, and with no `choices`",
    );
    check_eval(
        &["--task", "classification"],
        "error: --task classification needs rows {\"text\"[,\"text_pair\"],\"label\"}; these are others",
    );
    check_eval(
        &["--task", "choices"],
        "error: --task choices needs rows with `choices`; these have none",
    );
    check_eval(
        &["--task", "choice"],
        "error: invalid value 'choice' for '--task",
    );
    check_eval(
        &["--predictions", "p.jsonl"],
        "error: --predictions needs a --task that predicts: these rows are measured by their loss alone",
    );
    check_eval(
        &["--logits", "none/l.safetensors"],
        "error: --logits none/l.safetensors: expected a file in a folder that exists",
    );
    check_eval(
        &["--predictions", "model"],
        "error: --predictions model: expected a file in a folder that exists",
    );
    check(&["eval", "--data", "rows.jsonl"], "\n  --model <MODEL>\n");
    check(&["eval", "--model", "model"], "\n  --data <DATA>\n");
    check(
        &["merge", "--model", "model", "--out", "out"],
        "error: merge needs at least one --adapter",
    );
    check(
        &["merge", "--model", "model", "--adapter", "adapter"],
        "\n  --out <OUT>\n",
    );
    check(
        &[
            "merge",
            "--model",
            "model",
            "--adapter",
            "adapter",
            "--out",
            "out",
            "--dtype",
            "q4",
        ],
        "error: unknown --dtype `q4`, expected as-stored, f32, f64, bf16 or f16",
    );
    check(
        &["train", "run.toml", "--resume", "--overwrite"],
        "'--resume' cannot be used with '--overwrite'",
    );
    check(&["train"], "\n  <RUN>\n");
    check(&["inspect"], "\n  <PATH>\n");
}
