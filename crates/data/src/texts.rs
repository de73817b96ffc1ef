//! Rows whose texts are read as a whole, to be embedded: no label is looked at.

use crate::dataset::Options;
use crate::error::{Error, Problem, Result};
use crate::example::{Encoder, Example};
use crate::reader::Reader;
use crate::row::{Fields, Kind};
use crate::source;
use crate::tokenizer::Tokenizer;

/// The texts of rows `{"text"[,"text_pair"]}`, whatever other fields these have, in the tokenizer's own template and the order
/// of the files. Longer texts lose their right ends, not the template; no end token is added.
///
/// # Errors
/// If a pattern matches nothing, a file cannot be read or has no rows, or a row has no text, no token, or one that is not in
/// the vocabulary; the message names file and line.
pub fn read_texts(
    patterns: &[String],
    tokenizer: &Tokenizer,
    options: &Options,
) -> Result<Vec<Example>> {
    let encoder = Encoder {
        tokenizer: Some(tokenizer),
        end_token: None,
        max_length: options.max_length,
        vocab: options.vocab,
    };
    let limit = options.limit.map_or(usize::MAX, |limit| limit.get());
    let mut examples = Vec::new();
    for (_, path) in source::files(patterns)? {
        if examples.len() == limit {
            break;
        }
        let before = examples.len();
        let mut rows = Reader::open(&path)?;
        while examples.len() < limit
            && let Some((line, fields)) = rows.next()?
        {
            let row = read(fields, &encoder).map_err(|problem| problem.at(&path, line))?;
            examples.push(row);
        }
        if examples.len() == before {
            return Err(Error::NoRows { path });
        }
    }
    Ok(examples)
}

fn read(mut fields: Fields, encoder: &Encoder<'_>) -> Result<Example, Problem> {
    let text = fields.string(Kind::Text, "text")?;
    let pair = match fields.has("text_pair") {
        true => Some(fields.string(Kind::Labelled, "text_pair")?),
        false => None,
    };
    encoder.labelled(Kind::Text, &text, pair.as_deref())
}
