//! Tokenizer files out of the metadata, and what a tokenizer makes of them.

use super::writer::{Writer, tiny};
use super::{open, refused};
use lowrank_format::Gguf;
use serde_json::json;
use tokenizers::Tokenizer;

fn tokenizer(file: &Gguf) -> Tokenizer {
    Tokenizer::from_bytes(file.tokenizer().unwrap().to_string()).unwrap()
}

fn ids(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, true).unwrap().get_ids().to_vec()
}

#[test]
fn smollms_splits_digits_and_knows_its_special_tokens() {
    let file = open(&tiny().bytes()).unwrap();
    let tokenizer = tokenizer(&file);
    // The merge of two ones never applies: digits are apart before merging starts.
    assert_eq!(
        ids(&tokenizer, "<|start|>ab ab112<|stop|>"),
        [1, 8, 9, 3, 3, 4, 2]
    );
    assert_eq!(tokenizer.decode(&[1, 8, 9, 3], true).unwrap(), "ab ab1");
    assert_eq!(tokenizer.decode(&[1, 8], false).unwrap(), "<|start|>ab");
}

/// [`tiny`] with another way of splitting.
fn splitting(pre: &str) -> Writer {
    let mut file = tiny().without("tokenizer.ggml.pre");
    file.text("tokenizer.ggml.pre", pre);
    file
}

#[test]
fn the_others_merge_digits() {
    let gpt2 = open(&splitting("gpt-2").bytes()).unwrap();
    assert_eq!(ids(&tokenizer(&gpt2), "ab ab112"), [8, 9, 10, 4]);
    // Three digits at a time, and the text begins with the token that begins texts.
    let llama3 = open(&splitting("llama-bpe").bytes()).unwrap();
    let llama3 = tokenizer(&llama3);
    assert_eq!(ids(&llama3, "ab ab1121"), [1, 8, 9, 10, 4, 3]);
    assert_eq!(llama3.encode("ab", false).unwrap().get_ids(), [8]);
    let pair = llama3.encode(("a", "b"), true).unwrap();
    assert_eq!(pair.get_ids(), [1, 5, 1, 6]);
    let mut both = splitting("gpt-2");
    both.flag("tokenizer.ggml.add_bos_token", true);
    both.flag("tokenizer.ggml.add_eos_token", true);
    let both = open(&both.bytes()).unwrap();
    assert_eq!(ids(&tokenizer(&both), "ab"), [1, 8, 2]);
}

#[test]
fn user_defined_tokens_are_found_and_shown() {
    let mut file = tiny().without("tokenizer.ggml.token_type");
    file.i32s(
        "tokenizer.ggml.token_type",
        &[3, 3, 3, 1, 1, 1, 5, 1, 4, 1, 1],
    );
    let file = open(&file.bytes()).unwrap();
    let tokenizer = tokenizer(&file);
    // `ab` is found before the text is split, so ` ab` is not.
    assert_eq!(ids(&tokenizer, " ab"), [7, 8]);
    assert_eq!(tokenizer.decode(&[2, 8], true).unwrap(), "ab");
}

#[test]
fn what_ends_a_turn_ends_a_text() {
    let ends = |keys: &[(&str, u32)]| {
        let mut file = tiny();
        for (key, id) in keys {
            file.u32(&format!("tokenizer.ggml.{key}_token_id"), *id);
        }
        let file = open(&file.bytes()).unwrap();
        file.generation_config().unwrap()["eos_token_id"].clone()
    };
    assert_eq!(ends(&[]), json!(2));
    assert_eq!(ends(&[("eot", 2)]), json!(2));
    assert_eq!(ends(&[("eot", 1), ("eom", 0)]), json!([2, 1, 0]));
    let mut file = tiny();
    file.u32("tokenizer.ggml.eot_token_id", 11);
    let message = open(&file.bytes())
        .unwrap()
        .generation_config()
        .unwrap_err()
        .to_string();
    assert!(
        message.ends_with("`tokenizer.ggml.eot_token_id` is 11, expected one of the 11 tokens"),
        "{message}"
    );
}

