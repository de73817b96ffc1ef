//! Which modules an adapter targets: PEFT's rules to the letter (`check_target_module_exists`, `get_pattern_key`,
//! `modules_to_save`), checked against its own functions by golden tables.

use crate::{Error, Result};
use fancy_regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How many steps a user's regular expression may take before it is refused.
const STEP_LIMIT: usize = 100_000;

/// `target_modules` and `exclude_modules`: a list of path suffixes, or one regular expression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a list of names, or a regular expression"
)]
pub enum Targets {
    /// A regular expression that must match the whole path, or the word `all-linear`.
    Pattern(String),
    /// Full paths, or suffixes after a dot.
    List(Vec<String>),
}

/// A value or a list of values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected one value, or a list of them")]
pub enum OneOrMany<T> {
    /// One.
    One(T),
    /// Any number.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Targets {
    /// True for the word that means every linear layer but the head, in any case.
    #[must_use]
    pub fn is_all_linear(&self) -> bool {
        matches!(self, Self::Pattern(word) if word.eq_ignore_ascii_case("all-linear"))
    }

    fn describe(&self) -> String {
        match self {
            Self::Pattern(pattern) => format!("\"{pattern}\""),
            Self::List(list) => format!("{list:?}"),
        }
    }
}

/// PEFT's `target_modules` where the configuration has none, by `model_type`.
#[must_use]
pub fn default_targets(model_type: &str) -> Option<&'static [&'static str]> {
    Some(match model_type {
        "llama" | "mistral" | "mixtral" | "qwen2" | "qwen3" | "gemma" | "opt" | "gptj"
        | "gpt_neo" | "stablelm" => &["q_proj", "v_proj"],
        "gpt2" => &["c_attn"],
        "bert" | "roberta" | "xlm-roberta" | "electra" => &["query", "value"],
        "t5" => &["q", "v"],
        "bloom" | "gpt_neox" | "falcon" => &["query_key_value"],
        "phi" => &["q_proj", "v_proj", "fc1", "fc2"],
        "deberta-v2" => &["query_proj", "value_proj"],
        "mpt" => &["Wqkv"],
        _ => return None,
    })
}

/// The compiled rules of one configuration.
#[derive(Debug)]
pub struct Matcher {
    targets: Rule,
    described: String,
    exclude: Option<Rule>,
    saved: Vec<Regex>,
    layers: Option<(Vec<usize>, Vec<Regex>)>,
}

#[derive(Debug)]
enum Rule {
    Whole(Regex),
    Suffixes(Vec<String>),
}

impl Rule {
    fn new(key: &str, targets: &Targets) -> Result<Self> {
        Ok(match targets {
            Targets::Pattern(pattern) => {
                Self::Whole(compile(key, &format!(r"\A(?:{pattern})\z"), pattern)?)
            }
            Targets::List(list) => Self::Suffixes(list.clone()),
        })
    }

    fn matches(&self, path: &str) -> Result<bool> {
        Ok(match self {
            Self::Whole(regex) => is_match(regex, path)?,
            Self::Suffixes(list) => list
                .iter()
                .any(|entry| path == entry || ends_with_component(path, entry)),
        })
    }

    fn names(&self, path: &str) -> bool {
        matches!(self, Self::Suffixes(list) if list.iter().any(|entry| entry == path))
    }
}

/// What [`Matcher::new`] compiles; the keys of PEFT's configuration.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// `target_modules`, with "all-linear" and the default table resolved already.
    pub target_modules: &'a Targets,
    /// `exclude_modules`; it wins.
    pub exclude_modules: Option<&'a Targets>,
    /// `modules_to_save`: never targeted.
    pub modules_to_save: &'a [String],
    /// `layers_to_transform`.
    pub layers_to_transform: Option<&'a OneOrMany<usize>>,
    /// `layers_pattern`.
    pub layers_pattern: Option<&'a OneOrMany<String>>,
}

impl Matcher {
    /// Compiles the rules.
    ///
    /// # Errors
    /// If a regular expression is malformed, or layers are given where PEFT refuses them.
    pub fn new(rules: Rules<'_>) -> Result<Self> {
        let patterns = rules.layers_pattern.map_or(&[][..], OneOrMany::as_slice);
        if matches!(rules.target_modules, Targets::Pattern(_)) {
            for (key, given) in [
                ("layers_to_transform", rules.layers_to_transform.is_some()),
                ("layers_pattern", rules.layers_pattern.is_some()),
            ] {
                if given {
                    return Err(Error::config(format!(
                        "`{key}` needs `target_modules` to be a list of names"
                    )));
                }
            }
        }
        if !patterns.is_empty() && rules.layers_to_transform.is_none() {
            return Err(Error::config(
                "`layers_pattern` needs `layers_to_transform`",
            ));
        }
        let layers = match rules.layers_to_transform.map(OneOrMany::as_slice) {
            None | Some([]) => None,
            Some(numbers) => {
                // The first group is lazy: nested numbering yields the outermost layer.
                let regexes = if patterns.is_empty() {
                    vec![compile("layers_pattern", r"\A.*?\.[^.]*\.(\d+)\.", "")?]
                } else {
                    let anchored = |p: &String| {
                        compile("layers_pattern", &format!(r"\A(?:|.*?\.){p}\.(\d+)\."), p)
                    };
                    patterns.iter().map(anchored).collect::<Result<_>>()?
                };
                Some((numbers.to_vec(), regexes))
            }
        };
        let saved = rules
            .modules_to_save
            .iter()
            .map(|entry| {
                compile(
                    "modules_to_save",
                    &format!(r"\A(?:|.*\.){entry}(?:\z|\..*)"),
                    entry,
                )
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            targets: Rule::new("target_modules", rules.target_modules)?,
            described: rules.target_modules.describe(),
            exclude: rules
                .exclude_modules
                .map(|targets| Rule::new("exclude_modules", targets))
                .transpose()?,
            saved,
            layers,
        })
    }

