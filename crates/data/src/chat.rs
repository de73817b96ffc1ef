//! Messages as text: a model's own chat template (Jinja), with the functions that templates written for transformers use.

use crate::chat_date::ChatDate;
use crate::chat_functions::{self, python_json};
use crate::chat_marks::{self, Marks};
use crate::error::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja};
use minijinja::{Environment, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// What a template may use up: an instruction costs one, and 64 bytes of text another. Real ones need a few dozen a message.
const FUEL: u64 = 2_000_000;

const NAME: &str = "chat_template";

/// The one of several templates that writes chats with tools, as transformers has it.
const TOOL_USE: &str = "tool_use";

/// What a template calls that writes the date.
const TELLS_TIME: &str = "strftime_now";

/// The special tokens that a template may name.
const ROLES: [&str; 7] = [
    "bos_token",
    "cls_token",
    "eos_token",
    "mask_token",
    "pad_token",
    "sep_token",
    "unk_token",
];

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".to_owned(),
            content: content.into(),
        }
    }
}

/// What follows the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// What the template puts before an answer, so that the model writes one.
    Add,
    /// Nothing.
    Omit,
}

/// The SHA-256 of a template and of the special tokens that it names, and the date that it tells, if it does.
pub(crate) type ChatDigest = ([u8; 32], Option<ChatDate>);

/// A model's chat template and the special tokens that it names.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<&'static str, String>,
    origin: String,
    marked: bool,
    /// Whether the template for chats with tools is marked, if there is one of its own.
    tool_use: Option<bool>,
    tells_time: bool,
    date: ChatDate,
    digest: [u8; 32],
}

impl ChatTemplate {
    /// Reads the template of a model folder: chat_template.jinja, else `chat_template` of tokenizer_config.json.
    ///
    /// # Errors
    /// If there is none, a file cannot be read, or the template is not one.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        Self::from_config(&Self::config(folder)?, &folder.display().to_string())
    }

    /// What a model folder says of its template and of special tokens, as tokenizer_config.json has it, for
    /// [`Self::from_config`]. Without any of its files it says nothing.
    ///
    /// # Errors
    /// If a file cannot be read, or is not a JSON object.
    pub fn config(folder: &Path) -> Result<Map<String, Value>> {
        let mut config = object(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        // Older folders keep the tokens' roles in a file of their own.
        for (key, value) in object(&folder.join("special_tokens_map.json"))?.unwrap_or_default() {
            config.entry(key).or_insert(value);
        }
        if let Some(template) = text(&folder.join("chat_template.jinja"))? {
            config.insert(NAME.to_owned(), template.into());
        }
        Ok(config)
    }

    /// Reads `chat_template` (a template, or a list of named ones, of which `default` counts, and `tool_use` for chats with
    /// tools) and the special tokens of the object that tokenizer_config.json holds; `origin` is where it comes from, for
    /// messages. The date that it may write is that of today.
    ///
    /// # Errors
    /// If there is no template, or it is not one.
    pub fn from_config(config: &Map<String, Value>, origin: &str) -> Result<Self> {
        let refuse = |message: String| Error::ChatTemplate {
            origin: origin.to_owned(),
            message,
        };
        let mut for_tools = None;
        let text = match config.get(NAME) {
            None | Some(Value::Null) => {
                return Err(Error::NoChatTemplate {
                    origin: origin.to_owned(),
                });
            }
            Some(Value::String(source)) => source,
            Some(Value::Array(named)) => {
                for_tools = called(named, TOOL_USE);
                default_of(named).map_err(refuse)?
            }
            Some(_) => return Err(refuse(format!("`{NAME}` is neither a text nor a list"))),
        };
        let date = ChatDate::today();
        let mut environment = environment(date);
        let mut add = |name: &'static str, text: &str| {
            let (source, marked) = chat_marks::as_calls(text);
            let added = environment.add_template_owned(name, source);
            added.map_err(|error| refuse(told(&error)))?;
            Ok::<_, Error>(marked)
        };
        let marked = add(NAME, text)?;
        let tool_use = for_tools.map(|text| add(TOOL_USE, text)).transpose()?;
        let token = |role: &'static str| {
            let content = match config.get(role)? {
                Value::Object(token) => token.get("content")?,
                token => token,
            };
            Some((role, content.as_str()?.to_owned()))
        };
        let tokens: BTreeMap<&str, String> = ROLES.into_iter().filter_map(token).collect();
        Ok(Self {
            environment,
            digest: Sha256::digest(format!("{text:?} {for_tools:?} {tokens:?}")).into(),
            tells_time: [Some(text), for_tools]
                .into_iter()
                .flatten()
                .any(|text| text.contains(TELLS_TIME)),
            tokens,
            origin: origin.to_owned(),
            marked,
            tool_use,
            date,
        })
    }

    /// The template with another date than today's for what it writes of the time (`strftime_now`).
    #[must_use]
    pub fn dated(mut self, date: ChatDate) -> Self {
        set_date(&mut self.environment, date);
        self.date = date;
        self
    }

    /// Whether what the template writes may depend on its date.
    #[must_use]
    pub fn tells_time(&self) -> bool {
        self.tells_time
    }

    /// What rows that it writes depend on.
    pub(crate) fn digest(&self) -> ChatDigest {
        (self.digest, self.tells_time.then_some(self.date))
    }

    /// The text of a chat. It holds the special tokens already: encode it without adding any.
    ///
    /// # Errors
    /// If the template refuses the messages (`raise_exception`), does not understand them, or does not come to an end.
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String> {
        let messages: Vec<Jinja> = messages.iter().map(|m| Jinja::from(Serde(m))).collect();
        self.write(&self.environment, &messages, &Jinja::from(()), prompt)
    }

    /// As [`Self::render`], of messages as they are, and with tools, which are none or a list.
    pub(crate) fn text(
        &self,
        messages: &[Jinja],
        tools: &Jinja,
        prompt: GenerationPrompt,
    ) -> Result<String> {
        self.write(&self.environment, messages, tools, prompt)
    }

    /// The text of a chat with marks around what `{% generation %}` blocks hold.
    pub(crate) fn marked_text(
        &self,
        messages: &[Jinja],
        tools: &Jinja,
        marks: Marks,
    ) -> Result<String> {
        let mut environment = self.environment.clone();
        chat_marks::show(&mut environment, marks);
        self.write(&environment, messages, tools, GenerationPrompt::Omit)
    }

    /// Whether the template that writes chats with these tools, a list or none, says what the assistant writes, by
    /// `{% generation %}` blocks.
    pub(crate) fn is_marked(&self, tools: &Jinja) -> bool {
        match self.tool_use {
            Some(marked) if !tools.is_none() => marked,
            _ => self.marked,
        }
    }

    /// The text of the end token, if the template may name one.
    pub(crate) fn end_token(&self) -> Option<&str> {
        self.tokens.get("eos_token").map(String::as_str)
    }

    /// Where the template comes from.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    fn write(
        &self,
        environment: &Environment<'_>,
        messages: &[Jinja],
        tools: &Jinja,
        prompt: GenerationPrompt,
    ) -> Result<String> {
        let add_generation_prompt = prompt == GenerationPrompt::Add;
        let tokens = Jinja::from(Serde(&self.tokens));
        let messages = Jinja::from(messages.to_vec());
        let name = match self.tool_use {
            Some(_) if !tools.is_none() => TOOL_USE,
            _ => NAME,
        };
        let template = environment.get_template(name);
        let rendered = template.and_then(|template| {
            // transformers hands these two over as None where there are none, which templates test for.
            template.render(context! {
                messages,
                add_generation_prompt,
                tools,
                documents => (),
                ..tokens
            })
        });
        rendered.map_err(|error| Error::ChatTemplate {
            origin: self.origin.clone(),
            message: told(&error),
        })
    }
}

