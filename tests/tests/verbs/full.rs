//! `train` with `family = "full"`: the result is a model.

use crate::{RUN, close, number};
use lowrank_tests::numbers::max_difference;
use lowrank_tests::place::Place;

fn train(model: &str) -> (Place, f64) {
    let place = Place::with_model(model);
    let keys = "r = 3\nlora_alpha = 5\ntarget_modules = \"all-linear\"\n";
    place.write("run.toml", RUN.replace(keys, "family = \"full\"\n"));
    let report = place
        .run(&["train", "run.toml", "--json", "--set", "train.steps=5"])
        .json();
    assert_eq!(report["result"], place.path("run/model").to_str().unwrap());
    assert!(!place.path("run/adapter").exists());
    let lines = place.json_lines("run/metrics.jsonl");
    let last = number(&report["last_evaluation"]["eval_loss"]);
    assert!(last < number(&lines[0]["eval_loss"]) - 0.05);
    (place, last)
}

#[test]
fn a_tied_model_stays_tied() {
    let (place, loss) = train("biased");
    let evaluated = place
        .run(&[
            "eval",
            "--model",
            "run/model",
            "--data",
            "rows.jsonl",
            "--json",
        ])
        .json();
    close(number(&evaluated["loss"]), loss, 1e-6);
    assert_eq!(
        place.json("run/model/config.json"),
        place.json("model/config.json")
    );
    let (before, after) = (
        place.tensors("model/model.safetensors"),
        place.tensors("run/model/model.safetensors"),
    );
    let names = |tensors: &std::collections::BTreeMap<String, _>| {
        tensors.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&before), names(&after));
    assert!(!after.contains_key("lm_head.weight"));
    for (name, tensor) in &after {
        assert!(
            max_difference(tensor, &before[name]).unwrap() > 1e-4,
            "{name} did not train"
        );
    }
    let found = place.run(&["inspect", "run/model", "--json"]).json();
    assert_eq!(
        (&found["kind"], &found["family"]),
        (&"model".into(), &"llama".into())
    );
}

#[test]
fn an_untied_model_is_written_whole() {
    let (place, loss) = train("plain");
    let evaluated = place
        .run(&[
            "eval",
            "--model",
            "run/model",
            "--data",
            "rows.jsonl",
            "--json",
        ])
        .json();
    close(number(&evaluated["loss"]), loss, 1e-6);
    let after = place.tensors("run/model/model.safetensors");
    let index = place.json("model/model.safetensors.index.json");
    let names: Vec<&String> = index["weight_map"].as_object().unwrap().keys().collect();
    assert_eq!(after.keys().collect::<Vec<_>>(), names);
    assert_eq!(
        place.json("run/model/config.json")["tie_word_embeddings"],
        false
    );
}