#[test]
fn the_side_files_say_what_the_metadata_says() {
    let file = open(&tiny().bytes()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    file.write_side_files(dir.path()).unwrap();
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap()
    };
    assert_eq!(read("config.json"), json!(file.config()));
    assert_eq!(read("tokenizer.json"), file.tokenizer().unwrap());
    assert_eq!(
        read("generation_config.json"),
        json!({"_from_model_config": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    );
    assert_eq!(
        read("special_tokens_map.json"),
        json!({
            "additional_special_tokens": ["<|start|>", "<|stop|>"], "bos_token": "<|start|>",
            "eos_token": "<|stop|>", "pad_token": "<|stop|>", "unk_token": "<|end|>"
        })
    );
    let config = read("tokenizer_config.json");
    assert_eq!(config["chat_template"], "{{ messages }}");
    assert_eq!(config["model_max_length"], 64);
    assert_eq!(config["eos_token"], "<|stop|>");
    assert_eq!(config["added_tokens_decoder"]["1"]["content"], "<|start|>");
    assert_eq!(config["added_tokens_decoder"].as_object().unwrap().len(), 3);
}

#[test]
fn tokenizers_that_cannot_be_made_are_refused_when_they_are_asked_for() {
    let check = |key: &str, put: &dyn Fn(&mut Writer), expected: &str| {
        let mut file = tiny().without(key);
        put(&mut file);
        let file = open(&file.bytes()).unwrap();
        let message = file.tokenizer().unwrap_err().to_string();
        assert!(
            message.ends_with(&format!("model.gguf: {expected}")),
            "{message}"
        );
    };
    check(
        "tokenizer.ggml.model",
        &|file| file.text("tokenizer.ggml.model", "llama"),
        "`tokenizer.ggml.model` = \"llama\" is not yet supported (only \"gpt2\" is)",
    );
    check(
        "tokenizer.ggml.model",
        &|_| {},
        "`tokenizer.ggml.model` is missing",
    );
    check(
        "tokenizer.ggml.pre",
        &|file| file.text("tokenizer.ggml.pre", "falcon"),
        "`tokenizer.ggml.pre` = \"falcon\" is not yet supported (only \"gpt-2\", \"llama-bpe\" and \"smollm\" are)",
    );
    check(
        "tokenizer.ggml.merges",
        &|file| file.texts("tokenizer.ggml.merges", &["a b", "ab"]),
        "`tokenizer.ggml.merges` has \"ab\", expected two parts with a space between",
    );
    check(
        "tokenizer.ggml.token_type",
        &|file| file.i32s("tokenizer.ggml.token_type", &[1, 1]),
        "`tokenizer.ggml.token_type` has 2 entries for 11 tokens",
    );
    check(
        "tokenizer.ggml.token_type",
        &|file| {
            file.i32s(
                "tokenizer.ggml.token_type",
                &[3, 3, 3, 1, 6, 1, 1, 1, 1, 1, 1],
            )
        },
        "`tokenizer.ggml.token_type` says 6 of token \"2\", which a byte-level BPE has no use for",
    );
    check(
        "tokenizer.ggml.tokens",
        &|file| file.texts("tokenizer.ggml.tokens", &["1", "2", "a", "1"]),
        "`tokenizer.ggml.tokens` has \"1\" twice",
    );
    check(
        "tokenizer.ggml.tokens",
        &|file| file.u32("tokenizer.ggml.tokens", 4),
        "`tokenizer.ggml.tokens` is 4, expected a list of strings",
    );
    check(
        "tokenizer.ggml.padding_token_id",
        &|file| file.u32("tokenizer.ggml.padding_token_id", 11),
        "`tokenizer.ggml.padding_token_id` is 11, expected one of the 11 tokens",
    );
    // The end token is the configuration's, which is read at once.
    let mut file = tiny().without("tokenizer.ggml.eos_token_id");
    file.text("tokenizer.ggml.eos_token_id", "two");
    assert_eq!(
        refused(&file.bytes()),
        "`tokenizer.ggml.eos_token_id` is \"two\", expected an integer that is not negative"
    );
}
