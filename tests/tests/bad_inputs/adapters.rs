//! Adapter folders: configurations, tensors, and bases that they do not belong to.

use candle_core::{DType, Device, Tensor};
use lowrank_tests::place::Place;
use serde_json::{Value, json};
use std::fs;

const CONFIG: &str = "adapter/adapter_config.json";
const TENSORS: &str = "adapter/adapter_model.safetensors";
const EVAL: [&str; 7] = [
    "eval",
    "--model",
    "model",
    "--data",
    "rows.jsonl",
    "--adapter",
    "adapter",
];
const MERGE: [&str; 7] = [
    "merge",
    "--model",
    "model",
    "--adapter",
    "adapter",
    "--out",
    "out",
];
const SITE: &str = "base_model.model.model.layers.1.self_attn.k_proj";

/// The golden model `plain` with an adapter of rank 4 that PEFT wrote for it.
fn adapted() -> Place {
    let place = Place::with_model("plain");
    place.copy("cases/lora/adapter_init", "adapter");
    place
}

/// Spoils the adapter; it can then be neither evaluated nor merged.
fn check(spoil: impl FnOnce(&Place), expected: &str) {
    let place = adapted();
    spoil(&place);
    place.refuses(&EVAL, 1, &[expected]);
    place.refuses(&MERGE, 1, &[expected]);
}

fn set(key: &'static str, value: Value) -> impl FnOnce(&Place) {
    move |place| place.edit_json(CONFIG, |config| drop(config.insert(key.into(), value)))
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("zeros")
}

fn put(name: String, tensor: Tensor) -> impl FnOnce(&Place) {
    move |place| place.edit_tensors(TENSORS, |tensors| drop(tensors.insert(name, tensor)))
}

