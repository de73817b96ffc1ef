//! What SmolLM2-135M-Instruct writes greedily, after ten prompts to 40 tokens and after one to its end, is what
//! transformers writes: from its GGUF file and from its dequantised folder, if `cargo xtask fetch` has brought them. `tests/parity/smollm2_generate.py` made the golden file.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a golden file that cannot be read fails the test, and a test that is not run says so"
)]

use lowrank::adapter::Selection;
use lowrank::data::{GenerationPrompt, Message, Special};
use lowrank::models::{Finish, Precision};
use lowrank::{Base, Generation, Generator, Prompt};
use lowrank_tests::golden::read_json;
use lowrank_tests::place::Place;
use serde::Deserialize;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const NEW_TOKENS: usize = 40;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    chat: bool,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    text: String,
    finish: String,
}

fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("parity/smollm2");
    let golden: Golden = read_json(&folder.join("generate.json")).unwrap();
    let long = golden
        .cases
        .iter()
        .filter(|case| case.ids.len() == NEW_TOKENS);
    assert_eq!((golden.cases.len(), long.count()), (11, 10));
    golden.cases
}

/// A fetched model, if it is there.
fn path(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models")
        .join(name);
    if !path.exists() {
        eprintln!("not run: SmolLM2 is missing, `cargo xtask fetch` brings it");
        return None;
    }
    Some(path)
}

fn check(name: &str) {
    let Some(path) = path(name) else { return };
    let base = Base::open(&path.to_string_lossy(), Precision::AsStored).unwrap();
    let (tokenizer, template) = (base.tokenizer().unwrap(), base.chat_template().unwrap());
    let generator = Generator::new(&base).unwrap();
    let generation = Generation {
        max_new_tokens: NonZeroUsize::new(NEW_TOKENS).unwrap(),
        ..Generation::default()
    };
    for case in cases() {
        let chat = [Message::user(case.prompt.as_str())];
        let (prompt, ids) = if case.chat {
            let text = template.render(&chat, GenerationPrompt::Add).unwrap();
            (Prompt::Chat(&chat), tokenizer.encode(&text, Special::Omit))
        } else {
            (
                Prompt::Text(&case.prompt),
                tokenizer.encode(&case.prompt, Special::Add),
            )
        };
        assert_eq!(ids.unwrap(), case.prompt_ids, "{}", case.prompt);
        let mut pieces = String::new();
        let written = generator.generate(&Selection::none(), prompt, &generation, &mut |piece| {
            // Only the end of the text may be half a character.
            assert!(!piece.is_empty() && !pieces.ends_with(char::REPLACEMENT_CHARACTER));
            pieces.push_str(piece);
            ControlFlow::Continue(())
        });
        let written = written.unwrap();
        assert_eq!(written.ids, case.ids, "{}", case.prompt);
        assert_eq!((&written.text, &pieces), (&case.text, &case.text));
        assert_eq!(written.finish.as_str(), case.finish);
        assert_eq!(
            written.finish == Finish::Length,
            case.ids.len() == NEW_TOKENS
        );
        assert_eq!(written.prompt_tokens, case.prompt_ids.len());
    }
}

#[test]
fn the_folder_writes_what_transformers_writes() {
    check("SmolLM2-135M-Instruct");
}

#[test]
fn the_gguf_file_writes_what_transformers_writes() {
    check("SmolLM2-135M-Instruct.gguf");
}

#[test]
fn the_binary_prints_it() {
    let place = Place::new();
    let cases = cases();
    let of_each_kind =
        [false, true].map(|chat| cases.iter().find(|case| case.chat == chat).unwrap());
    for (case, name) in of_each_kind
        .into_iter()
        .zip(["SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.gguf"])
    {
        let Some(path) = path(name) else { return };
        let path = path.to_string_lossy();
        let mut arguments = vec![
            "generate",
            "--model",
            &path,
            "--max-new-tokens",
            "40",
            "--prompt",
            &case.prompt,
        ];
        if case.chat {
            arguments.push("--chat");
        }
        assert_eq!(
            place.run(&arguments).ok().stdout,
            format!("{}\n", case.text)
        );
    }
}
