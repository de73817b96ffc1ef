//! Adapter folders in PEFT's layout.

use crate::atomic::atomic_write_file;
use crate::card::{Held, Training, card};
use crate::{
    Error, LowrankJson, PYTORCH, Result, Safetensors, check_finite, infer_adapter_infix,
    python_json, read_json_object, source, strip_adapter_infix, write_safetensors,
};
use candle_core::Tensor;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The file that holds an adapter's configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file that holds an adapter's tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";
/// What stands before a module's path in the tensors' names, on disk only.
pub const PREFIX: &str = "base_model.model.";

/// An adapter folder that has been read.
#[derive(Debug)]
pub struct PeftFolder {
    /// The folder.
    pub path: PathBuf,
    /// `adapter_config.json` as it stands, keys in the file's order.
    pub config: Map<String, Value>,
    /// The configuration's `peft_type`.
    pub peft_type: String,
    /// The tensors by module path and parameter, as in `model.layers.0.self_attn.q_proj.lora_A.weight`:
    /// without [`PREFIX`] and without the adapter's name. All finite.
    pub tensors: BTreeMap<String, Tensor>,
    /// What lowrank recorded beside them; `None` for a folder that PEFT wrote.
    pub lowrank: Option<LowrankJson>,
}

impl PeftFolder {
    /// Reads a folder that PEFT or lowrank wrote. What the configuration says is not judged here, beyond its `peft_type`.
    ///
    /// # Errors
    /// If the folder or one of its two files is missing or damaged, if the tensors are pickled (the message says how to
    /// convert them), if `peft_type` is not a string, if a tensor holds a non-finite value, or if two names become one.
    pub fn read(dir: &Path) -> Result<Self> {
        const EXPECTED: &str = "an adapter folder in PEFT's layout";
        source::require_folder(dir, EXPECTED, source::CONVERT_ADAPTER)?;
        let config_path = dir.join(CONFIG_FILE);
        if !config_path.exists() {
            let what = format!("holds no {CONFIG_FILE}; expected {EXPECTED}");
            return Err(Error::content(dir, what));
        }
        let config = read_json_object(&config_path)?;
        let peft_type = match config.get("peft_type") {
            Some(Value::String(name)) => name.clone(),
            Some(other) => {
                let what = format!("`peft_type` is {other}; expected a string such as \"LORA\"");
                return Err(Error::content(&config_path, what));
            }
            None => {
                let what = "`peft_type` is missing; expected a string such as \"LORA\"";
                return Err(Error::content(&config_path, what));
            }
        };

        let tensors_path = dir.join(TENSORS_FILE);
        if !tensors_path.exists() {
            if let Some(path) = source::find_pickle(dir)? {
                let convert = source::CONVERT_ADAPTER;
                return Err(Error::Pickle { path, convert });
            }
            let what = format!("holds no {TENSORS_FILE}; expected {EXPECTED}");
            return Err(Error::content(dir, what));
        }
        Ok(Self {
            path: dir.to_path_buf(),
            config,
            peft_type,
            tensors: read_tensors(&tensors_path)?,
            lowrank: LowrankJson::read(dir)?,
        })
    }

    /// Writes an adapter into an existing folder: [`CONFIG_FILE`] and [`TENSORS_FILE`] as PEFT writes them,
    /// `lowrank.json`, and a model card, with `training` if it is known. The same arguments give the same bytes.
    ///
    /// `tensors` are named as [`PeftFolder::tensors`] are. The files appear one after the other: write into an
    /// [`AtomicFolder`](crate::AtomicFolder) to have all or none.
    ///
    /// # Errors
    /// If a tensor holds a non-finite value, if a name is given twice, or if the folder cannot be written to.
    pub fn write<'a>(
        dir: &Path,
        config: &Map<String, Value>,
        tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
        lowrank: &LowrankJson,
        training: Option<&Training>,
    ) -> Result<()> {
        let tensors: Vec<(&str, &Tensor)> = tensors.into_iter().collect();
        let mut named = Vec::new();
        for (name, tensor) in &tensors {
            check_finite(dir, name, tensor)?;
            named.push((format!("{PREFIX}{name}"), *tensor));
        }
        let held = Held::of(tensors.into_iter());
        let card = card(config, &lowrank.family, held, training);
        let tensors = named.iter().map(|(name, tensor)| (name.as_str(), *tensor));
        write_safetensors(&dir.join(TENSORS_FILE), tensors, PYTORCH)?;
        let config = python_json(&Value::Object(config.clone()));
        atomic_write_file(&dir.join(CONFIG_FILE), config.as_bytes())?;
        lowrank.write(dir)?;
        atomic_write_file(&dir.join("README.md"), card.as_bytes())
    }
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = Safetensors::open(path)?;
    let infix = infer_adapter_infix(file.names()).map_err(|[first, second]| {
        let what = format!("`{first}` and `{second}` name different adapters; expected one");
        Error::content(path, what)
    })?;
    let mut tensors = BTreeMap::new();
    for stored in file.names() {
        let tensor = file.tensor(stored)?;
        check_finite(path, stored, &tensor)?;
        let name = normalised(stored, infix);
        if tensors.insert(name.clone(), tensor).is_some() {
            let what = format!("two tensors are named `{name}`, one of them `{stored}`");
            return Err(Error::content(path, what));
        }
    }
    Ok(tensors)
}

fn normalised(stored: &str, infix: Option<&str>) -> String {
    let name = stored.strip_prefix(PREFIX).unwrap_or(stored);
    let Some(adapter) = infix else {
        return name.to_owned();
    };
    // Where an adapter is named in a file, so are its copies of whole modules; saved by PEFT, they have the module's name.
    let copies = format!(".modules_to_save.{adapter}.");
    match name.rsplit_once(&copies) {
        Some((module, parameter)) => format!("{module}.{parameter}"),
        None => strip_adapter_infix(name, adapter),
    }
}
