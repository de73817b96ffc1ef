//! Rows as a user writes them: kinds, fields, types. Tokens come later.

use crate::chat_row::Chat;
use crate::classes::Label;
use crate::error::Problem;
use crate::instruction;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// A kind of row. A file has rows of one kind, that of its first row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{"text"}`: the tokenizer's own template and the end token, all supervised.
    Text,
    /// `{"prompt","completion"}`: the completion and the end token are supervised.
    Completion,
    /// The same with `choices`, and `answer`, the index of the right one, unless it is not known.
    Choices,
    /// The same with `answer`, the expected final answer of a generation; the choices are not given.
    Answer,
    /// `{"text"[,"text_pair"],"label"}`: the class of a text or of a pair of texts, or a value.
    Labelled,
    /// `{"input_ids","labels"}`: used as they are; -100 is unsupervised.
    Tokens,
    /// `{"messages"}`, each with `role` and `content`, and `tools`, unless there are none: what the model's chat template
    /// makes of them; what the assistant writes is supervised, each time with what ends its turn.
    Messages,
    /// `{"conversations"}`, the same in ShareGPT's words: `from` and `value`, and maybe `system` and `tools` beside.
    Conversations,
    /// `{"instruction","output"}`, maybe with `input`, in the prompts of Stanford's Alpaca: the output and the end token
    /// are supervised.
    Instruction,
}

impl Kind {
    /// The kinds as a user knows them.
    pub(crate) const LIST: &'static str = r#"{"text"}, {"text"[,"text_pair"],"label"}, {"prompt","completion"[,"choices","answer"]}, {"messages"}, {"conversations"}, {"instruction","output"[,"input"]} or {"input_ids","labels"}"#;

    const ALL: [Self; 9] = [
        Self::Text,
        Self::Completion,
        Self::Choices,
        Self::Answer,
        Self::Labelled,
        Self::Tokens,
        Self::Messages,
        Self::Conversations,
        Self::Instruction,
    ];

    /// All of them, in the order of their codes.
    pub(crate) fn names() -> String {
        format!("{:?}", Self::ALL)
    }

    /// What tokenised rows that are kept call it.
    pub(crate) const fn code(self) -> u32 {
        self as u32
    }

    /// The kind with this code.
    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    fn fields(self) -> &'static [&'static str] {
        match self {
            Self::Text => &["text"],
            Self::Completion => &["prompt", "completion"],
            Self::Choices => &["prompt", "completion", "choices", "answer"],
            Self::Answer => &["prompt", "completion", "answer"],
            Self::Labelled => &["text", "text_pair", "label"],
            Self::Tokens => &["input_ids", "labels"],
            Self::Messages => &["messages", "tools"],
            Self::Conversations => &["conversations", "system", "tools", "id"],
            Self::Instruction => &["instruction", "input", "output"],
        }
    }

    /// The first field, which gives the kind its name.
    pub(crate) fn field(self) -> &'static str {
        self.fields()[0]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = match self {
            Self::Labelled => return f.write_str(r#"{"text"[,"text_pair"],"label"}"#),
            Self::Messages | Self::Conversations => &self.fields()[..1],
            _ => self.fields(),
        };
        write!(f, "{{\"{}\"}}", fields.join("\",\""))
    }
}

/// A row whose fields have the right types.
#[derive(Debug, PartialEq)]
pub(crate) enum Row {
    Text(String),
    Completion {
        prompt: String,
        completion: String,
        asked: Asked,
    },
    Labelled {
        text: String,
        pair: Option<String>,
        label: Label,
    },
    Tokens {
        ids: Vec<i64>,
        labels: Vec<i64>,
    },
    Chat(Chat),
}

/// What an evaluation asks of a `{"prompt","completion"}` row.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    Nothing,
    Choices {
        choices: Vec<String>,
        gold: Option<usize>,
    },
    Answer(String),
}

/// The kind of a file, and the line that decided it.
pub(crate) type Decided = Option<(Kind, u64)>;

