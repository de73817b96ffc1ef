//! A conversation with a model that keeps what the model has read from one turn to the next.

use crate::generate::{Clock, Generated, Generation, Generator};
use crate::{Error, Result};
use lowrank_adapter::{KvCache, Selection};
use lowrank_data::{ChatTemplate, Message};
use lowrank_models::Continuation;
use std::ops::ControlFlow;

/// One message of the user and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// How many tokens of the conversation the model had read before; it read the others now.
    pub cached_tokens: usize,
    /// The answer. Its prompt is the whole conversation.
    pub answer: Generated,
}

/// A conversation.
///
/// A turn writes all messages with the chat template, and feeds the model the tokens that it has not read yet: those after
/// the longest beginning that the new text and the cache have in common. So a template may write earlier messages anew.
///
/// ```no_run
/// use lowrank::adapter::Selection;
/// use lowrank::models::Precision;
/// use lowrank::{Base, Chat, Generation, Generator};
/// use std::ops::ControlFlow;
///
/// let base = Base::open("models/SmolLM2-135M-Instruct", Precision::AsStored)?;
/// let generator = Generator::new(&base)?;
/// let mut chat = Chat::new(&generator, Selection::none(), Generation::default())?;
/// for message in ["What pulls the tide?", "And how often?"] {
///     let turn = chat.say(message, &mut |_| ControlFlow::Continue(()))?;
///     println!("{} ({} tokens were read before)", turn.answer.text, turn.cached_tokens);
/// }
/// # Ok::<(), lowrank::Error>(())
/// ```
pub struct Chat<'a> {
    generator: &'a Generator<'a>,
    template: ChatTemplate,
    selection: Selection,
    generation: Generation,
    messages: Vec<Message>,
    /// The tokens that the cache holds.
    read: Vec<u32>,
    cache: KvCache,
}

impl<'a> Chat<'a> {
    /// A conversation without messages.
    ///
    /// # Errors
    /// If the model has no chat template.
    pub fn new(
        generator: &'a Generator<'a>,
        selection: Selection,
        generation: Generation,
    ) -> Result<Self> {
        Ok(Self {
            template: generator.base().chat_template()?,
            generator,
            selection,
            generation,
            messages: Vec::new(),
            read: Vec::new(),
            cache: KvCache::new(),
        })
    }

    /// What was said, a system message first.
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets what was said, but not the system message.
    pub fn reset(&mut self) {
        let system = self.system_messages();
        self.messages.truncate(system);
    }

    /// Sets the system message; an empty one takes it away. What was said stays.
    pub fn set_system(&mut self, content: &str) {
        let system = self.system_messages();
        let message = (!content.is_empty()).then(|| Message {
            role: "system".to_owned(),
            content: content.to_owned(),
        });
        self.messages.splice(..system, message);
    }

    /// 1 if there is a system message.
    fn system_messages(&self) -> usize {
        let first = self.messages.first();
        usize::from(first.is_some_and(|message| message.role == "system"))
    }

    /// Says something and hands each piece of the answer to `each`, as [`Generator::generate`] does. A break of `each` ends
    /// the answer there; what was written of it belongs to the conversation. After an error the conversation is what it was
    /// before.
    ///
    /// # Errors
    /// If the template refuses the messages, if the conversation leaves the model no room to answer, and if the model makes
    /// numbers that are not finite.
    pub fn say(
        &mut self,
        content: &str,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn> {
        let clock = Clock::start();
        self.messages.push(Message::user(content));
        let turn = self.turn(clock, each);
        match &turn {
            Ok(turn) => self.messages.push(Message {
                role: "assistant".to_owned(),
                content: turn.answer.text.clone(),
            }),
            Err(_) => drop(self.messages.pop()),
        }
        turn
    }

    fn turn(
        &mut self,
        clock: Clock,
        each: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Turn> {
        let prompt = self.generator.rendered(&self.template, &self.messages)?;
        let limits = self.generator.limits(&self.generation);
        if prompt.len() >= limits.positions {
            return Err(Error::ChatTooLong {
                tokens: prompt.len(),
                limit: limits.positions,
            });
        }
        let same = self.read.iter().zip(&prompt);
        let common = same.take_while(|(read, new)| read == new).count();
        let mut cache = std::mem::take(&mut self.cache);
        // After an error nothing is known of what the cache holds, and the next turn reads all.
        self.read.clear();
        cache.truncate(common);
        let cached_tokens = cache.len().min(prompt.len().saturating_sub(1));
        let mut tokens = Continuation::after(
            self.generator.base().model.as_ref(),
            self.selection.clone(),
            cache,
            &prompt,
            self.generation.sampling,
            limits,
        )?;
        let (prompt_tokens, generation) = (prompt.len(), &self.generation);
        let answer = self
            .generator
            .write(&mut tokens, prompt_tokens, generation, clock, each)?;
        self.cache = tokens.into_cache();
        self.read = prompt;
        self.read.extend(&answer.ids);
        // The last token that was written may be unread.
        self.read.truncate(self.cache.len());
        Ok(Turn {
            cached_tokens,
            answer,
        })
    }
}
