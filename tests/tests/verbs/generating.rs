//! `generate`, against tokens that the tests choose themselves from logits of whole texts.

use crate::keys;
use candle_core::{DType, Device, Tensor};
use lowrank::adapter::{Attached, Selection};
use lowrank::data::{Special, StopStrings};
use lowrank::models::{Finish, Precision, Sampling, Temperature, TopP};
use lowrank::ops::rng::{Key, Purpose};
use lowrank::{Base, Generation, Generator, Prompt, StrictBase, load_adapter, training};
use lowrank_tests::{binary, place::Place};
use serde_json::{Value, json};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};
use std::sync::Arc;

const VOCAB: usize = 97;
const PROMPT: &str = "w5 w17 w3";

/// A model with a tokenizer of words, and an adapter.
fn place() -> Place {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", VOCAB);
    place.copy("cases/lora/adapter_final", "adapter");
    place
}

fn open(place: &Place, model: &str, dtype: DType) -> Base {
    Base::open(&place.path(model).to_string_lossy(), Precision::Cast(dtype)).unwrap()
}

/// `count` tokens, each chosen from the logits of the whole text so far.
fn chosen(
    base: &Base,
    selection: &Selection,
    prompt: &[u32],
    sampling: &Sampling,
    count: usize,
) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for index in 0..count {
        let logits = training::logits(base.model.as_ref(), selection, &ids).unwrap();
        let rows: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
        ids.push(sampling.choose(rows.last().unwrap(), index as u64).unwrap());
    }
    ids.split_off(prompt.len())
}

/// What the base writes greedily after [`PROMPT`], of which none is an end token.
fn greedy(place: &Place, count: usize) -> Vec<u32> {
    let ids = chosen(
        &open(place, "model", DType::F32),
        &Selection::none(),
        &[5, 17, 3],
        &Sampling::GREEDY,
        count,
    );
    assert!(!ids.contains(&2), "{ids:?}");
    ids
}

