//! Writing stand-alone models.

use crate::base::{Base, UNNAMED};
use crate::paths::real;
use crate::{Error, Result};
use candle_core::DType;
use lowrank_adapter::Selection;
use lowrank_data::Classes;
use lowrank_format::{AtomicFolder, Existing, atomic_write_file, python_json, write_sharded};
use lowrank_merge::fold;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Shards of written models hold at most this many bytes, as Hugging Face's do.
const SHARD_BYTES: u64 = 5_000_000_000;

/// A stand-alone model that was written.
#[derive(Debug)]
pub struct Written {
    /// Its folder.
    pub folder: PathBuf,
    /// The dtype of its weights.
    pub dtype: DType,
    /// False if some layer is only near to its adapted one.
    pub exact: bool,
}

/// Folds the selected adapters into the base and writes a model folder, whole or not at all.
///
/// # Errors
/// If an adapter cannot be folded, or the folder cannot be written. [`Existing::Replace`] replaces model folders only,
/// and never one that the base was read from.
pub fn merge_into(
    base: &mut Base,
    selection: &Selection,
    dtype: Option<DType>,
    out: &Path,
    existing: Existing,
) -> Result<Written> {
    check_output((!base.is_embedded()).then(|| base.path()), out, existing)?;
    let folder = AtomicFolder::create(out, existing)?;
    let folded = fold(base.model.as_mut(), selection, dtype)?;
    let tensors = folded
        .tensors
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor));
    write_sharded(folder.path(), tensors, SHARD_BYTES)?;
    base.write_side_files(folder.path())?;
    let dtype = folded
        .tensors
        .first()
        .map_or(DType::F32, |(_, tensor)| tensor.dtype());
    let mut config = base.config.clone();
    // Whatever the base is held in, plain numbers are written.
    config.shift_remove("quantization_config");
    if folded.untied {
        config.insert("tie_word_embeddings".into(), false.into());
    }
    if let Some(classes) = &base.classes {
        describe_classes(&mut config, &base.info.model_type, classes);
    }
    let word = match dtype {
        DType::F64 => "float64",
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    // transformers 5 writes `dtype` where 4 wrote `torch_dtype`.
    let key = if config.contains_key("dtype") {
        "dtype"
    } else {
        "torch_dtype"
    };
    config.insert(key.into(), word.into());
    let text = python_json(&Value::Object(config));
    atomic_write_file(&folder.path().join("config.json"), text.as_bytes())?;
    Ok(Written {
        folder: folder.commit()?,
        dtype,
        exact: folded.exact,
    })
}

/// What transformers opens a classifier by.
fn describe_classes(config: &mut Map<String, Value>, model_type: &str, classes: &Classes) {
    let class = match model_type {
        "bert" => "BertForSequenceClassification",
        "llama" => "LlamaForSequenceClassification",
        "mistral" => "MistralForSequenceClassification",
        "qwen2" => "Qwen2ForSequenceClassification",
        "roberta" => "RobertaForSequenceClassification",
        "xlm-roberta" => "XLMRobertaForSequenceClassification",
        _ => "",
    };
    if !class.is_empty() {
        config.insert("architectures".into(), vec![class].into());
    }
    let problem = match classes.is_regression() {
        true => "regression",
        false => "single_label_classification",
    };
    config.insert("problem_type".into(), problem.into());
    let name = |class: usize| match classes.names().get(class) {
        Some(name) => name.clone(),
        None => format!("{UNNAMED}{class}"),
    };
    let classes = || (0..classes.count().get()).map(|class| (class, name(class)));
    let names: Map<String, Value> = classes()
        .map(|(class, name)| (class.to_string(), name.into()))
        .collect();
    let numbers: Map<String, Value> = classes()
        .map(|(class, name)| (name, class.into()))
        .collect();
    config.insert("id2label".into(), names.into());
    config.insert("label2id".into(), numbers.into());
}

/// Nothing but a model folder may be replaced, and not the one that is being read.
/// An embedded model has no `source`.
fn check_output(source: Option<&Path>, out: &Path, existing: Existing) -> Result<()> {
    let refuse = |what: &str| {
        let out = out.display();
        Err(Error::Usage(format!(
            "the output folder {out} {what}; choose another"
        )))
    };
    if let Some(source) = source {
        let (inner, outer) = (real(source), real(out));
        if outer.starts_with(&inner) {
            return refuse(&format!(
                "lies inside the base model's folder {}",
                source.display()
            ));
        }
        if inner.starts_with(&outer) {
            let what = if source.is_dir() { "'s folder" } else { "" };
            return refuse(&format!(
                "contains the base model{what} {}",
                source.display()
            ));
        }
    }
    let holds = out
        .read_dir()
        .is_ok_and(|mut entries| entries.next().is_some());
    if existing == Existing::Replace && holds && !out.join("config.json").exists() {
        return refuse("is neither empty nor a model's, so it is not replaced");
    }
    Ok(())
}
