//! The configurations of PyTorch with PEFT that are run beside ours.

use anyhow::{Result, bail};

/// A way to train the same adapter with PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    /// What the table and `--peer` call it.
    pub name: &'static str,
    /// The dtype of the base's weights.
    pub dtype: &'static str,
    /// Products in bf16 over weights in f32.
    pub autocast: bool,
    /// `torch.compile`.
    pub compile: bool,
    /// Gradient checkpointing: run in the first round only, for its memory.
    pub checkpoint: bool,
    /// The family that it trains.
    pub family: &'static str,
}

impl Configuration {
    const fn new(name: &'static str, dtype: &'static str) -> Self {
        Self {
            name,
            dtype,
            autocast: false,
            compile: false,
            checkpoint: false,
            family: "lora",
        }
    }

    const fn autocast(self) -> Self {
        Self {
            autocast: true,
            ..self
        }
    }

    const fn compiled(self) -> Self {
        Self {
            compile: true,
            ..self
        }
    }

    const fn checkpointed(self) -> Self {
        Self {
            checkpoint: true,
            ..self
        }
    }

    const fn dora(self) -> Self {
        Self {
            family: "dora",
            ..self
        }
    }

    /// The precision of its products, for ratios.
    pub fn precision(&self) -> &'static str {
        match (self.autocast, self.dtype) {
            (false, "float32") => "f32",
            _ => "bf16",
        }
    }

    /// Steps that do not count: the first ones compile.
    pub const fn warm_steps(&self) -> usize {
        if self.compile { 3 } else { 1 }
    }
}

/// All of them, in the order in which they run.
pub const ALL: [Configuration; 14] = {
    const fn f32(name: &'static str) -> Configuration {
        Configuration::new(name, "float32")
    }
    const fn bf16(name: &'static str) -> Configuration {
        Configuration::new(name, "bfloat16")
    }
    [
        f32("f32-eager"),
        bf16("bf16-eager"),
        f32("autocast-eager").autocast(),
        f32("f32-compiled").compiled(),
        bf16("bf16-compiled").compiled(),
        f32("autocast-compiled").autocast().compiled(),
        f32("dora-eager").dora(),
        bf16("dora-bf16-eager").dora(),
        f32("f32-eager-checkpointed").checkpointed(),
        bf16("bf16-eager-checkpointed").checkpointed(),
        f32("autocast-eager-checkpointed").autocast().checkpointed(),
        f32("f32-compiled-checkpointed").compiled().checkpointed(),
        bf16("bf16-compiled-checkpointed").compiled().checkpointed(),
        f32("autocast-compiled-checkpointed")
            .autocast()
            .compiled()
            .checkpointed(),
    ]
};

/// The configurations that `--peer` names; `all` is every one.
///
/// # Errors
/// If there is none of that name.
pub fn named(words: &[String]) -> Result<Vec<Configuration>> {
    if words.iter().any(|word| word == "all") {
        return Ok(ALL.to_vec());
    }
    let find = |word: &String| match ALL.iter().find(|known| known.name == word) {
        Some(known) => Ok(*known),
        None => {
            let known: Vec<&str> = ALL.iter().map(|known| known.name).collect();
            bail!(
                "unknown peer `{word}`, expected all or some of {}",
                known.join(", ")
            )
        }
    };
    words.iter().map(find).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_configurations() -> Result<()> {
        let found = named(&["bf16-eager".to_owned(), "autocast-compiled".to_owned()])?;
        assert_eq!((found[0].dtype, found[0].warm_steps()), ("bfloat16", 1));
        assert!(found[1].autocast && found[1].compile && !found[1].checkpoint);
        assert_eq!((found[1].precision(), found[1].warm_steps()), ("bf16", 3));
        assert_eq!(named(&["all".to_owned()])?.len(), ALL.len());
        let error = named(&["jit".to_owned()]).expect_err("none").to_string();
        assert!(
            error.contains("`jit`") && error.contains("f32-compiled"),
            "{error}"
        );
        Ok(())
    }
}
