//! Event files, read by a decoder that shares nothing with the encoder.

#![expect(
    clippy::unwrap_used,
    reason = "a file that cannot be decoded fails its test"
)]

use lowrank_report::{Line, cut, scalars, start, version};

/// CRC-32C a bit at a time, masked.
fn checksum(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            let low = sum & 1;
            sum >>= 1;
            if low == 1 {
                sum ^= 0x82f6_3b78;
            }
        }
    }
    let sum = sum ^ u32::MAX;
    sum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[derive(Debug, Default, PartialEq)]
struct Event {
    time: f64,
    step: u64,
    version: Option<String>,
    scalars: Vec<(String, f32)>,
    session: Option<u64>,
}

/// Field numbers with their values; a value of fixed size or a number is its bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    let number = |bytes: &mut &[u8]| {
        let end = bytes.iter().position(|byte| *byte < 128).unwrap() + 1;
        let digits = &bytes[..end];
        *bytes = &bytes[end..];
        digits
            .iter()
            .rev()
            .fold(0u64, |sum, byte| sum << 7 | u64::from(byte & 127))
    };
    while !bytes.is_empty() {
        let key = number(&mut bytes);
        let length = match key & 7 {
            0 => {
                let value = number(&mut bytes);
                fields.push((key >> 3, value.to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => number(&mut bytes) as usize,
            5 => 4,
            other => panic!("layout {other}"),
        };
        fields.push((key >> 3, bytes[..length].to_vec()));
        bytes = &bytes[length..];
    }
    fields
}

fn decode(mut file: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let check = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!(check(8), checksum(&file[..8]));
        let message = &file[12..12 + length];
        assert_eq!(check(12 + length), checksum(message));
        let mut event = Event::default();
        for (field, value) in fields(message) {
            match field {
                1 => event.time = f64::from_le_bytes(value.try_into().unwrap()),
                2 => event.step = u64::from_le_bytes(value.try_into().unwrap()),
                3 => event.version = Some(String::from_utf8(value).unwrap()),
                5 => {
                    for (field, value) in fields(&value) {
                        assert_eq!(field, 1);
                        let [(1, tag), (2, number)] = &fields(&value)[..] else {
                            panic!("{value:?}")
                        };
                        let number = f32::from_le_bytes(number[..].try_into().unwrap());
                        let tag = String::from_utf8(tag.clone()).unwrap();
                        event.scalars.push((tag, number));
                    }
                }
                7 => event.session = Some(u64::from(fields(&value)[0].1[0])),
                other => panic!("field {other}"),
            }
        }
        events.push(event);
        file = &file[16 + length..];
    }
    events
}

const METRICS: &str = r#"{"step":0,"eval_loss":3.5,"eval_tokens":40,"eval_accuracy":0.25}
{"step":1,"loss":3.25,"lr":0.0002,"grad_norm":null}
{"step":300,"event":"allocate","budget":7,"ranks":{"layers.0.q":3,"layers.1.q":4}}
{"step":300,"loss":2.5,"lr":0.0001,"grad_norm":0.5}
"#;

fn lines() -> Vec<Line> {
    METRICS.lines().map(line).collect()
}

fn line(text: &str) -> Line {
    Line::new(serde_json::from_str(text).unwrap()).unwrap()
}

fn file() -> Vec<u8> {
    let mut file = version(1000.5);
    file.extend(start(1000.5, 0));
    for (at, line) in lines().iter().enumerate() {
        file.extend(scalars(1001.25 + at as f64, line));
    }
    file
}

#[test]
fn every_number_of_every_line_is_a_scalar() {
    let events = decode(&file());
    assert_eq!(events.len(), 6);
    assert_eq!(events[0].version.as_deref(), Some("brain.Event:2"));
    assert_eq!((events[1].session, events[1].step), (Some(1), 0));
    let scalars = |at: usize| -> Vec<(&str, f32)> {
        let event = &events[at];
        assert_eq!(event.time, 1001.25 + (at - 2) as f64);
        let scalars = event.scalars.iter();
        scalars
            .map(|(tag, number)| (tag.as_str(), *number))
            .collect()
    };
    assert_eq!(
        scalars(2),
        [
            ("eval/loss", 3.5),
            ("eval/tokens", 40.0),
            ("eval/accuracy", 0.25)
        ]
    );
    assert_eq!(scalars(3)[..2], [("train/loss", 3.25), ("train/lr", 2e-4)]);
    assert_eq!(scalars(3)[2].0, "train/grad_norm");
    assert!(scalars(3)[2].1.is_nan());
    assert_eq!(
        scalars(4),
        [
            ("allocate/budget", 7.0),
            ("ranks/layers.0.q", 3.0),
            ("ranks/layers.1.q", 4.0)
        ]
    );
    let steps: Vec<u64> = events[2..].iter().map(|event| event.step).collect();
    assert_eq!(steps, [0, 1, 300, 300]);
}

#[test]
fn lines_without_numbers_are_no_records() {
    let line = line("{\"step\":3,\"event\":\"stopped\",\"why\":\"signal\"}");
    assert!(scalars(5.0, &line).is_empty());
}

#[test]
fn later_steps_and_broken_ends_are_cut() {
    let file = file();
    assert_eq!(cut(&file, Some(300)), file);
    let kept = decode(&cut(&file, Some(299)));
    let steps: Vec<u64> = kept.iter().map(|event| event.step).collect();
    assert_eq!(steps, [0, 0, 0, 1]);
    let kept = decode(&cut(&file, None));
    assert_eq!(kept.len(), 1);
    assert!(kept[0].version.is_some());
    // Wherever a kill cut it, what is left is whole records.
    let mut counts = Vec::new();
    for end in 0..=file.len() {
        let kept = cut(&file[..end], Some(u64::MAX));
        assert_eq!(file[..kept.len()], kept);
        counts.push(decode(&kept).len());
    }
    assert_eq!(
        (counts[0], counts[file.len() - 1], counts[file.len()]),
        (0, 5, 6)
    );
    assert!(counts.is_sorted());
}

#[test]
fn files_that_lie_neither_panic_nor_take_memory() {
    let file = file();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x41;
        let kept = cut(&damaged, Some(u64::MAX));
        assert!(kept.len() < file.len(), "{at}");
        assert_eq!(file[..kept.len()], kept, "{at}");
    }
    // A sound frame around a message that is none, and a length of almost everything.
    let mut hostile = u64::MAX.to_le_bytes().to_vec();
    hostile.extend(checksum(&u64::MAX.to_le_bytes()).to_le_bytes());
    hostile.extend([7; 40]);
    assert!(cut(&hostile, Some(9)).is_empty());
    for message in [&[0xff_u8; 30][..], &[0x0a, 0xff, 0xff, 0xff, 0x7f], &[0x0b]] {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(checksum(&length).to_le_bytes());
        record.extend(message);
        record.extend(checksum(message).to_le_bytes());
        assert!(cut(&record, Some(9)).is_empty());
    }
}
