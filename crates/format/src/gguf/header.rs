//! The header of a GGUF file, checked before anything it says is used.

use super::metadata::{List, Metadata, Type, Value};
use candle_core::DType;
use lowrank_frozen::{BlockType, Encoding};
use std::collections::BTreeSet;
use std::ops::Range;

const MAGIC: &[u8] = b"GGUF";
/// Arrays of arrays are read this deep; nobody writes deeper ones.
const MAX_DEPTH: usize = 4;
/// Where tensors start, if `general.alignment` does not say otherwise.
const ALIGNMENT: u64 = 32;
/// The least that an entry of the metadata takes: a key's length, a type, a value.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// The least that a tensor's description takes: a name's length, the number of dimensions, a type, an offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;

/// What a GGUF file says of itself.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    /// In the order of the file.
    pub(crate) tensors: Vec<Described>,
}

/// One tensor.
#[derive(Debug)]
pub(crate) struct Described {
    pub(crate) name: String,
    /// Rows first, as PyTorch has it; GGUF lists the row's length first.
    pub(crate) shape: Vec<usize>,
    /// The name of the type if it is one that cannot be read.
    pub(crate) encoding: Result<Encoding, &'static str>,
    /// Its bytes, counted from the start of the file; inside the file. Empty if the type cannot be read.
    pub(crate) bytes: Range<usize>,
}

/// Parses the header of a file, given all of its bytes. The error says what is wrong.
pub(crate) fn parse(file: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { file, at: 0 };
    if cursor.take(4, "the first four bytes")? != MAGIC {
        return Err("it does not begin with `GGUF`".to_owned());
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if (1..=3).contains(&version.swap_bytes()) => {
            return Err("it is big-endian, and only little-endian files are read".to_owned());
        }
        version => {
            return Err(format!(
                "its version is {version}, and versions 2 and 3 are read"
            ));
        }
    }
    let tensors = cursor.u64("the number of tensors")?;
    let entries = cursor.u64("the number of metadata entries")?;
    cursor.expect_room(entries, MIN_ENTRY, "metadata entries")?;
    let metadata = read_metadata(&mut cursor, entries)?;
    let alignment = alignment(&metadata)?;

    cursor.expect_room(tensors, MIN_TENSOR, "tensors")?;
    let mut raw = Vec::new();
    for index in 0..tensors {
        raw.push(RawTensor::read(&mut cursor, index)?);
    }
    let start = (cursor.at as u64)
        .checked_next_multiple_of(alignment)
        .ok_or("its alignment leaves no room for tensors")?;
    let data = (file.len() as u64).saturating_sub(start);
    let mut described = Vec::new();
    let mut names = BTreeSet::new();
    for tensor in raw {
        if !names.insert(tensor.name.clone()) {
            return Err(format!("tensor `{}` is listed twice", tensor.name));
        }
        let name = tensor.name.clone();
        let one = tensor.check(start, data, alignment);
        described.push(one.map_err(|what| format!("tensor `{name}` {what}"))?);
    }
    refuse_overlaps(&described)?;
    Ok(Header {
        metadata,
        tensors: described,
    })
}

fn read_metadata(cursor: &mut Cursor<'_>, entries: u64) -> Result<Metadata, String> {
    let mut metadata = Metadata::default();
    for index in 0..entries {
        let key = cursor.text(&format!("the key of metadata entry {index}"))?;
        let what = format!("metadata `{key}`");
        let kind = cursor.kind(&what)?;
        let value = read_value(cursor, kind, &what, 0)?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(format!("{what} is listed twice"));
        }
    }
    Ok(metadata)
}

