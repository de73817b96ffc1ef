//! GGUF files of llama.cpp: weights, configuration and tokenizer in one file, shown as a Hugging Face checkpoint.

mod config;
mod header;
mod metadata;
mod names;
mod tokenizer;

use crate::mapped::Mapped;
use crate::{Error, Result, atomic_write_file, check_finite, source};
use candle_core::{DType, Device, Tensor};
use config::Heads;
use header::Described;
use lowrank_frozen::{Encoding, Stored, TensorInfo, Weights};
use metadata::Metadata;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizer::Vocabulary;

const FREQUENCIES: &str = "rope_freqs.weight";

/// A GGUF file of a LLaMA whose header has been checked: whatever it lists lies inside it.
///
/// Names, and the order of the rows of queries and keys, are those of Hugging Face; blocks are never decoded for that.
pub struct Gguf {
    path: PathBuf,
    map: Mapped,
    metadata: Metadata,
    tensors: BTreeMap<String, Entry>,
    config: Map<String, Value>,
}

/// Where a tensor lies.
struct Entry {
    shape: Vec<usize>,
    encoding: Encoding,
    bytes: Range<usize>,
    /// The heads of its rows, if they are in llama.cpp's order.
    heads: Option<usize>,
}

impl Gguf {
    /// Maps a file and checks its header; no tensor is read but the divisors of rotary frequencies.
    ///
    /// # Errors
    /// If the file cannot be read; if its header is truncated, claims more than the file holds, lists a name twice, or
    /// places tensors that overlap or lie outside the file; if it is not a LLaMA, or if it holds what is not yet
    /// supported. The message names the key or the tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let file = source::open_file(path)?;
        let invalid = |what| Error::Gguf {
            path: path.to_path_buf(),
            what,
        };
        // An empty file cannot be mapped.
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length == 0 {
            return Err(invalid("it is empty".to_owned()));
        }
        let map = Mapped::new(&file, path)?;
        let header = header::parse(&map).map_err(invalid)?;
        let refused = |what: String| Error::content(path, what);
        config::check_architecture(&header.metadata).map_err(refused)?;
        let heads = Heads::read(&header.metadata).map_err(refused)?;
        let frequencies = frequencies(&map, &header.tensors).map_err(refused)?;
        let tensors = entries(header.tensors, heads).map_err(refused)?;
        let has = |name: &str| tensors.contains_key(name);
        let described = config::Tensors {
            vocab: tensors
                .get("model.embed_tokens.weight")
                .map(|entry| entry.shape[0]),
            head: has("lm_head.weight"),
            attention_bias: has("model.layers.0.self_attn.q_proj.bias"),
            mlp_bias: has("model.layers.0.mlp.gate_proj.bias"),
            frequencies: frequencies.as_deref(),
        };
        let config = config::config(&header.metadata, &described).map_err(refused)?;
        Ok(Self {
            path: path.to_path_buf(),
            map,
            metadata: header.metadata,
            tensors,
            config,
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The object that config.json of the same model would hold.
    #[must_use]
    pub const fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Whether the file has a tokenizer, of whatever kind.
    #[must_use]
    pub fn has_tokenizer(&self) -> bool {
        tokenizer::exists(&self.metadata)
    }

    /// What `tokenizer.json` of the same model would hold.
    ///
    /// # Errors
    /// If there is no tokenizer, it contradicts itself, or it is of a kind that is not yet supported.
    pub fn tokenizer(&self) -> Result<Value> {
        Ok(self.vocabulary()?.tokenizer())
    }

    /// What `tokenizer_config.json` of the same model would hold: the chat template and the tokens that it names.
    ///
    /// # Errors
    /// As [`Self::tokenizer`].
    pub fn tokenizer_config(&self) -> Result<Value> {
        Ok(self.vocabulary()?.tokenizer_config())
    }

    /// What `generation_config.json` of the same model would hold: the tokens that end a text.
    ///
    /// # Errors
    /// As [`Self::tokenizer`].
    pub fn generation_config(&self) -> Result<Value> {
        Ok(self.vocabulary()?.generation_config())
    }

    /// Configuration and tokenizer as the files of a Hugging Face folder: names and contents.
    ///
    /// # Errors
    /// As [`Self::tokenizer`], but a file without a tokenizer has the configuration only.
    pub fn side_files(&self) -> Result<Vec<(&'static str, Value)>> {
        let mut files = vec![("config.json", Value::Object(self.config.clone()))];
        if self.has_tokenizer() {
            let vocabulary = self.vocabulary()?;
            files.extend([
                ("generation_config.json", vocabulary.generation_config()),
                ("special_tokens_map.json", vocabulary.special_tokens_map()),
                ("tokenizer.json", vocabulary.tokenizer()),
                ("tokenizer_config.json", vocabulary.tokenizer_config()),
            ]);
        }
        Ok(files)
    }

    /// Writes [`Self::side_files`] into a folder; files of the same names are replaced.
    ///
    /// # Errors
    /// As [`Self::side_files`], or if the folder cannot be written to.
    pub fn write_side_files(&self, folder: &Path) -> Result<()> {
        for (name, value) in self.side_files()? {
            let path = folder.join(name);
            let text = serde_json::to_string_pretty(&value).map_err(|source| Error::Json {
                path: path.clone(),
                source,
            })?;
            atomic_write_file(&path, (text + "\n").as_bytes())?;
        }
        Ok(())
    }

    fn vocabulary(&self) -> Result<Vocabulary<'_>> {
        Vocabulary::read(&self.metadata).map_err(|what| Error::content(&self.path, what))
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        self.tensors.get(name).ok_or_else(|| Error::Missing {
            path: self.path.clone(),
            name: name.to_owned(),
        })
    }

    /// Reads the bytes of a tensor with its rows in Hugging Face's order, and gives their memory back.
    fn with_bytes<R>(&self, entry: &Entry, read: impl FnOnce(&[u8]) -> R) -> R {
        let bytes = &self.map[entry.bytes.clone()];
        let found = match entry.heads {
            None => read(bytes),
            Some(heads) => {
                let rows = entry.shape[0];
                read(&names::reordered(
                    bytes,
                    rows,
                    names::row_order(rows, heads),
                ))
            }
        };
        self.map.release(entry.bytes.clone());
        found
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let entry = self.entry(name)?;
        let tensor = match entry.encoding {
            Encoding::Plain(dtype) => self.with_bytes(entry, |bytes| {
                Tensor::from_raw_buffer(bytes, dtype, &entry.shape, &Device::Cpu)
            })?,
            Encoding::Nf4 { .. } => {
                let what = format!("tensor `{name}` is nf4, which GGUF does not have");
                return Err(Error::content(&self.path, what));
            }
            Encoding::Blocks(block) => {
                let columns = entry.shape.last().copied().unwrap_or(1);
                let rows = entry.shape.iter().product::<usize>() / columns;
                let matrix =
                    self.with_bytes(entry, |bytes| Stored::blocks(block, bytes, (rows, columns)));
                let dense = matrix.and_then(|matrix| matrix.to_dense());
                let dense = dense.map_err(|error| Error::content(&self.path, error.to_string()))?;
                dense.reshape(entry.shape.as_slice())?
            }
        };
        check_finite(&self.path, name, &tensor)?;
        Ok(tensor)
    }
}

impl Weights for Gguf {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let entry = self.tensors.get(name)?;
        Some(TensorInfo {
            shape: entry.shape.clone(),
            encoding: entry.encoding,
        })
    }

