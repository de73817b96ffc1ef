//! Chats as tokens, and which of them the assistant writes: against transformers (`tests/golden/masks.py`), and what templates
//! do that rewrite a chat as it goes on.

use crate::helpers::{Folder, count, examples, options};
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
        Ok(data) => Ok(examples(&data)[1].clone()),
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
            // A tokenizer of its size takes time.
            if *name != "tiny" && case["template"] != "chatml" {
                continue;
            }
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
        (364, 32)
    } else {
        (324, 28)
    };
    assert_eq!((compared, refused), expected);
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// What of a chat's text is supervised, piece by piece.
fn said(source: &str, row: &Value) -> Result<Vec<String>, String> {
    let tokenizer = with(tiny(), source);
    let example = example(row, &tokenizer, &large())?;
    let mut pieces: Vec<Vec<u32>> = vec![Vec::new()];
    for (&id, label) in example.ids.iter().zip(example.labels) {
        match label {
            UNSUPERVISED => pieces.push(Vec::new()),
            _ => pieces.last_mut().unwrap().push(id),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    let text = |ids: &Vec<u32>| tokenizer.decode(ids, lowrank_data::Special::Add).unwrap();
    Ok(pieces.iter().map(text).collect())
}

fn messages(turns: &[(&str, &str)]) -> Value {
    let turn = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    json!({"messages": turns.iter().map(turn).collect::<Vec<_>>()})
}

const TWO: [(&str, &str); 4] = [
    ("user", "One?"),
    ("assistant", "<think>hm</think>1"),
    ("user", "Two?"),
    ("assistant", "<think>well</think>2"),
];

#[test]
fn turns_that_a_template_rewrites_are_not_supervised() {
    // What was thought stays in the last turn alone, as reasoning models have it.
    let forgets = "{% for m in messages %}{% set text = m.content if loop.last else m.content.split('</think>')[-1] %}\
        {{ '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    assert_eq!(
        said(forgets, &messages(&TWO)),
        Ok(vec!["<think>well</think>2<|im_end|>".to_owned()])
    );
    // Without thoughts nothing is rewritten.
    let plain = [
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
    ];
    assert_eq!(
        said(forgets, &messages(&plain)),
        Ok(vec!["1<|im_end|>".to_owned(), "2<|im_end|>".to_owned()])
    );

    // The system message goes into the last question, so that earlier ones were asked without it.
    let moves = "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] \
        {{- messages[0].content + '\\n' if loop.last or loop.index0 + 2 == loop.length and not add_generation_prompt }}\
        {{- m.content }}[/INST]{% else %}{{ ' ' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}";
    let chat = messages(&[
        ("system", "Be short."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
    ]);
    assert_eq!(said(moves, &chat), Ok(vec![" 2<|im_end|>".to_owned()]));

    // Nothing of a chat stands as it stood: a number that depends on its length comes first.
    let counts = format!("{{{{ messages | length }}}} {CHATML}");
    assert_eq!(
        said(&counts, &messages(&TWO)).unwrap_err(),
        "b.jsonl:1: chat template of the test: no turn of the assistant stands in the chat as it stood when the chat ended \
         there, so that it is not known what to learn; mark it by `{% generation %}` blocks in a template of your own \
         (`data.chat_template`)"
    );
    let marked = counts.replace(
        "m.content + '<|im_end|>\\n' }}",
        "'' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}",
    );
    // The template marks what everybody says.
    assert_eq!(
        said(&marked, &messages(&plain)).unwrap()[1..3],
        ["1<|im_end|>", "Two?<|im_end|>"]
    );
}

#[test]
fn an_answer_before_any_question_is_supervised_where_it_has_a_beginning() {
    let chat = messages(&[
        ("assistant", "Hello!"),
        ("user", "Hi."),
        ("assistant", "So?"),
    ]);
    let ends = |words: &[&str]| {
        Ok(words
            .iter()
            .map(|word| format!("{word}<|im_end|>"))
            .collect())
    };
    assert_eq!(said(CHATML, &chat), ends(&["Hello!", "So?"]));
    // A system message of the template's own comes first, but before no message it does not.
    let system = format!(
        "{{% if messages and messages[0].role != 'system' %}}{{{{ '<|im_start|>system\\nHelp.<|im_end|>\\n' }}}}{{% endif %}}{CHATML}"
    );
    assert_eq!(said(&system, &chat), ends(&["So?"]));
    // Two in a row, and a chat that ends with a question.
    let chat = messages(&[
        ("user", "a"),
        ("assistant", "b"),
        ("assistant", "c"),
        ("user", "d"),
    ]);
    assert_eq!(said(CHATML, &chat), ends(&["b", "c"]));
    // Nobody answers: nothing to learn, and counted as such.
    assert_eq!(said(CHATML, &messages(&[("user", "a")])), Ok(vec![]));
}

#[test]
fn marks_in_comments_and_quotes_are_none() {
    let chat = messages(&[("user", "One?"), ("assistant", "1")]);
    for no_mark in [
        "{# {% generation %}, don't #}",
        "{{ '{% generation %}'[:0] }}",
        "{% set x = \"it's %} {% generation %}\" %}",
        "{% raw %}{{ '{% generation %} {# {%- endraw %}",
    ] {
        let source = format!("{no_mark}{CHATML}");
        assert_eq!(
            said(&source, &chat),
            Ok(vec!["1<|im_end|>".to_owned()]),
            "{no_mark}"
        );
    }
}

#[test]
fn marks_hold_in_whatever_a_block_stands() {
    let check = |source: &str, expected: &[&str]| {
        let chat = messages(&[("user", "\u{fdd0}a\u{fdd2}"), ("assistant", "b\u{fdd1} c")]);
        assert_eq!(said(source, &chat).unwrap(), expected, "{source}");
    };
    let block = "{% generation %}{{ m.content }}{% endgeneration %}";
    let answers = "{% for m in messages %}{{ m.role }}: ";
    check(
        &format!("{answers}{{% if m.role == 'assistant' %}}{block}{{% endif %}}.{{% endfor %}}"),
        &[" b\u{fdd1} c"],
    );
    // In a macro, in a capture, behind a filter, and with the loop's own variable.
    check(
        &format!(
            "{{% macro say(m) %}}{block}{{% endmacro %}}{answers}{{{{ say(m) if m.role == 'assistant' }}}}|{{% endfor %}}"
        ),
        &[" b\u{fdd1} c"],
    );
    check(
        &format!(
            "{answers}{{% set x %}}<{block}>{{% endset %}}{{{{ x if loop.last }}}}|{{% endfor %}}"
        ),
        &["b\u{fdd1} c"],
    );
    check(
        "{% for m in messages %}{{ m.role }}:{%- generation -%} {{ m.content if loop.last }} {%- endgeneration -%} .{% endfor %}",
        &["b\u{fdd1} c"],
    );
    let chat = messages(&[("user", "a"), ("assistant", "b c")]);
    let changed =
        format!("{answers}{{% set x %}}{block}{{% endset %}}{{{{ x | length }}}}{{% endfor %}}");
    let error = said(&changed, &chat).unwrap_err();
    assert!(
        error.contains("it changes what its `{% generation %}` blocks hold"),
        "{error}"
    );
    let every: String = ('\u{fdd0}'..='\u{fdef}').collect();
    let error = said(
        &format!("{answers}{block}{{% endfor %}}"),
        &messages(&[("user", &every)]),
    );
    assert!(
        error
            .unwrap_err()
            .contains("every character from U+FDD0 to U+FDEF")
    );
}

#[test]
fn chats_are_cut_and_counted_as_other_rows() {
    let tokenizer = with(tiny(), CHATML);
    let row = messages(&[
        ("user", "One?"),
        ("assistant", "1 and more"),
        ("user", "b"),
        ("assistant", "2"),
    ]);
    let whole = example(&row, &tokenizer, &large()).unwrap();
    assert!(!whole.truncated);
    for length in 5..=whole.ids.len() {
        let options = Options {
            max_length: count(length),
            ..large()
        };
        let cut = example(&row, &tokenizer, &options).unwrap();
        assert_eq!(cut.ids, whole.ids[..length]);
        assert_eq!(cut.labels, whole.labels[..length], "{length}");
        assert_eq!(cut.truncated, length < whole.ids.len());
    }
}

#[test]
fn conversations_of_sharegpt_are_messages() {
    let tokenizer = with(tiny(), CHATML);
    let expected = messages(&[
        ("system", "Be short."),
        ("user", "One?"),
        ("assistant", "1"),
        ("tool", "{}"),
        ("assistant", "2"),
    ]);
    let expected = example(&expected, &tokenizer, &large()).unwrap();
    assert_eq!(expected.supervised(), 4);
    for (human, gpt, tool) in [
        ("human", "gpt", "tool"),
        ("user", "assistant", "function"),
        ("human", "chatgpt", "observation"),
        ("user", "bing", "tool"),
    ] {
        let turns = json!([{"from": human, "value": "One?"}, {"from": gpt, "value": "1", "markdown": null},
            {"from": tool, "value": "{}"}, {"value": "2", "from": gpt, "text": "other"}]);
        let beside =
            json!({"id": "x_1", "conversations": turns, "system": "Be short.", "tools": ""});
        assert_eq!(example(&beside, &tokenizer, &large()).unwrap(), expected);
        let mut inside = vec![json!({"from": "system", "value": "Be short."})];
        inside.extend(turns.as_array().unwrap().clone());
        let inside = json!({"conversations": inside, "system": null});
        assert_eq!(example(&inside, &tokenizer, &large()).unwrap(), expected);
    }
    // What a template reads beside, and tools as a list or as its text.
    let tools = "{{ tools | tojson if tools else 'none' }}{% for m in messages %}<|im_start|>{{ m.name }}{{ m.content }}{% endfor %}";
    let tokenizer = with(tiny(), tools);
    let text = |row: Value| {
        let ids = example(&row, &tokenizer, &large()).unwrap().ids;
        tokenizer.decode(&ids, lowrank_data::Special::Add).unwrap()
    };
    let turns = json!([{"role": "user", "name": "Ada", "content": "x"}]);
    for given in [json!([{"a": 1}]), json!("[{\"a\": 1}]")] {
        let row = json!({"messages": turns, "tools": given});
        assert_eq!(text(row), "[{\"a\": 1}]<|im_start|>Adax");
    }
    for none in [json!([]), json!(null), json!(" "), json!("[]")] {
        let row = json!({"tools": none, "messages": turns});
        assert_eq!(text(row), "none<|im_start|>Adax");
    }
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "\nb"}]);
    let parts = json!({"messages": [{"role": "user", "content": parts}]});
    assert_eq!(text(parts), "none<|im_start|>a\nb");
    // Conversations in the words of messages are read as those are.
    let calls = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }} {{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}";
    let tokenizer = with(tiny(), calls);
    let call = json!({"role": "gpt", "content": null, "tool_calls": [{"name": "f"}]});
    let ids = example(&json!({"conversations": [call]}), &tokenizer, &large())
        .unwrap()
        .ids;
    assert_eq!(
        tokenizer.decode(&ids, lowrank_data::Special::Add).unwrap(),
        "<|im_start|>assistant  [{\"name\": \"f\"}]"
    );
}

