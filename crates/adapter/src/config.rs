//! The configuration of an adapter: PEFT's common keys, and the family's own.

use crate::error::nearest;
use crate::family::AnyFamily;
use crate::target::{Matcher, OneOrMany, Rules, Targets};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// The version of PEFT whose files ours equal.
pub const PEFT_VERSION: &str = "0.21.2";

/// The task type of classifiers.
pub const SEQ_CLS: &str = "SEQ_CLS";

/// What classification heads are called: a classifier's adapter trains them whole.
const CLASS_HEADS: [&str; 2] = ["classifier", "score"];

/// Which biases of the base train with the adapter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted modules (`lora_only`).
    Targeted,
}

/// The keys that every family shares, under PEFT's names.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    /// `CAUSAL_LM`, `SEQ_CLS`, ..
    pub task_type: Option<String>,
    /// PEFT's note on the model class, kept as it is.
    pub auto_mapping: Option<Value>,
    /// Where the base model was.
    pub base_model_name_or_path: Option<String>,
    /// Its revision.
    pub revision: Option<String>,
    /// True in every saved file.
    pub inference_mode: bool,
    /// The targets; absent means the table for the model type.
    pub target_modules: Option<Targets>,
    /// What is not targeted in any case.
    pub exclude_modules: Option<Targets>,
    /// Only these layers.
    pub layers_to_transform: Option<OneOrMany<usize>>,
    /// What layers are called.
    pub layers_pattern: Option<OneOrMany<String>>,
    /// Modules that train whole.
    pub modules_to_save: Option<Vec<String>>,
    /// `none`, `all` or `<family>_only`.
    pub bias: String,
}

const COMMON_KEYS: [&str; 13] = [
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "target_modules",
    "task_type",
];

impl Common {
    /// Which biases train.
    ///
    /// # Errors
    /// If `bias` is no mode.
    pub fn bias_mode(&self) -> Result<BiasMode> {
        match self.bias.as_str() {
            "" | "none" => Ok(BiasMode::None),
            "all" => Ok(BiasMode::All),
            only if only.ends_with("_only") => Ok(BiasMode::Targeted),
            other => Err(Error::config(format!(
                "`bias = \"{other}\"`, expected \"none\", \"all\" or \"<family>_only\""
            ))),
        }
    }

    /// PEFT's rule: the head of a classifier is among `modules_to_save`, whatever it is called in this kind of model.
    fn save_class_heads(&mut self) {
        if self.is_classifier() {
            for head in CLASS_HEADS {
                self.save_module(head);
            }
        }
    }

    /// Adds a module to those that train whole, if it is not among them.
    pub fn save_module(&mut self, name: &str) {
        let saved = self.modules_to_save.get_or_insert_default();
        if !saved.iter().any(|entry| entry == name) {
            saved.push(name.to_owned());
        }
    }

    /// Whether the adapter was trained to tell classes apart.
    #[must_use]
    pub fn is_classifier(&self) -> bool {
        self.task_type.as_deref() == Some(SEQ_CLS)
    }

    /// Whether no module needs to match this entry of `modules_to_save`: the heads of other kinds of models.
    pub(crate) fn may_be_absent(&self, entry: &str) -> bool {
        self.is_classifier() && CLASS_HEADS.contains(&entry)
    }

    /// The rules for choosing modules, with these targets.
    pub(crate) fn matcher(&self, targets: &Targets) -> Result<Matcher> {
        Matcher::new(Rules {
            target_modules: targets,
            exclude_modules: self.exclude_modules.as_ref(),
            modules_to_save: self.modules_to_save(),
            layers_to_transform: self.layers_to_transform.as_ref(),
            layers_pattern: self.layers_pattern.as_ref(),
        })
    }

    /// The modules that train whole.
    #[must_use]
    pub fn modules_to_save(&self) -> &[String] {
        self.modules_to_save.as_deref().unwrap_or_default()
    }
}

/// A family, the common keys and the family's own: every value that parses is valid.
#[derive(Clone)]
pub struct AdapterConfig {
    /// The family.
    pub family: &'static dyn AnyFamily,
    /// The common keys.
    pub common: Common,
    /// The family's own keys, all of them, as JSON.
    pub own: Map<String, Value>,
}

impl fmt::Debug for AdapterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdapterConfig")
            .field("family", &self.family.name())
            .field("common", &self.common)
            .field("own", &self.own)
            .finish()
    }
}

/// Who wrote a configuration, and so what an unknown key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A run file: an unknown key is an error.
    RunFile,
    /// An adapter folder: an unknown key is accepted with a warning if it is null, false, empty or 0.
    AdapterFolder,
}

/// What the given base is to an adapter that was trained on a changed one: on the base less the adapter's own start,
/// its residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResidualBase {
    /// The base before it was changed: the start is computed again and subtracted.
    Original,
    /// The residual that the adapter was trained on.
    Residual,
}

impl ResidualBase {
    /// Both, under the words of run files and flags.
    pub const WORDS: [(&'static str, Self); 2] =
        [("original", Self::Original), ("residual", Self::Residual)];

    /// The word in run files and flags.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Residual => "residual",
        }
    }
}