fn words(ids: &[u32]) -> String {
    let word = |id: &u32| match id {
        0 => "<unk>".to_owned(),
        id => format!("w{id}"),
    };
    ids.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn run(place: &Place, arguments: &[&str]) -> Value {
    let first = ["generate", "--model", "model", "--json"];
    place.run(&[&first, arguments].concat()).json()
}

#[test]
fn the_continuation_alone_is_printed() {
    let place = place();
    let ids = greedy(&place, 12);
    let arguments = ["--prompt", PROMPT, "--max-new-tokens", "12"];
    let text = place
        .run(&[&["generate", "--model", "model"][..], &arguments].concat())
        .ok();
    assert_eq!(
        (text.stdout, text.stderr),
        (words(&ids) + "\n", String::new())
    );

    let object = run(&place, &arguments);
    let expected = [
        "prompt_tokens",
        "tokens",
        "text",
        "finish",
        "ttft_seconds",
        "tokens_per_second",
    ];
    assert_eq!(keys(&object), expected);
    let found = (
        &object["prompt_tokens"],
        &object["tokens"],
        &object["text"],
        &object["finish"],
    );
    assert_eq!(
        found,
        (&json!(3), &json!(12), &json!(words(&ids)), &json!("length"))
    );
    assert!(
        object["ttft_seconds"].as_f64().unwrap() > 0.0
            && object["tokens_per_second"].as_f64().unwrap() > 0.0
    );

    let told = place
        .run(&[&["-v", "generate", "--model", "model"][..], &arguments].concat())
        .ok();
    assert!(
        told.stderr.contains("12 tokens after 3, finish: length, "),
        "{}",
        told.stderr
    );
}

#[test]
fn texts_end_at_end_tokens_and_stop_strings() {
    let place = place();
    let ids = greedy(&place, 12);
    // The first token that was not there before, from the fourth on.
    let at = (3..12).find(|&at| !ids[..at].contains(&ids[at])).unwrap();
    let arguments = ["--prompt", PROMPT, "--max-new-tokens", "12"];
    let end = |found: &Value, tokens: usize, text: &str| {
        let found = (&found["tokens"], &found["text"], &found["finish"]);
        assert_eq!(found, (&json!(tokens), &json!(text), &json!("stop")));
    };
    let before = words(&ids[..at]);
    // A stop string that spans two tokens, and one that only may have begun until the last token comes.
    let stop = format!("{} w{}", words(&ids[at - 1..at]), ids[at]);
    let found = run(
        &place,
        &[&arguments[..], &["--stop", "never", "--stop", &stop]].concat(),
    );
    end(&found, at + 1, &format!("{} ", words(&ids[..at - 1])));
    let held = format!("w{} never", ids[11]);
    let found = run(&place, &[&arguments[..], &["--stop", &held]].concat());
    assert_eq!(
        (&found["text"], &found["finish"]),
        (&json!(words(&ids)), &json!("length"))
    );

    place.edit_json("model/generation_config.json", |config| {
        drop(config.insert("eos_token_id".into(), json!([2, ids[at]])))
    });
    end(&run(&place, &arguments), at, &before);
    place.edit_json("model/generation_config.json", |config| {
        drop(config.remove("eos_token_id"))
    });
    place.edit_json("model/config.json", |config| {
        drop(config.insert("eos_token_id".into(), json!([2, ids[at]])))
    });
    end(&run(&place, &arguments), at, &before);
}

#[test]
fn special_tokens_never_show_but_stop() {
    let place = place();
    let ids = greedy(&place, 12);
    let at = (3..12).find(|&at| !ids[..at].contains(&ids[at])).unwrap();
    let name = format!("w{}", ids[at]);
    place.edit_json("model/tokenizer.json", |file| {
        let mut special = file["added_tokens"][0].clone();
        special["id"] = ids[at].into();
        special["content"] = name.as_str().into();
        file["added_tokens"].as_array_mut().unwrap().push(special);
    });
    let arguments = ["--prompt", PROMPT, "--max-new-tokens", "12"];
    let hidden: Vec<u32> = ids.iter().copied().filter(|id| *id != ids[at]).collect();
    let found = run(&place, &arguments);
    assert_eq!(
        (&found["text"], &found["tokens"]),
        (&json!(words(&hidden)), &json!(12))
    );
    let found = run(&place, &[&arguments[..], &["--stop", &name]].concat());
    assert_eq!(
        (&found["text"], &found["finish"]),
        (&json!(words(&ids[..at])), &json!("stop"))
    );
}

#[test]
fn draws_depend_on_the_seed() {
    let place = place();
    let write = |more: &[&str]| {
        let arguments = [
            "--prompt",
            PROMPT,
            "--max-new-tokens",
            "20",
            "--temperature",
            "0.9",
        ];
        run(&place, &[&arguments, more].concat())["text"].clone()
    };
    let one = write(&["--seed", "7"]);
    assert_eq!(write(&["--seed", "7"]), one);
    assert_ne!(write(&["--seed", "8"]), one);
    assert_eq!(write(&["--seed", "42"]), write(&[]));
    let sampling = Sampling {
        temperature: Temperature::new(0.9).unwrap(),
        top_k: NonZeroUsize::new(6),
        top_p: TopP::new(0.8).unwrap(),
        seed: 7,
    };
    let base = open(&place, "model", DType::F32);
    let mut ids = chosen(&base, &Selection::none(), &[5, 17, 3], &sampling, 20);
    let end = ids.iter().position(|id| *id == 2).unwrap_or(20);
    ids.truncate(end);
    assert_eq!(
        write(&["--seed", "7", "--top-k", "6", "--top-p", "0.8"]),
        words(&ids)
    );
    let greedy = words(&greedy(&place, 20));
    assert_eq!(write(&["--top-k", "1"]), greedy);

    let warned = place.run(&[
        "generate",
        "--model",
        "model",
        "--prompt",
        PROMPT,
        "--top-p",
        "0.5",
        "--max-new-tokens",
        "20",
    ]);
    let warned = warned.ok();
    assert_eq!(warned.stdout, greedy + "\n");
    assert!(
        warned
            .stderr
            .contains("--top-k and --top-p change nothing at --temperature 0"),
        "{}",
        warned.stderr
    );
}

#[test]
fn adapters_change_the_text_by_their_weight() {
    let place = place();
    let write = |adapters: &[&str]| {
        let mut arguments = vec!["--prompt", PROMPT, "--max-new-tokens", "15"];
        arguments.extend(adapters.iter().flat_map(|adapter| ["--adapter", adapter]));
        run(&place, &arguments)["text"].clone()
    };
    place.copy("cases/rslora_patterns/adapter_final", "other");
    let text = |adapters: &[(&str, &str, f64)]| {
        let mut base = open(&place, "model", DType::F32);
        let mut selected: Vec<(Arc<str>, f64)> = Vec::new();
        for (name, folder, weight) in adapters {
            drop(load_adapter(&mut base, name, &place.path(folder), StrictBase::No).unwrap());
            selected.push(((*name).into(), *weight));
        }
        let selection = Selection::weighted(selected);
        let ids = chosen(&base, &selection, &[5, 17, 3], &Sampling::GREEDY, 15);
        let end = ids.iter().position(|id| *id == 2).unwrap_or(15);
        words(&ids[..end])
    };
    let plain = text(&[]);
    assert_eq!(write(&["adapter@0"]), plain);
    let adapted = text(&[("first", "adapter", 30.0)]);
    assert_ne!(adapted, plain);
    assert_eq!(write(&["adapter@30"]), adapted);
    let both = text(&[("first", "adapter", -12.5), ("second", "other", 20.0)]);
    assert!(both != plain && both != adapted);
    assert_eq!(write(&["first=adapter@-12.5", "second=other@20"]), both);
}

/// Every trained tensor gets normal numbers.
fn randomise(attached: &Attached) {
    for param in &attached.params {
        let mut stream = Key::new(31, Purpose::Test).site(param.name()).stream();
        let values: Vec<f64> = (0..param.elem_count())
            .map(|_| 0.3 * stream.normal())
            .collect();
        let value = Tensor::from_vec(values, param.shape(), &Device::Cpu).unwrap();
        param.set(&value.to_dtype(param.dtype()).unwrap()).unwrap();
    }
}

#[test]
fn the_cache_changes_no_token_of_an_adapted_model() {
    let mut texts = Vec::new();
    for case in [
        "lora",
        "dora",
        "dora_rslora_patterns",
        "bias_all",
        "modules_to_save",
    ] {
        let place = Place::new();
        let config: Value = {
            place.copy(&format!("cases/{case}/adapter_init"), "adapter");
            place.json("adapter/adapter_config.json")
        };
        place.copy(config["base_model_name_or_path"].as_str().unwrap(), "model");
        place.add_tokenizer("model", VOCAB);
        let mut base = open(&place, "model", DType::F64);
        let attached =
            load_adapter(&mut base, "first", &place.path("adapter"), StrictBase::No).unwrap();
        randomise(&attached);
        let selection = Selection::one("first");
        let prompt = [9, 33, 50, 4, 21];
        let ids = chosen(&base, &selection, &prompt, &Sampling::GREEDY, 24);
        let end = ids.iter().position(|id| *id == 2).unwrap_or(24);
        let generation = Generation {
            max_new_tokens: NonZeroUsize::new(24).unwrap(),
            ..Generation::default()
        };
        let mut pieces = String::new();
        let written = Generator::new(&base).unwrap().generate(
            &selection,
            Prompt::Tokens(&prompt),
            &generation,
            &mut |piece| {
                pieces.push_str(piece);
                ControlFlow::Continue(())
            },
        );
        let written = written.unwrap();
        assert_eq!(written.ids, ids[..end], "{case}");
        let tokenizer = base.tokenizer().unwrap();
        assert_eq!(
            written.text,
            tokenizer.decode(&ids[..end], Special::Omit).unwrap()
        );
        assert_eq!(pieces, written.text);
        texts.push(pieces);
    }
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), 5);
}

