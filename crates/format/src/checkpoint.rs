//! A model's weights as a Hugging Face folder holds them: in one file or in shards.

use crate::bitsandbytes::{Quantised, Raw};
use crate::{Error, Result, Safetensors, check_finite, json, source};
use candle_core::Tensor;
use lowrank_frozen::{Stored, TensorInfo, Weights};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The only file of weights, if there is one.
pub(crate) const SINGLE: &str = "model.safetensors";
/// What lists the files of weights, if there are several.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The weights of a Hugging Face folder, mapped and not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    folder: PathBuf,
    files: Vec<Safetensors>,
    /// Which of `files` holds a tensor.
    tensors: BTreeMap<String, usize>,
    /// Matrices that are several of `tensors`.
    quantised: Quantised,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or else the shards that `model.safetensors.index.json` lists, and checks their headers.
    /// Matrices that bitsandbytes saved in NF4 are one tensor each, and held as they are.
    ///
    /// # Errors
    /// If `folder` is missing, is a GGUF file or a pickle, or holds nothing but pickles (the message says how to convert
    /// them); if a file is damaged (see [`Safetensors::open`]); if the index names a file outside the folder, a shard that
    /// is missing or one that lacks a tensor, or if a shard holds a tensor that the index does not place there; if the parts
    /// of a matrix of bitsandbytes do not fit together, or it is in fp4 or int8.
    pub fn open(folder: &Path) -> Result<Self> {
        source::require_folder(folder, source::FOLDER, source::CONVERT_MODEL)?;
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        let (files, tensors) = if single.exists() {
            let file = Safetensors::open(&single)?;
            let tensors = file
                .names()
                .into_iter()
                .map(|name| (name.to_owned(), 0))
                .collect();
            (vec![file], tensors)
        } else if index.exists() {
            open_shards(folder, &index)?
        } else if let Some(pickle) = source::find_pickle(folder)? {
            return Err(Error::Pickle {
                path: pickle,
                convert: source::CONVERT_MODEL,
            });
        } else {
            let what = format!(
                "holds neither {SINGLE} nor {INDEX}; expected {}",
                source::FOLDER
            );
            return Err(Error::content(folder, what));
        };
        let mut checkpoint = Self {
            folder: folder.to_path_buf(),
            files,
            tensors,
            quantised: Quantised::default(),
        };
        let names = checkpoint.tensors.keys().map(String::as_str);
        checkpoint.quantised = Quantised::find(names, &|name| checkpoint.raw(name))?;
        Ok(checkpoint)
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn file(&self, name: &str) -> Option<&Safetensors> {
        self.tensors.get(name).map(|&file| &self.files[file])
    }

    fn raw(&self, name: &str) -> Option<Raw<'_>> {
        self.file(name)?.raw(name)
    }
}

impl Weights for Checkpoint {
    fn names(&self) -> Vec<&str> {
        let names = self.tensors.keys().map(String::as_str);
        names
            .filter(|name| !self.quantised.parts.contains(*name))
            .collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.quantised.matrices.get(name) {
            Some(matrix) => Some(matrix.info()),
            None => self.file(name)?.info(name),
        }
    }

    /// A tensor with a non-finite value is an error.
    fn tensor(&self, name: &str) -> lowrank_frozen::Result<Tensor> {
        let file = self.file(name).ok_or_else(|| Error::Missing {
            path: self.folder.clone(),
            name: name.to_owned(),
        })?;
        let tensor = match self.quantised.matrices.get(name) {
            Some(_) => self.stored(name)?.to_dense()?,
            None => file.tensor(name)?,
        };
        check_finite(file.path(), name, &tensor)?;
        Ok(tensor)
    }

    /// Values in NF4 are not looked at.
    fn stored(&self, name: &str) -> lowrank_frozen::Result<Stored> {
        match self.quantised.matrices.get(name) {
            Some(matrix) => matrix.read(name, &|name| self.raw(name)),
            None => Stored::new(self.tensor(name)?),
        }
    }

    fn origin(&self) -> String {
        self.folder.display().to_string()
    }
}

/// What is read of an index; its other entries say nothing that the shards do not.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that an index names, each a plain name in its folder.
pub(crate) fn shards(path: &Path) -> Result<BTreeSet<String>> {
    let index: Index = json::read_json(path)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    for shard in &shards {
        source::check_plain(shard, path)?;
        if !shard.ends_with(".safetensors") {
            return Err(Error::Index {
                path: path.to_path_buf(),
                what: format!(
                    "`weight_map` names `{shard}`; expected files that end in .safetensors"
                ),
            });
        }
    }
    Ok(shards)
}

fn open_shards(folder: &Path, path: &Path) -> Result<(Vec<Safetensors>, BTreeMap<String, usize>)> {
    let index: Index = json::read_json(path)?;
    let invalid = |what: String| Error::Index {
        path: path.to_path_buf(),
        what,
    };
    if index.weight_map.is_empty() {
        return Err(invalid("`weight_map` lists no tensor".to_owned()));
    }

    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut files = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        let number = match numbers.get(shard.as_str()) {
            Some(&number) => number,
            None => {
                let file = source::inside(folder, shard, path)?.ok_or_else(|| {
                    invalid(format!("tensor `{name}` is in `{shard}`, which is missing"))
                })?;
                files.push(Safetensors::open(&file)?);
                numbers.insert(shard, files.len() - 1);
                files.len() - 1
            }
        };
        if !files[number].contains(name) {
            return Err(invalid(format!("tensor `{name}` is not in `{shard}`")));
        }
        tensors.insert(name.clone(), number);
    }
    for (shard, &number) in &numbers {
        for name in files[number].names() {
            match index.weight_map.get(name) {
                Some(place) if place == shard => {}
                Some(place) => {
                    let what = format!(
                        "tensor `{name}` should be in `{place}` only, and is also in `{shard}`"
                    );
                    return Err(invalid(what));
                }
                None => {
                    let what = format!("tensor `{name}` of `{shard}` is not listed");
                    return Err(invalid(what));
                }
            }
        }
    }
    Ok((files, tensors))
}
