//! Rows of chats: `{"messages"}` as chat templates take them, and `{"conversations"}` as ShareGPT has them.

use crate::error::Problem;
use crate::row::{Fields, Kind, described, near, shown};
use serde_json::{Map, Value};

/// A chat as a template is handed it.
#[derive(Debug, PartialEq)]
pub(crate) struct Chat {
    /// Objects with a role, and with a content unless the assistant calls tools.
    pub messages: Vec<Value>,
    /// What the assistant may call: a list, or null.
    pub tools: Value,
}

/// More would take too long: every turn is written with all that is before it.
const MOST: usize = 4096;

const ROLES: [&str; 7] = [
    "assistant",
    "developer",
    "function",
    "ipython",
    "system",
    "tool",
    "user",
];

/// Who speaks, in ShareGPT's words and in those of templates.
const SPEAKERS: [(&str, &str); 15] = [
    ("assistant", "assistant"),
    ("bard", "assistant"),
    ("bing", "assistant"),
    ("chatgpt", "assistant"),
    ("developer", "developer"),
    ("function", "tool"),
    ("function_response", "tool"),
    ("gpt", "assistant"),
    ("human", "user"),
    ("model", "assistant"),
    ("observation", "tool"),
    ("system", "system"),
    ("tool", "tool"),
    ("tool_response", "tool"),
    ("user", "user"),
];

/// Keys of a message that say whether it is learnt from.
const WEIGHTS: [&str; 3] = ["weight", "train", "loss"];

impl Fields {
    /// The chat of a `{"messages"}` row.
    pub(crate) fn messages(&mut self) -> Result<Chat, Problem> {
        let (kind, field) = (Kind::Messages, "messages");
        let list = self.list(kind, field, "a list of messages")?;
        checked(field, list.len())?;
        let messages = list
            .into_iter()
            .enumerate()
            .map(|(i, message)| as_message(&format!("{field}[{i}]"), message));
        Ok(Chat {
            messages: messages.collect::<Result<_, _>>()?,
            tools: self.tools(kind)?,
        })
    }

    /// The chat of a `{"conversations"}` row.
    pub(crate) fn conversations(&mut self) -> Result<Chat, Problem> {
        let (kind, field) = (Kind::Conversations, "conversations");
        let list = self.list(kind, field, "a list of messages")?;
        checked(field, list.len())?;
        let messages = list
            .into_iter()
            .enumerate()
            .map(|(i, message)| as_spoken(&format!("{field}[{i}]"), message));
        let mut messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
        if let Some(system) = self.optional(kind, "system")? {
            let Value::String(text) = system else {
                return Err(wrong("system", described(&system), "a string"));
            };
            if messages
                .first()
                .is_some_and(|first| first["role"] == "system")
            {
                return Err(wrong(
                    "system",
                    "a second system message".into(),
                    "none beside that of `conversations`",
                ));
            }
            if !text.is_empty() {
                messages.insert(0, serde_json::json!({"role": "system", "content": text}));
            }
        }
        Ok(Chat {
            messages,
            tools: self.tools(kind)?,
        })
    }

    /// A list, or the text of one: tables and some data sets have no other way to write it.
    fn tools(&mut self, kind: Kind) -> Result<Value, Problem> {
        const EXPECTED: &str = "a list of tools";
        let list = match self.optional(kind, "tools")? {
            None => return Ok(Value::Null),
            Some(Value::String(text)) if text.trim().is_empty() => return Ok(Value::Null),
            Some(Value::String(text)) => serde_json::from_str(&text)
                .map_err(|_| wrong("tools", "a string that is no JSON".into(), EXPECTED))?,
            Some(list) => list,
        };
        match list {
            Value::Array(list) if list.is_empty() => Ok(Value::Null),
            Value::Array(list) => Ok(Value::Array(list)),
            other => Err(wrong("tools", described(&other), EXPECTED)),
        }
    }

    /// The value of a field, unless it is not there or null.
    fn optional(&mut self, kind: Kind, name: &'static str) -> Result<Option<Value>, Problem> {
        if !self.has(name) {
            return Ok(None);
        }
        Ok(Some(self.take(kind, name)?).filter(|value| !value.is_null()))
    }
}

fn checked(field: &'static str, count: usize) -> Result<(), Problem> {
    match count {
        0 => Err(wrong(field, "empty".into(), "at least one message")),
        1..=MOST => Ok(()),
        _ => Err(wrong(
            field,
            format!("a list of {count}"),
            "at most 4096 messages",
        )),
    }
}