/// Jinja as transformers sets it up.
fn environment(date: ChatDate) -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("delimiters are the usual ones"));
    environment.set_fuel(Some(FUEL));
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(chat_functions::python_method);
    environment.add_filter("tojson", python_json);
    environment.add_filter("trim", chat_functions::trim);
    environment.add_test("sequence", chat_functions::is_sequence);
    chat_marks::hide(&mut environment);
    environment.add_function("raise_exception", chat_functions::raise_exception);
    set_date(&mut environment, date);
    environment
}

fn set_date(environment: &mut Environment<'_>, date: ChatDate) {
    let noon = date.noon();
    environment.add_function(TELLS_TIME, move |format: String| {
        chat_functions::strftime(&format, noon)
    });
}

/// The template of this name in a list of `{"name", "template"}`.
fn called<'a>(named: &'a [Value], name: &str) -> Option<&'a String> {
    let mut named = named.iter();
    let entry = named.find(|entry| entry.get("name").is_some_and(|found| found == name))?;
    match entry.get("template")? {
        Value::String(source) => Some(source),
        _ => None,
    }
}

/// The template that is called `default` in a list of `{"name", "template"}`.
fn default_of(named: &[Value]) -> Result<&String, String> {
    match called(named, "default") {
        Some(source) => Ok(source),
        None => {
            let names: Vec<String> = named
                .iter()
                .filter_map(|entry| Some(format!("`{}`", entry.get("name")?.as_str()?)))
                .collect();
            let names = names.join(", ");
            Err(format!(
                "`{NAME}` is a list without one that is called `default`: {names}"
            ))
        }
    }
}

/// The message of an error and of what caused it, with the line of the template.
fn told(error: &minijinja::Error) -> String {
    let mut message = error
        .detail()
        .map_or_else(|| error.kind().to_string(), str::to_owned);
    if let Some(line) = error.line() {
        message = format!("{message} (line {line})");
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    message
}

/// The object that a JSON file holds, if the file exists.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = text(path)? else {
        return Ok(None);
    };
    let object = serde_json::from_str(&text).map_err(|error| Error::ChatTemplate {
        origin: path.display().to_string(),
        message: format!("not a JSON object: {error}"),
    })?;
    Ok(Some(object))
}

/// The text of a file, if it exists.
fn text(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}