/// Reads the fields of a row. The first row of a file has no `decided` kind yet.
pub(crate) fn parse(mut fields: Fields, decided: Decided) -> Result<(Kind, Row), Problem> {
    let kind = match (fields.kind()?, decided) {
        (Some(kind), Some((first, first_line))) if kind != first => {
            return Err(Problem::Differs {
                kind,
                first,
                first_line,
            });
        }
        (None, None) => return Err(fields.unknown_kind()),
        // A row without any known field is read as its file's kind, which names what is wrong with it.
        (None, Some((kind, _))) | (Some(kind), _) => kind,
    };
    fields.check(kind)?;
    let row = match kind {
        Kind::Text => Row::Text(fields.string(kind, "text")?),
        Kind::Completion | Kind::Choices | Kind::Answer => Row::Completion {
            prompt: fields.string(kind, "prompt")?,
            completion: fields.string(kind, "completion")?,
            asked: match kind {
                Kind::Choices => fields.choices(kind)?,
                Kind::Answer => Asked::Answer(fields.string(kind, "answer")?),
                _ => Asked::Nothing,
            },
        },
        Kind::Labelled => Row::Labelled {
            text: fields.string(kind, "text")?,
            pair: match fields.has("text_pair") {
                true => Some(fields.string(kind, "text_pair")?),
                false => None,
            },
            label: fields.label(kind)?,
        },
        Kind::Tokens => {
            let ids = fields.integers(kind, "input_ids")?;
            Row::Tokens {
                ids,
                labels: fields.integers(kind, "labels")?,
            }
        }
        Kind::Messages => Row::Chat(fields.messages()?),
        Kind::Conversations => Row::Chat(fields.conversations()?),
        Kind::Instruction => {
            let instruction = fields.string(kind, "instruction")?;
            let input = match fields.has("input") {
                true => fields.string(kind, "input")?,
                false => String::new(),
            };
            Row::Completion {
                prompt: instruction::prompt(&instruction, &input),
                completion: fields.string(kind, "output")?,
                asked: Asked::Nothing,
            }
        }
    };
    Ok((kind, row))
}

/// A row's fields in the order in which they were written, nothing merged.
pub(crate) struct Fields(Vec<(String, Value)>);

impl Fields {
    /// Of fields with different names.
    pub(crate) fn new(fields: Vec<(String, Value)>) -> Self {
        Self(fields)
    }

