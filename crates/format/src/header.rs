//! The header of a safetensors file, checked before anything it says is used.

use crate::dtype::Stored;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

/// The key under which a header holds text instead of a tensor.
pub(crate) const METADATA: &str = "__metadata__";
/// The reference refuses longer headers, so nobody can have written one.
pub(crate) const MAX_BYTES: u64 = 100_000_000;
/// The bytes in front of the header: its length.
pub(crate) const LENGTH_BYTES: u64 = 8;

/// Where the tensors of a file lie.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) tensors: BTreeMap<String, Entry>,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Where one tensor lies.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Stored,
    pub(crate) shape: Vec<usize>,
    /// Its bytes, counted from the start of the file; inside the file.
    pub(crate) bytes: Range<usize>,
}

/// Parses the header of a file, given all of its bytes. The error says what is wrong.
///
/// What is accepted is what the reference accepts: tensors that cover the data section without
/// overlaps, holes or a remainder, each as long as its shape and dtype say.
pub(crate) fn parse(file: &[u8]) -> Result<Header, String> {
    let total = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk() else {
        return Err(format!(
            "it is {total} bytes long, and the header's length alone takes 8"
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_BYTES {
        return Err(format!(
            "it claims a header of {length} bytes, and the most allowed is {MAX_BYTES}"
        ));
    }
    let json = usize::try_from(length)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or_else(|| {
            let held = rest.len();
            format!(
                "it claims a header of {length} bytes, and only {held} follow: is it truncated?"
            )
        })?;
    if json.first() != Some(&b'{') {
        return Err("its header does not begin with `{`".to_owned());
    }
    let raw: RawHeader =
        serde_json::from_slice(json).map_err(|error| format!("its header: {error}"))?;

    let start = LENGTH_BYTES + length;
    let mut tensors = BTreeMap::new();
    let mut end_of_last = 0;
    let mut last: Option<&str> = None;
    let mut in_file_order: Vec<&(String, RawTensor)> = raw.tensors.iter().collect();
    in_file_order.sort_by_key(|(_, tensor)| tensor.data_offsets);
    for (name, tensor) in in_file_order {
        let entry = tensor
            .check(total - start, start)
            .map_err(|what| format!("tensor `{name}` {what}"))?;
        let (begin, end) = tensor.data_offsets;
        if begin < end_of_last {
            let last = last.unwrap_or_default();
            return Err(format!(
                "tensor `{name}` starts at byte {begin} of the data, inside tensor `{last}`, which ends at {end_of_last}"
            ));
        }
        if begin > end_of_last {
            return Err(format!(
                "bytes {end_of_last} to {begin} of the data, before tensor `{name}`, belong to no tensor"
            ));
        }
        end_of_last = end;
        last = Some(name);
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor `{name}` is listed twice"));
        }
    }
    if end_of_last != total - start {
        let held = total - start;
        return Err(format!(
            "its tensors end at byte {end_of_last} of the data, which is {held} bytes long"
        ));
    }
    Ok(Header {
        tensors,
        metadata: raw.metadata,
    })
}

/// One entry as it stands in the header.
#[derive(serde::Deserialize)]
#[serde(expecting = "an object with `dtype`, `shape` and `data_offsets`")]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    /// `data`: how many bytes of tensors the file holds, from byte `start` on.
    fn check(&self, data: u64, start: u64) -> Result<Entry, String> {
        let dtype = Stored::named(&self.dtype)
            .ok_or_else(|| format!("has an unknown dtype `{}`", self.dtype))?;
        let (begin, end) = self.data_offsets;
        if end < begin {
            return Err(format!("ends at byte {end}, before its start at {begin}"));
        }
        if end > data {
            return Err(format!(
                "ends at byte {end} of the data, which is {data} bytes long: is the file truncated?"
            ));
        }
        let bits = self
            .shape
            .iter()
            .try_fold(dtype.bits(), |bits, &size| bits.checked_mul(size))
            .ok_or_else(|| format!("has shape {:?}, whose size overflows", self.shape))?;
        let held = end - begin;
        if bits % 8 != 0 || bits / 8 != held {
            let (name, shape) = (dtype.name(), &self.shape);
            return Err(format!(
                "is {name} of shape {shape:?}, {} bytes, but its offsets [{begin}, {end}] hold {held}",
                bits.div_ceil(8)
            ));
        }
        let index = |value| usize::try_from(value).map_err(|_| format!("is too large: {value}"));
        Ok(Entry {
            dtype,
            shape: self
                .shape
                .iter()
                .map(|&size| index(size))
                .collect::<Result<_, _>>()?,
            bytes: index(start + begin)?..index(start + end)?,
        })
    }
}

/// The header as it stands, with its entries in order: a map would hide a name that is listed twice.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawTensor)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata = None;
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA {
                        tensors.push((name, map.next_value()?));
                    } else if metadata.is_none() {
                        let value: Option<BTreeMap<String, String>> = map.next_value()?;
                        metadata = Some(value.unwrap_or_default());
                    } else {
                        return Err(A::Error::custom(format_args!(
                            "`{METADATA}` is listed twice"
                        )));
                    }
                }
                let metadata = metadata.unwrap_or_default();
                Ok(RawHeader { metadata, tensors })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of the given header text and number of zero bytes of data.
    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    }

    fn check(json: &str, data: usize, expected: &str) {
        assert_eq!(parse(&file(json, data)).unwrap_err(), expected);
    }

    fn entry(name: &str, shape: &str, begin: u64, end: u64) -> String {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    #[test]
    fn a_good_header_says_where_the_tensors_lie() {
        let json = format!(
            r#"{{{},"__metadata__":{{"format":"pt"}},{},{}}}   "#,
            entry("b", "[2,3]", 4, 28),
            entry("a", "[]", 0, 4),
            entry("none", "[5,0]", 4, 4),
        );
        let header = parse(&file(&json, 28)).unwrap();
        let start = 8 + json.len();
        let names: Vec<&String> = header.tensors.keys().collect();
        assert_eq!(names, ["a", "b", "none"]);
        assert_eq!(header.tensors["a"].bytes, start..start + 4);
        assert_eq!(header.tensors["b"].bytes, start + 4..start + 28);
        assert_eq!(header.tensors["b"].shape, [2, 3]);
        assert_eq!(header.tensors["none"].shape, [5, 0]);
        assert_eq!(header.metadata["format"], "pt");
    }

    #[test]
    fn truncated_and_overlong_headers() {
        assert_eq!(
            parse(&[1, 2, 3]).unwrap_err(),
            "it is 3 bytes long, and the header's length alone takes 8"
        );
        let whole = file(&format!("{{{}}}", entry("a", "[2,3]", 0, 24)), 24);
        assert_eq!(
            parse(&whole[..30]).unwrap_err(),
            "it claims a header of 57 bytes, and only 22 follow: is it truncated?"
        );
        assert_eq!(
            parse(&whole[..80]).unwrap_err(),
            "tensor `a` ends at byte 24 of the data, which is 15 bytes long: is the file truncated?"
        );
        let mut terabyte = whole;
        terabyte[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert_eq!(
            parse(&terabyte).unwrap_err(),
            "it claims a header of 1099511627776 bytes, and the most allowed is 100000000"
        );
        assert_eq!(
            parse(&u64::MAX.to_le_bytes()).unwrap_err(),
            "it claims a header of 18446744073709551615 bytes, and the most allowed is 100000000"
        );
    }

    #[test]
    fn headers_that_are_not_what_they_should_be() {
        check(" {}", 0, "its header does not begin with `{`");
        check("", 0, "its header does not begin with `{`");
        check(
            "{\"a\"",
            0,
            "its header: EOF while parsing an object at line 1 column 4",
        );
        check(
            "{\"a\":7}",
            0,
            "its header: invalid type: integer `7`, expected an object with `dtype`, `shape` and `data_offsets` at line 1 column 6",
        );
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(
            parse(&file(&deep, 0))
                .unwrap_err()
                .starts_with("its header: ")
        );
        let deep = format!("{{\"a\":{{\"x\":{}", "[".repeat(100_000));
        assert!(
            parse(&file(&deep, 0))
                .unwrap_err()
                .starts_with("its header: ")
        );
        check(
            r#"{"a":{"dtype":"F31","shape":[],"data_offsets":[0,0]}}"#,
            0,
            "tensor `a` has an unknown dtype `F31`",
        );
        check(
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            0,
            "its header: `__metadata__` is listed twice at line 1 column 33",
        );
    }

    #[test]
    fn headers_that_ask_for_what_the_file_does_not_hold() {
        let terabyte = 1u64 << 40;
        check(
            &format!("{{{}}}", entry("a", "[274877906944]", 0, terabyte)),
            24,
            "tensor `a` ends at byte 1099511627776 of the data, which is 24 bytes long: is the file truncated?",
        );
        check(
            &format!("{{{}}}", entry("a", "[274877906944]", 0, 24)),
            24,
            "tensor `a` is F32 of shape [274877906944], 1099511627776 bytes, but its offsets [0, 24] hold 24",
        );
        check(
            &format!("{{{}}}", entry("a", "[4294967296,4294967296]", 0, 24)),
            24,
            "tensor `a` has shape [4294967296, 4294967296], whose size overflows",
        );
        check(
            r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#,
            1,
            "tensor `a` is F4 of shape [3], 2 bytes, but its offsets [0, 1] hold 1",
        );
        check(
            &format!("{{{}}}", entry("a", "[2]", 8, 0)),
            8,
            "tensor `a` ends at byte 0, before its start at 8",
        );
    }

    #[test]
    fn tensors_that_do_not_cover_the_file() {
        let (a, b) = (entry("a", "[2,3]", 0, 24), entry("b", "[3]", 20, 32));
        check(
            &format!("{{{a},{b}}}"),
            32,
            "tensor `b` starts at byte 20 of the data, inside tensor `a`, which ends at 24",
        );
        let late = entry("b", "[3]", 28, 40);
        check(
            &format!("{{{a},{late}}}"),
            40,
            "bytes 24 to 28 of the data, before tensor `b`, belong to no tensor",
        );
        check(
            &format!("{{{a}}}"),
            30,
            "its tensors end at byte 24 of the data, which is 30 bytes long",
        );
        let again = entry("a", "[3]", 24, 36);
        check(
            &format!("{{{a},{again}}}"),
            36,
            "tensor `a` is listed twice",
        );
    }
}