    /// A tensor with a non-finite value is an error.
    fn tensor(&self, name: &str) -> lowrank_frozen::Result<Tensor> {
        Ok(self.read(name)?)
    }

    /// Values are not looked at.
    fn stored(&self, name: &str) -> lowrank_frozen::Result<Stored> {
        let entry = self.entry(name)?;
        match (entry.encoding, &entry.shape[..]) {
            (Encoding::Blocks(block), &[rows, columns]) => {
                self.with_bytes(entry, |bytes| Stored::blocks(block, bytes, (rows, columns)))
            }
            _ => Stored::new(self.read(name)?),
        }
    }

    fn origin(&self) -> String {
        self.path.display().to_string()
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("path", &self.path)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

/// The tensors under their names in Hugging Face's checkpoints.
fn entries(
    described: Vec<Described>,
    heads: Heads,
) -> std::result::Result<BTreeMap<String, Entry>, String> {
    let mut entries = BTreeMap::new();
    for tensor in described {
        if tensor.name == FREQUENCIES {
            continue;
        }
        let encoding = tensor.encoding.map_err(|kind| {
            format!(
                "tensor `{}` is stored as {kind}, which is not yet supported; expected f32, f16, bf16 or one of the \
                 types q4_0 to q8_k",
                tensor.name
            )
        })?;
        let (name, heads) = names::rename(&tensor.name, heads);
        let rows = tensor.shape[0];
        if let Some(heads) = heads
            && heads.checked_mul(2).is_none_or(|pairs| rows % pairs != 0)
        {
            return Err(format!(
                "tensor `{}` has {rows} rows, which are no {heads} heads of an even width",
                tensor.name
            ));
        }
        let entry = Entry {
            shape: tensor.shape,
            encoding,
            bytes: tensor.bytes,
            heads,
        };
        if entries.insert(name, entry).is_some() {
            return Err(format!("tensor `{}` is there under two names", tensor.name));
        }
    }
    Ok(entries)
}

/// By what the rotary frequencies are divided.
fn frequencies(map: &[u8], tensors: &[Described]) -> std::result::Result<Option<Vec<f32>>, String> {
    let Some(tensor) = tensors.iter().find(|tensor| tensor.name == FREQUENCIES) else {
        return Ok(None);
    };
    if tensor.encoding != Ok(DType::F32.into()) || tensor.shape.len() != 1 {
        return Err(format!("tensor `{FREQUENCIES}` is no vector of f32"));
    }
    let (numbers, _) = map[tensor.bytes.clone()].as_chunks::<4>();
    Ok(Some(
        numbers.iter().map(|&one| f32::from_le_bytes(one)).collect(),
    ))
}
