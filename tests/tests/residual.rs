//! Starts at the weight itself, from the run file to the folder: the base is left alone, an interrupted run goes on to the
//! same bytes, and PEFT's unconverted files are read on the base that the user says it is.

use lowrank_tests::place::Place;
use serde_json::json;

const RUN: &str = r#"[model]
source = "model"
[adapter]
r = 3
lora_alpha = 4
target_modules = ["q_proj", "down_proj"]
init_lora_weights = "START"
use_dora = DORA
[data]
train = ["rows.jsonl"]
[train]
steps = 6
batch_size = 4
learning_rate = 1e-2
save_every = 3
[output]
dir = "set by the command"
"#;

fn train(place: &Place, dir: &str, flags: &[&str]) {
    let dir = format!("output.dir={dir}");
    let arguments = [&["train", "run.toml", "--set", &dir][..], flags].concat();
    drop(place.run(&arguments).ok());
}

fn folder(place: &Place, name: &str) -> Vec<(String, Vec<u8>)> {
    let prefix = format!("{name}/");
    let files = place.entries().into_iter();
    let files = files.filter(|file| file.starts_with(&prefix) && !place.path(file).is_dir());
    files
        .map(|file| (file[prefix.len()..].to_owned(), place.read(&file)))
        .collect()
}

#[test]
fn a_run_leaves_the_base_alone_and_goes_on_to_the_same_bytes() {
    for (start, dora) in [("pissa", false), ("olora", true), ("pissa_niter_2", true)] {
        let place = Place::with_model("plain");
        let run = RUN
            .replace("START", start)
            .replace("DORA", &dora.to_string());
        place.write("run.toml", run);
        let base = folder(&place, "model");
        train(&place, "whole", &[]);
        assert!(
            folder(&place, "model") == base,
            "{start}: the base has changed"
        );

        train(&place, "parts", &["--set", "train.steps=3"]);
        train(&place, "parts", &["--resume"]);
        for part in ["adapter", "checkpoints/step-000006"] {
            let [whole, parts] =
                ["whole", "parts"].map(|run| folder(&place, &format!("{run}/{part}")));
            let files = |folder: &[(String, Vec<u8>)]| -> Vec<String> {
                folder.iter().map(|(name, _)| name.clone()).collect()
            };
            assert!(!whole.is_empty());
            assert_eq!(files(&parts), files(&whole));
            for ((name, whole), (_, parts)) in whole.iter().zip(&parts) {
                assert!(whole == parts, "{start}: {part}/{name}");
            }
        }

        let config = place.json("whole/adapter/adapter_config.json");
        assert_eq!(config["init_lora_weights"], json!(true));
        assert_eq!(
            (&config["r"], &config["lora_alpha"]),
            (&json!(6), &json!(8))
        );
        let tensors = place.tensors("whole/adapter/adapter_model.safetensors");
        let magnitudes = tensors
            .keys()
            .filter(|name| name.ends_with("lora_magnitude_vector"));
        assert_eq!(magnitudes.count(), if dora { 6 } else { 0 });
        // What was saved computes what was trained.
        let evaluated = eval(&place, "whole/adapter", &[]);
        let trained = place.json_lines("whole/metrics.jsonl");
        let first = trained.iter().find_map(|line| line["loss"].as_f64());
        assert!(
            evaluated < first.unwrap_or_default() - 0.05,
            "{evaluated} {first:?}"
        );
        let merge = [
            "merge",
            "--model",
            "model",
            "--adapter",
            "whole/adapter",
            "--out",
            "merged",
            "--verify",
        ];
        drop(place.run(&merge).ok());
    }
}

fn eval(place: &Place, adapter: &str, flags: &[&str]) -> f64 {
    let arguments = [
        &[
            "eval",
            "--model",
            "model",
            "--adapter",
            adapter,
            "--data",
            "rows.jsonl",
            "--json",
        ][..],
        flags,
    ]
    .concat();
    place.run(&arguments).json()["loss"]
        .as_f64()
        .expect("a loss")
}

#[test]
fn an_unconverted_file_is_read_on_the_base_that_it_is_said_to_be() {
    for (case, model) in [("pissa", "plain"), ("olora", "biased")] {
        let place = Place::with_model(model);
        place.copy(&format!("cases/{case}/adapter_init"), "adapter");
        place.copy(&format!("cases/{case}/adapter_converted"), "converted");
        let question = "say residual_base = \"original\" (--residual-base original)";
        let without = [
            "eval",
            "--model",
            "model",
            "--adapter",
            "adapter",
            "--data",
            "rows.jsonl",
        ];
        place.refuses(&without, 1, &[question]);

        let converted = eval(&place, "converted", &[]);
        let original = eval(&place, "adapter", &["--residual-base", "original"]);
        assert!(
            (original - converted).abs() < 1e-5 * converted,
            "{original} {converted}"
        );
        // Taken for the residual, the model is another one.
        let residual = eval(&place, "adapter", &["--residual-base", "residual"]);
        assert!(
            (residual - converted).abs() > 1e-2,
            "{residual} {converted}"
        );
        // A plain adapter means the same whatever is said.
        assert_eq!(
            eval(&place, "converted", &["--residual-base", "residual"]),
            converted
        );

        let wrong = [&without[..], &["--residual-base", "orignal"]].concat();
        place.refuses(
            &wrong,
            2,
            &["`orignal` is neither \"original\" nor \"residual\""],
        );
        let inspected = place.run(&["inspect", "adapter", "--json"]).json();
        assert_eq!(inspected["config"]["init_lora_weights"], json!(case));
        let r = inspected["config"]["r"].as_u64();
        assert!(inspected["sites"][0]["rank"].as_u64() <= r);
    }
}

#[test]
fn training_goes_on_from_an_unconverted_file() {
    let place = Place::with_model("plain");
    place.copy("cases/pissa/adapter_init", "adapter");
    place.copy("cases/pissa/adapter_converted", "converted");
    let run = "model.source = \"model\"\n\
               data = { train = [\"rows.jsonl\"], eval = [\"rows.jsonl\"] }\n\
               output.dir = \"out\"\n\
               train = { steps = 2, batch_size = 4, learning_rate = 1e-3 }\n\
               [adapter]\n\
               init_from = \"adapter\"\n";
    place.write("run.toml", run);
    place.refuses(&["train", "run.toml"], 1, &["--residual-base original"]);
    place.write("run.toml", format!("{run}residual_base = \"original\"\n"));
    drop(place.run(&["train", "run.toml"]).ok());
    let before = place.json_lines("out/metrics.jsonl")[0]["eval_loss"].as_f64();
    let converted = eval(&place, "converted", &[]);
    let before = before.expect("an evaluation before the first step");
    assert!(
        (before - converted).abs() < 1e-5 * converted,
        "{before} {converted}"
    );
    assert!(
        place
            .text("out/run.toml")
            .contains("residual_base = \"original\"")
    );
    let config = place.json("out/adapter/adapter_config.json");
    assert_eq!(
        (&config["init_lora_weights"], &config["r"]),
        (&json!(true), &json!(8))
    );
    assert!(eval(&place, "out/adapter", &[]) < before);
}
