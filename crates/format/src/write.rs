//! Writing safetensors: the same tensors give the same bytes, and those that the reference library writes.

use crate::atomic::{atomic_write, atomic_write_file};
use crate::bytes::with_bytes;
use crate::dtype::Stored;
use crate::header::{MAX_BYTES, METADATA};
use crate::{Error, Result, python_json};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// The metadata that Hugging Face libraries write and ask for: tensors laid out as PyTorch has them.
pub const PYTORCH: &[(&str, &str)] = &[("format", "pt")];

/// Writes tensors to a file, whole or not at all. An existing file is replaced.
///
/// The order of `tensors` and `metadata` does not matter: wide dtypes come first, then names in order, which is also what
/// the Python library writes. Tensors of any layout are written row-major.
///
/// # Errors
/// If a name is given twice or is `__metadata__`, if a dtype is not one that [`Safetensors`](crate::Safetensors) loads,
/// or if the file cannot be written.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let planned: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| Planned {
            name: (*name).to_owned(),
            dtype: tensor.dtype(),
            shape: tensor.dims().to_vec(),
        })
        .collect();
    write_safetensors_streaming(path, &planned, metadata, |i| Ok(tensors[i].1.clone()))
}

/// A tensor that is made only when its turn to be written comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name in the file.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// As [`write_safetensors`], with one tensor in memory at a time: `make` gives that of an index of `planned`. It is
/// called once for each, in the order of the file.
///
/// # Errors
/// As [`write_safetensors`], whatever `make` refuses, and if it gives another dtype or shape than was planned.
pub fn write_safetensors_streaming<E: From<Error>>(
    path: &Path,
    planned: &[Planned],
    metadata: &[(&str, &str)],
    mut make: impl FnMut(usize) -> Result<Tensor, E>,
) -> Result<(), E> {
    let sorted = sorted(path, planned)?;
    let header = header(path, &sorted, metadata)?;
    let size =
        |planned: &Planned| planned.shape.iter().product::<usize>() * planned.dtype.size_in_bytes();
    let data: usize = planned.iter().map(size).sum();
    let bytes = (8 + header.len() + data) as u64;
    atomic_write(path, bytes, |writer| {
        let failed = || Error::writing(path, bytes);
        writer
            .write_all(&(header.len() as u64).to_le_bytes())
            .map_err(failed())?;
        writer.write_all(&header).map_err(failed())?;
        for (index, planned, _) in &sorted {
            let tensor = make(*index)?;
            if tensor.dims() != planned.shape || tensor.dtype() != planned.dtype {
                return Err(E::from(Error::Name {
                    name: planned.name.clone(),
                    what: "is not of the dtype and shape that were planned",
                }));
            }
            with_bytes(&tensor, |bytes| writer.write_all(bytes))?.map_err(failed())?;
        }
        Ok(())
    })
}

/// Writes a checkpoint into an existing folder as Hugging Face libraries lay it out: one `model.safetensors` if
/// `max_shard_bytes` suffices, else `model-00001-of-0000N.safetensors` and an index.
///
/// Tensors are dealt out in the order of their names; one that is larger than `max_shard_bytes` gets a file of its own.
///
/// # Errors
/// As [`write_safetensors`]. Files written before the error stay: write into an
/// [`AtomicFolder`](crate::AtomicFolder).
pub fn write_sharded<'a>(
    dir: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    max_shard_bytes: u64,
) -> Result<()> {
    let mut tensors: Vec<_> = tensors.into_iter().collect();
    tensors.sort_by_key(|&(name, _)| name);
    refuse_repeated(tensors.iter().map(|&(name, _)| name))?;

    let size = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
    let mut shards: Vec<Vec<(&str, &Tensor)>> = Vec::new();
    let mut room = 0;
    for (name, tensor) in tensors {
        let size = size(tensor);
        match shards.last_mut().filter(|_| size <= room) {
            Some(shard) => {
                shard.push((name, tensor));
                room -= size;
            }
            None => {
                shards.push(vec![(name, tensor)]);
                room = max_shard_bytes.saturating_sub(size);
            }
        }
    }
    if shards.len() <= 1 {
        let all = shards.pop().unwrap_or_default();
        return write_safetensors(&dir.join("model.safetensors"), all, PYTORCH);
    }

    let count = shards.len();
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for (index, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", index + 1);
        for (name, tensor) in &shard {
            weight_map.insert((*name).to_owned(), Value::from(file.clone()));
            total_size += size(tensor);
        }
        write_safetensors(&dir.join(file), shard, PYTORCH)?;
    }
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    let path = dir.join("model.safetensors.index.json");
    atomic_write_file(&path, format!("{}\n", python_json(&index)).as_bytes())
}

/// The tensors in the reference's order, each with its index in `planned`.
fn sorted<'a>(path: &Path, planned: &'a [Planned]) -> Result<Vec<(usize, &'a Planned, Stored)>> {
    let mut by_name: Vec<_> = planned.iter().enumerate().collect();
    by_name.sort_by_key(|(_, planned)| planned.name.as_str());
    refuse_repeated(by_name.iter().map(|(_, planned)| planned.name.as_str()))?;
    let mut sorted = Vec::with_capacity(by_name.len());
    for (index, planned) in by_name {
        let name = &planned.name;
        if name == METADATA {
            return Err(Error::Name {
                name: name.clone(),
                what: "has a name that safetensors files use for their own text",
            });
        }
        let stored = Stored::of(planned.dtype).ok_or_else(|| Error::DType {
            path: path.to_path_buf(),
            name: name.clone(),
            dtype: planned.dtype.as_str().to_owned(),
        })?;
        sorted.push((index, planned, stored));
    }
    sorted.sort_by_key(|&(_, _, stored)| Reverse(stored));
    Ok(sorted)
}

fn refuse_repeated<'a>(sorted: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut last = None;
    for name in sorted {
        if last == Some(name) {
            return Err(Error::Name {
                name: name.to_owned(),
                what: "is given twice",
            });
        }
        last = Some(name);
    }
    Ok(())
}

/// The header's JSON, padded with spaces so that the data starts at a multiple of eight bytes.
fn header(
    path: &Path,
    sorted: &[(usize, &Planned, Stored)],
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>> {
    // Text from the start: a tree of the entries of a large file would take several times as much memory.
    let mut json = b"{".to_vec();
    let mut add = |name: &str, entry: Value| {
        if json.len() > 1 {
            json.push(b',');
        }
        json.extend_from_slice(Value::from(name).to_string().as_bytes());
        json.push(b':');
        json.extend_from_slice(entry.to_string().as_bytes());
    };
    if !metadata.is_empty() {
        let sorted: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        add(METADATA, json!(sorted));
    }
    let mut begin = 0;
    for (_, planned, stored) in sorted {
        let elements: usize = planned.shape.iter().product();
        let end = begin + elements * planned.dtype.size_in_bytes();
        let entry =
            json!({"dtype": stored.name(), "shape": planned.shape, "data_offsets": [begin, end]});
        add(&planned.name, entry);
        begin = end;
    }
    json.push(b'}');
    json.resize(json.len().next_multiple_of(8), b' ');
    if json.len() as u64 > MAX_BYTES {
        let what = format!(
            "its header would take {} bytes, and the most allowed is {MAX_BYTES}",
            json.len()
        );
        return Err(Error::content(path, what));
    }
    Ok(json)
}