impl FromStr for ResidualBase {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(known, _)| *known == word);
        let found = found.map(|(_, base)| *base);
        found.ok_or_else(|| format!("`{word}` is neither \"original\" nor \"residual\""))
    }
}

impl AdapterConfig {
    /// Reads the keys of a run file's `[adapter]` table or of `adapter_config.json`, without `family`.
    ///
    /// # Errors
    /// An unknown key (with the nearest known one), a value out of range, or one that is not yet supported.
    pub fn parse(
        family: &'static dyn AnyFamily,
        keys: &Map<String, Value>,
        source: Source,
    ) -> Result<Self> {
        let (mut common, mut own) = (Map::new(), Map::new());
        let defaults = family.defaults();
        let fixed = family.fixed();
        let is_common = |key: &str| COMMON_KEYS.contains(&key) && !family.lacks().contains(&key);
        for (key, value) in keys {
            if is_common(key) {
                common.insert(key.clone(), value.clone());
            } else if defaults.contains_key(key) {
                own.insert(key.clone(), value.clone());
            } else if let Some((_, only)) = fixed.iter().find(|(name, _)| name == key) {
                let of_no_use = is_void(value) || family.notes().contains(&key.as_str());
                if !(value == only || source == Source::AdapterFolder && of_no_use) {
                    return Err(Error::NotYet {
                        key: key.clone(),
                        value: value.to_string(),
                        only: Some(only.to_string()),
                    });
                }
            } else if source == Source::AdapterFolder && is_void(value) {
                tracing::warn!(
                    "ignoring unknown key `{key}` of the adapter's configuration (its value is {value})"
                );
            } else {
                let known = COMMON_KEYS
                    .into_iter()
                    .filter(|key| is_common(key))
                    .chain(defaults.keys().map(String::as_str));
                let suggestion = nearest(key, known.chain(fixed.iter().map(|(name, _)| *name)));
                return Err(Error::UnknownKey {
                    key: key.clone(),
                    suggestion,
                });
            }
        }
        common.remove("peft_type");
        common.remove("peft_version");
        let mut common: Common = parse_each(&common)?;
        common.save_class_heads();
        let only = family.targeted_bias();
        if common.bias_mode()? == BiasMode::Targeted && common.bias != only {
            return Err(Error::config(format!(
                "`bias = \"{}\"`, expected \"none\", \"all\" or \"{only}\"",
                common.bias
            )));
        }
        Ok(Self {
            family,
            common,
            own: family.check(&own)?,
        })
    }

    /// The configuration under which a folder's tensors mean what they meant to who saved them; `base` is what the user
    /// says about the base model.
    ///
    /// # Errors
    /// If the tensors mean nothing without an answer, or cannot be used with this one.
    pub fn read_as(self, base: Option<ResidualBase>) -> Result<Self> {
        let own = self.family.read_as(&self.own, base)?;
        Ok(Self { own, ..self })
    }

    /// Everything, as PEFT writes it: common keys, the family's own, and those that the reference has beside them.
    #[must_use]
    pub fn to_peft(&self) -> Map<String, Value> {
        let mut keys = self.own.clone();
        for (key, value) in self.family.fixed() {
            keys.insert(key.to_owned(), value);
        }
        let common = serde_json::to_value(&self.common).unwrap_or_default();
        keys.extend(common.as_object().cloned().unwrap_or_default());
        if self.common.bias.is_empty() {
            keys.insert("bias".into(), "none".into());
        }
        let defaults = self.family.defaults();
        for key in self.family.lacks() {
            if COMMON_KEYS.contains(key) || keys.get(*key) == defaults.get(*key) {
                keys.remove(*key);
            }
        }
        keys.insert("peft_type".into(), self.family.peft_type().into());
        keys.insert("peft_version".into(), PEFT_VERSION.into());
        keys.insert("inference_mode".into(), true.into());
        keys
    }
}

/// Null, false, empty or 0: a key of a later version that is not in use.
fn is_void(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(array) => array.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

/// What serde expected, in a user's words, to stand after the value.
fn expected(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((_, expected)) = text.rsplit_once(", expected ") else {
        return format!(": {text}");
    };
    let words = match expected {
        "usize" | "u32" | "u64" => "an integer that is not negative",
        "a nonzero usize" | "a nonzero u32" | "a nonzero u64" => "an integer above 0",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        other => other,
    };
    format!(", expected {words}")
}

/// Parses an object all of whose keys have defaults; an error names the key and its value.
pub(crate) fn parse_each<T: for<'de> Deserialize<'de>>(keys: &Map<String, Value>) -> Result<T> {
    for (key, value) in keys {
        let one = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(Value::Object(one)) {
            return Err(Error::config(format!(
                "`{key} = {value}`{}",
                expected(&error)
            )));
        }
    }
    // Each key is fine alone; what fails now is a rule over several.
    serde_json::from_value(Value::Object(keys.clone()))
        .map_err(|error| Error::config(error.to_string()))
}
