//! Opening a base model.

use crate::{Error, Result};
use candle_core::DType;
use lowrank_adapter::Model;
use lowrank_data::Tokenizer;
use lowrank_format::{Checkpoint, Fingerprint, fingerprint, read_json_object};
use lowrank_models::{ModelInfo, Precision};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// A base model with what lies beside its weights.
pub struct Base {
    /// The model.
    pub model: Box<dyn Model>,
    /// Vocabulary, end tokens, limits.
    pub info: ModelInfo,
    /// config.json as it stands.
    pub config: Map<String, Value>,
    checkpoint: Checkpoint,
}

impl Base {
    /// Opens a folder in Hugging Face layout. Other sources are planned and refused by name.
    ///
    /// # Errors
    /// If there is no such folder, or a file in it is missing, damaged or not supported.
    pub fn open(source: &str, precision: Precision) -> Result<Self> {
        let path = Path::new(source);
        if source == "tiny" && !path.exists() {
            return Err(Error::Usage(
                "the model `tiny` is not yet supported; give a folder in Hugging Face layout"
                    .into(),
            ));
        }
        let checkpoint = Checkpoint::open(path)?;
        let config_path = path.join("config.json");
        let config = read_json_object(&config_path)?;
        let origin = config_path.display().to_string();
        let info = ModelInfo::from_json(&config, &origin)?;
        let model = lowrank_models::load(&config, &origin, &checkpoint, precision)?;
        Ok(Self {
            model,
            info,
            config,
            checkpoint,
        })
    }

    /// The folder that the model was read from.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.checkpoint.folder()
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// If the folder has none that can be read.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_folder(self.folder())?)
    }

    /// Hashes of names and shapes, and of every value. Reads the whole checkpoint.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprint(&self) -> Result<Fingerprint> {
        Ok(fingerprint(&self.checkpoint)?)
    }

    /// The folder as an absolute path, for files that others will read.
    #[must_use]
    pub fn absolute(&self) -> PathBuf {
        std::path::absolute(self.folder()).unwrap_or_else(|_| self.folder().to_path_buf())
    }
}

/// The precision that a `dtype` key or flag names.
///
/// # Errors
/// If the word is not one, or is planned and not built.
pub fn precision(word: &str) -> Result<Precision> {
    match word {
        "as-stored" => Ok(Precision::AsStored),
        "f32" => Ok(Precision::Cast(DType::F32)),
        "f64" => Ok(Precision::Cast(DType::F64)),
        "bf16" | "f16" | "nf4" => Err(Error::Usage(format!(
            "dtype `{word}` is not yet supported; use as-stored, f32 or f64"
        ))),
        other => Err(Error::Usage(format!(
            "unknown dtype `{other}`, expected as-stored, f32 or f64"
        ))),
    }
}
