//! `plan`: every number computed by hand, the same refusals as `train`'s, and nothing written.

use crate::{RUN, keys, number, token_rows};
use lowrank_tests::place::Place;
use serde_json::{Value, json};

/// Of the golden model `plain`: 48 hidden, 80 inner, 6 heads and 2 key heads of 8, 97 tokens, 3 layers.
const BASE: usize = 2 * 97 * 48 + NORMS + 3 * (2 * 48 * 48 + 2 * 16 * 48 + 3 * 80 * 48);
const NORMS: usize = 7 * 48;

fn place() -> Place {
    let place = Place::with_model("plain");
    place.write("run.toml", RUN);
    place
}

fn plan(place: &Place, sets: &[&str]) -> Value {
    let before = place.entries();
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = ["plan", "run.toml", "--json"]
        .into_iter()
        .chain(sets)
        .collect();
    let ended = place.run(&arguments);
    assert_eq!(ended.stderr, "");
    assert_eq!(place.entries(), before);
    ended.json()
}

/// Bytes as the plan states them.
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn about(found: &Value, expected: f64) {
    assert!(
        (number(found) - expected).abs() < 1e-9,
        "{found} {expected}"
    );
}

#[test]
fn sites_and_parameters() {
    let place = place();
    let found = plan(&place, &["train.epochs=3", "train.accumulate=2"]);
    assert_eq!(
        keys(&found),
        [
            "sites",
            "trainable_parameters",
            "total_parameters",
            "memory_mb",
            "steps",
            "examples",
            "truncated",
            "example",
            "held_out",
            "cached",
            "files"
        ]
    );
    let mut expected = Vec::new();
    for layer in 0..3 {
        for (name, n_out, n_in) in [
            ("self_attn.q_proj", 48, 48),
            ("self_attn.k_proj", 16, 48),
            ("self_attn.v_proj", 16, 48),
            ("self_attn.o_proj", 48, 48),
            ("mlp.gate_proj", 80, 48),
            ("mlp.up_proj", 80, 48),
            ("mlp.down_proj", 48, 80),
        ] {
            let site = format!("model.layers.{layer}.{name}");
            expected.push(json!({"site": site, "rank": 3, "parameters": 3 * (n_out + n_in)}));
        }
    }
    assert_eq!(found["sites"], json!(expected));
    assert_eq!(found["trainable_parameters"], 3 * 2112);
    assert_eq!(found["total_parameters"], BASE + 3 * 2112);
    // Three times 24 rows, eight a step.
    assert_eq!(found["steps"], 9);
    assert_eq!(
        (&found["examples"], &found["truncated"]),
        (&json!(24), &json!(0))
    );

    // A pattern, and a module that trains whole: a copy of its own, without a rank.
    let sets = [
        "adapter.rank_pattern={\"layers.1.*q_proj\"=5}",
        "adapter.target_modules=[\"q_proj\"]",
        "adapter.modules_to_save=[\"lm_head\"]",
        "adapter.use_dora=true",
        "train.steps=7",
    ];
    let found = plan(&place, &sets);
    let ranks = found["sites"].as_array().unwrap().iter();
    let ranks: Vec<Value> = ranks.map(|site| site["rank"].clone()).collect();
    assert_eq!(json!(ranks), json!([3, 5, 3, null]));
    // The lengths of DoRA's rows train too.
    assert_eq!(found["sites"][1]["parameters"], 5 * 96 + 48);
    let trained = (3 + 5 + 3) * 96 + 3 * 48 + 97 * 48;
    assert_eq!(found["trainable_parameters"], trained);
    assert_eq!(found["total_parameters"], BASE + trained);
    assert_eq!(found["steps"], 7);
}

