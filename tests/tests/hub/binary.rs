//! The verbs of the binary on what a hub has.

use crate::files;
use lowrank_tests::binary::Ended;
use lowrank_tests::hub::{HubServer, Repository};
use lowrank_tests::place::Place;
use serde_json::Value;

/// A place with a model and an adapter, and a hub that has both, the rows, and the model at another revision.
struct Scene {
    place: Place,
    server: HubServer,
    commit: String,
}

impl Scene {
    fn new() -> Self {
        let place = Place::with_model("plain");
        place.copy("cases/lora/adapter_final", "adapter");
        let mut model = Repository::of_folder("org/plain", &place.path("model"))
            // What is not needed, and what must not be followed.
            .with("README.md", "# A model")
            .with("pytorch_model.bin", "a pickle")
            .with("onnx/model.onnx", "a graph")
            .with("../outside.json", "{}")
            .with("tokenizer.json/..", "{}")
            .with("..\\outside.json", "{}");
        "refs/pr/7".clone_into(&mut model.revision);
        let commit = model.commit.clone();
        let main = Repository {
            revision: "main".into(),
            ..model.clone()
        };
        let adapter = Repository::of_folder("some-one/adapter", &place.path("adapter"));
        let rows =
            Repository::new("datasets/org/rows").with("some/rows.jsonl", place.read("rows.jsonl"));
        Self {
            place,
            server: HubServer::with(vec![main, model, adapter, rows]),
            commit,
        }
    }

    fn run(&self, arguments: &[&str], more: &[(&str, &str)]) -> Ended {
        let endpoint = self.server.endpoint();
        let variables = [&[("HF_ENDPOINT", endpoint.as_str())], more].concat();
        self.place.run_with(arguments, &variables)
    }

    fn logits(
        &self,
        model: &str,
        data: &str,
        more: &[&str],
        variables: &[(&str, &str)],
    ) -> (Vec<u8>, String) {
        let first = [
            "eval",
            "--model",
            model,
            "--data",
            data,
            "--logits",
            "l.safetensors",
        ];
        let ended = self.run(&[&first[..], more].concat(), variables).ok();
        (self.place.read("l.safetensors"), ended.stderr)
    }
}

#[test]
fn a_model_is_downloaded_once_and_computes_what_its_folder_does() {
    let scene = Scene::new();
    let (expected, _) = scene.logits("model", "rows.jsonl", &[], &[]);
    assert_eq!(scene.server.paths(), [""; 0]);

    let (found, said) = scene.logits("org/plain", "rows.jsonl", &[], &[]);
    assert_eq!(found, expected);
    assert!(
        said.contains("downloading model-00002-of-00003.safetensors of org/plain, 0."),
        "{said}"
    );
    let weights = |path: &String| path.contains("resolve") && path.ends_with(".safetensors");
    let paths = scene.server.paths();
    let prefix = format!("/org/plain/resolve/{}", scene.commit);
    assert_eq!(paths[0], "/api/models/org/plain/revision/main");
    assert_eq!(paths[1], format!("{prefix}/config.json"));
    assert_eq!(paths[2], format!("{prefix}/generation_config.json"));
    assert_eq!(paths[3], format!("{prefix}/model.safetensors.index.json"));
    assert_eq!(paths.iter().filter(|path| weights(path)).count(), 3);
    // Every shard is redirected to the store, and nothing else is asked for.
    assert_eq!(paths.len(), 4 + 3 * 2);

    // The layout is the one that every tool shares.
    let cache = scene.place.path("hf-home/hub/models--org--plain");
    assert_eq!(
        scene.place.text("hf-home/hub/models--org--plain/refs/main"),
        scene.commit
    );
    let snapshot = cache.join("snapshots").join(&scene.commit);
    assert_eq!(files(&snapshot).len(), 6);
    for file in files(&snapshot) {
        let target = file.read_link().unwrap();
        assert!(target.starts_with("../../blobs"), "{}", target.display());
    }
    assert_eq!(files(&scene.place.path("hf-home")).len(), 6 + 6 + 1);

    // Again: one question, and no file.
    let (found, said) = scene.logits("org/plain@main", "rows.jsonl", &[], &[]);
    assert_eq!((found == expected, said.as_str()), (true, ""));
    assert_eq!(
        scene.server.paths(),
        ["/api/models/org/plain/revision/main"]
    );
    let (found, _) = scene.logits("org/plain@refs/pr/7", "rows.jsonl", &[], &[]);
    assert!(found == expected);
    assert_eq!(
        scene.server.paths(),
        ["/api/models/org/plain/revision/refs%2Fpr%2F7"]
    );

    // A commit does not change, and offline nothing is asked.
    let pinned = format!("org/plain@{}", scene.commit);
    let offline = [("HF_HUB_OFFLINE", "1")];
    for (model, variables) in [
        (pinned.as_str(), &[][..]),
        ("org/plain", &offline),
        ("org/plain@refs/pr/7", &offline),
    ] {
        assert!(scene.logits(model, "rows.jsonl", &[], variables).0 == expected);
        assert_eq!(scene.server.paths(), [""; 0], "{model}");
    }

    // Without a connection the cache serves, and says so.
    let nowhere = [("HF_ENDPOINT", "http://127.0.0.1:1")];
    let (found, said) = scene.logits("org/plain", "rows.jsonl", &[], &nowhere);
    assert!(found == expected);
    assert!(said.contains("cannot reach http://127.0.0.1:1"), "{said}");
    assert!(said.contains("using what the cache holds"), "{said}");
}