fn wrong(place: &str, found: String, expected: &'static str) -> Problem {
    Problem::Type {
        place: place.to_owned(),
        found,
        expected,
    }
}

/// The message with its content as one text. What a template may want to know beside, it keeps; what is null is as good as
/// not there, as transformers has it.
fn as_message(place: &str, message: Value) -> Result<Value, Problem> {
    let mut message = object(place, message, "an object with `role` and `content`")?;
    let role = text(place, "role", &message)?;
    if !ROLES.contains(&role.as_str()) {
        return Err(unknown(place, "role", &role, &ROLES));
    }
    let calls = role == "assistant" && message.contains_key("tool_calls");
    match message.get_mut("content") {
        None if calls => {}
        None => return Err(absent(place, "content", &message)),
        // In its place among the keys, whose order a template may show.
        Some(content) => {
            *content = joined(&format!("{place}.content"), content.take())?.into();
        }
    }
    Ok(Value::Object(message))
}

/// A message of ShareGPT's in the words of templates. Some data sets have `role` and `content` there, and what else chats have.
fn as_spoken(place: &str, message: Value) -> Result<Value, Problem> {
    let mut message = object(place, message, "an object with `from` and `value`")?;
    let is_spoken = match (message.contains_key("from"), message.contains_key("role")) {
        (true, true) => {
            return Err(wrong(
                &format!("{place}.role"),
                described(&message["role"]),
                "no such key beside `from`",
            ));
        }
        (_, has_role) => !has_role,
    };
    let from = if is_spoken { "from" } else { "role" };
    let speaker = text(place, from, &message)?;
    let names = SPEAKERS.map(|(name, _)| name);
    let role = SPEAKERS.iter().find(|(name, _)| *name == speaker);
    let (_, role) = role.ok_or_else(|| unknown(place, from, &speaker, &names))?;
    if is_spoken {
        let content = text(place, "value", &message)?;
        return Ok(serde_json::json!({"role": role, "content": content}));
    }
    message.insert("role".into(), (*role).into());
    as_message(place, Value::Object(message))
}

/// The keys of a message that are not null.
fn object(
    place: &str,
    message: Value,
    expected: &'static str,
) -> Result<Map<String, Value>, Problem> {
    let mut message = match message {
        Value::Object(message) => message,
        other => return Err(wrong(place, described(&other), expected)),
    };
    message.retain(|_, value| !value.is_null());
    match WEIGHTS.into_iter().find(|key| message.contains_key(*key)) {
        Some(key) => Err(wrong(
            &format!("{place}.{key}"),
            described(&message[key]),
            "no such key (turns that are not learnt from are not yet supported)",
        )),
        None => Ok(message),
    }
}

fn text(place: &str, key: &'static str, message: &Map<String, Value>) -> Result<String, Problem> {
    match message.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        None => Err(absent(place, key, message)),
        Some(other) => Err(wrong(
            &format!("{place}.{key}"),
            described(other),
            "a string",
        )),
    }
}

fn absent(place: &str, key: &'static str, message: &Map<String, Value>) -> Problem {
    let found = match message.keys().find_map(|found| near(found, [key].iter())) {
        Some(_) => "missing (there is a key of a similar name)",
        None => "null or missing",
    };
    wrong(&format!("{place}.{key}"), found.into(), "a string")
}

fn unknown(place: &str, key: &str, found: &str, names: &[&'static str]) -> Problem {
    Problem::Role {
        place: format!("{place}.{key}"),
        found: shown(found),
        names: names.join(", "),
        suggestion: near(found, names.iter()),
    }
}

/// A text, or parts that are all texts, joined.
fn joined(place: &str, content: Value) -> Result<String, Problem> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => {
            return Err(wrong(
                place,
                described(&other),
                "a string, or a list of parts",
            ));
        }
    };
    let mut whole = String::new();
    for (j, part) in parts.iter().enumerate() {
        let place = format!("{place}[{j}]");
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(text)) => whole.push_str(text),
            (Some(kind), _) if kind != "text" => {
                return Err(wrong(
                    &place,
                    format!("of type `{}`", shown(kind)),
                    "text: models here read nothing else",
                ));
            }
            _ => {
                return Err(wrong(
                    &place,
                    described(part),
                    r#"{"type": "text", "text": a string}"#,
                ));
            }
        }
    }
    Ok(whole)
}