#[test]
fn a_tied_head_and_biases_count_once() {
    let place = Place::with_model("biased");
    place.write("run.toml", RUN);
    // 42 hidden, 72 inner, 6 heads and 3 key heads of 8, 61 tokens, 2 layers.
    let biases = 48 + 2 * 24 + 42 + 2 * 72 + 42;
    let base = 61 * 42 + 5 * 42 + 2 * (2 * 48 * 42 + 2 * 24 * 42 + 3 * 72 * 42 + biases);
    let adapter = 2 * 3 * (2 * (48 + 42) + 2 * (24 + 42) + 3 * (72 + 42));
    let found = plan(&place, &["adapter.bias=lora_only"]);
    assert_eq!(found["trainable_parameters"], adapter + 2 * biases);
    // The biases train in the place of the base's, beside which they lie.
    assert_eq!(found["total_parameters"], base + adapter + 2 * biases);
    assert_eq!(found["sites"][0]["parameters"], 3 * (48 + 42) + 48);
    about(&found["memory_mb"]["weights"], megabytes(4 * base));

    let keys = "r = 3\nlora_alpha = 5\ntarget_modules = \"all-linear\"\n";
    place.write("run.toml", RUN.replace(keys, "family = \"full\"\n"));
    let found = plan(&place, &[]);
    assert_eq!(found["trainable_parameters"], base);
    assert_eq!(found["total_parameters"], base);
    let sites = found["sites"].as_array().unwrap();
    assert!(sites.iter().all(|site| site["rank"].is_null()));
    let parameters = sites
        .iter()
        .map(|site| site["parameters"].as_u64().unwrap());
    assert_eq!(parameters.sum::<u64>(), base as u64);
    assert_eq!(
        sites[0],
        json!({"site": "model.embed_tokens", "rank": null, "parameters": 61 * 42})
    );
    about(&found["memory_mb"]["adapter"], 0.0);
    about(&found["memory_mb"]["optimizer"], megabytes(2 * 4 * base));
    // The gradients of all weights at the least.
    assert!(number(&found["memory_mb"]["activations"]) >= megabytes(4 * base));
}

#[test]
fn memory_by_part() {
    let place = place();
    let shuffled = "data.shuffle=false";
    let memory = |sets: &[&str]| plan(&place, &[sets, &[shuffled]].concat())["memory_mb"].clone();
    let found = memory(&[]);
    let parts = ["weights", "adapter", "optimizer", "activations", "logits"];
    assert_eq!(keys(&found)[..5], parts);
    assert_eq!(keys(&found)[5..], ["overhead", "total"]);
    let sum: f64 = parts.iter().map(|part| number(&found[*part])).sum();
    about(&found["total"], sum + number(&found["overhead"]));
    about(&found["weights"], megabytes(4 * BASE));
    about(&found["adapter"], megabytes(4 * 3 * 2112));
    about(&found["optimizer"], megabytes(2 * 4 * 3 * 2112));

    // Half the bytes for matrices, not for norms; the adapter stays in f32.
    let halves = memory(&["model.dtype=bf16"]);
    about(
        &halves["weights"],
        megabytes(2 * (BASE - NORMS) + 4 * NORMS),
    );
    for part in ["adapter", "optimizer", "activations", "logits"] {
        assert_eq!(halves[part], found[part], "{part}");
    }
    let doubles = memory(&["model.dtype=f64"]);
    for part in parts {
        about(&doubles[part], 2.0 * number(&found[part]));
    }

    // One micro-batch has all rows: places are rows times the longest. Logits are those of supervised tokens, and with
    // each its hidden state as it was picked and normed, its loss, the gradient of the normed, and a scaled copy of that.
    let rows = token_rows(&place, "rows.jsonl");
    let places = rows.len() * rows.iter().map(|(ids, _)| ids.len()).max().unwrap();
    let supervised = |labels: &Vec<i64>| labels[1..].iter().filter(|label| **label >= 0).count();
    let supervised: usize = rows.iter().map(|(_, labels)| supervised(labels)).sum();
    let all = memory(&["train.batch_size=24"]);
    about(
        &all["logits"],
        megabytes(4 * (97 + 2 * 48 + 1 + 2 * 48) * supervised),
    );
    // A head that is trained keeps them: as they are, as probabilities, and their gradient.
    let trained = memory(&[
        "train.batch_size=24",
        "adapter.modules_to_save=[\"lm_head\"]",
    ]);
    about(&trained["logits"], megabytes(4 * 3 * 97 * supervised));
    // Each linear layer's output, each norm's and both sums of a block are kept, and less than four times as much.
    let outputs = 4 * places * 3 * (4 * 48 + 2 * 16 + 2 * 80 + 48 + 2 * 48);
    let activations = number(&all["activations"]);
    assert!(
        activations > megabytes(outputs) && activations < 4.0 * megabytes(outputs),
        "{all}"
    );
    // As many rows again of the same lengths: twice the places.
    let text = place.text("rows.jsonl");
    place.write("twice.jsonl", text.repeat(2));
    let twice = memory(&["train.batch_size=48", "data.train=[\"twice.jsonl\"]"]);
    about(&twice["activations"], 2.0 * activations);
    let kept = number(&all["activations"]);
    let again = number(&memory(&["train.batch_size=24", "train.recompute=true"])["activations"]);
    assert!(again < 0.8 * kept, "{again} {kept}");
}

