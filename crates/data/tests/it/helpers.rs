//! Folders of data files, and a small tokenizer of words.

use lowrank_data::{Dataset, Example, Options, Result, Tokenizer};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use tempfile::TempDir;

/// Words are tokens; the template puts `<s>` (1) before a text. Asks for truncation and padding, which must not happen.
pub const TOKENIZER: &str = r#"{
    "version": "1.0",
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>"},
    "added_tokens": [
        {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true},
        {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true}],
    "normalizer": null,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": null,
    "model": {"type": "WordLevel", "unk_token": "<unk>",
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "the": 3, "cat": 4, "sat": 5, "on": 6, "a": 7, "mat": 8, "été": 11}}
}"#;

/// A folder with files.
pub struct Folder(TempDir);

impl Folder {
    pub fn new(files: &[(&str, &[u8])]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, content) in files {
            std::fs::write(folder.path(name), content).unwrap();
        }
        folder
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn open(
        &self,
        names: &[&str],
        tokenizer: Option<&Tokenizer>,
        options: &Options,
    ) -> Result<Dataset> {
        let patterns: Vec<_> = names
            .iter()
            .map(|name| self.path(name).to_str().unwrap().to_owned())
            .collect();
        Dataset::open(&patterns, tokenizer, options)
    }

    /// A message without the folder's own name.
    pub fn message(&self, error: &lowrank_data::Error) -> String {
        error
            .to_string()
            .replace(&format!("{}/", self.0.path().display()), "")
    }
}

pub fn tokenizer() -> Tokenizer {
    Tokenizer::from_file(
        Folder::new(&[("tokenizer.json", TOKENIZER.as_bytes())]).path("tokenizer.json"),
    )
    .unwrap()
}

pub fn options() -> Options {
    Options {
        max_length: count(64),
        end_token: Some(2),
        vocab: 12,
        limit: None,
    }
}

pub fn count(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// One file, read with the words' tokenizer.
pub fn read(content: &str, options: &Options) -> Dataset {
    Folder::new(&[("d.jsonl", content.as_bytes())])
        .open(&["d.jsonl"], Some(&tokenizer()), options)
        .unwrap()
}

/// Every row of a data set.
pub fn examples(data: &Dataset) -> Vec<Example> {
    let rows = data.examples().iter();
    rows.map(|row| row.unwrap().into_owned()).collect()
}