    /// True if the module at `path` is targeted.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn matches(&self, path: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.matches(path)?
        {
            return Ok(false);
        }
        for saved in &self.saved {
            if is_match(saved, path)? {
                return Ok(false);
            }
        }
        if !self.targets.matches(path)? {
            return Ok(false);
        }
        match &self.layers {
            // An entry that is the whole path is taken whatever its layer.
            Some((numbers, regexes)) if !self.targets.names(path) => {
                Self::in_layers(numbers, regexes, path)
            }
            _ => Ok(true),
        }
    }

    /// True if the targets name the module at `path`, whatever leaves it out again.
    ///
    /// # Errors
    /// If a regular expression takes too many steps.
    pub fn names(&self, path: &str) -> Result<bool> {
        self.targets.matches(path)
    }

    fn in_layers(numbers: &[usize], regexes: &[Regex], path: &str) -> Result<bool> {
        for regex in regexes {
            if let Some(captures) = regex
                .captures(path)
                .map_err(|error| too_many_steps(regex, &error))?
            {
                let layer = captures
                    .get(1)
                    .and_then(|number| number.as_str().parse().ok());
                return Ok(layer.is_some_and(|layer: usize| numbers.contains(&layer)));
            }
        }
        Ok(false)
    }

    /// The target specification, for messages.
    #[must_use]
    pub fn described(&self) -> &str {
        &self.described
    }
}

/// True if `modules_to_save` covers the leaf module at `path`: some module on the way to it ends with an entry. The
/// match is a raw one (`head` covers `lm_head`), as in PEFT.
#[must_use]
pub fn is_saved(path: &str, modules_to_save: &[String]) -> bool {
    let ends = path
        .match_indices('.')
        .map(|(at, _)| at)
        .chain([path.len()]);
    ends.map(|end| &path[..end])
        .any(|module| modules_to_save.iter().any(|entry| module.ends_with(entry)))
}

/// `rank_pattern` and `alpha_pattern`: expressions for the end of a path, and the value for the modules they match.
/// The first match counts, in alphabetical order, so that a configuration means the same before and after a save.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pattern<T>(pub BTreeMap<String, T>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Copy> Pattern<T> {
    /// Warns of expressions that match none of the modules at `paths`; `key` is what the pattern is called.
    ///
    /// # Errors
    /// If an expression is malformed.
    pub fn warn_of_unused<'a>(
        &self,
        key: &str,
        paths: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        for expression in self.0.keys() {
            let regex = Self::regex(expression)?;
            let mut used = false;
            for path in paths.clone() {
                used = used || is_match(&regex, path)?;
            }
            if !used {
                tracing::warn!("`{key}`: `{expression}` matches none of the targeted modules");
            }
        }
        Ok(())
    }

    /// What matches the end of a path.
    fn regex(expression: &str) -> Result<Regex> {
        let anchored = format!(r"\A(?:.*\.)?({expression})\z");
        compile("rank_pattern or alpha_pattern", &anchored, expression)
    }

    /// The value for the module at `path`, or `default`.
    ///
    /// # Errors
    /// If an expression is malformed.
    pub fn get(&self, path: &str, default: T) -> Result<T> {
        for (expression, value) in &self.0 {
            let matches = match matches_plain(expression, path) {
                Some(matches) => matches,
                None => is_match(&Self::regex(expression)?, path)?,
            };
            if matches {
                return Ok(*value);
            }
        }
        Ok(default)
    }
}

/// What the regular expression would say, if it is one without operators but the dot: a path, as a rule, of which a
/// configuration may name hundreds.
fn matches_plain(expression: &str, path: &str) -> Option<bool> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.';
    if !expression.bytes().all(plain) || !path.is_ascii() {
        return None;
    }
    let Some(before) = path.len().checked_sub(expression.len()) else {
        return Some(false);
    };
    let (head, tail) = path.as_bytes().split_at(before);
    let begins = head.last().is_none_or(|&byte| byte == b'.');
    let equal = |(&expected, &found): (&u8, &u8)| expected == found || expected == b'.';
    Some(begins && expression.as_bytes().iter().zip(tail).all(equal))
}

fn ends_with_component(path: &str, entry: &str) -> bool {
    path.strip_suffix(entry)
        .is_some_and(|rest| rest.ends_with('.'))
}

fn compile(key: &str, anchored: &str, written: &str) -> Result<Regex> {
    RegexBuilder::new(anchored)
        .backtrack_limit(STEP_LIMIT)
        .build()
        .map_err(|error| {
            Error::config(format!(
                "`{key}`: `{written}` is not a regular expression: {error}"
            ))
        })
}

fn is_match(regex: &Regex, path: &str) -> Result<bool> {
    regex
        .is_match(path)
        .map_err(|error| too_many_steps(regex, &error))
}

fn too_many_steps(regex: &Regex, error: &fancy_regex::Error) -> Error {
    Error::config(format!(
        "the expression `{}` could not be matched: {error}",
        regex.as_str()
    ))
}