#[test]
fn optimisers_keep_what_they_need() {
    let place = place();
    let found = |sets: &[&str]| plan(&place, sets);
    let adamw = found(&[]);
    let optimizer = |found: &Value| found["memory_mb"]["optimizer"].clone();
    let trained = 3 * 2112;
    about(&optimizer(&adamw), megabytes(2 * 4 * trained));
    let plain = found(&["train.optimizer=sgd"]);
    about(&optimizer(&plain), 0.0);
    let moved = found(&["train.optimizer=sgd", "train.momentum=0.9"]);
    about(&optimizer(&moved), megabytes(4 * trained));
    assert_eq!(plain["trainable_parameters"], trained);

    // The first factors do not train: r = 3 rows as long as the inputs. The inverses are 3 x 3 in f64.
    let held = found(&["train.optimizer=lora_fa"]);
    let outputs = 3 * (2 * 48 + 2 * 16 + 2 * 80 + 48);
    let trained = 3 * outputs;
    assert_eq!(held["trainable_parameters"], trained);
    let inverses = 21 * 3 * 3 * 8;
    about(&optimizer(&held), megabytes(2 * 4 * trained + inverses));
    assert_eq!(held["sites"][0]["parameters"], 3 * 48);
    assert_eq!(held["memory_mb"]["adapter"], adamw["memory_mb"]["adapter"]);

    // Families without such factors, and layers that learn more than their product.
    let loha = "adapter={family=\"loha\",target_modules=[\"q_proj\"]}";
    let dora = "adapter={target_modules=[\"q_proj\"],use_dora=true}";
    let full = "adapter={family=\"full\"}";
    let fa = "train.optimizer=lora_fa";
    let plus = "train.lora_plus_ratio=16";
    for (sets, what) in [
        (
            [loha, plus],
            "no trained tensor belongs to; there is `default`",
        ),
        (
            [full, plus],
            "no trained tensor belongs to; there is `default`",
        ),
        ([loha, fa], "as plain LoRA's do: there is none"),
        ([full, fa], "as plain LoRA's do: there is none"),
        ([dora, fa], "q_proj.lora_B.weight` is not of such a product"),
    ] {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let sets: Vec<&str> = ["plan", "run.toml"].into_iter().chain(sets).collect();
        place.refuses(&sets, 2, &["error: run.toml: `train.", what]);
    }
}

#[test]
fn truncated_rows() {
    let place = place();
    let rows = token_rows(&place, "rows.jsonl");
    let expected = rows.iter().filter(|(ids, _)| ids.len() > 9).count();
    assert!(expected > 3 && expected < 21);
    let found = plan(&place, &["data.max_length=9"]);
    assert_eq!(found["truncated"], expected);
    assert_eq!(
        found["example"]["tokens"].as_array().unwrap().len(),
        rows[0].0.len().min(9)
    );
}

