//! The names of adapter tensors, with and without the adapter's own name inside.
//!
//! In memory PEFT puts the adapter's name into a parameter's path (`lora_A.default.weight`); its files leave it out.
//! Files saved from a state dictionary hold it nevertheless.

use std::collections::BTreeMap;

/// How PEFT's parameters begin; the adapter's name follows the path component that begins so.
const PARAMETER_PREFIXES: [&str; 5] = ["lora_", "hada_", "lokr_", "vera_", "ia3_"];

/// A tensor's name without the name of the adapter, as PEFT cuts it when it saves.
///
/// The name is cut from the end of the key, or else from just before the last component; nowhere else, so that a module
/// that happens to be called like the adapter keeps its name. `DoRA`'s vector loses its `.weight` with it.
///
/// ```
/// use lowrank_format::strip_adapter_infix;
/// assert_eq!(strip_adapter_infix("m.q.lora_A.q.weight", "q"), "m.q.lora_A.weight");
/// assert_eq!(strip_adapter_infix("m.lora_E.q", "q"), "m.lora_E");
/// ```
#[must_use]
pub fn strip_adapter_infix(key: &str, adapter: &str) -> String {
    if let Some(cut) = ends_with_component(key, adapter) {
        return cut.to_owned();
    }
    let Some((rest, last)) = key.rsplit_once('.') else {
        return key.to_owned();
    };
    match ends_with_component(rest, adapter) {
        Some(cut) if last == "weight" && cut.ends_with("lora_magnitude_vector") => cut.to_owned(),
        Some(cut) => format!("{cut}.{last}"),
        None => key.to_owned(),
    }
}

/// The adapter's name in the keys of a file, if they hold one.
///
/// # Errors
/// If some keys hold another name than others, or none: two such keys are returned.
pub fn infer_adapter_infix<'a>(
    keys: impl IntoIterator<Item = &'a str>,
) -> Result<Option<&'a str>, [&'a str; 2]> {
    let mut found: BTreeMap<Option<&str>, &str> = BTreeMap::new();
    for key in keys {
        if let Some(infix) = infix(key) {
            found.entry(infix).or_insert(key);
        }
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some((infix, _)), None) => Ok(infix),
        (Some((_, first)), Some((_, second))) => Err([first, second]),
    }
}

/// `None`: the key does not tell, for it is not that of an adapter's parameter.
fn infix(key: &str) -> Option<Option<&str>> {
    let components: Vec<&str> = key.split('.').collect();
    let parameter = components.iter().rposition(|component| {
        PARAMETER_PREFIXES
            .iter()
            .any(|prefix| component.starts_with(prefix))
    })?;
    match components[parameter + 1..] {
        [] | ["weight" | "bias"] => Some(None),
        [adapter] | [adapter, "weight" | "bias"] => Some(Some(adapter)),
        _ => None,
    }
}

fn ends_with_component<'a>(key: &'a str, component: &str) -> Option<&'a str> {
    key.strip_suffix(component)?.strip_suffix('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_adapters_own_name_is_cut() {
        for (key, expected) in [
            ("m.q.lora_A.q.weight", "m.q.lora_A.weight"),
            ("m.lora_E.q", "m.lora_E"),
            ("base_model.vera_A.q", "base_model.vera_A"),
            (
                "m.lora_magnitude_vector.q.weight",
                "m.lora_magnitude_vector",
            ),
            ("m.lora_magnitude_vector", "m.lora_magnitude_vector"),
            ("m.q.lora_A.weight", "m.q.lora_A.weight"),
            ("m.xq", "m.xq"),
            ("q", "q"),
        ] {
            assert_eq!(strip_adapter_infix(key, "q"), expected);
        }
    }

    #[test]
    fn a_round_trip_under_another_name_is_the_identity() {
        for (before, after) in [
            ("m.q.lora_A", ".weight"),
            ("m.lora_E", ""),
            ("m.lora_B", ".bias"),
            ("m.default.lora_embedding_A", ""),
        ] {
            let saved = format!("{before}{after}");
            for adapter in ["q", "default", "m"] {
                let key = format!("{before}.{adapter}{after}");
                assert_eq!(infer_adapter_infix([key.as_str()]), Ok(Some(adapter)));
                assert_eq!(strip_adapter_infix(&key, adapter), saved);
            }
            assert_eq!(infer_adapter_infix([saved.as_str()]), Ok(None));
        }
    }

    #[test]
    fn keys_that_disagree_are_returned() {
        let plain = "m.q.lora_A.weight";
        let named = "m.q.lora_B.default.weight";
        let other = "m.q.lora_B.other.weight";
        assert_eq!(infer_adapter_infix([named, plain]), Err([plain, named]));
        assert_eq!(infer_adapter_infix([other, named]), Err([named, other]));
        assert_eq!(
            infer_adapter_infix(["score.weight", named]),
            Ok(Some("default"))
        );
        assert_eq!(infer_adapter_infix(["score.weight"]), Ok(None));
    }
}