#[test]
fn a_caller_may_break_off() {
    let place = place();
    let base = open(&place, "model", DType::F32);
    let ids = greedy(&place, 4);
    let mut pieces = Vec::new();
    let generation = Generation {
        stop: StopStrings::new(["never".to_owned()]).unwrap(),
        ..Generation::default()
    };
    let written = Generator::new(&base).unwrap().generate(
        &Selection::none(),
        Prompt::Text(PROMPT),
        &generation,
        &mut |piece| {
            pieces.push(piece.to_owned());
            if pieces.len() == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    let written = written.unwrap();
    assert_eq!((written.ids, written.finish), (ids.clone(), Finish::Stop));
    assert_eq!((written.text, pieces.concat()), (words(&ids), words(&ids)));
}

#[test]
fn a_message_is_written_by_the_models_template() {
    let place = place();
    let template = "{{ bos_token }} w3 {% for m in messages %}{{ m.role | length }} {{ m.content }} {% endfor %}\
                    {% if add_generation_prompt %}w9{% endif %}";
    let config = json!({"chat_template": template, "bos_token": "w1"});
    place.write("model/tokenizer_config.json", config.to_string());
    let chat = run(
        &place,
        &["--chat", "--prompt", "w5 w6", "--max-new-tokens", "9"],
    );
    // The length of the role is no word of the tokenizer, so it is token 0.
    let base = open(&place, "model", DType::F32);
    let ids = chosen(
        &base,
        &Selection::none(),
        &[1, 3, 0, 5, 6, 9],
        &Sampling::GREEDY,
        9,
    );
    assert_eq!(chat["prompt_tokens"], 6);
    assert_eq!(chat["text"], words(&ids));

    place.write(
        "model/chat_template.jinja",
        "{{ raise_exception('no ' ~ messages[0].content) }}",
    );
    place.refuses(
        &["generate", "--model", "model", "--chat", "--prompt", "w5"],
        1,
        &["error: chat template of model: no w5 (line 1)"],
    );
    // A template of the command takes its place.
    place.write("model/chat.txt", template);
    let arguments = ["--prompt", "w5 w6", "--max-new-tokens", "9"];
    let given = ["--chat", "--chat-template", "model/chat.txt"];
    let again = run(&place, &[&given[..], &arguments].concat());
    assert_eq!(again["text"], chat["text"]);
    place.refuses(
        &[
            "generate",
            "--model",
            "model",
            "--prompt",
            "w5",
            "--chat-template",
            "model/chat.txt",
        ],
        2,
        &["error: `--chat-template` writes messages, and the prompt is none; give `--chat` too"],
    );
}

#[test]
fn a_text_ends_where_the_model_cannot_read_on() {
    let place = place();
    place.edit_json("model/config.json", |config| {
        drop(config.insert("max_position_embeddings".into(), 10.into()))
    });
    let ids = greedy(&place, 7);
    let ended = place
        .run(&["generate", "--model", "model", "--prompt", PROMPT])
        .ok();
    assert_eq!(ended.stdout, words(&ids) + "\n");
    let warning =
        "the text ends after 7 new tokens: the model reads at most 10 (`max_position_embeddings`)";
    assert!(ended.stderr.contains(warning), "{}", ended.stderr);
    assert_eq!(run(&place, &["--prompt", PROMPT])["finish"], "length");
}

/// Runs the binary with a text on stdin.
fn piped(place: &Place, text: &[u8]) -> binary::Ended {
    let mut child = Command::new(binary::path().unwrap())
        .args([
            "generate",
            "--model",
            "model",
            "--max-new-tokens",
            "5",
            "--prompt",
            "-",
        ])
        .current_dir(place.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    binary::Ended {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn a_prompt_comes_from_stdin() {
    let place = place();
    let expected = words(&greedy(&place, 5)) + "\n";
    for text in ["w5 w17 w3", "w5 w17 w3\n", "w5\nw17\nw3\r\n"] {
        assert_eq!(
            piped(&place, text.as_bytes()).ok().stdout,
            expected,
            "{text:?}"
        );
    }
    for (text, message) in [
        (&b"\n"[..], "error: the prompt on stdin is empty"),
        (b"w5 \xFF", "error: the prompt on stdin is not UTF-8"),
    ] {
        let ended = piped(&place, text);
        assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
        assert!(ended.stderr.starts_with(message), "{}", ended.stderr);
    }
}

#[test]
fn a_reader_that_went_away_ends_the_text() {
    let place = place();
    let mut child = Command::new(binary::path().unwrap())
        .args(["generate", "--model", "model", "--prompt", PROMPT])
        .current_dir(place.path(""))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr), (Some(0), String::new()));
}

#[test]
fn every_dtype_generates() {
    let place = place();
    for dtype in ["f32", "f64", "bf16", "f16"] {
        let found = run(
            &place,
            &[
                "--dtype",
                dtype,
                "--prompt",
                PROMPT,
                "--max-new-tokens",
                "3",
            ],
        );
        assert_eq!(found["tokens"], 3, "{dtype}");
    }
}
