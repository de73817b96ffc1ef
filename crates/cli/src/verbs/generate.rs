//! `lowrank generate`.

use crate::arguments::{GenerateArguments, SamplingArguments};
use crate::output::{print, write_piece};
use anyhow::{Result, anyhow};
use lowrank::data::{Message, StopStrings};
use lowrank::models::Sampling;
use lowrank::{Error, Generated, Generation, Generator, Prompt, precision};
use serde::Serialize;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::process::ExitCode;

#[derive(Serialize)]
struct Report {
    prompt_tokens: usize,
    tokens: usize,
    text: String,
    finish: &'static str,
    ttft_seconds: f64,
    tokens_per_second: f64,
}

/// Continues a prompt.
pub fn run(arguments: &GenerateArguments) -> Result<ExitCode> {
    let precision = precision(&arguments.dtype)?;
    let generation = settings(&arguments.sampling, arguments.max_new_tokens)?;
    let given = [
        (
            "--chat-template",
            arguments.template.chat_template.is_some(),
        ),
        ("--chat-date", arguments.template.chat_date.is_some()),
    ];
    if let Some((flag, _)) = given
        .into_iter()
        .find(|(_, given)| *given && !arguments.chat)
    {
        let what = format!("`{flag}` writes messages, and the prompt is none; give `--chat` too");
        return Err(Error::Usage(what).into());
    }
    let text = prompt(&arguments.prompt)?;
    let (mut base, selection) = super::open(&arguments.model, precision, arguments.device)?;
    arguments.template.set(&mut base)?;
    let chat = [Message::user(text.as_str())];
    let prompt = if arguments.chat {
        Prompt::Chat(&chat)
    } else {
        Prompt::Text(&text)
    };
    let mut output = Output::default();
    let mut each = |piece: &str| {
        if arguments.json {
            return ControlFlow::Continue(());
        }
        output.write(piece)
    };
    let generator = Generator::new(&base)?;
    let written = generator.generate(&selection, prompt, &generation, &mut each);
    // After an error too, so that its message begins on a line of its own.
    if !arguments.json && (written.is_ok() || output.begun) {
        let _: ControlFlow<()> = output.write("\n");
    }
    if let Some(error) = output.error {
        return Err(error);
    }
    report(written?, arguments.json)?;
    Ok(ExitCode::SUCCESS)
}

/// What becomes of the pieces that are written to stdout.
#[derive(Default)]
pub struct Output {
    /// Whether something was written.
    pub begun: bool,
    /// Nobody reads any more.
    pub closed: bool,
    /// Why writing failed.
    pub error: Option<anyhow::Error>,
}

impl Output {
    /// Breaks if there is no use in writing more.
    pub fn write(&mut self, piece: &str) -> ControlFlow<()> {
        if self.closed || self.error.is_some() {
            return ControlFlow::Break(());
        }
        self.begun = true;
        match write_piece(piece) {
            Ok(flow) => {
                self.closed = flow.is_break();
                flow
            }
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

fn report(written: Generated, json: bool) -> Result<()> {
    let report = Report {
        prompt_tokens: written.prompt_tokens,
        tokens: written.ids.len(),
        text: written.text,
        finish: written.finish.as_str(),
        ttft_seconds: written.ttft_seconds,
        tokens_per_second: written.tokens_per_second,
    };
    if json {
        return print(&report, true, "");
    }
    tracing::info!(
        "{} tokens after {}, finish: {}, {:.3} s to the first, then {:.1} a second",
        report.tokens,
        report.prompt_tokens,
        report.finish,
        report.ttft_seconds,
        report.tokens_per_second
    );
    Ok(())
}

/// What the flags say of how a text is continued.
pub fn settings(
    arguments: &SamplingArguments,
    max_new_tokens: NonZeroUsize,
) -> lowrank::Result<Generation> {
    let sampling = Sampling {
        temperature: arguments.temperature,
        top_k: NonZeroUsize::new(arguments.top_k),
        top_p: arguments.top_p,
        seed: arguments.seed,
    };
    if sampling.temperature.get() == 0.0 && (sampling.top_k.is_some() || sampling.top_p.get() < 1.0)
    {
        tracing::warn!(
            "--top-k and --top-p change nothing at --temperature 0, which takes the likeliest token"
        );
    }
    Ok(Generation {
        max_new_tokens,
        sampling,
        stop: stop_strings(&arguments.stop)?,
    })
}

/// What `--stop` gave.
pub fn stop_strings(given: &[String]) -> lowrank::Result<StopStrings> {
    StopStrings::new(given.iter().cloned())
        .map_err(|error| Error::Usage(format!("--stop: {error}")))
}

/// The text of `--prompt`, or what stdin has.
fn prompt(given: &str) -> Result<String> {
    let (text, origin) = if given == "-" {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|error| anyhow!("cannot read stdin: {error}"))?;
        let mut text = String::from_utf8(bytes)
            .map_err(|error| Error::Usage(format!("the prompt on stdin is not UTF-8: {error}")))?;
        // The last line end is the file's or the shell's.
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        (text, "the prompt on stdin")
    } else {
        (given.to_owned(), "--prompt")
    };
    if text.is_empty() {
        return Err(Error::Usage(format!("{origin} is empty")).into());
    }
    Ok(text)
}