#[test]
fn configurations() {
    let says = |what: &str| format!("{CONFIG}: {what}");
    check(
        set("lora_alhpa", json!(7)),
        &says("unknown key `lora_alhpa`, did you mean `lora_alpha`?"),
    );
    check(
        set("quantum_rank", json!(2)),
        &says("unknown key `quantum_rank`"),
    );
    check(
        set("r", json!(0)),
        &says("`r = 0`, expected an integer above 0"),
    );
    check(
        set("lora_bias", json!(true)),
        &says("`lora_bias = true` is not yet supported (only false is)"),
    );
    check(
        set("use_dora", json!(true)),
        "q_proj.lora_magnitude_vector` is missing from the adapter",
    );
    check(
        set("init_lora_weights", json!("pisa")),
        &says("`init_lora_weights = \"pisa\"`: expected true, false, \"gaussian\""),
    );
    check(
        set("init_lora_weights", json!("olora")),
        &says(
            "`init_lora_weights = \"olora\"` was saved unconverted, and its tensors mean nothing",
        ),
    );
    check(
        set("init_lora_weights", json!("pissa_niter_4")),
        &says(
            "`init_lora_weights = \"pissa_niter_4\"` was saved unconverted, and changed its base",
        ),
    );
    check(
        set("trainable_token_indices", json!([3])),
        &says("`trainable_token_indices = [3]` is not yet supported (only null is)"),
    );
    check(
        set("peft_type", json!("LORRA")),
        &says("unknown peft_type `LORRA`, did you mean `lora`?"),
    );
    check(
        set("peft_type", json!("PREFIX_TUNING")),
        &says("unknown peft_type `PREFIX_TUNING`, expected one of: "),
    );
    check(
        set("peft_type", json!("VERA")),
        &says("`peft_type = VERA` is not yet supported (only "),
    );
    check(
        set("peft_type", json!(4)),
        &says("`peft_type` is 4; expected a string such as \"LORA\""),
    );
    check(
        set("bias", json!("some")),
        &says("`bias = \"some\"`, expected \"none\", \"all\" or \"<family>_only\""),
    );
    check(
        set("target_modules", json!("q_(proj")),
        "adapter: `target_modules`: `q_(proj` is not a regular expression: ",
    );
    check(
        set("target_modules", json!(["embed_tokens"])),
        "adapter: `target_modules = [\"embed_tokens\"] (it matches the embedding `model.embed_tokens`)` is not yet supported",
    );
    check(
        set("target_modules", json!(["qproj"])),
        "adapter: target_modules = [\"qproj\"] matches no module of the model; it has modules named \
         down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    );
    check(
        set("modules_to_save", json!(["lm_heads"])),
        "adapter: modules_to_save = [\"lm_heads\"] matches no module of the model",
    );
    check(
        |place| {
            set("r", json!(17))(place);
            set("target_modules", json!(["k_proj"]))(place);
        },
        "k_proj.lora_A.weight` has shape [4, 48], expected [17, 48] from the configuration and the base model",
    );
    check(
        |place| place.write(CONFIG, "{\"r\": 4,\n}"),
        &says("trailing comma at line 2 column 1"),
    );
}

#[test]
fn an_empty_unknown_key_is_a_warning() {
    let place = adapted();
    set("quantum_rank", json!(0))(&place);
    let ended = place.run(&EVAL).ok();
    let warning =
        "ignoring unknown key `quantum_rank` of the adapter's configuration (its value is 0)";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
}

#[test]
fn tensors() {
    let a = format!("{SITE}.lora_A.weight");
    let short = "model.layers.1.self_attn.k_proj.lora_A.weight";
    check(
        |place| place.edit_tensors(TENSORS, |tensors| drop(tensors.remove(&a))),
        &format!(
            "adapter: model.layers.1.self_attn.k_proj: tensor `{short}` is missing from the adapter"
        ),
    );
    check(
        put(
            "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight".into(),
            zeros(&[4, 48]),
        ),
        "adapter: tensor `model.layers.9.mlp.up_proj.lora_A.weight` of the adapter is used by no module \
         (its configuration targets 21 modules by [",
    );
    check(
        put(a.clone(), zeros(&[4, 47])),
        &format!(
            "adapter: model.layers.1.self_attn.k_proj: tensor `{short}` has shape [4, 47], expected [4, 48] from the configuration and the base model"
        ),
    );
    let nan = Tensor::full(f32::NAN, (4, 48), &Device::Cpu).unwrap();
    check(
        put(a.clone(), nan),
        &format!("{TENSORS}: tensor `{a}` holds NaN at element 0; expected finite numbers"),
    );
    check(
        put(format!("{SITE}.lora_A.other.weight"), zeros(&[4, 48])),
        "name different adapters; expected one",
    );
    check(
        |place| place.write(TENSORS, &place.read(TENSORS)[..5000]),
        &format!("{TENSORS}: not a valid safetensors file: "),
    );
}

#[test]
fn what_is_no_adapter_folder() {
    let gone = |file: &'static str| move |place: &Place| fs::remove_file(place.path(file)).unwrap();
    check(
        gone(CONFIG),
        "adapter: holds no adapter_config.json; expected an adapter folder in PEFT's layout",
    );
    check(
        gone(TENSORS),
        "adapter: holds no adapter_model.safetensors; expected an adapter folder in PEFT's layout",
    );
    let pickle = |place: &Place| {
        gone(TENSORS)(place);
        place.write("adapter/adapter_model.bin", b"\x80\x02}q\x00.");
    };
    check(
        pickle,
        "adapter/adapter_model.bin: pickled weights are refused, because reading them can run any code; convert them in \
         Python: `PeftModel.from_pretrained(base, folder).save_pretrained(folder, safe_serialization=True)`",
    );
    let missing = |place: &Place| fs::remove_dir_all(place.path("adapter")).unwrap();
    check(
        missing,
        "adapter does not exist; expected a path, or a hub id: `org/name` or `org/name@revision`",
    );
    let place = adapted();
    place.refuses(
        &["inspect", "none"],
        1,
        &["none does not exist; expected an adapter folder in PEFT's layout"],
    );
    place.write("empty/readme.txt", "text");
    place.refuses(
        &["inspect", "empty"],
        1,
        &["empty: holds no adapter_config.json"],
    );
}

/// An adapter of our own, which remembers its base.
fn trained() -> Place {
    let place = Place::with_model("plain");
    place.write("run.toml", "[model]\nsource = \"model\"\n[adapter]\nr = 3\nlora_alpha = 5\n[data]\ntrain = [\"rows.jsonl\"]\n[train]\nsteps = 2\n[output]\ndir = \"run\"\n");
    drop(place.run(&["train", "run.toml"]).ok());
    place.duplicate("run/adapter", "adapter");
    place
}

#[test]
fn a_base_of_another_shape_is_an_error() {
    let place = trained();
    fs::remove_dir_all(place.path("model")).unwrap();
    place.copy("models/biased", "model");
    let expected =
        "adapter: the adapter was trained on a base of other names and sizes than this one: model";
    place.refuses(&EVAL, 1, &[expected]);
    place.refuses(&MERGE, 1, &[expected]);
}

#[test]
fn a_base_with_other_values_is_a_warning_unless_it_must_be_the_same() {
    const SHARD: &str = "model/model-00003-of-00003.safetensors";
    let place = trained();
    let warning =
        "adapter: the adapter was trained on a base with other values than this one: model";
    assert!(!place.run(&EVAL).ok().stderr.contains(warning));
    drop(place.run(&[&EVAL[..], &["--strict-base"]].concat()).ok());
    place.edit_tensors(SHARD, |tensors| {
        let name = "model.norm.weight";
        let changed = (&tensors[name] * 1.5).unwrap();
        tensors.insert(name.into(), changed);
    });
    let ended = place.run(&EVAL).ok();
    assert!(
        ended.stderr.contains(&format!("WARN {warning}")),
        "{}",
        ended.stderr
    );
    place.refuses(&[&EVAL[..], &["--strict-base"]].concat(), 1, &[warning]);
    place.refuses(&[&MERGE[..], &["--strict-base"]].concat(), 1, &[warning]);
}

#[test]
fn names_and_weights() {
    let check = |given: &[&str], expected: &str| {
        let place = adapted();
        let mut arguments = EVAL[..5].to_vec();
        for adapter in given {
            arguments.extend(["--adapter", adapter]);
        }
        place.refuses(&arguments, 2, &[expected]);
    };
    let rule = "a name must not be empty or contain `.` or `/`";
    check(
        &["a.b=adapter"],
        &format!("--adapter: adapter `a.b`: {rule}"),
    );
    check(&["=adapter"], &format!("--adapter: adapter ``: {rule}"));
    check(
        &["lora_=adapter"],
        "--adapter: adapter `lora_`: this name is part of a tensor prefix; choose another",
    );
    check(
        &["x=adapter", "x=adapter"],
        "--adapter: adapter `x`: an adapter of that name is attached already",
    );
    check(&["adapter@heavy"], "`heavy` after `@` is not a weight");
    check(&["adapter@inf"], "`inf` after `@` is not a weight");
    check(&["x="], "`x=` names no folder");
}

#[test]
fn a_whole_module_belongs_to_one_adapter() {
    let place = Place::with_model("plain");
    place.copy("cases/modules_to_save/adapter_init", "saved");
    place.copy("cases/lora/adapter_init", "adapter");
    let expected =
        "is replaced by a selected adapter, which needs that adapter alone with weight 1";
    place.refuses(
        &[&EVAL[..], &["--adapter", "saved"]].concat(),
        1,
        &[expected],
    );
    place.refuses(
        &[&MERGE[..], &["--adapter", "saved"]].concat(),
        1,
        &[expected],
    );
    place.refuses(
        &[&EVAL[..5], &["--adapter", "saved@0.5"]].concat(),
        1,
        &[expected],
    );
}