fn read_value(
    cursor: &mut Cursor<'_>,
    kind: Type,
    what: &str,
    depth: usize,
) -> Result<Value, String> {
    match kind {
        Type::Text => cursor.text(what).map(|text| Value::Text(text.to_owned())),
        Type::List => {
            let element = cursor.kind(what)?;
            let count = cursor.u64(what)?;
            if depth == MAX_DEPTH {
                return Err(format!(
                    "{what} has arrays in arrays, more than {MAX_DEPTH} deep"
                ));
            }
            let elements = format!("elements of {what}");
            cursor.expect_room(count, element.min_bytes(), &elements)?;
            let start = cursor.at;
            match element.size() {
                Some(size) => {
                    cursor.take(count * size, what)?;
                }
                None => {
                    for _ in 0..count {
                        if element == Type::Text {
                            cursor.text(what)?;
                        } else {
                            read_value(cursor, element, what, depth + 1)?;
                        }
                    }
                }
            }
            Ok(Value::List(List::new(
                element,
                cursor.file[start..cursor.at].to_vec(),
            )))
        }
        kind => {
            let size = kind.size().unwrap_or_default();
            let bytes = cursor.take(size, what)?;
            kind.scalar(bytes)
                .ok_or_else(|| format!("{what} is a boolean of {}, expected 0 or 1", bytes[0]))
        }
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, String> {
    const KEY: &str = "general.alignment";
    match metadata.count(KEY)? {
        None => Ok(ALIGNMENT),
        Some(alignment) if alignment.is_power_of_two() => Ok(alignment as u64),
        Some(alignment) => Err(format!("`{KEY}` is {alignment}, expected a power of two")),
    }
}

fn refuse_overlaps(tensors: &[Described]) -> Result<(), String> {
    let mut in_order: Vec<&Described> = tensors.iter().filter(|t| !t.bytes.is_empty()).collect();
    in_order.sort_by_key(|tensor| tensor.bytes.start);
    for pair in in_order.windows(2) {
        if pair[1].bytes.start < pair[0].bytes.end {
            return Err(format!(
                "tensor `{}` starts inside tensor `{}`",
                pair[1].name, pair[0].name
            ));
        }
    }
    Ok(())
}

/// A tensor's description as it stands.
struct RawTensor {
    name: String,
    /// The row's length first.
    dims: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl RawTensor {
    fn read(cursor: &mut Cursor<'_>, index: u64) -> Result<Self, String> {
        let name = cursor.text(&format!("the name of tensor {index}"))?;
        let what = format!("the description of tensor `{name}`");
        let rank = cursor.u32(&what)?;
        if !(1..=4).contains(&rank) {
            return Err(format!(
                "tensor `{name}` has {rank} dimensions, expected 1 to 4"
            ));
        }
        let mut dims = Vec::new();
        for _ in 0..rank {
            dims.push(cursor.u64(&what)?);
        }
        Ok(Self {
            name: name.to_owned(),
            dims,
            kind: cursor.u32(&what)?,
            offset: cursor.u64(&what)?,
        })
    }

    /// `data`: how many bytes of tensors the file holds, from byte `start` on.
    fn check(self, start: u64, data: u64, alignment: u64) -> Result<Described, String> {
        let Self {
            name,
            dims,
            kind,
            offset,
        } = self;
        let encoding =
            encoding(kind).ok_or_else(|| format!("is stored as type {kind}, which is unknown"))?;
        let shape: Option<Vec<usize>> = dims
            .iter()
            .rev()
            .map(|&size| usize::try_from(size).ok().filter(|&size| size > 0))
            .collect();
        let count = dims
            .iter()
            .try_fold(1u64, |count, &size| count.checked_mul(size));
        let (Some(shape), Some(count)) = (shape, count) else {
            return Err(format!(
                "has the dimensions {dims:?}, expected sizes above 0 whose product is a number"
            ));
        };
        if offset % alignment != 0 {
            return Err(format!(
                "starts at byte {offset} of the data, which is no multiple of the alignment {alignment}"
            ));
        }
        let (numbers, bytes) = match encoding {
            Ok(Encoding::Plain(dtype)) => (1, dtype.size_in_bytes() as u64),
            Ok(Encoding::Blocks(block)) => (block.numbers() as u64, block.bytes() as u64),
            // Nobody reads it, so its size is not needed; GGUF has no NF4.
            Ok(Encoding::Nf4 { .. }) | Err(_) => (1, 0),
        };
        if dims[0] % numbers != 0 {
            return Err(format!(
                "has rows of {} numbers, which are no whole blocks of {numbers}",
                dims[0]
            ));
        }
        let end = (count / numbers)
            .checked_mul(bytes)
            .and_then(|bytes| bytes.checked_add(offset))
            .filter(|&end| end <= data)
            .ok_or_else(|| {
                format!(
                    "of the dimensions {dims:?} does not end inside the data, which is {data} bytes long: is the \
                     file truncated?"
                )
            })?;
        let place = |at: u64| {
            usize::try_from(start + at).map_err(|_| "lies beyond what can be mapped".to_owned())
        };
        Ok(Described {
            name,
            shape,
            encoding,
            bytes: place(offset)?..place(end)?,
        })
    }
}

/// What GGUF's number of a type means: how it is read, or the name of a type that is not. `None`: unknown.
fn encoding(kind: u32) -> Option<Result<Encoding, &'static str>> {
    let block = |block| Ok(Encoding::Blocks(block));
    Some(match kind {
        0 => Ok(DType::F32.into()),
        1 => Ok(DType::F16.into()),
        2 => block(BlockType::Q4_0),
        3 => block(BlockType::Q4_1),
        6 => block(BlockType::Q5_0),
        7 => block(BlockType::Q5_1),
        8 => block(BlockType::Q8_0),
        9 => block(BlockType::Q8_1),
        10 => block(BlockType::Q2K),
        11 => block(BlockType::Q3K),
        12 => block(BlockType::Q4K),
        13 => block(BlockType::Q5K),
        14 => block(BlockType::Q6K),
        15 => block(BlockType::Q8K),
        16 => Err("iq2_xxs"),
        17 => Err("iq2_xs"),
        18 => Err("iq3_xxs"),
        19 => Err("iq1_s"),
        20 => Err("iq4_nl"),
        21 => Err("iq3_s"),
        22 => Err("iq2_s"),
        23 => Err("iq4_xs"),
        24 => Err("i8"),
        25 => Err("i16"),
        26 => Err("i32"),
        27 => Err("i64"),
        28 => Ok(DType::F64.into()),
        29 => Err("iq1_m"),
        30 => Ok(DType::BF16.into()),
        34 => Err("tq1_0"),
        35 => Err("tq2_0"),
        39 => Err("mxfp4"),
        _ => return None,
    })
}

/// A place in the file. Nothing beyond its end is ever read, and no length is believed.
pub(super) struct Cursor<'a> {
    pub(super) file: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    /// Refuses a count of things that cannot fit into what is left.
    fn expect_room(&self, count: u64, least: u64, what: &str) -> Result<(), String> {
        let left = self.left();
        if count > left / least {
            return Err(format!(
                "it claims {count} {what}, and only {left} bytes follow: is it truncated?"
            ));
        }
        Ok(())
    }

    fn take(&mut self, length: u64, what: &str) -> Result<&'a [u8], String> {
        let left = self.left();
        if length > left {
            return Err(format!(
                "{what} should take {length} bytes, and only {left} follow: is it truncated?"
            ));
        }
        let end = self.at + length as usize;
        let bytes = &self.file[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.u64(what)?;
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| format!("{what} is not UTF-8: {error}"))
    }

    fn kind(&mut self, what: &str) -> Result<Type, String> {
        let number = self.u32(what)?;
        Type::numbered(number).ok_or_else(|| format!("{what} has the unknown type {number}"))
    }
}
