//! The list of families: the only place, with the crates above it, that names them.
//!
//! ```
//! let lora = lowrank_registry::by_name("lora")?;
//! assert_eq!(lora.peft_type(), "LORA");
//! let error = lowrank_registry::by_name("lorra").err().map(|error| error.to_string());
//! assert_eq!(error.as_deref(), Some("unknown family `lorra`, did you mean `lora`?"));
//! # Ok::<(), lowrank_adapter::Error>(())
//! ```

use lowrank_adapter::{AnyFamily, Error, Result, nearest};

/// Every family, sorted by name.
pub static FAMILIES: &[&dyn AnyFamily] = &[
    &lowrank_adalora::Adalora,
    &lowrank_alora::Alora,
    &lowrank_loha::Loha,
    &lowrank_lokr::Lokr,
    &lowrank_lora::Lora,
    &lowrank_mor::Mor,
    &lowrank_reslora::Reslora,
    &lowrank_salora::Salora,
    &lowrank_sbora::Sbora,
];

/// Families that are planned: their names are refused as such.
const PLANNED: &[&str] = &["dora", "ia3", "vera"];

/// The family of that name (`lora`).
///
/// # Errors
/// If there is none; the message has the nearest name, or says that it is planned.
pub fn by_name(name: &str) -> Result<&'static dyn AnyFamily> {
    find("family", name, name.to_owned())
}

/// The family whose adapter files have this `peft_type` (`LORA`).
///
/// # Errors
/// As [`by_name`].
pub fn by_peft_type(tag: &str) -> Result<&'static dyn AnyFamily> {
    find("peft_type", tag, tag.to_lowercase())
}

fn find(key: &str, written: &str, name: String) -> Result<&'static dyn AnyFamily> {
    if let Some(family) = FAMILIES.iter().find(|family| family.name() == name) {
        return Ok(*family);
    }
    if PLANNED.contains(&name.as_str()) {
        return Err(Error::NotYet {
            key: key.to_owned(),
            value: written.to_owned(),
            only: Some(names()),
        });
    }
    let known = FAMILIES.iter().map(|family| family.name());
    let suggestion = nearest(&name, known.chain(PLANNED.iter().copied()));
    Err(Error::Config {
        what: match suggestion {
            Some(near) => format!("unknown {key} `{written}`, did you mean `{near}`?"),
            None => format!("unknown {key} `{written}`, expected one of: {}", names()),
        },
    })
}

fn names() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.name()).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_sorted_and_not_planned_any_more() {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name()).collect();
        assert!(names.is_sorted(), "{names:?}");
        assert!(names.iter().all(|name| !PLANNED.contains(name)));
    }

    #[test]
    fn an_unknown_family_is_refused_by_name() {
        let message = |name| by_name(name).err().map(|error| error.to_string());
        let check = |name, expected: &str| assert_eq!(message(name).as_deref(), Some(expected));
        check("lorra", "unknown family `lorra`, did you mean `lora`?");
        let names = names();
        check(
            "prefix",
            &format!("unknown family `prefix`, expected one of: {names}"),
        );
        for planned in PLANNED {
            let what = format!("`family = {planned}` is not yet supported (only {names} is)");
            check(planned, &what);
        }
    }
}
