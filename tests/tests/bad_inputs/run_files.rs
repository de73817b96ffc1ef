//! Run files: syntax, keys, values, and what is planned.

use lowrank_tests::place::Place;

const RUN: &str = r#"[model]
source = "model"
[adapter]
family = "lora"
r = 3
lora_alpha = 5
target_modules = ["q_proj", "v_proj"]
[data]
train = ["rows.jsonl"]
[train]
steps = 2
batch_size = 4
[output]
dir = "out"
"#;

/// Replaces a part of the run file, which is then refused with status 2.
fn check(part: &str, by: &str, expected: &str) {
    check_with(part, by, 2, expected);
}

fn check_with(part: &str, by: &str, code: i32, expected: &str) {
    assert!(RUN.contains(part), "{part}");
    let place = Place::with_model("plain");
    place.write("run.toml", RUN.replace(part, by));
    place.refuses(
        &["train", "run.toml"],
        code,
        &[&format!("error: run.toml{expected}")],
    );
}

/// Sets a key from the command line.
fn check_set(set: &str, expected: &str) {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    place.refuses(&["train", "run.toml", "--set", set], 2, &[expected]);
}

#[test]
fn the_run_file_itself_is_sound() {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    drop(place.run(&["train", "run.toml"]).ok());
}

#[test]
fn a_pattern_for_no_module_is_warned_of() {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    let set = "adapter.rank_pattern={v_proj=2, up_proj=5}";
    let ended = place.run(&["train", "run.toml", "--set", set]).ok();
    let expected = "WARN `rank_pattern`: `up_proj` matches none of the targeted modules\n";
    assert_eq!(ended.stderr.matches("matches none").count(), 1);
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
}

#[test]
fn syntax() {
    check("r = 3", "r = = 3", ":5:5: ");
    check("steps = 2", "steps = 2\nsteps = 3", ":12:1: duplicate key");
    check("[model]\n", "[model\n", ":1:7: ");
}

#[test]
fn unknown_keys() {
    check(
        "[model]",
        "[modle]",
        ": unknown key `modle`, did you mean `model`?",
    );
    check(
        "lora_alpha",
        "lora_alhpa",
        ": [adapter]: unknown key `lora_alhpa`, did you mean `lora_alpha`?",
    );
    check(
        "batch_size",
        "bacth_size",
        ": unknown key `train.bacth_size`, did you mean `train.batch_size`?",
    );
    check(
        "source =",
        "sauce = 1\nsource =",
        ": unknown key `model.sauce`, did you mean `model.source`?",
    );
    check(
        "dir =",
        "temperature = 1\ndir =",
        ": unknown key `output.temperature`",
    );
    check(
        "[output]",
        "[tuning]\nr = 1\n[output]",
        ": unknown key `tuning`",
    );
    check_set(
        "train.stepz=3",
        "--set: unknown key `train.stepz`, did you mean `train.steps`?",
    );
    check_set(
        "trian.steps=3",
        "--set: unknown key `trian`, did you mean `train`?",
    );
    check_set("steps=3", "--set: unknown key `steps`");
    check_set(
        "train.steps",
        "--set: `train.steps` has no `=`, expected key=value, for example train.steps=100",
    );
    check_set(
        "train..steps=3",
        "--set: `train..steps` is not a key, expected words joined by dots",
    );
    check_set(
        "train.steps.more=3",
        "--set: `train.steps.more` cannot be set: `train.steps` is 2, not a table",
    );
    check_set(
        "data.train=[1",
        "--set: the value of `data.train`, `[1`, is not TOML: ",
    );
}

