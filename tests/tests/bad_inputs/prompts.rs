//! What `generate` refuses.

use lowrank_tests::place::Place;

fn place() -> Place {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    place.copy("cases/lora/adapter_final", "adapter");
    place
}

const GENERATE: [&str; 3] = ["generate", "--model", "model"];

fn check(place: &Place, flags: &[&str], code: i32, expected: &str) {
    place.refuses(&[&GENERATE[..], flags].concat(), code, &[expected]);
}

#[test]
fn flags_out_of_range() {
    let place = place();
    let usage = |flags: &[&str], expected: &str| {
        check(&place, &[&["--prompt", "w5"], flags].concat(), 2, expected);
    };
    for value in ["-1", "NaN", "inf", "warm"] {
        usage(
            &["--temperature", value],
            &format!(
                "error: invalid value '{value}' for '--temperature <TEMPERATURE>': expected a finite number that is not below 0"
            ),
        );
    }
    for value in ["0", "-0.5", "1.5", "nan"] {
        usage(
            &["--top-p", value],
            &format!(
                "error: invalid value '{value}' for '--top-p <TOP_P>': expected a number above 0 and at most 1"
            ),
        );
    }
    usage(&["--top-k", "-3"], "error: invalid value '-3' for '--top-k");
    usage(
        &["--max-new-tokens", "0"],
        "error: invalid value '0' for '--max-new-tokens",
    );
    usage(&["--seed", "x"], "error: invalid value 'x' for '--seed");
    usage(
        &["--stop", "w4", "--stop", ""],
        "error: --stop: a stop string is empty",
    );
    usage(&["--dtype", "q4"], "error: unknown dtype `q4`");
    check(&place, &[], 2, "\n  --prompt <PROMPT>\n");
    check(&place, &["--prompt", ""], 2, "error: --prompt is empty");
    check(
        &place,
        &["--prompt", "   "],
        2,
        "error: the prompt has no tokens",
    );
    check(
        &place,
        &["--prompt", "w5", "--adapter", "x@heavy"],
        2,
        "`heavy` after `@` is not a weight",
    );
}

#[test]
fn prompts_that_leave_no_room() {
    let place = place();
    let long = vec!["w7"; 128].join(" ");
    check(
        &place,
        &["--prompt", &long],
        2,
        "error: the prompt has 128 tokens and the model reads at most 128 (`max_position_embeddings`), which leaves no room",
    );
}

#[test]
fn models_without_what_it_takes() {
    let place = place();
    check(
        &place,
        &["--prompt", "w5", "--chat"],
        1,
        "error: model has no chat template: expected `chat_template` in tokenizer_config.json, or chat_template.jinja beside it",
    );
    place.write(
        "model/tokenizer_config.json",
        r#"{"chat_template": "{% if %}"}"#,
    );
    check(
        &place,
        &["--prompt", "w5", "--chat"],
        1,
        "error: chat template of model: ",
    );
    place.write(
        "model/generation_config.json",
        r#"{"eos_token_id": "</s>"}"#,
    );
    check(
        &place,
        &["--prompt", "w5"],
        1,
        "error: model/generation_config.json: `eos_token_id` is \"</s>\", expected a token id or a list of token ids",
    );
    let bare = Place::with_model("plain");
    check(
        &bare,
        &["--prompt", "w5"],
        1,
        "error: tokenizer `model/tokenizer.json` does not exist",
    );
    check(
        &bare,
        &["--prompt", "w5", "--adapter", "none"],
        1,
        "error: none does not exist",
    );
}

#[test]
fn numbers_that_are_not_finite() {
    check(
        &place(),
        &["--prompt", "w5", "--adapter", "adapter@1e200"],
        1,
        "the model or an adapter (or its weight) makes numbers that are not finite",
    );
}
