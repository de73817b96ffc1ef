//! `{% generation %}` blocks, by which a template says what an assistant writes.

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Environment, Error, State};
use std::ops::Range;

/// The function that blocks call. transformers makes a call of them, too: what a block sets does not leave it.
const CALL: &str = "__generation__";

/// Two characters that a text does not have: one before and one after what a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    before: char,
    after: char,
}

impl Marks {
    /// None if the text has all characters that will do. Unicode gives them no meaning, so that texts hardly have any.
    pub fn absent_from(text: &str) -> Option<Self> {
        let mut absent = ('\u{fdd0}'..='\u{fdef}').filter(|mark| !text.contains(*mark));
        Some(Self {
            before: absent.next()?,
            after: absent.next()?,
        })
    }

    /// A marked text without its marks, and the bytes of it that stood between them; blocks that hold nothing are left out.
    pub fn take(self, marked: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(marked.len());
        let (mut open, mut spans) = (Vec::new(), Vec::new());
        for letter in marked.chars() {
            if letter == self.before {
                open.push(text.len());
            } else if letter == self.after {
                let span = open.pop().map(|start| start..text.len());
                spans.extend(span.filter(|span| !span.is_empty()));
            } else {
                text.push(letter);
            }
        }
        (text, spans)
    }
}

/// Blocks show what they hold.
pub(crate) fn hide(environment: &mut Environment<'_>) {
    environment.add_function(CALL, |state: &mut State<'_, '_>, arguments: Kwargs| {
        said(state, &arguments)
    });
}

/// Blocks show what they hold between marks.
pub(crate) fn show(environment: &mut Environment<'_>, Marks { before, after }: Marks) {
    let marked = move |state: &mut State<'_, '_>, arguments: Kwargs| {
        let text = said(state, &arguments)?;
        Ok::<_, Error>(Jinja::from(format!("{before}{text}{after}")))
    };
    environment.add_function(CALL, marked);
}

fn said(state: &mut State<'_, '_>, arguments: &Kwargs) -> Result<Jinja, Error> {
    arguments.get::<Jinja>("caller")?.call(state, &[])
}

/// The bytes of the tag, the expression or the comment that a text begins with; 1 if its brace is none of theirs. What stands in
/// quotes ends neither of the first two.
fn tag_length(text: &str, is_raw: bool) -> usize {
    let end = match text.as_bytes().get(1) {
        Some(b'%') => "%}",
        Some(b'{') if !is_raw => "}}",
        Some(b'#') if !is_raw => "#}",
        _ => return 1,
    };
    let (mut quote, mut escaped) = (None, false);
    for (at, letter) in text.char_indices().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if letter == '\\' => escaped = true,
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(end) => return at + 2,
            None if matches!(letter, '"' | '\'') && end != "#}" && !is_raw => quote = Some(letter),
            None => {}
        }
    }
    text.len()
}

/// A template in Jinja's own words, with the same rules for the spaces around blocks, and whether it has any.
pub(crate) fn as_calls(source: &str) -> (String, bool) {
    let mut text = String::with_capacity(source.len());
    let (mut rest, mut found) = (source, false);
    let mut is_raw = false;
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let (tag, after) = tag.split_at(tag_length(tag, is_raw));
        let word = match tag.starts_with("{%") {
            true => tag.trim_matches(['{', '}', '%', '-', '+']).trim(),
            false => "",
        };
        is_raw = if is_raw {
            word != "endraw"
        } else {
            word == "raw"
        };
        match word {
            _ if is_raw => text.push_str(tag),
            "generation" => {
                found = true;
                text.push_str(&tag.replace("generation", &format!("call {CALL}()")));
            }
            "endgeneration" => text.push_str(&tag.replace("endgeneration", "endcall")),
            _ => text.push_str(tag),
        }
        rest = after;
    }
    (text + rest, found)
}
