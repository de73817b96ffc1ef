//! `chat`: what the model has read is kept, and changes nothing.

use crate::keys;
use lowrank::adapter::Selection;
use lowrank::data::Message;
use lowrank::models::Precision;
use lowrank::{Base, Generation, Generator, Prompt};
use lowrank_tests::{binary, place::Place};
use serde_json::{Value, json};
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

/// How a conversation ended: exit status, stdout, stderr.
pub fn talk(place: &Place, arguments: &[&str], input: &[u8]) -> (i32, String, String) {
    let mut child = Command::new(binary::path().unwrap())
        .arg("chat")
        .args(arguments)
        .current_dir(place.path("."))
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A conversation may end before all was read.
    drop(child.stdin.take().unwrap().write_all(input));
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

pub fn object(ended: (i32, String, String)) -> Value {
    assert_eq!(ended.0, 0, "{}", ended.2);
    assert_eq!(ended.1.lines().count(), 1);
    serde_json::from_str(&ended.1).unwrap()
}

fn message(role: &str, content: &str) -> Message {
    Message {
        role: role.to_owned(),
        content: content.to_owned(),
    }
}

/// Every answer of a conversation again, each from the whole of it at once, and how much of it was read before.
pub fn check(model: &str, object: &Value, system: Option<&str>, said: &[&str], limit: usize) {
    let base = Base::open(model, Precision::AsStored).unwrap();
    let generator = Generator::new(&base).unwrap();
    let generation = Generation {
        max_new_tokens: NonZeroUsize::new(limit).unwrap(),
        ..Generation::default()
    };
    let mut messages: Vec<Message> = system
        .map(|text| message("system", text))
        .into_iter()
        .collect();
    let answers = object["answers"].as_array().unwrap();
    assert_eq!(answers.len(), said.len());
    let (mut read, mut tokens) = (0, 0);
    for (answer, said) in answers.iter().zip(said) {
        messages.push(message("user", said));
        let prompt = Prompt::Chat(&messages);
        let mut each = |_: &str| ControlFlow::Continue(());
        let alone = generator.generate(&Selection::none(), prompt, &generation, &mut each);
        let alone = alone.unwrap();
        let expected = (
            &json!(alone.text),
            &json!(alone.ids.len()),
            &json!(alone.prompt_tokens),
            &json!(alone.finish.as_str()),
        );
        let found = (
            &answer["text"],
            &answer["tokens"],
            &answer["prompt_tokens"],
            &answer["finish"],
        );
        assert_eq!(found, expected);
        // Only what was said since then is new.
        assert_eq!(answer["cached_tokens"], read);
        let unread = usize::from(answer["finish"] == "length");
        read = alone.prompt_tokens + alone.ids.len() - unread;
        tokens += alone.ids.len();
        messages.push(message("assistant", &alone.text));
    }
    assert_eq!(object["messages"], json!(messages));
    let counts = (&object["turns"], &object["tokens"]);
    assert_eq!(counts, (&json!(said.len()), &json!(tokens)));
}

const SAID: [&str; 3] = [
    "What does a cow give?",
    "What is the opposite of big?",
    "What is 3 plus 4?",
];

#[test]
fn a_turn_reads_what_is_new_and_says_what_the_whole_would() {
    let place = Place::new();
    let input = SAID.join("\n\n \n");
    let arguments = ["--model", "tiny", "--json", "--max-new-tokens", "4"];
    let found = object(talk(&place, &arguments, input.as_bytes()));
    assert_eq!(keys(&found), ["turns", "tokens", "answers", "messages"]);
    let expected = [
        "prompt_tokens",
        "cached_tokens",
        "tokens",
        "text",
        "finish",
        "ttft_seconds",
        "tokens_per_second",
    ];
    assert_eq!(keys(&found["answers"][0]), expected);
    check("tiny", &found, None, &SAID, 4);

    // Without --json the answers alone are printed.
    let (code, stdout, stderr) = talk(&place, &arguments_without_json(), input.as_bytes());
    let texts: Vec<&str> = found["answers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["text"].as_str().unwrap())
        .collect();
    assert_eq!(
        (code, stdout, stderr),
        (0, texts.join("\n") + "\n", String::new())
    );

    let system = ["--system", "You know animals."];
    let found = object(talk(
        &place,
        &[&arguments[..], &system].concat(),
        input.as_bytes(),
    ));
    check("tiny", &found, Some(system[1]), &SAID, 4);
}

fn arguments_without_json() -> [&'static str; 4] {
    ["--model", "tiny", "--max-new-tokens", "4"]
}

#[test]
fn earlier_text_may_be_written_anew() {
    let place = Place::new();
    let input = format!(
        "/system Be brief.\n{}\n/system\n{}\n/system Be kind.\n{}\n",
        SAID[0], SAID[1], SAID[2]
    );
    let arguments = ["--model", "tiny", "--json", "--max-new-tokens", "4"];
    let changed = object(talk(&place, &arguments, input.as_bytes()));
    let cached = |turn: usize| changed["answers"][turn]["cached_tokens"].as_u64().unwrap();
    // All after the beginning of the first message is new.
    assert!(cached(1) < 4 && cached(2) < 4, "{changed}");
    // The same conversation under the last system message from the start has the same last answer if the others are.
    let messages = changed["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 7);
    assert_eq!(
        messages[0],
        json!({"role": "system", "content": "Be kind."})
    );
    let base = Base::open("tiny", Precision::AsStored).unwrap();
    let generator = Generator::new(&base).unwrap();
    let before: Vec<Message> = serde_json::from_value(json!(messages[..6])).unwrap();
    let generation = Generation {
        max_new_tokens: NonZeroUsize::new(4).unwrap(),
        ..Generation::default()
    };
    let mut each = |_: &str| ControlFlow::Continue(());
    let alone = generator.generate(
        &Selection::none(),
        Prompt::Chat(&before),
        &generation,
        &mut each,
    );
    assert_eq!(messages[6]["content"], json!(alone.unwrap().text));
}

#[test]
fn commands() {
    let place = Place::new();
    let arguments = [
        "--model",
        "tiny",
        "--json",
        "--max-new-tokens",
        "4",
        "--system",
        "Be brief.",
    ];
    let input =
        "Hello\n/save one.jsonl\n/reset\n//reset is a command\n/save two.jsonl\n/exit\nnot said\n";
    let found = object(talk(&place, &arguments, input.as_bytes()));
    assert_eq!(found["turns"], 2);
    let (one, two) = (place.json("one.jsonl"), place.json("two.jsonl"));
    assert_eq!(
        one["messages"][1],
        json!({"role": "user", "content": "Hello"})
    );
    assert_eq!(
        (keys(&one), one["messages"].as_array().unwrap().len()),
        (vec!["messages"], 3)
    );
    assert_eq!(
        two["messages"][0],
        json!({"role": "system", "content": "Be brief."})
    );
    assert_eq!(two["messages"][1]["content"], "/reset is a command");
    assert_eq!(two["messages"], found["messages"]);
    assert!(place.text("one.jsonl").ends_with("}\n"));

    // What is wrong is said, the conversation goes on, and the exit status tells.
    for (line, expected) in [
        (
            "/rest",
            "error: expected /reset, /system TEXT, /save FILE, /help or /exit, found `/rest`",
        ),
        ("/save", "found `/save`"),
        ("/save none/x.jsonl", "none/x.jsonl"),
        ("/save .", "error: "),
    ] {
        let input = format!("Hello\n{line}\nHello\n");
        let (code, stdout, stderr) = talk(&place, &arguments_without_json(), input.as_bytes());
        assert_eq!((code, stdout.lines().count()), (1, 2), "{stderr}");
        assert!(
            stderr.contains(expected) && stderr.lines().count() == 1,
            "{stderr}"
        );
    }
    let (code, _, stderr) = talk(&place, &arguments_without_json(), b"/save x.jsonl\n");
    assert_eq!(
        (code, &*stderr),
        (1, "error: nothing was said that could be saved\n")
    );
    let (code, stdout, stderr) = talk(&place, &arguments_without_json(), b"");
    assert_eq!((code, &*stdout, &*stderr), (0, "", ""));
    let (code, stdout, stderr) = talk(&place, &arguments_without_json(), b"/help\n");
    assert_eq!((code, &*stdout), (0, ""));
    assert!(stderr.contains("/save FILE"), "{stderr}");
    // What was said before and after a line that is no text is reported.
    let (code, stdout, stderr) = talk(&place, &arguments, b"Hello\nHell\xf6\nHello\n");
    assert_eq!(code, 1);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["turns"], 2);
    assert!(
        stderr.contains("error: a message on stdin is not UTF-8: "),
        "{stderr}"
    );
    // A mark at the beginning is none of the first line.
    let (code, stdout, _) = talk(
        &place,
        &arguments_without_json(),
        "\u{feff}/exit\nHello\n".as_bytes(),
    );
    assert_eq!((code, &*stdout), (0, ""));
    // A file that the conversation did not write is not replaced, one that it wrote is.
    place.write("mine.txt", "mine");
    let input = b"Hello\n/save new.jsonl\nHello\n/save new.jsonl\n/save mine.txt\n";
    let (code, _, stderr) = talk(&place, &arguments_without_json(), input);
    assert_eq!(
        (code, &*stderr),
        (
            1,
            "error: /save mine.txt: the file exists; choose another name\n"
        )
    );
    assert_eq!(place.text("mine.txt"), "mine");
    assert_eq!(
        place.json("new.jsonl")["messages"]
            .as_array()
            .unwrap()
            .len(),
        4
    );
}

#[test]
fn conversations_that_leave_no_room() {
    let place = Place::new();
    let long = "the cow and the dog and the cat and the frog ".repeat(16);
    let input = format!("{long}\n{long}\n{long}\n{long}\n/reset\nHello\n");
    let arguments = ["--model", "tiny", "--max-new-tokens", "3"];
    let (code, stdout, stderr) = talk(&place, &arguments, input.as_bytes());
    assert_eq!(code, 1);
    assert!(
        stderr.contains("and the model reads at most 512 (`max_position_embeddings`), which leaves no room to answer; /reset starts anew\n"),
        "{stderr}"
    );
    let refused = stderr.matches("error: the conversation has ").count();
    assert!((1..4).contains(&refused), "{stderr}");
    assert_eq!(stdout.lines().count(), 5 - refused, "{stdout}");
}

#[test]
fn models_without_a_template() {
    let place = Place::with_model("plain");
    place.add_tokenizer("model", 97);
    let (code, stdout, stderr) = talk(&place, &["--model", "model"], b"w5\n");
    assert_eq!((code, &*stdout), (1, ""));
    assert!(
        stderr.contains("error: model has no chat template"),
        "{stderr}"
    );
    // A template that refuses a message leaves the conversation as it was.
    place.write(
        "model/tokenizer_config.json",
        json!({"chat_template": "{% if messages[-1].content == 'w6' %}{{ raise_exception('no w6') }}{% endif %}\
                                 {% for m in messages %}{{ m.content }} {% endfor %}"})
        .to_string(),
    );
    let arguments = ["--model", "model", "--max-new-tokens", "2", "--json"];
    let (code, stdout, stderr) = talk(&place, &arguments, b"w5\nw6\nw7\n");
    let found: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &found["turns"]), (1, &json!(2)));
    assert!(stderr.contains("no w6"), "{stderr}");
    let contents: Vec<&Value> = found["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["content"])
        .collect();
    assert_eq!((contents[0], contents[2]), (&json!("w5"), &json!("w7")));
}