#[test]
fn values() {
    check(
        "r = 3",
        "r = \"three\"",
        ": [adapter]: `r = \"three\"`, expected an integer above 0",
    );
    check(
        "r = 3",
        "r = 0",
        ": [adapter]: `r = 0`, expected an integer above 0",
    );
    check(
        "lora_alpha = 5",
        "lora_alpha = nan",
        ": `adapter.lora_alpha` is nan, expected finite numbers, and neither dates nor times",
    );
    check(
        "lora_alpha = 5",
        "lora_dropout = 1.5",
        ": [adapter]: `lora_dropout = 1.5`: ",
    );
    check(
        "steps = 2",
        "steps = \"two\"",
        ": `train.steps` is \"two\", expected an integer of at least 1",
    );
    check(
        "steps = 2",
        "steps = -1",
        ": `train.steps` is -1, expected an integer of at least 1",
    );
    check(
        "steps = 2",
        "steps = 2\nepochs = 1",
        ": `train.steps` and `train.epochs` are both given, expected one of them",
    );
    check(
        "batch_size = 4",
        "batch_size = 0",
        ": `train.batch_size` is 0, expected an integer from 1 to 65536",
    );
    check(
        "steps = 2",
        "learning_rate = -1e-4",
        ": `train.learning_rate` is -0.0001, expected a finite number of at least 0",
    );
    check(
        "steps = 2",
        "warmup_steps = 1\nwarmup_ratio = 0.1",
        ": `train.warmup_steps` and `train.warmup_ratio` are both given, expected one of them",
    );
    check(
        "steps = 2",
        "schedule = \"step\"",
        ": `train.schedule` is \"step\", expected \"constant\" or \"linear\" or \"cosine\"",
    );
    check(
        "train = [\"rows.jsonl\"]",
        "train = \"rows.jsonl\"",
        ": `data.train` is \"rows.jsonl\", expected a list of paths, for example [\"train.jsonl\"]",
    );
    check(
        "train = [\"rows.jsonl\"]",
        "train = []",
        ": `data.train` is [], expected a list of paths",
    );
    check(
        "source = \"model\"",
        "",
        ": `model.source` is missing, expected a model folder, a GGUF file, a hub id or the name of an embedded model, as a string",
    );
    check(
        "train = [\"rows.jsonl\"]",
        "",
        ": `data.train` is missing, expected a list of paths",
    );
    check(
        "dir = \"out\"",
        "",
        ": `output.dir` is missing, expected a folder, as a string, for example \"runs/first\"",
    );
    check(
        "steps = 2",
        "groups.lora_c.weight_decay = 0.1",
        ": `train.groups.lora_c` names a group",
    );
    check(
        "[data]",
        "[data]\npacking = \"yes\"",
        ": `data.packing` is \"yes\", expected true or false",
    );
    check(
        "train = [\"rows.jsonl\"]\n[train]\nsteps = 2",
        "train = [\"rows.jsonl\"]\npacking = true\n[train]\nepochs = 1000000000000",
        ": `train.epochs = 1000000000000` of ",
    );
    check_set(
        "train.seed=-3",
        "--set: `train.seed` is -3, expected an integer of at least 0",
    );
}

#[test]
fn what_is_planned_is_refused_as_such() {
    check(
        "steps = 2",
        "optimizer = \"lion\"",
        ": `train.optimizer = \"lion\"` is not yet supported (only \"adamw\" or ",
    );
    check(
        "steps = 2",
        "compute = \"f16\"",
        ": `train.compute` is \"f16\", expected \"f32\" or \"bf16\"",
    );
    check(
        "family = \"lora\"",
        "family = \"dora\"",
        ": [adapter]: `family = dora` is not yet supported (only ",
    );
    check(
        "r = 3",
        "lora_bias = true",
        ": [adapter]: `lora_bias = true` is not yet supported (only false is)",
    );
    check(
        "r = 3",
        "init_lora_weights = \"corda\"",
        ": [adapter]: model.layers.0.self_attn.q_proj: `init_lora_weights = \"corda\"` is not yet supported",
    );
    check(
        "r = 3",
        "residual_base = \"original\"",
        ": `adapter.residual_base` says how `adapter.init_from` is read, and that is missing",
    );
    check_set(
        "adapter.family=vera",
        "[adapter]: `family = vera` is not yet supported (only ",
    );
}

