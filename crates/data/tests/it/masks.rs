//! Chats as tokens, and which of them the assistant writes: against transformers (`tests/golden/masks.py`), and what templates
//! do that rewrite a chat as it goes on.

use crate::helpers::{Folder, count, options};
use lowrank_data::{ChatTemplate, Example, Options, Tokenizer, UNSUPERVISED};
use serde_json::{Value, json};
use std::path::Path;

const TINY: &[u8] = include_bytes!("../../../models/tiny/tokenizer.json");

fn tiny() -> Tokenizer {
    Tokenizer::from_bytes(TINY, "tiny").unwrap()
}

fn with(tokenizer: Tokenizer, source: &str) -> Tokenizer {
    let config =
        json!({"chat_template": source, "bos_token": "<|im_start|>", "eos_token": "<|endoftext|>"});
    let template = ChatTemplate::from_config(config.as_object().unwrap(), "the test");
    tokenizer.with_chat_template(template.map_err(|error| error.to_string()))
}

fn large() -> Options {
    Options {
        max_length: count(4096),
        vocab: 60_000,
        ..options()
    }
}

/// One row behind another that is supervised, so that the row itself may not be.
fn example(row: &Value, tokenizer: &Tokenizer, options: &Options) -> Result<Example, String> {
    let content = format!("{}\n{row}\n", json!({"text": "one two three"}));
    let (first, rest) = content.split_once('\n').unwrap();
    let folder = Folder::new(&[("a.jsonl", first.as_bytes()), ("b.jsonl", rest.as_bytes())]);
    match folder.open(&["a.jsonl", "b.jsonl"], Some(tokenizer), options) {
        Ok(data) => Ok(data.examples()[1].clone()),
        Err(error) => Err(folder.message(&error)),
    }
}

fn mask(example: &Example) -> String {
    let labels = example.ids.iter().zip(&example.labels);
    labels
        .map(|(&id, &label)| match label {
            UNSUPERVISED => '0',
            label => {
                assert_eq!(label, id as i32);
                '1'
            }
        })
        .collect()
}

#[test]
fn chats_are_tokens_and_masks_as_transformers_has_them() {
    let golden: Value = serde_json::from_str(include_str!("../golden/masks.json")).unwrap();
    let smollm2 = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/SmolLM2-135M-Instruct/tokenizer.json");
    let mut tokenizers = vec![("tiny", tiny())];
    if smollm2.exists() {
        let tokenizer = Tokenizer::from_file(smollm2).unwrap();
        tokenizers.push(("SmolLM2-135M-Instruct", tokenizer));
    }
    let (mut compared, mut refused) = (0, 0);
    for case in golden["cases"].as_array().unwrap() {
        let templates = &golden["templates"][case["template"].as_str().unwrap()];
        let mut row = json!({"messages": golden["chats"][case["chat"].as_str().unwrap()]});
        if case["tools"] == true {
            row["tools"] = golden["tools"].clone();
        }
        for ((name, tokenizer), way) in tokenizers
            .iter()
            .flat_map(|tokenizer| ["plain", "marked"].map(|way| (tokenizer, way)))
        {
            let tokenizer = with(tokenizer.clone(), templates[way].as_str().unwrap());
            let what = format!("{} {} {name} {way}", case["template"], case["chat"]);
            let example = example(&row, &tokenizer, &large());
            if let Some(expected) = case.get(*name) {
                let example = example.unwrap_or_else(|error| panic!("{what}: {error}"));
                let ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
                assert_eq!(example.ids, ids, "{what}");
                assert_eq!(mask(&example), expected["mask"].as_str().unwrap(), "{what}");
                compared += 1;
            } else if case.get("error").is_some() {
                let error = example.unwrap_err();
                assert!(
                    error.starts_with("b.jsonl:1: chat template of the test: "),
                    "{error}"
                );
                refused += 1;
            }
        }
    }
    let expected = if tokenizers.len() == 2 {
        (314, 40)
    } else {
        (274, 20)
    };
    assert_eq!((compared, refused), expected);
}
