//! The sizes that every model's configuration has.

use crate::Result;
use crate::fields::Fields;

/// Sizes under the names of config.json.
pub(crate) struct Sizes {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
}

impl Sizes {
    /// # Errors
    /// If one is missing or not above 0.
    pub fn read(fields: &mut Fields<'_>) -> Result<Self> {
        let mut size = |field| {
            let size = fields.size(field)?;
            fields.required(field, size)
        };
        Ok(Self {
            vocab_size: size("vocab_size")?,
            hidden_size: size("hidden_size")?,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            num_attention_heads: size("num_attention_heads")?,
        })
    }

    /// The width of heads that share the hidden size.
    ///
    /// # Errors
    /// If they cannot.
    pub fn head_dim(&self, fields: &Fields<'_>) -> Result<usize> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if hidden.is_multiple_of(heads) {
            return Ok(hidden / heads);
        }
        let expected = format!("a divisor of `hidden_size` = {hidden}");
        Err(fields.wrong("num_attention_heads", &heads.into(), expected))
    }
}

/// Refuses a size with which a matrix, `other` the other way, has no place in any memory.
///
/// # Errors
/// If so, or `other` is too large itself.
pub(crate) fn check_size(
    fields: &Fields<'_>,
    field: &str,
    size: usize,
    other: Option<usize>,
) -> Result<()> {
    let bytes = other.and_then(|other| size.checked_mul(other)?.checked_mul(8));
    if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(fields.wrong(field, &size.into(), "a size that fits into memory"));
    }
    Ok(())
}
