//! Events for TensorBoard: records in TFRecord's frame that hold protocol buffers of the type `tensorflow.Event`.
//!
//! A record is its length (64 bits, little-endian), a checksum of these eight bytes, the message, and a checksum of the
//! message. The checksum is CRC-32C, rotated and offset so that a checksum of checksums is none. Of the messages only
//! what is needed is here: an event's time, step and file version, scalars, and the start of a session.

use crate::lines::{EVAL, Kind, Line, ranks};

/// The largest step that an event can hold; the field is signed.
const MAX_STEP: u64 = i64::MAX as u64;

/// What the first record of a file says: the form of all others.
const VERSION: &str = "brain.Event:2";

/// The first record of a file. `time` counts seconds since 1970.
#[must_use]
pub fn version(time: f64) -> Vec<u8> {
    let mut event = Vec::new();
    double(&mut event, 1, time);
    bytes(&mut event, 3, VERSION.as_bytes());
    record(&event)
}

/// Says that a session starts in which `step` comes first: TensorBoard forgets what it has read of this step and of
/// later ones.
#[must_use]
pub fn start(time: f64, step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut session = Vec::new();
    integer(&mut session, 1, START);
    let mut event = Vec::new();
    double(&mut event, 1, time);
    integer(&mut event, 2, step.min(MAX_STEP));
    bytes(&mut event, 7, &session);
    record(&event)
}

/// A record with the numbers of a line, or nothing if it has none: `train/loss`, `eval/accuracy` of `eval_accuracy`,
/// and of an event, `allocate/budget` and `ranks/<module>`. Null becomes NaN, which TensorBoard marks.
#[must_use]
pub fn scalars(time: f64, line: &Line) -> Vec<u8> {
    let mut summary = Vec::new();
    let mut put = |tag: &str, number: f64| {
        let mut value = Vec::new();
        bytes(&mut value, 1, tag.as_bytes());
        // TensorBoard's scalars have 32 bits.
        single(&mut value, 2, number as f32);
        bytes(&mut summary, 1, &value);
    };
    let kind = line.kind();
    let event = line.values.get("event").and_then(|event| event.as_str());
    for (key, number) in line.numbers() {
        let tag = match kind {
            Kind::Step => format!("train/{key}"),
            Kind::Evaluation => format!("eval/{}", key.strip_prefix(EVAL).unwrap_or(key)),
            Kind::Event => format!("{}/{key}", event.unwrap_or("event")),
        };
        put(&tag, number.unwrap_or(f64::NAN));
    }
    for (site, rank) in ranks(line).unwrap_or_default() {
        put(&format!("ranks/{site}"), rank as f64);
    }
    if summary.is_empty() {
        return Vec::new();
    }
    let mut event = Vec::new();
    double(&mut event, 1, time);
    integer(&mut event, 2, line.step.min(MAX_STEP));
    bytes(&mut event, 5, &summary);
    record(&event)
}

/// The records of a file up to a step: without those of later ones, and without what a kill left of the last one or
/// what is damaged, from there on. `None` keeps no step.
#[must_use]
pub fn cut(file: &[u8], done: Option<u64>) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut rest = file;
    while let Some((record, event)) = first_record(rest) {
        rest = &rest[record.len()..];
        match place(event) {
            Some(Place::Version) => kept.extend(record),
            Some(Place::Step(step)) if done.is_some_and(|done| step <= done) => {
                kept.extend(record);
            }
            _ => {}
        }
    }
    kept
}

/// The first record of some bytes, and the message in it, if it is whole and sound.
fn first_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*check) != masked_crc32c(length) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (event, rest) = rest.split_at_checked(length)?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let sound = u32::from_le_bytes(*check) == masked_crc32c(event);
    sound.then(|| (&bytes[..bytes.len() - rest.len()], event))
}

/// Where an event belongs.
enum Place {
    Version,
    Step(u64),
}

/// None of what is no event as we write it.
fn place(mut event: &[u8]) -> Option<Place> {
    let mut step = 0;
    while !event.is_empty() {
        let key = take_varint(&mut event)?;
        match (key >> 3, key & 7) {
            (3, _) => return Some(Place::Version),
            (2, 0) => step = take_varint(&mut event)?,
            (_, 0) => drop(take_varint(&mut event)?),
            (_, 1) => event = event.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(take_varint(&mut event)?).ok()?;
                event = event.get(length..)?;
            }
            (_, 5) => event = event.get(4..)?,
            _ => return None,
        }
    }
    Some(Place::Step(step))
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked_crc32c(message).to_le_bytes());
    record
}

/// The checksum that TFRecord asks for: CRC-32C (Castagnoli), rotated right by 15 bits, plus a constant.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A step's record has some hundred bytes: a table of 256 is fast enough.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let next = |sum: u32, byte: &u8| TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize] ^ (sum >> 8);
    !bytes.iter().fold(!0, next)
}

const fn table() -> [u32; 256] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let mut sum = at as u32;
        let mut bit = 0;
        while bit < 8 {
            sum = if sum & 1 == 1 {
                (sum >> 1) ^ POLYNOMIAL
            } else {
                sum >> 1
            };
            bit += 1;
        }
        table[at] = sum;
        at += 1;
    }
    table
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A field's key: its number and how its value is laid out.
fn key(out: &mut Vec<u8>, field: u64, layout: u64) {
    varint(out, field << 3 | layout);
}

fn integer(out: &mut Vec<u8>, field: u64, number: u64) {
    key(out, field, 0);
    varint(out, number);
}

fn double(out: &mut Vec<u8>, field: u64, number: f64) {
    key(out, field, 1);
    out.extend(number.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn single(out: &mut Vec<u8>, field: u64, number: f32) {
    key(out, field, 5);
    out.extend(number.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 3720, B.4, and the check value of the catalogue of CRCs.
    #[test]
    fn checksums_are_the_published_ones() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(&falling), 0x113f_db5c);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(b""), 0);
        assert_eq!(masked_crc32c(b""), 0xa282_ead8);
    }

    #[test]
    fn numbers_take_the_bytes_they_need() {
        for (number, expected) in [
            (0, &[0][..]),
            (127, &[127]),
            (300, &[0xac, 2]),
            (u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]),
        ] {
            let mut out = Vec::new();
            varint(&mut out, number);
            assert_eq!(out, expected);
            let mut rest = &out[..];
            assert_eq!(take_varint(&mut rest), Some(number));
            assert!(rest.is_empty());
        }
        assert_eq!(take_varint(&mut &[0x80; 12][..]), None);
    }
}
