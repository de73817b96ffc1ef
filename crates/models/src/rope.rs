//! The rotary embedding in config.json. transformers 5 writes `rope_parameters`; 4 wrote `rope_theta` and
//! `rope_scaling`, whose `rope_type` was once called `type`.

use crate::Result;
use crate::fields::Fields;
use lowrank_ops::RotaryScaling;
use serde_json::{Map, Value};

const DEFAULT_THETA: f64 = 10_000.0;

/// Kinds of scaling that transformers has and we do not.
const PLANNED: [&str; 4] = ["dynamic", "longrope", "proportional", "yarn"];
const SUPPORTED: &str = "\"default\", \"linear\", \"llama3\"";

/// Base and scaling. If both forms are there, they must agree.
pub(crate) fn read(fields: &mut Fields<'_>) -> Result<(f64, RotaryScaling)> {
    let theta = fields.positive("rope_theta")?;
    let older = match fields.object("rope_scaling")? {
        Some(map) => Some((map, read_object(fields, map, "rope_scaling.")?)),
        None => None,
    };
    let newer = match fields.object("rope_parameters")? {
        Some(map) => Some((map, read_object(fields, map, "rope_parameters.")?)),
        None => None,
    };
    if let (Some((map, older)), Some((_, newer))) = (older, newer)
        && older.1 != newer.1
    {
        let expected = "the same as `rope_parameters`, or nothing";
        return Err(fields.wrong("rope_scaling", &Value::Object(map.clone()), expected));
    }
    let inner = [newer, older].into_iter().flatten();
    let mut thetas = inner.filter_map(|(_, (theta, _))| theta).chain(theta);
    let chosen = thetas.next().unwrap_or(DEFAULT_THETA);
    #[expect(
        clippy::float_cmp,
        reason = "two spellings of one number, not two results"
    )]
    if let Some(other) = thetas.find(|other| *other != chosen) {
        let expected = format!("{chosen:?}, as the file says elsewhere, or nothing");
        return Err(fields.wrong("rope_theta", &other.into(), expected));
    }
    let scaling = newer
        .or(older)
        .map_or(RotaryScaling::None, |(_, (_, scaling))| scaling);
    Ok((chosen, scaling))
}

fn read_object<'a>(
    outer: &Fields<'a>,
    map: &'a Map<String, Value>,
    prefix: &'static str,
) -> Result<(Option<f64>, RotaryScaling)> {
    let mut fields = outer.inside(map, prefix);
    let theta = fields.positive("rope_theta")?;
    let (newer, older) = (fields.word("rope_type")?, fields.word("type")?);
    if let (Some(newer), Some(older)) = (newer, older)
        && newer != older
    {
        let expected = format!("\"{newer}\" as `rope_type` says, or nothing");
        return Err(fields.wrong("type", &older.into(), expected));
    }
    fields.only(
        "partial_rotary_factor",
        |value| value.as_f64() == Some(1.0),
        "1.0",
    )?;
    let scaling = match newer.or(older).unwrap_or("default") {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear {
            factor: number(&mut fields, "factor")?,
        },
        "llama3" => llama3(&mut fields)?,
        kind if PLANNED.contains(&kind) => {
            return Err(fields.not_yet("rope_type", &kind.into(), SUPPORTED));
        }
        kind => {
            let expected = format!("one of {SUPPORTED}");
            return Err(fields.wrong("rope_type", &kind.into(), expected));
        }
    };
    fields.finish()?;
    Ok((theta, scaling))
}

fn llama3(fields: &mut Fields<'_>) -> Result<RotaryScaling> {
    let factor = number(fields, "factor")?;
    let low_freq_factor = number(fields, "low_freq_factor")?;
    let high_freq_factor = number(fields, "high_freq_factor")?;
    let context = fields.size("original_max_position_embeddings")?;
    if low_freq_factor >= high_freq_factor {
        let expected = format!("a number above `low_freq_factor` = {low_freq_factor:?}");
        return Err(fields.wrong("high_freq_factor", &high_freq_factor.into(), expected));
    }
    Ok(RotaryScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings: fields
            .required("original_max_position_embeddings", context)?,
    })
}

fn number(fields: &mut Fields<'_>, field: &'static str) -> Result<f64> {
    let value = fields.positive(field)?;
    fields.required(field, value)
}