#[test]
fn the_first_example() {
    let place = place();
    // Without a tokenizer tokens are numbers.
    let (ids, labels) = &token_rows(&place, "rows.jsonl")[0];
    let words: Vec<String> = ids.iter().map(usize::to_string).collect();
    let counts: Vec<bool> = labels.iter().map(|label| *label >= 0).collect();
    let found = plan(&place, &[]);
    assert_eq!(
        found["example"],
        json!({"tokens": words, "supervised": counts})
    );
    let text = place.run(&["plan", "run.toml"]).ok().stdout;
    let shown = format!("{} [[{}]]\n", words[..2].join(" "), words[2..].join(" "));
    assert!(text.ends_with(&shown), "{text}");
    assert!(
        text.contains("  rows.jsonl  24 of {\"input_ids\",\"labels\"}\n"),
        "{text}"
    );
    assert!(
        text.contains(
            "\n     3 x model.layers.*.mlp.down_proj     rank   3  384 parameters each\n"
        ),
        "{text}"
    );

    place.add_tokenizer("model", 97);
    let row = json!({"prompt": "w5 w6\nw7", "completion": " w8 w9"});
    place.write("rows.jsonl", format!("{row}\n"));
    let found = plan(&place, &[]);
    let expected = json!({"tokens": ["w5", " w6", " w7", " w8", " w9", " </s>"],
        "supervised": [false, false, false, true, true, true]});
    assert_eq!(found["example"], expected);
    let text = place.run(&["plan", "run.toml"]).ok().stdout;
    assert!(text.ends_with("\nw5·w6·w7[[·w8·w9·</s>]]\n"), "{text}");

    // All of a text is supervised, but nothing predicts its first token.
    place.write("rows.jsonl", "{\"text\": \"w11 w12 w13\"}\n");
    let found = plan(&place, &[]);
    let expected = json!({"tokens": ["w11", " w12", " w13", " </s>"],
        "supervised": [false, true, true, true]});
    assert_eq!(found["example"], expected);
}

#[test]
fn what_train_refuses_is_refused_alike() {
    let place = place();
    place.write("short.jsonl", "{\"input_ids\": [1], \"labels\": [1]}\n");
    place.write(
        "long.jsonl",
        format!(
            "{}\n",
            json!({"input_ids": vec![5; 200], "labels": vec![5; 200]})
        ),
    );
    for (set, code, fragment) in [
        (
            "adapter.target_modules=[\"p_proj\"]",
            2,
            "matches no module of the model",
        ),
        (
            "adapter.r=17",
            2,
            "r = 17 is larger than the matrix [16, 48] allows",
        ),
        ("adapter.lora_alhpa=3", 2, "did you mean `lora_alpha`?"),
        ("adapter.family=vera", 2, "is not yet supported"),
        ("adapter.init_from=none", 1, "none"),
        ("model.source=none", 1, "none"),
        ("data.train=[\"none.jsonl\"]", 1, "none.jsonl"),
        ("data.eval=[\"none.jsonl\"]", 1, "none.jsonl"),
        ("data.train=[\"short.jsonl\"]", 1, "short.jsonl"),
        (
            "data.train=[\"long.jsonl\"]",
            1,
            "more than the model's limit of 128",
        ),
        ("train.stepz=3", 2, "did you mean `train.steps`?"),
        ("train.groups.b.weight_decay=0.5", 2, "names a group"),
        ("output.dir=.", 2, "lies inside `output.dir`"),
        ("output.dir=rows.jsonl", 1, "/rows.jsonl: Not a directory"),
        (
            "output.dir=rows.jsonl/out",
            1,
            "/rows.jsonl/out: Not a directory",
        ),
    ] {
        let sets = ["run.toml", "--set", set];
        let train = place.run(&[&["train"], &sets[..]].concat());
        let plan = place.run(&[&["plan"], &sets[..]].concat());
        assert_eq!(
            (plan.code, plan.stderr.as_str()),
            (train.code, train.stderr.as_str()),
            "{set}"
        );
        place.refuses(&[&["plan"], &sets[..]].concat(), code, &[fragment]);
    }
    place.refuses(&["plan", "none.toml"], 2, &["cannot read none.toml"]);
}

#[test]
fn a_run_that_was_made_is_left_alone() {
    let place = place();
    // What the program itself takes is measured.
    let plan = || {
        let mut found = plan(&place, &["train.steps=2"]);
        for part in ["overhead", "total"] {
            assert!(number(&found["memory_mb"][part].take()) > 5.0);
        }
        found
    };
    let first = plan();
    drop(
        place
            .run(&["train", "run.toml", "--set", "train.steps=2", "-q"])
            .ok(),
    );
    let metrics = place.read("run/metrics.jsonl");
    assert_eq!(plan(), first);
    assert_eq!(place.read("run/metrics.jsonl"), metrics);
}