#[test]
fn families_and_targets() {
    check(
        "\"lora\"",
        "\"lorra\"",
        ": [adapter]: unknown family `lorra`, did you mean `lora`?",
    );
    check(
        "\"lora\"",
        "\"ful\"",
        ": [adapter]: unknown family `ful`, did you mean `full`?",
    );
    check(
        "\"lora\"",
        "\"prefix\"",
        ": [adapter]: unknown family `prefix`, expected one of: ",
    );
    check(
        "\"lora\"",
        "\"full\"",
        ": [adapter]: `r` has no meaning for family \"full\"",
    );
    check(
        "r = 3",
        "r = 17",
        ": [adapter]: model.layers.0.self_attn.v_proj: r = 17 is larger than the matrix [16, 48] allows; use at most 16",
    );
    check(
        "[\"q_proj\", \"v_proj\"]",
        "[\"query\"]",
        ": [adapter]: target_modules = [\"query\"] matches no module of the model; it has modules named \
         down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    );
    check(
        "[\"q_proj\", \"v_proj\"]",
        "\"q_proj\"",
        ": [adapter]: target_modules = \"q_proj\" matches no module of the model",
    );
    check(
        "[\"q_proj\", \"v_proj\"]",
        "[\"q_proj\"]\nlayers_to_transform = [9]",
        ": [adapter]: target_modules = [\"q_proj\"] names 3 modules, and `exclude_modules`, `modules_to_save` and \
         `layers_to_transform` leave none of them",
    );
    check(
        "[\"q_proj\", \"v_proj\"]",
        "\"q_(\"",
        ": [adapter]: `target_modules`: `q_(` is not a regular expression: ",
    );
    check(
        "[\"q_proj\", \"v_proj\"]",
        "[]",
        ": [adapter]: `target_modules` is an empty list",
    );
    check(
        "r = 3",
        "modules_to_save = [\"score\"]",
        ": [adapter]: modules_to_save = [\"score\"] matches no module of the model",
    );
}

#[test]
fn adapters_to_start_from() {
    let check = |keys: &str, code, expected: &str| {
        let place = Place::with_model("plain");
        place.copy("cases/lora/adapter_init", "start");
        let run = RUN.replace(
            "family = \"lora\"\nr = 3\nlora_alpha = 5\ntarget_modules = [\"q_proj\", \"v_proj\"]",
            keys,
        );
        place.write("run.toml", run);
        place.refuses(&["train", "run.toml"], code, &[expected]);
    };
    let start = "init_from = \"start\"";
    check(
        &format!("{start}\nr = 8"),
        2,
        "run.toml: [adapter]: `r = 8`, but the adapter in init_from has 4; leave the key out or make them agree",
    );
    check(
        &format!("{start}\nfamily = \"full\""),
        2,
        "run.toml: [adapter]: `init_from` has no meaning for family \"full\"",
    );
    check(
        "init_from = \"none\"",
        1,
        "none does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`",
    );
    check(
        "init_from = \"out/adapter\"",
        2,
        "run.toml: `adapter.init_from = \"out/adapter\"` lies inside `output.dir`, which the run writes to; choose another folder",
    );
    let place = Place::with_model("biased");
    place.copy("cases/lora/adapter_init", "start");
    place.write(
        "run.toml",
        RUN.replace(
            "family = \"lora\"\nr = 3\nlora_alpha = 5\n",
            "init_from = \"start\"\n",
        )
        .replace("target_modules = [\"q_proj\", \"v_proj\"]\n", ""),
    );
    place.refuses(
        &["train", "run.toml"],
        1,
        &["error: start: model.layers.0.self_attn.q_proj: tensor `model.layers.0.self_attn.q_proj.lora_A.weight` has shape [4, 48], expected [4, 42] from the configuration and the base model"],
    );
}

#[test]
fn a_run_file_that_cannot_be_read() {
    let place = Place::new();
    place.refuses(
        &["train", "none.toml"],
        2,
        &["error: cannot read none.toml: No such file or directory"],
    );
    place.write("binary.toml", b"\xff\xfe");
    place.refuses(
        &["train", "binary.toml"],
        2,
        &["error: cannot read binary.toml: stream did not contain valid UTF-8"],
    );
    place.refuses(
        &["train", "."],
        2,
        &["error: cannot read .: Is a directory"],
    );
}
