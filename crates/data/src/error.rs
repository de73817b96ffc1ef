//! What can be wrong with data, and where.

use crate::classes::Form;
use crate::row::Kind;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The result of every function in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a row needs for a loss.
const SUPERVISED: &str = "expected a token behind the first that is predicted: one of `labels` that is not -100, a completion, or a turn of \
                          the assistant";

/// Why a data set or a tokenizer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A row cannot be used.
    #[error("{}:{line}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The line, from 1, blank lines counted; in a Parquet file the row.
        line: u64,
        /// What is wrong with the row.
        problem: Problem,
    },
    /// Tokenised rows cannot be kept.
    #[error("cannot keep tokenised rows in `{}`: {source}; free some space, name another folder with `data.cache` or LOWRANK_CACHE, or hold rows in memory with `data.cache = false`", path.display())]
    WriteCache {
        /// The file that was to hold them.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Tokenised rows that were whole are not any more.
    #[error("the tokenised rows in `{}` were changed by somebody else: start again", path.display())]
    CacheChanged {
        /// The file that holds them.
        path: PathBuf,
    },
    /// A data file was written to while it was read.
    #[error("data file `{}` was changed while it was read: start again when it is complete", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// Rows cannot be held out.
    #[error(
        "`data.eval_fraction = {fraction}` of {rows} rows leaves none to train on or none to evaluate on: expected at least 2 rows"
    )]
    TooFewToSplit {
        /// The share.
        fraction: f64,
        /// How many rows there are.
        rows: usize,
    },
    /// A weight takes nothing of a file.
    #[error("data file `{}` has {rows} rows, and a weight of {weight} takes none of them in an epoch: raise the weight, or leave the file out", path.display())]
    WeightTooSmall {
        /// The file.
        path: PathBuf,
        /// How many rows it has.
        rows: usize,
        /// Its weight.
        weight: f64,
    },
    /// An epoch would be too long to be counted.
    #[error("an epoch would take more rows than can be counted: lower the weights of `data.train`")]
    EpochTooLong,
    /// Lengths are not of the rows that are to be packed or grouped.
    #[error("a packing of {lengths} rows cannot pack {rows}")]
    PackedRows {
        /// How many rows there are.
        rows: usize,
        /// How many rows it knows.
        lengths: usize,
    },
    /// A mixture is not of the epochs that it is to fill.
    #[error("an epoch of {rows} rows cannot take {draws}")]
    MixedRows {
        /// How many rows an epoch has.
        rows: usize,
        /// How many the mixture takes.
        draws: usize,
    },
    /// A packed run is so long that its steps cannot be counted.
    #[error(
        "`train.epochs = {epochs}` of {rows} rows cannot be packed ahead to count the steps: expected at most {limit} rows in all; \
         say how long the run is with `train.steps`"
    )]
    PackedEpochs {
        /// How many epochs the run has.
        epochs: u64,
        /// How many rows an epoch has.
        rows: usize,
        /// The most rows that are packed ahead.
        limit: u64,
    },
    /// The list of data files is empty.
    #[error("no data files are given")]
    NoPatterns,
    /// A pattern is not a valid glob.
    #[error("data files `{pattern}`: not a valid pattern: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// No file matches a pattern.
    #[error(
        "data files `{pattern}`: no file matches (paths are relative to the working directory)"
    )]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A data file does not exist.
    #[error("data file `{}` does not exist (paths are relative to the working directory)", path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// A folder is named where a file is expected.
    #[error("data file `{}` is a folder: name its files, for example `{}`", path.display(), path.join("*.jsonl").display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// The operating system refused to read a file.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// A source of data that is planned.
    #[error("data source `{name}`: {what} are not yet supported: {remedy}")]
    NotYetSupported {
        /// The source as the user wrote it.
        name: String,
        /// What kind of source it is.
        what: &'static str,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A Parquet file cannot be read.
    #[error("`{}` cannot be read as a Parquet file: {message}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A file has no rows.
    #[error("data file `{}` has no rows", path.display())]
    NoRows {
        /// The file.
        path: PathBuf,
    },
    /// No token of a data set takes part in the loss.
    #[error(
        "nothing is supervised in {}: {rows} rows, {truncated} of them cut at max_length = {max_length}; {}",
        list(files),
        if *truncated > 0 { "raise max_length" } else { SUPERVISED }
    )]
    NothingSupervised {
        /// The files.
        files: Vec<PathBuf>,
        /// How many rows they have.
        rows: usize,
        /// How many of them were cut.
        truncated: usize,
        /// Where they were cut, in tokens.
        max_length: usize,
    },
    /// The end token is not in the model's vocabulary.
    #[error("the end token {token} is out of range: the model's vocabulary has {vocab} entries")]
    EndToken {
        /// The end token.
        token: u32,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A folder has no `tokenizer.json`.
    #[error("{}", no_tokenizer(folder, found))]
    NoTokenizer {
        /// The folder.
        folder: PathBuf,
        /// Files of other tokenizer formats that the folder has.
        found: Vec<String>,
    },
    /// A tokenizer file cannot be used.
    #[error("tokenizer `{}`: {message}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// A model has no template to write messages with.
    #[error(
        "{origin} has no chat template: expected `chat_template` in tokenizer_config.json, or chat_template.jinja beside it"
    )]
    NoChatTemplate {
        /// The folder or file.
        origin: String,
    },
    /// A chat template cannot be used, or refuses the messages.
    #[error("chat template of {origin}: {message}")]
    ChatTemplate {
        /// The folder or file that has it.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// A stop string without a character would end every text at once.
    #[error("a stop string is empty")]
    EmptyStop,
    /// Rows that all have the same label.
    #[error(
        "every `label` from {} on is of one class: there is nothing to tell apart (if they are values, write them with a \
         decimal point or set `task.num_labels = 1`)",
        path.display()
    )]
    OneClass {
        /// The first file with labels.
        path: PathBuf,
    },
    /// A tokenizer refused a text or tokens.
    #[error("the tokenizer failed: {message}")]
    Tokenize {
        /// Its reason.
        message: String,
    },
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The line is not UTF-8.
    #[error("not UTF-8 at byte {byte} of the line")]
    Encoding {
        /// The first bad byte, from 1.
        byte: usize,
    },
    /// The line is too long to be read.
    #[error(
        "the line is longer than {limit} bytes: each row is one JSON object on a line of its own"
    )]
    TooLong {
        /// The most that is read.
        limit: usize,
    },
    /// The line is not JSON.
    #[error(
        "not valid JSON at column {column}: {message} (each row is one JSON object on a line of its own)"
    )]
    Syntax {
        /// The byte where reading stopped, from 1.
        column: usize,
        /// What was wrong there.
        message: String,
    },
    /// The line is JSON, but not an object.
    #[error("expected a JSON object, found {found}")]
    NotObject {
        /// What it is.
        found: &'static str,
    },
    /// A field is written twice.
    #[error("the field `{field}` is written twice")]
    Duplicate {
        /// The field.
        field: String,
    },
    /// The fields are those of no kind of row.
    #[error(
        "a row with {fields} is of no known kind: expected {}{}",
        Kind::LIST,
        did_you_mean(suggestion)
    )]
    UnknownKind {
        /// The fields, for people.
        fields: String,
        /// A field that the user may have meant.
        suggestion: Option<&'static str>,
    },
    /// A kind of row that is planned.
    #[error("rows {rows} are not yet supported: expected {}", Kind::LIST)]
    NotYetSupported {
        /// The kind.
        rows: &'static str,
    },
    /// The row is of another kind than the file's first.
    #[error(
        "the row is {kind}, but line {first_line} made this a file of {first} rows: one kind a file"
    )]
    Differs {
        /// The row's kind.
        kind: Kind,
        /// The file's kind.
        first: Kind,
        /// The line of the file's first row.
        first_line: u64,
    },
    /// A field that this kind of row does not have.
    #[error("unknown field `{field}` in a row {kind}{}", did_you_mean(suggestion))]
    UnknownField {
        /// The field.
        field: String,
        /// The row's kind.
        kind: Kind,
        /// A field that the user may have meant.
        suggestion: Option<&'static str>,
    },
    /// A field that this kind of row must have.
    #[error("the field `{field}` is missing in a row {kind}")]
    MissingField {
        /// The field.
        field: &'static str,
        /// The row's kind.
        kind: Kind,
    },
    /// A value has the wrong type.
    #[error("`{place}` is {found}, expected {expected}")]
    Type {
        /// The field, with an index where it is a list.
        place: String,
        /// What is there.
        found: String,
        /// What must be there.
        expected: &'static str,
    },
    /// A message of somebody whom chats do not have.
    #[error(
        "`{place}` is \"{found}\", expected one of {names}{}",
        did_you_mean(suggestion)
    )]
    Role {
        /// The field.
        place: String,
        /// What is there.
        found: String,
        /// Those whom chats have.
        names: String,
        /// The one that may have been meant.
        suggestion: Option<&'static str>,
    },
    /// A chat that is not written, or not in a way that shows what the assistant says.
    #[error("{message}")]
    Template {
        /// Why.
        message: String,
    },
    /// A line of a table with more or fewer cells than its header.
    #[error("the line has {cells} cells, and the header {expected}")]
    Cells {
        /// The cells of the line; if they are very many, those that were counted.
        cells: usize,
        /// Those of the header.
        expected: usize,
    },
    /// A cell that is not UTF-8.
    #[error("`{field}` is not UTF-8")]
    CellEncoding {
        /// The field.
        field: String,
    },
    /// A cell begins by a quote and does not end.
    #[error(
        "a quote in the row that begins here is never closed (a quote inside quotes is written twice)"
    )]
    OpenQuote,
    /// Multiple choice without choices.
    #[error("`choices` is empty")]
    NoChoices,
    /// A choice that has no tokens, or cannot be scored for lack of a prompt.
    #[error("`choices[{index}]` gives no tokens, so it has no score")]
    EmptyChoice {
        /// Which one.
        index: usize,
    },
    /// A prompt without tokens before choices.
    #[error("`prompt` gives no tokens, so the first token of each choice has no score")]
    EmptyPrompt,
    /// `answer` is not the index of a choice.
    #[error("`answer` is {answer}, but there are {choices} choices: expected 0 to {}", choices.saturating_sub(1))]
    Answer {
        /// The index given.
        answer: String,
        /// How many choices there are.
        choices: usize,
    },
    /// `labels` and `input_ids` differ in length.
    #[error("`labels` has {labels} entries and `input_ids` {input_ids}: expected the same length")]
    LabelLength {
        /// The length of `labels`.
        labels: usize,
        /// The length of `input_ids`.
        input_ids: usize,
    },
    /// A token that the model does not have.
    #[error(
        "token {token} at position {position} of `{field}` is out of range: the model's vocabulary has {vocab} entries"
    )]
    TokenRange {
        /// `input_ids`, or the field whose text gave the token.
        field: &'static str,
        /// Which token, from 0.
        position: usize,
        /// The token.
        token: i64,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// A label that is neither a token nor -100.
    #[error(
        "`labels[{position}]` is {label}, expected -100 (unsupervised) or a token below {vocab}"
    )]
    LabelRange {
        /// Which label, from 0.
        position: usize,
        /// The label.
        label: i64,
        /// The size of the vocabulary.
        vocab: usize,
    },
    /// Labels of different forms in one data set.
    #[error(
        "`label` is {form}, but it is {first} in line {line} of `{}`: expected labels of one form throughout \
         (if they are values, write all of them with a decimal point or set `task.num_labels = 1`)",
        file.display()
    )]
    LabelForms {
        /// This row's.
        form: Form,
        /// The first row's.
        first: Form,
        /// The file of the first row.
        file: PathBuf,
        /// Its line.
        line: u64,
    },
    /// A label that is below 0 where classes are counted from 0.
    #[error(
        "`label` is {label}, expected a class from 0 (the value of a regression has a decimal point, unless `task.num_labels = 1` says that it is one)"
    )]
    NegativeLabel {
        /// The label.
        label: i64,
    },
    /// A label that is none of the classes.
    #[error("`label` is {label}, expected one of {classes} classes, 0 to {}", classes.saturating_sub(1))]
    ClassRange {
        /// The label.
        label: String,
        /// How many classes there are.
        classes: usize,
    },
    /// A name where the model gives values.
    #[error("`label` is a name, expected a number: one class stands for a value")]
    LabelNotValue,
    /// A name that is none of the classes'.
    #[error("`label` is \"{name}\", {}", known_classes(known))]
    UnknownClass {
        /// The name.
        name: String,
        /// The names that there are, the first of them if there are many.
        known: Vec<String>,
    },
    /// More names than classes.
    #[error("`label` is \"{name}\", a name more than the {classes} classes that there may be")]
    ManyNames {
        /// The name.
        name: String,
        /// How many classes there may be.
        classes: usize,
    },
    /// The special tokens of a row alone are longer than a row may be.
    #[error(
        "max_length is {max_length}, which has no room for the {special} special tokens of this row"
    )]
    NoRoom {
        /// How long a row may be.
        max_length: usize,
        /// How many special tokens the tokenizer's template adds.
        special: usize,
    },
    /// The row has no tokens at all.
    #[error("the row gives no tokens")]
    NoTokens,
    /// The row is text, but there is no tokenizer.
    #[error(
        "a row {kind} needs a tokenizer, and the model has none: add its tokenizer.json or give {} rows",
        Kind::Tokens
    )]
    NeedsTokenizer {
        /// The row's kind.
        kind: Kind,
    },
    /// The tokenizer refused a field.
    #[error("`{field}` cannot be tokenised: {message}")]
    Tokenize {
        /// The field.
        field: &'static str,
        /// The tokenizer's reason.
        message: String,
    },
}