#[test]
fn chats_with_tools_are_written_by_a_template_of_their_own() {
    let turn = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}";
    let config = json!({"chat_template": [
        {"name": "default", "template": turn},
        {"name": "tool_use", "template": format!("{{% generation %}}{{{{ tools | tojson }}}}{{% endgeneration %}}{turn}")},
    ]});
    let template = ChatTemplate::from_config(config.as_object().unwrap(), "the test");
    let tokenizer = tiny().with_chat_template(template.map_err(|error| error.to_string()));
    let said = |row: &Value| {
        let example = example(row, &tokenizer, &large()).unwrap();
        let said = example.ids.iter().zip(&example.labels);
        let said = said.filter(|(_, label)| **label != UNSUPERVISED);
        let said: Vec<u32> = said.map(|(&id, _)| id).collect();
        tokenizer.decode(&said, lowrank_data::Special::Add).unwrap()
    };
    let mut row = messages(&[("user", "One?"), ("assistant", "1")]);
    assert_eq!(said(&row), "1<|im_end|>");
    row["tools"] = json!([]);
    assert_eq!(said(&row), "1<|im_end|>");
    row["tools"] = json!([{"a": 1}]);
    assert!(said(&row).ends_with("\"a\": 1}]"), "{}", said(&row));
}

#[test]
fn chats_that_are_none_are_refused_by_name() {
    let check = |row: Value, message: &str| {
        let error = example(&row, &with(tiny(), CHATML), &large()).unwrap_err();
        assert_eq!(error, format!("b.jsonl:1: {message}"), "{row}");
    };
    let of = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    check(
        json!({"messages": "x"}),
        "`messages` is a string, expected a list of messages",
    );
    check(
        json!({"messages": {"role": "user"}}),
        "`messages` is an object, expected a list of messages",
    );
    check(
        json!({"messages": []}),
        "`messages` is empty, expected at least one message",
    );
    check(
        of(json!("hello")),
        "`messages[1]` is a string, expected an object with `role` and `content`",
    );
    check(
        of(json!({"content": "x"})),
        "`messages[1].role` is null or missing, expected a string",
    );
    check(
        of(json!({"role": 3, "content": "x"})),
        "`messages[1].role` is 3, expected a string",
    );
    check(
        of(json!({"role": "asistant", "content": "x"})),
        "`messages[1].role` is \"asistant\", expected one of assistant, developer, function, ipython, system, tool, user \
         (did you mean `assistant`?)",
    );
    check(
        of(json!({"role": "narrator\u{1b}", "content": "x"})),
        "`messages[1].role` is \"narrator\\u{1b}\", expected one of assistant, developer, function, ipython, system, tool, user",
    );
    check(
        of(json!({"role": "user", "content": null})),
        "`messages[1].content` is null or missing, expected a string",
    );
    check(
        of(json!({"role": "user", "contents": "x"})),
        "`messages[1].content` is missing (there is a key of a similar name), expected a string",
    );
    check(
        of(json!({"role": "user", "content": {"text": "x"}})),
        "`messages[1].content` is an object, expected a string, or a list of parts",
    );
    check(
        of(
            json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}),
        ),
        "`messages[1].content[1]` is of type `image_url`, expected text: models here read nothing else",
    );
    check(
        of(json!({"role": "user", "content": ["a"]})),
        "`messages[1].content[0]` is a string, expected {\"type\": \"text\", \"text\": a string}",
    );
    check(
        of(json!({"role": "assistant", "content": "x", "weight": 0})),
        "`messages[1].weight` is 0, expected no such key (turns that are not learnt from are not yet supported)",
    );
    check(
        json!({"messages": [{"role": "user", "content": "x"}], "source": "y"}),
        "unknown field `source` in a row {\"messages\"}",
    );
    check(
        json!({"messages": [{"role": "user", "content": "x"}], "tools": {"name": "y"}}),
        "`tools` is an object, expected a list of tools",
    );
    check(
        json!({"messages": [{"role": "user", "content": "x"}], "tools": "[{"}),
        "`tools` is a string that is no JSON, expected a list of tools",
    );
    check(
        json!({"messages": vec![json!({"role": "user", "content": "x"}); 4097]}),
        "`messages` is a list of 4097, expected at most 4096 messages",
    );
    check(
        of(json!({"role": "assistant", "content": null, "tool_calls": null})),
        "`messages[1].content` is null or missing, expected a string",
    );
    let spoken = |message: Value| json!({"conversations": [message]});
    check(
        spoken(json!({"from": "human", "value": "x", "role": "user", "content": "y"})),
        "`conversations[0].role` is a string, expected no such key beside `from`",
    );
    check(
        spoken(json!({"role": "assistant", "content": null})),
        "`conversations[0].content` is null or missing, expected a string",
    );
    check(
        spoken(json!({"from": "humam", "value": "x"})),
        "`conversations[0].from` is \"humam\", expected one of assistant, bard, bing, chatgpt, developer, function, \
         function_response, gpt, human, model, observation, system, tool, tool_response, user (did you mean `human`?)",
    );
    check(
        spoken(json!({"from": "human", "value": ["x"]})),
        "`conversations[0].value` is a list, expected a string",
    );
    check(
        spoken(json!([])),
        "`conversations[0]` is a list, expected an object with `from` and `value`",
    );
    check(
        json!({"conversations": [{"from": "system", "value": "x"}], "system": "y"}),
        "`system` is a second system message, expected none beside that of `conversations`",
    );
    check(
        json!({"conversations": [{"from": "human", "value": "x"}], "system": 3}),
        "`system` is 3, expected a string",
    );
}

#[test]
fn rows_of_messages_need_a_template() {
    let row = messages(&[("user", "x"), ("assistant", "y")]);
    assert_eq!(
        example(&row, &tiny(), &large()).unwrap_err(),
        "b.jsonl:1: the tokenizer comes without a chat template"
    );
    let none = tiny().with_chat_template(Err("nobody wrote one".to_owned()));
    assert_eq!(
        example(&row, &none, &large()).unwrap_err(),
        "b.jsonl:1: nobody wrote one"
    );
    let silent = with(tiny(), "{# says nothing #}");
    assert_eq!(
        example(&row, &silent, &large()).unwrap_err(),
        "b.jsonl:1: the row gives no tokens"
    );
    let other = with(tiny(), "{{ nothing.at.all }}");
    let error = example(&row, &other, &large()).unwrap_err();
    assert!(
        error.starts_with("b.jsonl:1: chat template of the test: "),
        "{error}"
    );
}
