//! The rows of a run and of an evaluation.

use crate::base::{Base, BaseFiles};
use crate::{Error, Result, hub};
use lowrank_data::{
    Classes, Dataset, Example, Expected, Kind, Options, Reference, Tokenizer, read_texts,
};
use lowrank_models::Reading;
use lowrank_train::{RunFile, TaskKeys};
use std::path::Path;

/// The rows that a run file names.
pub(crate) struct TaskRows {
    pub data: Dataset,
    pub held_out: Option<Dataset>,
}

impl TaskRows {
    /// `known` are the classes that the base, or the adapter that is started from, tells apart already.
    pub fn open(
        run: &RunFile,
        base: &BaseFiles,
        known: Option<Classes>,
        origin: &Path,
    ) -> Result<Self> {
        let options = Options {
            max_length: run.data.max_length,
            end_token: base.info.eos_token_ids.first().copied(),
            vocab: base.info.vocab_size,
            limit: None,
        };
        let open = |files: &[String], key, expected: Expected<'_>| {
            let data = open_expected(files, base, &options, expected)
                .map_err(Error::under(origin, key))?;
            check_kinds(&data, run.task, origin, key)?;
            Ok::<_, Error>(data)
        };
        let given = match run.task {
            TaskKeys::Classification { num_labels } => num_labels,
            TaskKeys::CausalLm => None,
        };
        let known = known.filter(|known| given.is_none_or(|count| count == known.count()));
        let expected = match &known {
            Some(known) if run.task != TaskKeys::CausalLm => Expected::Given(known),
            _ => Expected::Found(given),
        };
        let data = open(&run.data.train, "data.train", expected)?;
        let expected = match data.classes() {
            Some(classes) => Expected::Given(classes),
            None => Expected::Found(None),
        };
        let held_out = match run.data.eval.as_slice() {
            [] => None,
            files => Some(open(files, "data.eval", expected)?),
        };
        Ok(Self { data, held_out })
    }
}

/// Refuses rows that the task has no use for.
fn check_kinds(data: &Dataset, task: TaskKeys, origin: &Path, key: &str) -> Result<()> {
    let is_classification = task != TaskKeys::CausalLm;
    let mut files = data.summary().files.iter();
    let Some(file) = files.find(|file| (file.kind == Kind::Labelled) != is_classification) else {
        return Ok(());
    };
    let (origin, path, kind) = (origin.display(), file.path.display(), file.kind);
    let what = match is_classification {
        true => format!(
            "`task.kind = \"classification\"` needs rows {}",
            Kind::Labelled
        ),
        false => "`task.kind = \"causal-lm\"` cannot learn from labels; set `task.kind = \"classification\"`".to_owned(),
    };
    Err(Error::Usage(format!(
        "{origin}: `{key}`: {path} has rows {kind}, and {what}"
    )))
}

/// Opens rows with the base's tokenizer, which rows of token ids do not need, and with its chat template, which only rows of
/// messages need. A file may be one of the hub's:
/// `hub:org/name/file` or `hub:org/name@revision/file`.
///
/// # Errors
/// If a row cannot be read (the message names file and line), has a label that is none of the base's classes, or is longer
/// than the model can.
pub fn open_data(files: &[String], base: &Base, options: &Options) -> Result<Dataset> {
    let expected = match &base.classes {
        Some(classes) => Expected::Given(classes),
        None => Expected::Found(None),
    };
    open_expected(files, base, options, expected)
}

/// Opens the texts of rows to be embedded, in the base's own tokenizer; files are as [`open_data`]'s.
///
/// # Errors
/// If there is no tokenizer that can be read, or a row cannot be read; the message names file and line.
pub fn open_texts(files: &[String], base: &BaseFiles, options: &Options) -> Result<Vec<Example>> {
    let tokenizer = base.tokenizer()?;
    Ok(read_texts(&hub::data(files)?, &tokenizer, options)?)
}

fn open_expected(
    files: &[String],
    base: &BaseFiles,
    options: &Options,
    expected: Expected<'_>,
) -> Result<Dataset> {
    let (tokenizer, broken): (Option<Tokenizer>, Option<Error>) = match base.has_tokenizer() {
        true => match base.tokenizer() {
            Ok(tokenizer) => {
                let template = base.chat_template();
                let template = template.map_err(|error| error.to_string());
                (Some(tokenizer.with_chat_template(template)), None)
            }
            Err(error) => (None, Some(error)),
        },
        false => (None, None),
    };
    let data = match (
        Dataset::open_with(&hub::data(files)?, tokenizer.as_ref(), options, expected),
        broken,
    ) {
        // A tokenizer that cannot be read matters to rows that need one.
        (Err(error), Some(broken)) if error.needs_tokenizer() => return Err(broken),
        (data, _) => data?,
    };
    if base.info.reading == Reading::BothWays
        && let Some(file) = data
            .summary()
            .files
            .iter()
            .find(|file| file.kind != Kind::Labelled)
    {
        return Err(Error::Usage(format!(
            "{}: rows {} are for models that continue texts, and a {} reads texts as a whole; expected rows {} for a classifier",
            file.path.display(),
            file.kind,
            base.info.model_type,
            Kind::Labelled
        )));
    }
    let (longest, limit) = (longest(&data), base.info.max_position_embeddings);
    if longest > limit {
        return Err(Error::TooLong {
            files: format!("`{}`", files.join("`, `")),
            longest,
            limit,
        });
    }
    Ok(data)
}

/// The most tokens that a row or one of its choices has.
fn longest(data: &Dataset) -> usize {
    let choices = data.references().iter().map(|reference| match reference {
        Reference::Choices(question) => {
            let longest = question.choices.iter().map(Vec::len).max();
            question.prompt.len() + longest.unwrap_or(0)
        }
        _ => 0,
    });
    choices.max().unwrap_or(0).max(data.summary().longest)
}
