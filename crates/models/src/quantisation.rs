//! `quantization_config` of config.json: NF4 of bitsandbytes, and nothing else.

use crate::Result;
use crate::fields::Fields;
use lowrank_frozen::{Encoding, Weights};
use serde_json::{Map, Value};

/// Fields of `quantization_config` that change no stored number. What is computed in is for the run to say, how scales are
/// held and which layers are left out for the weights.
const IGNORED_QUANTISATION: &[&str] = &[
    "_load_in_4bit",
    "_load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
];

/// Refuses all weights that are quantised by others than bitsandbytes, or by it to something else than NF4.
pub(crate) fn check_quantisation(fields: &mut Fields<'_>) -> Result<()> {
    const FIELD: &str = "quantization_config";
    let Some(config) = fields.object(FIELD)? else {
        return Ok(());
    };
    let mut inner = fields.inside(config, "quantization_config.");
    inner.ignore(IGNORED_QUANTISATION);
    let eight = inner.flag("load_in_8bit")?;
    let four = inner.flag("load_in_4bit")?;
    // Early files name no method, and these two fields are nobody else's.
    match inner.word("quant_method")? {
        Some("bitsandbytes") => {}
        None if four || eight => {}
        Some(method) => {
            return Err(inner.not_yet("quant_method", &method.into(), "\"bitsandbytes\""));
        }
        None => {
            let value = Value::Object(config.clone());
            return Err(fields.not_yet(FIELD, &value, "NF4 of bitsandbytes"));
        }
    }
    if eight {
        return Err(inner.not_yet("load_in_8bit", &true.into(), "NF4, `load_in_4bit`"));
    }
    if !four {
        return Err(inner.not_yet("load_in_4bit", &false.into(), "true"));
    }
    // transformers reads a missing field so.
    match inner.word("bnb_4bit_quant_type")?.unwrap_or("fp4") {
        "nf4" => inner.finish(),
        kind => Err(inner.not_yet("bnb_4bit_quant_type", &kind.into(), "\"nf4\"")),
    }
}

/// Refuses a configuration that speaks of quantised weights where there are none.
pub(crate) fn check_weights(
    config: &Map<String, Value>,
    origin: &str,
    weights: &dyn Weights,
) -> Result<()> {
    const FIELD: &str = "quantization_config";
    let nf4 = |name: &str| {
        let info = weights.info(name);
        info.is_some_and(|info| matches!(info.encoding, Encoding::Nf4 { .. }))
    };
    match config.get(FIELD) {
        Some(value) if !value.is_null() && !weights.names().into_iter().any(nf4) => {
            let expected = format!("null, since {} holds no quantised matrix", weights.origin());
            Err(Fields::new(config, origin).wrong(FIELD, value, expected))
        }
        _ => Ok(()),
    }
}
