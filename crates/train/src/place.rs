//! Where a model lies and is computed.

use std::str::FromStr;

/// What a run's model is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// The processor, with kernels of our own.
    #[default]
    Cpu,
    /// The first NVIDIA GPU that the process sees, with candle's operations.
    Cuda,
}

impl Place {
    /// Both, under the words of run files and flags.
    pub const WORDS: [(&'static str, Self); 2] = [("cpu", Self::Cpu), ("cuda", Self::Cuda)];

    /// The word in run files and flags.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        let found = found.map(|(_, place)| *place);
        found.ok_or_else(|| format!("`{word}` is neither \"cpu\" nor \"cuda\""))
    }
}
