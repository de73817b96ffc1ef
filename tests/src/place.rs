//! A temporary folder with models, adapters and rows to work on.

use crate::binary::{self, Ended};
use crate::golden;
use candle_core::{Device, Tensor};
use lowrank::ops::rng::{Key, Purpose};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A temporary folder. The binary runs inside it, so that its messages name short paths.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    /// An empty folder.
    ///
    /// # Panics
    /// If there is no room for one.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { dir }
    }

    /// A folder with the golden model `model`, its rows of tokens `rows.jsonl`, and nothing else.
    #[must_use]
    pub fn with_model(model: &str) -> Self {
        let place = Self::new();
        place.copy(&format!("models/{model}"), "model");
        let vocab = place.json("model/config.json")["vocab_size"].as_u64();
        place.write("rows.jsonl", token_rows(vocab.unwrap_or_default(), 24));
        place
    }

    /// The path of something in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the binary in it.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> Ended {
        binary::run(self.dir.path(), arguments)
    }

    /// Runs the binary in it, with environment variables.
    #[must_use]
    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ended {
        binary::run_with(self.dir.path(), arguments, variables)
    }

    /// Copies a folder of golden files.
    ///
    /// # Panics
    /// If it cannot be read, or not be written.
    pub fn copy(&self, golden: &str, name: &str) {
        copy_folder(&golden::folder().join(golden), &self.path(name));
    }

    /// Copies a folder that is in it.
    ///
    /// # Panics
    /// If it cannot be read, or not be written.
    pub fn duplicate(&self, from: &str, to: &str) {
        copy_folder(&self.path(from), &self.path(to));
    }

    /// Writes a file, and the folders it lies in.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        let path = self.path(name);
        let folder = path.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder).expect("a folder is made");
        fs::write(path, contents).expect("a file is written");
    }

    /// Reads a file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Reads a text file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).expect("text")
    }

    /// Reads a JSON file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).expect("JSON")
    }

    /// Reads a file of JSON lines.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn json_lines(&self, name: &str) -> Vec<Value> {
        let text = self.text(name);
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().expect("JSON lines")
    }

    /// Changes a JSON object in place.
    ///
    /// # Panics
    /// If it is none.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Map<String, Value>)) {
        let mut value = self.json(name);
        edit(value.as_object_mut().expect("an object"));
        self.write(name, value.to_string());
    }

    /// The tensors of a safetensors file.
    ///
    /// # Panics
    /// If it cannot be read.
    #[must_use]
    pub fn tensors(&self, name: &str) -> BTreeMap<String, Tensor> {
        let read: HashMap<String, Tensor> =
            candle_core::safetensors::load(self.path(name), &Device::Cpu).expect("safetensors");
        read.into_iter().collect()
    }

    /// Changes the tensors of a safetensors file.
    ///
    /// # Panics
    /// If it cannot be read or written.
    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut BTreeMap<String, Tensor>)) {
        let mut tensors = self.tensors(name);
        edit(&mut tensors);
        let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        lowrank::format::write_safetensors(&self.path(name), tensors, &[]).expect("safetensors");
    }

    /// Gives a model folder a tokenizer of words: token `i` is the word `wi`, but for `</s>` (2) and `<unk>` (0).
    pub fn add_tokenizer(&self, model: &str, vocab: usize) {
        let word = |id: usize| match id {
            0 => "<unk>".to_owned(),
            2 => "</s>".to_owned(),
            id => format!("w{id}"),
        };
        let vocab: Map<String, Value> = (0..vocab).map(|id| (word(id), id.into())).collect();
        let end = json!({"id": 2, "content": "</s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        let tokenizer = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [end], "normalizer": null, "post_processor": null, "decoder": null,
            "pre_tokenizer": {"type": "Whitespace"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}});
        self.write(&format!("{model}/tokenizer.json"), tokenizer.to_string());
    }

    /// Every file and folder in it, by relative path.
    ///
    /// # Panics
    /// If it cannot be listed.
    #[must_use]
    pub fn entries(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder is listed") {
                let path = entry.expect("a folder is listed").path();
                let name = path.strip_prefix(self.dir.path()).expect("inside");
                found.insert(name.display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                }
            }
        }
        found
    }

    /// Runs what must fail: it ends with `code`, says each of `fragments` once, prints nothing, does not panic and leaves
    /// every name in the folder as it was.
    ///
    /// # Panics
    /// If it does anything else.
    pub fn refuses(&self, arguments: &[&str], code: i32, fragments: &[&str]) {
        let before = self.entries();
        let ended = self.run(arguments);
        let what = format!("{arguments:?}\n{}", ended.stderr);
        assert_eq!(ended.code, code, "{what}");
        assert!(!ended.stderr.contains("panicked at"), "{what}");
        for fragment in fragments {
            let times = ended.stderr.matches(fragment).count();
            assert_eq!(times, 1, "expected `{fragment}` once from {what}");
        }
        assert_eq!(ended.stdout, "", "{what}");
        assert_eq!(self.entries(), before, "{what}");
    }
}

/// Rows of 5 to 16 tokens, the first two of each unsupervised.
fn token_rows(vocab: u64, rows: usize) -> String {
    let mut stream = Key::new(5, Purpose::Test).site("rows").stream();
    let mut text = String::new();
    for _ in 0..rows {
        let length = 5 + stream.below(12);
        let ids: Vec<u64> = (0..length).map(|_| 3 + stream.below(vocab - 3)).collect();
        let labels = ids.iter().enumerate();
        let labels: Vec<i64> = labels
            .map(|(i, &id)| if i < 2 { -100 } else { id as i64 })
            .collect();
        text += &format!("{}\n", json!({"input_ids": ids, "labels": labels}));
    }
    text
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("a folder is listed") {
        let path = entry.expect("a folder is listed").path();
        let target = to.join(path.file_name().expect("an entry has a name"));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, target).expect("a file is copied");
        }
    }
}