    /// Of a JSON object.
    pub(crate) fn parse(line: &str) -> Result<Self, Problem> {
        let fields: Self = serde_json::from_str(line).map_err(|error| {
            match line.trim_start().as_bytes().first() {
                Some(b'[') if error.is_data() => Problem::NotObject { found: "an array" },
                Some(b'"') if error.is_data() => Problem::NotObject { found: "a string" },
                _ if error.is_data() => Problem::NotObject {
                    found: "a bare value",
                },
                _ => {
                    let message = error.to_string();
                    let message = message
                        .split(" at line ")
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                    Problem::Syntax {
                        column: error.column(),
                        message,
                    }
                }
            }
        })?;
        for (i, (name, _)) in fields.0.iter().enumerate() {
            // Objects with more fields than any kind has are refused by name below: this stays short.
            if fields.0[..i.min(16)].iter().any(|(other, _)| other == name) {
                return Err(Problem::Duplicate { field: shown(name) });
            }
        }
        Ok(fields)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(field, _)| field == name)
    }

    /// What kind of row the fields make it; none if no field says so.
    fn kind(&self) -> Result<Option<Kind>, Problem> {
        let planned = if self.has("chosen") || self.has("rejected") {
            r#"{"prompt","chosen","rejected"}"#
        } else {
            return Ok(self.kind_here());
        };
        Err(Problem::NotYetSupported { rows: planned })
    }

    fn kind_here(&self) -> Option<Kind> {
        if self.has("messages") {
            Some(Kind::Messages)
        } else if self.has("conversations") {
            Some(Kind::Conversations)
        } else if self.has("instruction") {
            Some(Kind::Instruction)
        } else if self.has("text") && (self.has("label") || self.has("text_pair")) {
            Some(Kind::Labelled)
        } else if self.has("text") {
            Some(Kind::Text)
        } else if self.has("prompt") || self.has("completion") {
            Some(match (self.has("choices"), self.has("answer")) {
                (true, _) => Kind::Choices,
                (false, true) => Kind::Answer,
                (false, false) => Kind::Completion,
            })
        } else if self.has("input_ids") || self.has("labels") {
            Some(Kind::Tokens)
        } else {
            None
        }
    }

    fn unknown_kind(&self) -> Problem {
        let known = || {
            [
                Kind::Labelled,
                Kind::Choices,
                Kind::Tokens,
                Kind::Messages,
                Kind::Conversations,
                Kind::Instruction,
            ]
            .iter()
            .flat_map(|kind| kind.fields())
        };
        let suggestion = self.0.iter().find_map(|(field, _)| near(field, known()));
        let mut names: Vec<_> = self
            .0
            .iter()
            .take(4)
            .map(|(field, _)| format!("`{}`", shown(field)))
            .collect();
        if self.0.len() > names.len() {
            names.push(format!("{} more", self.0.len() - names.len()));
        }
        let fields = if names.is_empty() {
            "no fields".to_owned()
        } else {
            names.join(", ")
        };
        Problem::UnknownKind { fields, suggestion }
    }

    /// Refuses fields that the kind does not have.
    fn check(&self, kind: Kind) -> Result<(), Problem> {
        let unknown = self
            .0
            .iter()
            .find(|(field, _)| !kind.fields().contains(&field.as_str()));
        unknown.map_or(Ok(()), |(field, _)| {
            // A misspelt `choices` must be found although the row is then not yet one with choices.
            let family = if kind.fields().contains(&"prompt") {
                Kind::Choices
            } else {
                kind
            };
            let suggestion = near(field, family.fields().iter());
            Err(Problem::UnknownField {
                field: shown(field),
                kind,
                suggestion,
            })
        })
    }

    pub(crate) fn take(&mut self, kind: Kind, name: &'static str) -> Result<Value, Problem> {
        let found = self.0.iter_mut().find(|(field, _)| field == name);
        found
            .map(|(_, value)| value.take())
            .ok_or(Problem::MissingField { field: name, kind })
    }

    pub(crate) fn string(&mut self, kind: Kind, name: &'static str) -> Result<String, Problem> {
        let value = self.take(kind, name)?;
        string(value, || name.to_owned())
    }

    pub(crate) fn list(
        &mut self,
        kind: Kind,
        name: &'static str,
        expected: &'static str,
    ) -> Result<Vec<Value>, Problem> {
        match self.take(kind, name)? {
            Value::Array(values) => Ok(values),
            other => Err(Problem::Type {
                place: name.to_owned(),
                found: described(&other),
                expected,
            }),
        }
    }

    fn label(&mut self, kind: Kind) -> Result<Label, Problem> {
        let value = self.take(kind, "label")?;
        let wrong = |value: &Value| Problem::Type {
            place: "label".to_owned(),
            found: described(value),
            expected: "an integer, a decimal number or a string",
        };
        match value {
            Value::String(name) => Ok(Label::Name(name)),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(class), ..) => Ok(Label::Class(class)),
                (_, Some(value), _) => Ok(Label::Negative(value)),
                (.., Some(value)) if value.is_finite() => Ok(Label::Value(value)),
                _ => Err(wrong(&Value::Number(number))),
            },
            other => Err(wrong(&other)),
        }
    }

    fn integers(&mut self, kind: Kind, name: &'static str) -> Result<Vec<i64>, Problem> {
        let values = self.list(kind, name, "a list of integers")?;
        let integers = values.iter().enumerate().map(|(i, value)| {
            let place = || format!("{name}[{i}]");
            value.as_i64().ok_or_else(|| Problem::Type {
                place: place(),
                found: described(value),
                expected: "an integer",
            })
        });
        integers.collect()
    }

    fn choices(&mut self, kind: Kind) -> Result<Asked, Problem> {
        let values = self.list(kind, "choices", "a list of strings")?;
        let choices = values
            .into_iter()
            .enumerate()
            .map(|(i, value)| string(value, || format!("choices[{i}]")));
        let choices = choices.collect::<Result<Vec<_>, _>>()?;
        if choices.is_empty() {
            return Err(Problem::NoChoices);
        }
        if !self.has("answer") {
            return Ok(Asked::Choices {
                choices,
                gold: None,
            });
        }
        match self.take(kind, "answer")? {
            Value::Number(number) if number.is_i64() || number.is_u64() => {
                let gold = number
                    .as_u64()
                    .and_then(|index| usize::try_from(index).ok());
                match gold.filter(|&index| index < choices.len()) {
                    Some(gold) => Ok(Asked::Choices {
                        choices,
                        gold: Some(gold),
                    }),
                    None => Err(Problem::Answer {
                        answer: number.to_string(),
                        choices: choices.len(),
                    }),
                }
            }
            other => Err(Problem::Type {
                place: "answer".to_owned(),
                found: described(&other),
                expected: "the index of a choice",
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

fn string(value: Value, place: impl FnOnce() -> String) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(Problem::Type {
            place: place(),
            found: described(&other),
            expected: "a string",
        }),
    }
}

pub(crate) fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The name that is at most two slips away, if one is.
pub(crate) fn near<'a>(
    field: &str,
    names: impl Iterator<Item = &'a &'static str>,
) -> Option<&'static str> {
    // Longer words are far from every name, and would cost time.
    if field.len() > 32 {
        return None;
    }
    let field = field.to_lowercase();
    let distances = names.map(|&name| (strsim::damerau_levenshtein(&field, name), name));
    distances
        .filter(|&(distance, name)| distance <= (name.len() / 2).min(2))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

/// A name from a file, fit for a message: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    let short: String = name.chars().take(40).collect();
    let dots = if short.len() < name.len() { ".." } else { "" };
    format!("{}{dots}", short.escape_debug())
}
