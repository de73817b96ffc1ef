//! Matrices that bitsandbytes saved in NF4, each as several tensors.
//!
//! Beside the codes, `X.weight`, there are `X.weight.absmax`, the scales of the blocks; `X.weight.quant_map`, the values of
//! the codes; and `X.weight.quant_state.bitsandbytes__nf4`, the JSON that says what they are. With double quantisation the
//! scales are bytes, and `X.weight.nested_absmax` and `X.weight.nested_quant_map` say what these mean.

use crate::dtype;
use crate::{Error, Result};
use lowrank_frozen::{Encoding, Nf4, Scales, Stored, TensorInfo};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// What stands between a matrix's name and the word for its type.
const STATE: &str = ".quant_state.bitsandbytes__";
const ABSMAX: &str = ".absmax";
const MAP: &str = ".quant_map";
const NESTED_ABSMAX: &str = ".nested_absmax";
const NESTED_MAP: &str = ".nested_quant_map";

/// The end of the scales' name where a matrix is held in 8 bits.
const INT8: &str = ".SCB";

/// Numbers that share a scale, and scales that share one.
const BLOCK: usize = 64;
const NESTED_BLOCK: usize = 256;

/// A tensor as it lies in a file.
#[derive(Clone, Copy)]
pub(crate) struct Raw<'a> {
    pub(crate) path: &'a Path,
    pub(crate) dtype: dtype::Stored,
    pub(crate) shape: &'a [usize],
    pub(crate) bytes: &'a [u8],
}

impl Raw<'_> {
    /// How many numbers the bytes are; the dtype is one of whole bytes.
    fn numbers(&self) -> usize {
        self.bytes.len() / (self.dtype.bits() as usize).div_ceil(8)
    }
}

/// The matrices of a checkpoint that are in NF4.
#[derive(Debug, Default)]
pub(crate) struct Quantised {
    pub(crate) matrices: BTreeMap<String, Matrix>,
    /// The tensors that are no tensors of the model.
    pub(crate) parts: BTreeSet<String>,
}

/// What the state of a matrix says. All of its tensors have been found to be of the right sizes.
#[derive(Debug)]
pub(crate) struct Matrix {
    dims: (usize, usize),
    nested: Option<Nested>,
}

#[derive(Debug)]
struct Nested {
    map: Arc<[f32; 256]>,
    offset: f32,
}

/// The JSON of a state; its other fields do not change the numbers.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f64>,
}

