//! Models that are part of the program, so that a first run needs no download.

/// A model's files as a Hugging Face folder holds them.
#[derive(Debug)]
pub struct Embedded {
    /// What it is opened by.
    pub name: &'static str,
    /// config.json.
    pub config: &'static str,
    /// tokenizer.json.
    pub tokenizer: &'static str,
    /// tokenizer_config.json, with the chat template.
    pub tokenizer_config: &'static str,
    /// model.safetensors.
    pub weights: &'static [u8],
}

/// A LLaMA of a million parameters that knows a small invented world: see docs/tiny.md.
pub static TINY: Embedded = Embedded {
    name: "tiny",
    config: include_str!("../tiny/config.json"),
    tokenizer: include_str!("../tiny/tokenizer.json"),
    tokenizer_config: include_str!("../tiny/tokenizer_config.json"),
    weights: include_bytes!("../tiny/model.safetensors"),
};

impl Embedded {
    /// The embedded model of this name.
    ///
    /// ```
    /// use lowrank_models::Embedded;
    /// assert!(Embedded::named("tiny").is_some_and(|tiny| tiny.weights.len() < 4_000_000));
    /// assert!(Embedded::named("./tiny").is_none());
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        (name == TINY.name).then_some(&TINY)
    }

    /// Names and texts of the files beside the weights.
    #[must_use]
    pub const fn side_files(&self) -> [(&'static str, &'static str); 3] {
        [
            ("config.json", self.config),
            ("tokenizer.json", self.tokenizer),
            ("tokenizer_config.json", self.tokenizer_config),
        ]
    }
}
