//! What lies beside a model's weights and belongs to the model.

use crate::{Error, Result, source};
use std::fs;
use std::path::Path;

/// Copies a model folder's configuration and tokenizer files into another folder; returns the names copied, sorted.
///
/// These are the files directly in `from` that are named `*.json`, `*.jinja`, `*.model` or `tokenizer*`, and `vocab.txt`
/// and `merges.txt`, but not shard indexes, adapter configurations and weights. Files in `to` of the same names are replaced.
///
/// # Errors
/// If one of them is a link that leads out of the folder, or cannot be copied.
pub fn copy_side_files(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut names = source::list(from)?;
    names.retain(|name| is_side_file(name));
    let mut copied = Vec::new();
    for name in names {
        let Some(path) = source::inside(from, &name, from)? else {
            // A link to nothing.
            continue;
        };
        if path.is_file() {
            fs::copy(&path, to.join(&name)).map_err(Error::io("copy", &path))?;
            copied.push(name);
        }
    }
    Ok(copied)
}

/// Whether a file of this name belongs to a model and holds no weights.
pub(crate) fn is_side_file(name: &str) -> bool {
    let suffix = name.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    let foreign = name.ends_with(".index.json")
        || matches!(name, "adapter_config.json" | "lowrank.json")
        || name.starts_with('.')
        || matches!(suffix, "safetensors" | "gguf" | "tmp")
        || source::is_pickle(Path::new(name));
    let belongs = matches!(suffix, "json" | "jinja" | "model")
        || matches!(name, "vocab.txt" | "merges.txt")
        || name.starts_with("tokenizer");
    belongs && !foreign
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), format!("text of {name}")).unwrap();
        }
        dir
    }

    #[test]
    fn configuration_and_tokenizer_are_copied_and_weights_are_not() {
        let from = folder(&[
            ".hidden.json",
            "README.md",
            "adapter_config.json",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "lowrank.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "vocab.txt",
        ]);
        fs::create_dir(from.path().join("folder.json")).unwrap();
        let to = folder(&["config.json"]);
        fs::write(to.path().join("config.json"), "to be replaced").unwrap();
        let copied = copy_side_files(from.path(), to.path()).unwrap();
        assert_eq!(
            copied,
            [
                "chat_template.jinja",
                "config.json",
                "generation_config.json",
                "merges.txt",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer.model",
                "tokenizer_config.json",
                "vocab.txt",
            ]
        );
        assert_eq!(source::list(to.path()).unwrap(), copied);
        for name in copied {
            let text = fs::read_to_string(to.path().join(&name)).unwrap();
            assert_eq!(text, format!("text of {name}"));
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_inside_the_folder_and_into_the_hubs_blobs_only() {
        use std::os::unix::fs::symlink;
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("snapshots/main");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir(cache.path().join("blobs")).unwrap();
        fs::write(cache.path().join("blobs/123"), "blob").unwrap();
        symlink("../../blobs/123", snapshot.join("config.json")).unwrap();
        symlink("config.json", snapshot.join("tokenizer.json")).unwrap();
        symlink("nowhere", snapshot.join("vocab.txt")).unwrap();
        let to = tempfile::tempdir().unwrap();
        let copied = copy_side_files(&snapshot, to.path()).unwrap();
        assert_eq!(copied, ["config.json", "tokenizer.json"]);
        assert!(!to.path().join("tokenizer.json").is_symlink());
        assert_eq!(fs::read(to.path().join("tokenizer.json")).unwrap(), b"blob");

        fs::write(cache.path().join("secret"), "secret").unwrap();
        symlink("../../secret", snapshot.join("tokenizer_config.json")).unwrap();
        let message = copy_side_files(&snapshot, to.path())
            .unwrap_err()
            .to_string();
        let expected = format!(
            "{}: `tokenizer_config.json` points outside the folder",
            snapshot.display()
        );
        assert_eq!(message, expected);
    }
}