#[test]
fn a_path_that_exists_is_never_looked_for_on_the_hub() {
    let scene = Scene::new();
    scene.place.duplicate("model", "org/plain");
    let (here, _) = scene.logits("org/plain", "rows.jsonl", &[], &[]);
    assert_eq!(scene.server.paths(), [""; 0]);
    let (expected, _) = scene.logits("model", "rows.jsonl", &[], &[]);
    assert_eq!(here, expected);
}

#[test]
fn adapters_and_rows_come_from_the_hub_too() {
    let scene = Scene::new();
    let (expected, _) = scene.logits(
        "model",
        "rows.jsonl",
        &["--adapter", "half=adapter@0.5"],
        &[],
    );
    let (base, _) = scene.logits("model", "rows.jsonl", &[], &[]);
    assert_ne!(base, expected);
    for (adapter, rows) in [
        (
            "half=some-one/adapter@main@0.5",
            "hub:org/rows/some/rows.jsonl",
        ),
        ("some-one/adapter@0.5", "hub:org/rows@main/some/rows.jsonl"),
    ] {
        let (found, _) = scene.logits("model", rows, &["--adapter", adapter], &[]);
        assert!(found == expected, "{adapter}");
    }
    let commit = &Repository::new("datasets/org/rows").commit;
    let paths = scene.server.paths();
    assert!(paths.contains(&format!(
        "/datasets/org/rows/resolve/{commit}/some/rows.jsonl"
    )));
    assert_eq!(
        paths
            .iter()
            .filter(|path| path.contains("/resolve/"))
            .count(),
        3
    );
}

#[test]
fn a_run_on_a_model_of_the_hub_names_it_and_goes_on() {
    let scene = Scene::new();
    scene.place.write(
        "run.toml",
        "model.source = \"org/plain@refs/pr/7\"\nadapter = { init_from = \"some-one/adapter\" }\n\
         data.train = [\"hub:org/rows/some/rows.jsonl\"]\n\
         train = { steps = 3, batch_size = 4, save_every = 2, learning_rate = 0.01 }\noutput.dir = \"run\"\n",
    );
    let first = scene.run(&["train", "run.toml", "--json"], &[]).json();
    assert_eq!(first["steps"], 3);
    let config = scene.place.json("run/adapter/adapter_config.json");
    assert_eq!(config["base_model_name_or_path"], "org/plain");
    assert_eq!(config["revision"], "refs/pr/7");
    let resolved = scene.place.text("run/run.toml");
    for line in [
        "source = \"org/plain@refs/pr/7\"",
        "init_from = \"some-one/adapter\"",
        "train = [\"hub:org/rows/some/rows.jsonl\"]",
    ] {
        assert!(resolved.contains(line), "{resolved}");
    }
    let more = [
        "train",
        "run.toml",
        "--resume",
        "--set",
        "train.steps=4",
        "--json",
    ];
    let second: Value = scene.run(&more, &[("HF_HUB_OFFLINE", "1")]).json();
    assert_eq!(second["steps"], 4);
    // The folder of the same model is the same base.
    let expected = scene.run(
        &[
            "eval",
            "--model",
            "model",
            "--strict-base",
            "--adapter",
            "run/adapter",
            "--data",
            "rows.jsonl",
        ],
        &[],
    );
    drop(expected.ok());
    let merged = scene.run(
        &[
            "merge",
            "--model",
            "org/plain",
            "--adapter",
            "run/adapter",
            "--out",
            "merged",
        ],
        &[],
    );
    drop(merged.ok());
    // Copies, not links into the cache.
    let kept = files(&scene.place.path("merged"));
    assert!(kept.iter().all(|file| !file.is_symlink()));
    drop(
        scene
            .run(&["eval", "--model", "merged", "--data", "rows.jsonl"], &[])
            .ok(),
    );
}