impl Quantised {
    /// Finds the matrices among all tensors, and compares their parts with what their states say. Only states and tables of
    /// codes are read.
    pub(crate) fn find<'a>(
        names: impl Iterator<Item = &'a str> + Clone,
        raw: &impl Fn(&str) -> Option<Raw<'a>>,
    ) -> Result<Self> {
        let mut found = Self::default();
        // The tables are all the same unless someone made his own, and then held once.
        let mut tables = Vec::new();
        for name in names.clone() {
            if let Some((weight, kind)) = name.rsplit_once(STATE) {
                found.insert(weight, kind, raw, &mut tables)?;
            } else if let Some(layer) = name.strip_suffix(INT8)
                && let weight = format!("{layer}.weight")
                && let Some(raw) = raw(&weight)
            {
                return Err(unsupported(raw, weight, "int8"));
            }
        }
        for name in names {
            let weight = [NESTED_ABSMAX, NESTED_MAP, ABSMAX, MAP]
                .iter()
                .find_map(|part| name.strip_suffix(part));
            if let Some(weight) = weight
                && !found.parts.contains(name)
                && let Some(raw) = raw(name)
            {
                let what = format!(
                    "belongs to no matrix; expected `{weight}{STATE}nf4` to say that it does"
                );
                return Err(wrong(raw, name, &what));
            }
        }
        Ok(found)
    }

    fn insert<'a>(
        &mut self,
        weight: &str,
        kind: &str,
        raw: &impl Fn(&str) -> Option<Raw<'a>>,
        tables: &mut Vec<Arc<[f32; 256]>>,
    ) -> Result<()> {
        let name = format!("{weight}{STATE}{kind}");
        let Some(state) = raw(&name) else {
            return Ok(());
        };
        let part = |part: &str| {
            let name = format!("{weight}{part}");
            let found = raw(&name).ok_or_else(|| Error::Missing {
                path: state.path.to_path_buf(),
                name: name.clone(),
            })?;
            Ok::<_, Error>((name, found))
        };
        let (_, codes) = part("")?;
        if kind != "nf4" {
            return Err(unsupported(codes, weight.to_owned(), kind));
        }
        let read: State = serde_json::from_slice(state.bytes)
            .map_err(|error| wrong(state, &name, &format!("is not what it should be: {error}")))?;
        let expect = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            wrong(
                state,
                &name,
                &format!("says that `{field}` is {value}; expected {expected}"),
            )
        };
        if read.quant_type != kind {
            return Err(expect("quant_type", &read.quant_type, kind));
        }
        if read.blocksize != BLOCK {
            return Err(expect("blocksize", &read.blocksize, "64"));
        }
        let dims = match read.shape[..] {
            [rows, columns] if rows.checked_mul(columns).is_some_and(|size| size > 0) => {
                (rows, columns)
            }
            _ => {
                let shape = format!("{:?}", read.shape);
                return Err(expect("shape", &shape, "the rows and columns of a matrix"));
            }
        };
        let numbers = dims.0 * dims.1;
        // Codes may be stored as if they were numbers of another dtype; their bytes are the same.
        let (length, expected) = (codes.bytes.len(), numbers.div_ceil(2));
        if length != expected {
            let what = format!(
                "has {length} bytes; expected {expected}, four bits for each of {} x {} numbers",
                dims.0, dims.1
            );
            return Err(wrong(codes, weight, &what));
        }
        let sized = |end: &str, dtype: &str, count: usize| {
            let (name, found) = part(end)?;
            if found.dtype.name() != dtype || found.numbers() != count {
                let (got, shape) = (found.dtype.name(), found.shape);
                let what = format!("is {got} {shape:?}; expected {count} of {dtype}");
                return Err(wrong(found, &name, &what));
            }
            Ok((name, found))
        };
        let (map, values) = sized(MAP, "F32", Nf4::VALUES.len())?;
        if singles(values).ne(Nf4::VALUES) {
            return Err(wrong(values, &map, "holds other values than those of NF4"));
        }
        let blocks = numbers.div_ceil(BLOCK);
        let mut parts = vec![name.clone(), map];
        let nested = match read.nested_offset {
            None => {
                parts.push(sized(ABSMAX, "F32", blocks)?.0);
                None
            }
            Some(offset) => {
                let block = read.nested_blocksize.unwrap_or(NESTED_BLOCK);
                if block != NESTED_BLOCK {
                    return Err(expect("nested_blocksize", &block, "256"));
                }
                let offset = offset as f32;
                if !offset.is_finite() {
                    return Err(expect("nested_offset", &offset, "a finite number"));
                }
                parts.push(sized(ABSMAX, "U8", blocks)?.0);
                parts.push(sized(NESTED_ABSMAX, "F32", blocks.div_ceil(NESTED_BLOCK))?.0);
                let (map, values) = sized(NESTED_MAP, "F32", 256)?;
                parts.push(map);
                let map = table(tables, values);
                Some(Nested { map, offset })
            }
        };
        self.parts.extend(parts);
        self.matrices
            .insert(weight.to_owned(), Matrix { dims, nested });
        Ok(())
    }
}

impl Matrix {
    pub(crate) fn info(&self) -> TensorInfo {
        TensorInfo {
            shape: vec![self.dims.0, self.dims.1],
            encoding: Encoding::Nf4 {
                double: self.nested.is_some(),
            },
        }
    }

    /// The numbers as they are.
    pub(crate) fn read<'a>(
        &self,
        weight: &str,
        raw: &impl Fn(&str) -> Option<Raw<'a>>,
    ) -> lowrank_frozen::Result<Stored> {
        let bytes = |end: &str| raw(&format!("{weight}{end}")).expect("found when it was opened");
        let scales = match &self.nested {
            None => Scales::Single(singles(bytes(ABSMAX)).collect()),
            Some(Nested { map, offset }) => Scales::Double {
                codes: bytes(ABSMAX).bytes.to_vec(),
                map: Arc::clone(map),
                scales: singles(bytes(NESTED_ABSMAX)).collect(),
                offset: *offset,
            },
        };
        let numbers = Nf4 {
            numbers: self.dims.0 * self.dims.1,
            codes: bytes("").bytes.to_vec(),
            scales,
        };
        Stored::nf4(numbers, self.dims)
    }
}

/// The table of 256 values, the one that is held already if there is an equal one.
fn table(tables: &mut Vec<Arc<[f32; 256]>>, values: Raw<'_>) -> Arc<[f32; 256]> {
    let mut table = [0.0; 256];
    for (into, value) in table.iter_mut().zip(singles(values)) {
        *into = value;
    }
    let bits = |table: &[f32; 256]| table.map(f32::to_bits);
    if let Some(known) = tables.iter().find(|known| bits(known) == bits(&table)) {
        return Arc::clone(known);
    }
    let table = Arc::new(table);
    tables.push(Arc::clone(&table));
    table
}

fn singles(raw: Raw<'_>) -> impl Iterator<Item = f32> {
    let (numbers, _) = raw.bytes.as_chunks::<4>();
    numbers.iter().map(|&one| f32::from_le_bytes(one))
}

fn unsupported(raw: Raw<'_>, name: String, kind: &str) -> Error {
    Error::DType {
        path: raw.path.to_path_buf(),
        name,
        dtype: format!("{kind} of bitsandbytes"),
    }
}

fn wrong(raw: Raw<'_>, name: &str, what: &str) -> Error {
    Error::content(raw.path, format!("tensor `{name}` {what}"))
}
