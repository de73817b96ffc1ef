//! Text that a model writes after a prompt.

use crate::Result;
use crate::base::Base;
use lowrank_adapter::Selection;
use lowrank_data::{
    ChatTemplate, GenerationPrompt, Message, Special, StopStrings, TextStream, Tokenizer,
};
use lowrank_models::{Continuation, Finish, Limits, Sampling};
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::time::Instant;

/// What is continued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prompt<'a> {
    /// A text, with the special tokens that the tokenizer puts around one.
    Text(&'a str),
    /// A chat that the model's template writes, to be answered.
    Chat(&'a [Message]),
    /// Tokens as they are.
    Tokens(&'a [u32]),
}

/// How a text is continued, and how far.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// How many tokens are written at most. The text also ends where the model cannot read more.
    pub max_new_tokens: NonZeroUsize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// What ends the text, beside the model's own end tokens.
    pub stop: StopStrings,
}

impl Default for Generation {
    /// At most 128 tokens, always the likeliest, without stop strings.
    fn default() -> Self {
        Self {
            max_new_tokens: const { NonZeroUsize::new(128).expect("it is not 0") },
            sampling: Sampling::GREEDY,
            stop: StopStrings::default(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// How many tokens the prompt has.
    pub prompt_tokens: usize,
    /// The new tokens, those of a stop string included, and without the end token.
    pub ids: Vec<u32>,
    /// Their text without special tokens, up to the stop string.
    pub text: String,
    /// Why it ends.
    pub finish: Finish,
    /// From the call to the first token.
    pub ttft_seconds: f64,
    /// How fast the tokens after the first came, the end token included; the inverse of `ttft_seconds` if there was one
    /// only.
    pub tokens_per_second: f64,
}

/// What writes text with a model: its tokenizer and its end tokens, read once.
///
/// ```no_run
/// use lowrank::adapter::Selection;
/// use lowrank::data::Message;
/// use lowrank::models::Precision;
/// use lowrank::{Base, Generation, Generator, Prompt};
/// use std::ops::ControlFlow;
///
/// let base = Base::open("models/SmolLM2-135M-Instruct", Precision::AsStored)?;
/// let chat = [Message::user("What pulls the tide?")];
/// let (prompt, generation) = (Prompt::Chat(&chat), Generation::default());
/// let written = Generator::new(&base)?.generate(&Selection::none(), prompt, &generation, &mut |piece| {
///     print!("{piece}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\n{} tokens, {:.1} a second", written.ids.len(), written.tokens_per_second);
/// # Ok::<(), lowrank::Error>(())
/// ```
pub struct Generator<'a> {
    base: &'a Base,
    tokenizer: Tokenizer,
    end_tokens: Vec<u32>,
}

impl<'a> Generator<'a> {
    /// # Errors
    /// If the model has no tokenizer, or a file cannot be read.
    pub fn new(base: &'a Base) -> Result<Self> {
        Ok(Self {
            base,
            tokenizer: base.tokenizer()?,
            end_tokens: base.end_tokens()?,
        })
    }

    fn encode(&self, prompt: Prompt<'_>) -> Result<Vec<u32>> {
        Ok(match prompt {
            Prompt::Text("") => return Err(lowrank_models::Error::EmptyPrompt.into()),
            Prompt::Text(text) => self.tokenizer.encode(text, Special::Add)?,
            Prompt::Chat(messages) => self.rendered(&self.base.chat_template()?, messages)?,
            Prompt::Tokens(ids) => ids.to_vec(),
        })
    }

    /// The tokens of a chat that is to be answered.
    pub(crate) fn rendered(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
    ) -> Result<Vec<u32>> {
        let text = template.render(messages, GenerationPrompt::Add)?;
        Ok(self.tokenizer.encode(&text, Special::Omit)?)
    }

    pub(crate) const fn base(&self) -> &'a Base {
        self.base
    }

    pub(crate) const fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    pub(crate) fn limits(&self, generation: &Generation) -> Limits {
        let mut end_tokens = self.end_tokens.clone();
        // A special token is no part of the text, where it would never be found.
        let stops = generation.stop.iter();
        end_tokens.extend(stops.filter_map(|stop| self.tokenizer.special_token(stop)));
        Limits {
            max_new_tokens: generation.max_new_tokens,
            positions: self.base.info.max_position_embeddings,
            end_tokens,
        }
    }

    /// Continues a prompt and hands each piece of the text to `each` as soon as it is certain: whole characters, and
    /// nothing of a stop string. A break of `each` ends the text as a stop string does.
    ///
    /// # Errors
    /// If the prompt is empty or leaves no room to continue it; if the model has no template for a chat; and if it makes
    /// numbers that are not finite.
    pub fn generate(
        &self,
        selection: &Selection,
        prompt: Prompt<'_>,
        generation: &Generation,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let clock = Clock::start();
        let prompt = self.encode(prompt)?;
        let (model, sampling) = (self.base.model.as_ref(), generation.sampling);
        let limits = self.limits(generation);
        let mut tokens = Continuation::new(model, selection.clone(), &prompt, sampling, limits)?;
        self.write(&mut tokens, prompt.len(), generation, clock, each)
    }

    /// Turns the tokens of a continuation into text, until it ends.
    pub(crate) fn write(
        &self,
        tokens: &mut Continuation<'_>,
        prompt_tokens: usize,
        generation: &Generation,
        mut clock: Clock,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let mut stream = TextStream::new(&self.tokenizer, &generation.stop);
        let (mut ids, mut text) = (Vec::new(), String::new());
        let mut hand_over = |piece: String| {
            text.push_str(&piece);
            if piece.is_empty() {
                ControlFlow::Continue(())
            } else {
                each(&piece)
            }
        };
        let mut broken = false;
        let finish = loop {
            let Some(token) = tokens.next().transpose()? else {
                let finish = tokens.finish().unwrap_or(Finish::Length);
                if finish == Finish::Stop {
                    // The end token was computed, too.
                    clock.tick();
                }
                break finish;
            };
            clock.tick();
            ids.push(token);
            broken = hand_over(stream.push(token)?).is_break();
            if broken || stream.stopped() {
                break Finish::Stop;
            }
        };
        if !broken {
            let _: ControlFlow<()> = hand_over(stream.finish()?);
        }
        if finish == Finish::Length && ids.len() < generation.max_new_tokens.get() {
            let limit = self.base.info.max_position_embeddings;
            tracing::warn!(
                "the text ends after {} new tokens: the model reads at most {limit} (`max_position_embeddings`)",
                ids.len()
            );
        }
        let (ttft_seconds, tokens_per_second) = clock.read();
        Ok(Generated {
            prompt_tokens,
            ids,
            text,
            finish,
            ttft_seconds,
            tokens_per_second,
        })
    }
}

/// When tokens came.
pub(crate) struct Clock {
    started: Instant,
    /// Seconds to the first and to the last.
    first: Option<f64>,
    last: f64,
    ticks: u32,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            started: Instant::now(),
            first: None,
            last: 0.0,
            ticks: 0,
        }
    }

    fn tick(&mut self) {
        self.last = self.started.elapsed().as_secs_f64();
        self.first.get_or_insert(self.last);
        self.ticks += 1;
    }

    /// Seconds to the first token, and tokens a second after it.
    fn read(&self) -> (f64, f64) {
        let first = self.first.unwrap_or(self.last);
        let (count, seconds) = match self.ticks {
            0 | 1 => (1, first),
            ticks => (ticks - 1, self.last - first),
        };
        (first, f64::from(count) / seconds.max(1e-9))
    }
}
