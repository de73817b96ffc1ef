//! `lowrank chat`.

use crate::arguments::ChatArguments;
use crate::output::print;
use crate::say;
use crate::verbs::generate::{Output, settings};
use anyhow::{Result, anyhow};
use lowrank::data::Message;
use lowrank::format::atomic_write_file;
use lowrank::{Chat, Error, Generator, Turn, precision};
use serde::Serialize;
use serde_json::json;
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "/reset, /system TEXT, /save FILE, /help or /exit";

#[derive(Serialize)]
struct Report {
    turns: usize,
    tokens: usize,
    answers: Vec<Answer>,
    messages: Vec<Message>,
}

/// A turn, as it is reported.
#[derive(Serialize)]
struct Answer {
    prompt_tokens: usize,
    cached_tokens: usize,
    tokens: usize,
    text: String,
    finish: &'static str,
    ttft_seconds: f64,
    tokens_per_second: f64,
}

impl From<Turn> for Answer {
    fn from(turn: Turn) -> Self {
        let Turn {
            cached_tokens,
            answer,
        } = turn;
        Self {
            prompt_tokens: answer.prompt_tokens,
            cached_tokens,
            tokens: answer.ids.len(),
            text: answer.text,
            finish: answer.finish.as_str(),
            ttft_seconds: answer.ttft_seconds,
            tokens_per_second: answer.tokens_per_second,
        }
    }
}

