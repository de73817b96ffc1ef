//! Chats as text, against what transformers makes of them (`tests/golden/chat.py`), and what is refused.

use crate::helpers::Folder;
use lowrank_data::{ChatDate, ChatTemplate, Error, GenerationPrompt, Message};
use serde_json::{Map, Value, json};

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/chat.json")).unwrap()
}

fn template(config: Value) -> lowrank_data::Result<ChatTemplate> {
    ChatTemplate::from_config(config.as_object().unwrap(), "m/tokenizer_config.json")
}

fn rendered(source: &str, messages: &[Message]) -> Result<String, String> {
    let template = template(json!({"chat_template": source, "eos_token": "</s>"}));
    let text = template.and_then(|template| template.render(messages, GenerationPrompt::Omit));
    text.map_err(|error| error.to_string())
}

#[test]
fn chats_are_written_as_transformers_writes_them() {
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 40);
    let mut refusals = 0;
    for case in cases {
        let source = &golden["templates"][case["template"].as_str().unwrap()];
        let chat = &golden["chats"][case["chat"].as_str().unwrap()];
        let messages: Vec<Message> = serde_json::from_value(chat.clone()).unwrap();
        let prompt = match case["add_generation_prompt"].as_bool() {
            Some(true) => GenerationPrompt::Add,
            _ => GenerationPrompt::Omit,
        };
        let config = json!({"chat_template": source, "bos_token": "<s>",
            "eos_token": {"content": "</s>", "special": true}, "unk_token": "<unk>"});
        let text = template(config).unwrap().render(&messages, prompt);
        match case["error"].as_str() {
            None => assert_eq!(text.unwrap(), case["text"].as_str().unwrap(), "{case}"),
            Some(reason) => {
                refusals += 1;
                let message = text.unwrap_err().to_string();
                let expected = format!("chat template of m/tokenizer_config.json: {reason} (line ");
                assert!(message.starts_with(&expected), "{message}");
            }
        }
    }
    assert_eq!(refusals, 4);
}

#[test]
fn a_template_lies_in_its_own_file_or_in_the_configuration() {
    let config = json!({"chat_template": "configuration{{ eos_token }}"}).to_string();
    let tokens = json!({"eos_token": {"content": "<end>"}}).to_string();
    let files: [(&str, &[u8]); 3] = [
        ("tokenizer_config.json", config.as_bytes()),
        ("special_tokens_map.json", tokens.as_bytes()),
        ("chat_template.jinja", b"file{{ eos_token }}\n"),
    ];
    let text = |files: &[(&str, &[u8])]| {
        let template = ChatTemplate::from_folder(Folder::new(files).path("")).unwrap();
        template
            .render(&[Message::user("x")], GenerationPrompt::Add)
            .unwrap()
    };
    assert_eq!(text(&files), "file<end>");
    assert_eq!(text(&files[..2]), "configuration<end>");
    assert_eq!(text(&files[2..]), "file");

    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
    let named = template(json!({ "chat_template": named })).unwrap();
    assert_eq!(named.render(&[], GenerationPrompt::Omit).unwrap(), "plain");
}

#[test]
fn a_folder_without_a_usable_template_is_told_so() {
    let folder = Folder::new(&[("tokenizer_config.json", b"{\"eos_token\": \"</s>\"}")]);
    let error = ChatTemplate::from_folder(folder.path("")).unwrap_err();
    assert!(matches!(error, Error::NoChatTemplate { .. }));
    let expected = "has no chat template: expected `chat_template` in tokenizer_config.json, or chat_template.jinja beside it";
    assert!(error.to_string().ends_with(expected), "{error}");

    let folder = Folder::new(&[("tokenizer_config.json", b"[1]")]);
    let error = ChatTemplate::from_folder(folder.path("")).unwrap_err();
    let message = folder.message(&error);
    assert!(
        message.starts_with("chat template of tokenizer_config.json: not a JSON object: "),
        "{message}"
    );

    let refused = |config: Value| template(config).unwrap_err().to_string();
    assert_eq!(
        refused(json!({"chat_template": [{"name": "rag", "template": "x"}]})),
        "chat template of m/tokenizer_config.json: `chat_template` is a list without one that is called `default`: `rag`"
    );
    assert_eq!(
        refused(json!({"chat_template": 3})),
        "chat template of m/tokenizer_config.json: `chat_template` is neither a text nor a list"
    );
    let message = refused(json!({"chat_template": "one\n{% if %}"}));
    assert!(message.contains("(line 2)"), "{message}");
    assert!(template(Value::Object(Map::new())).is_err());
}

#[test]
fn templates_that_fail_or_never_end_are_refused() {
    let check = |source: &str, fragment: &str| {
        let message = rendered(source, &[Message::user("x")]).unwrap_err();
        assert!(
            message.starts_with("chat template of m/tokenizer_config.json: "),
            "{message}"
        );
        assert!(message.contains(fragment), "{message}");
    };
    check(
        "a\nb{{ raise_exception('no ' ~ messages[0].role) }}",
        "no user (line 2)",
    );
    check("{{ messages[3].role }}", "undefined");
    check("{{ nothing_of_that_name() }}", "nothing_of_that_name");
    check("{{ messages[0].content.frobnicate() }}", "frobnicate");
    check(
        "{{ strftime_now('%Q') }}",
        "strftime_now: `%Q` is not supported",
    );
    check("{% include 'passwords' %}", "include");
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}x";
    check(&format!("{loops}{}", "{% endfor %}".repeat(3)), "fuel");
    let doubled = "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}";
    check(doubled, "fuel");
    check(
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "recursion",
    );
}

#[test]
fn the_time_is_noon_of_today_or_of_the_date_that_is_set() {
    let source = "{{ strftime_now('%Y-%m-%d %H:%M') }}";
    let before = ChatDate::today();
    let now = rendered(source, &[]).unwrap();
    let days = [before, ChatDate::today()].map(|date| format!("{date} 12:00"));
    assert!(days.contains(&now), "{now} is none of {days:?}");
    let template = template(json!({ "chat_template": source })).unwrap();
    assert!(template.tells_time());
    let template = template.dated("2024-02-29".parse().unwrap());
    let text = template.render(&[], GenerationPrompt::Omit).unwrap();
    assert_eq!(text, "2024-02-29 12:00");
}

#[test]
fn expressions_are_what_they_are_in_python() {
    let golden: Value = serde_json::from_str(include_str!("../golden/methods.json")).unwrap();
    let values = golden["values"].as_object().unwrap();
    let set: String = values
        .iter()
        .map(|(name, value)| format!("{{%- set {name} = {value} %}}").replace("null", "none"))
        .collect();
    let mut differ = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let expression = case[0].as_str().unwrap();
        let found = rendered(&format!("{set}{{{{ {expression} }}}}"), &[]).ok();
        if found.as_deref() != case[1].as_str() {
            differ.push(format!("{expression}: {found:?}, expected {}", case[1]));
        }
    }
    assert_eq!(differ, Vec::<String>::new(), "{}", differ.join("\n"));
}