impl Problem {
    /// As an error, with its place.
    pub(crate) fn at(self, path: &Path, line: u64) -> Error {
        Error::Row {
            path: path.to_owned(),
            line,
            problem: self,
        }
    }
}

impl Error {
    /// True if a row is of text, and there is no tokenizer.
    #[must_use]
    pub const fn needs_tokenizer(&self) -> bool {
        matches!(
            self,
            Self::Row {
                problem: Problem::NeedsTokenizer { .. },
                ..
            }
        )
    }
}

fn known_classes(known: &[String]) -> String {
    match known {
        [] => "but the model's classes have no names: expected their numbers".to_owned(),
        known => format!("expected one of \"{}\"", known.join("\", \"")),
    }
}

fn did_you_mean(suggestion: &Option<&'static str>) -> impl fmt::Display {
    suggestion.map_or_else(String::new, |field| format!(" (did you mean `{field}`?)"))
}

/// Names at most four files, so that a message stays readable.
fn list(files: &[PathBuf]) -> String {
    let named: Vec<_> = files
        .iter()
        .take(4)
        .map(|path| format!("`{}`", path.display()))
        .collect();
    let more = files.len() - named.len();
    let named = named.join(", ");
    if more == 0 {
        named
    } else {
        format!("{named} and {more} more")
    }
}

fn no_tokenizer(folder: &Path, found: &[String]) -> String {
    let path = folder.join("tokenizer.json");
    if found.is_empty() {
        return format!("tokenizer `{}` does not exist", path.display());
    }
    format!(
        "tokenizer `{}` does not exist, and {} alone cannot be read: write a fast tokenizer there \
         (in Python: AutoTokenizer.from_pretrained(folder).save_pretrained(folder))",
        path.display(),
        found.join(", "),
    )
}