/// What a line of stdin is.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    Reset,
    System(&'a str),
    Save(&'a str),
    Help,
    Exit,
    Unknown(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let text = line.trim();
        let Some(command) = text.strip_prefix('/') else {
            return if text.is_empty() {
                Self::Nothing
            } else {
                Self::Say(text)
            };
        };
        if command.starts_with('/') {
            return Self::Say(command);
        }
        let (word, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        match (word, rest.trim()) {
            ("help", "") => Self::Help,
            ("reset", "") => Self::Reset,
            ("exit", "") => Self::Exit,
            ("system", text) => Self::System(text),
            ("save", path) if !path.is_empty() => Self::Save(path),
            _ => Self::Unknown(text),
        }
    }
}

/// Talks until stdin ends. What fails of a turn or a command leaves the conversation as it was; the exit status tells.
pub fn run(arguments: &ChatArguments, quiet: bool) -> Result<ExitCode> {
    let precision = precision(&arguments.dtype)?;
    let generation = settings(&arguments.sampling, arguments.max_new_tokens)?;
    let (mut base, selection) = super::open(&arguments.model, precision, arguments.device)?;
    arguments.template.set(&mut base)?;
    let generator = Generator::new(&base)?;
    let mut chat = Chat::new(&generator, selection, generation)?;
    if let Some(system) = &arguments.system {
        chat.set_system(system);
    }
    let terminal = std::io::stdin().is_terminal();
    let interrupt = Interrupt::default();
    if terminal && let Err(error) = interrupt.catch() {
        tracing::warn!("Ctrl-C ends the program: {error}");
    }
    let mut talk = Talk {
        interrupt,
        json: arguments.json,
        output: Output::default(),
        answers: Vec::new(),
        failed: false,
        saved: None,
    };
    if terminal && !quiet {
        say("A line is a message; /exit ends, /reset starts anew, /help lists the commands.");
    }
    let mut stdin = std::io::stdin().lock();
    let (mut line, mut begun) = (Vec::new(), false);
    loop {
        if terminal && !quiet {
            drop(write!(std::io::stderr(), "> "));
        }
        line.clear();
        let read = stdin
            .read_until(b'\n', &mut line)
            .map_err(|error| anyhow!("cannot read stdin: {error}"))?;
        if read == 0 {
            break;
        }
        let text = match std::str::from_utf8(&line) {
            Ok(text) => text,
            Err(error) => {
                talk.fail(&format!("a message on stdin is not UTF-8: {error}"));
                continue;
            }
        };
        // Some editors begin a file with a mark that is none of its text.
        let text = if begun {
            text
        } else {
            text.trim_start_matches('\u{feff}')
        };
        begun = true;
        if talk.line(&mut chat, Line::parse(text)).is_break() {
            break;
        }
    }
    if let Some(error) = talk.output.error {
        return Err(error);
    }
    if arguments.json {
        let report = Report {
            turns: talk.answers.len(),
            tokens: talk.answers.iter().map(|answer| answer.tokens).sum(),
            answers: talk.answers,
            messages: chat.messages().to_vec(),
        };
        print(&report, true, "")?;
    }
    // Who sits at a terminal has seen it.
    let failed = talk.failed && !terminal;
    Ok(ExitCode::from(u8::from(failed)))
}

/// Ctrl-C ends an answer that is being written, and otherwise the program.
struct Interrupt {
    /// No answer is being written.
    idle: Arc<AtomicBool>,
    came: Arc<AtomicBool>,
}

impl Default for Interrupt {
    fn default() -> Self {
        Self {
            idle: Arc::new(AtomicBool::new(true)),
            came: Arc::default(),
        }
    }
}

impl Interrupt {
    fn catch(&self) -> std::io::Result<()> {
        flag::register_conditional_default(SIGINT, Arc::clone(&self.idle))?;
        flag::register(SIGINT, Arc::clone(&self.came))?;
        Ok(())
    }

    fn answering(&self) {
        self.came.store(false, Ordering::SeqCst);
        self.idle.store(false, Ordering::SeqCst);
    }

    fn answered(&self) {
        self.idle.store(true, Ordering::SeqCst);
    }

    fn came(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }
}

/// What becomes of lines.
struct Talk {
    interrupt: Interrupt,
    json: bool,
    output: Output,
    answers: Vec<Answer>,
    failed: bool,
    /// The file that this conversation was saved to last.
    saved: Option<PathBuf>,
}

impl Talk {
    fn line(&mut self, chat: &mut Chat<'_>, line: Line<'_>) -> ControlFlow<()> {
        match line {
            Line::Nothing => {}
            Line::Exit => return ControlFlow::Break(()),
            Line::Reset => chat.reset(),
            Line::System(text) => chat.set_system(text),
            Line::Save(path) => self.save(chat, Path::new(path)),
            Line::Say(text) => return self.say(chat, text),
            Line::Help => say(HELP),
            Line::Unknown(text) => self.fail(&format!(
                "expected {HELP}, found `{}` (a message that begins with / is written with two)",
                text.chars().take(40).collect::<String>().escape_debug()
            )),
        }
        ControlFlow::Continue(())
    }

    fn fail(&mut self, what: &str) {
        say(&format!("error: {what}"));
        self.failed = true;
    }

    fn say(&mut self, chat: &mut Chat<'_>, text: &str) -> ControlFlow<()> {
        let begun = std::mem::take(&mut self.output.begun);
        let (json, output, interrupt) = (self.json, &mut self.output, &self.interrupt);
        interrupt.answering();
        let turn = chat.say(text, &mut |piece| {
            if !json && output.write(piece).is_break() || interrupt.came() {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        interrupt.answered();
        if !json && (turn.is_ok() || output.begun) {
            let _: ControlFlow<()> = output.write("\n");
        }
        self.output.begun |= begun;
        match turn {
            Ok(turn) => self.answers.push(turn.into()),
            Err(error @ Error::ChatTooLong { .. }) => {
                self.fail(&format!("{error}; /reset starts anew"));
            }
            Err(error) => self.fail(&error.to_string()),
        }
        if self.output.closed || self.output.error.is_some() {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn save(&mut self, chat: &Chat<'_>, path: &Path) {
        if chat.messages().is_empty() {
            self.fail("nothing was said that could be saved");
            return;
        }
        if path.symlink_metadata().is_ok() && self.saved.as_deref() != Some(path) {
            let path = path.display();
            self.fail(&format!(
                "/save {path}: the file exists; choose another name"
            ));
            return;
        }
        let row = format!("{}\n", json!({"messages": chat.messages()}));
        match atomic_write_file(path, row.as_bytes()) {
            Ok(()) => self.saved = Some(path.to_owned()),
            Err(error) => self.fail(&format!("/save {}: {error}", path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn lines() {
        for (line, expected) in [
            ("\n", Line::Nothing),
            (" hello there \r\n", Line::Say("hello there")),
            ("//exit is a command\n", Line::Say("/exit is a command")),
            ("/exit\n", Line::Exit),
            ("/reset ", Line::Reset),
            ("/system", Line::System("")),
            ("/system  Be brief. \n", Line::System("Be brief.")),
            ("/save a b.jsonl\n", Line::Save("a b.jsonl")),
            ("/save", Line::Unknown("/save")),
            ("/exit now", Line::Unknown("/exit now")),
            ("/help", Line::Help),
            ("/helo", Line::Unknown("/helo")),
            ("/", Line::Unknown("/")),
        ] {
            assert_eq!(Line::parse(line), expected, "{line:?}");
        }
    }
}
