//! What a batch must keep to before a model looks anything up.

use lowrank_adapter::{Error, Result, Tokens};

/// Refuses ids beyond the vocabulary; `what` they are, for messages.
pub(crate) fn vocabulary(
    ids: impl IntoIterator<Item = u32>,
    vocab: usize,
    what: &str,
) -> Result<()> {
    match ids.into_iter().find(|id| *id as usize >= vocab) {
        Some(id) => Err(Error::Other(format!(
            "{what} {id} is not in the model's vocabulary of {vocab} tokens"
        ))),
        None => Ok(()),
    }
}

/// Refuses positions beyond the limit, but for padding's.
pub(crate) fn positions(tokens: &Tokens, limit: usize) -> Result<()> {
    let mut positions = tokens.positions.iter().zip(&tokens.segments);
    let beyond =
        |(position, segment): &(&u32, &u32)| **segment != 0 && **position as usize >= limit;
    match positions.find(beyond) {
        Some((position, _)) => Err(Error::Other(format!(
            "position {position} is beyond the model's limit of {limit} tokens (`max_position_embeddings`)"
        ))),
        None => Ok(()),
    }
}
