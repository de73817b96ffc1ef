//! Examples and references as bytes, little-endian.

use crate::example::{ChoiceExample, Example, Reference, UNSUPERVISED};

const TRUNCATED: u32 = 1;
const TYPED: u32 = 1 << 1;
const LABELLED: u32 = 1 << 2;
/// Every label is its token or none: a bit each.
const MASKED: u32 = 1 << 3;

const CHOICES: u32 = 1;
const ANSWER: u32 = 2;
const NO_GOLD: u64 = u64::MAX;

/// Appends a row.
pub(crate) fn write(example: &Example, reference: &Reference, out: &mut Vec<u8>) {
    let Example {
        ids,
        labels,
        types,
        label,
        truncated,
    } = example;
    let own = |(&id, &label): (&u32, &i32)| label == UNSUPERVISED || label.cast_unsigned() == id;
    let is_masked = ids.iter().zip(labels).all(own);
    let mut flags = 0;
    for (flag, set) in [
        (TRUNCATED, *truncated),
        (TYPED, !types.is_empty()),
        (LABELLED, label.is_some()),
        (MASKED, is_masked),
    ] {
        flags |= if set { flag } else { 0 };
    }
    put(flags, out);
    put_all(ids, out);
    if is_masked {
        for labels in labels.chunks(8) {
            let bits = labels.iter().enumerate();
            out.push(bits.fold(0, |byte, (i, &label)| {
                byte | u8::from(label != UNSUPERVISED) << i
            }));
        }
    } else {
        labels
            .iter()
            .for_each(|label| put(label.cast_unsigned(), out));
    }
    types.iter().for_each(|&kind| put(kind, out));
    if let Some(label) = label {
        out.extend(label.to_bits().to_le_bytes());
    }
    match reference {
        Reference::None => put(0, out),
        Reference::Choices(question) => {
            let ChoiceExample {
                prompt,
                choices,
                gold,
                choice_bytes,
                truncated,
            } = question;
            put(CHOICES, out);
            put(u32::from(*truncated), out);
            out.extend(gold.map_or(NO_GOLD, |gold| gold as u64).to_le_bytes());
            put_all(prompt, out);
            put(choices.len() as u32, out);
            for (choice, bytes) in choices.iter().zip(choice_bytes) {
                out.extend((*bytes as u64).to_le_bytes());
                put_all(choice, out);
            }
        }
        Reference::Answer(answer) => {
            put(ANSWER, out);
            put(answer.len() as u32, out);
            out.extend(answer.as_bytes());
        }
    }
}

fn put(number: u32, out: &mut Vec<u8>) {
    out.extend(number.to_le_bytes());
}

fn put_all(numbers: &[u32], out: &mut Vec<u8>) {
    put(numbers.len() as u32, out);
    numbers.iter().for_each(|&number| put(number, out));
}

/// The row that `bytes` hold; none if they are not one, or have tokens that the model does not.
pub(crate) fn read(bytes: &[u8], vocab: usize) -> Option<(Example, Reference)> {
    let mut bytes = Bytes { rest: bytes, vocab };
    let example = bytes.example()?;
    let reference = bytes.reference()?;
    bytes.rest.is_empty().then_some((example, reference))
}

struct Bytes<'a> {
    rest: &'a [u8],
    vocab: usize,
}

impl Bytes<'_> {
    fn example(&mut self) -> Option<Example> {
        let flags = self.number()?;
        let ids = self.tokens()?;
        let labels = if flags & MASKED == 0 {
            let numbers = self.numbers(ids.len())?;
            let labels = numbers.into_iter().map(|number| {
                let label = number.cast_signed();
                let known = label == UNSUPERVISED || (label >= 0 && self.is_token(number));
                known.then_some(label)
            });
            labels.collect::<Option<Vec<_>>>()?
        } else {
            let bits = self.take(ids.len().div_ceil(8))?;
            let label = |(i, &id): (usize, &u32)| match bits[i / 8] >> (i % 8) & 1 {
                0 => UNSUPERVISED,
                _ => id.cast_signed(),
            };
            ids.iter().enumerate().map(label).collect()
        };
        let types = match flags & TYPED {
            0 => Vec::new(),
            _ => self.numbers(ids.len())?,
        };
        let label = match flags & LABELLED {
            0 => None,
            _ => Some(f64::from_bits(self.long()?)),
        };
        let is_known = flags & !(TRUNCATED | TYPED | LABELLED | MASKED) == 0;
        is_known.then_some(Example {
            ids,
            labels,
            types,
            label,
            truncated: flags & TRUNCATED != 0,
        })
    }

    fn reference(&mut self) -> Option<Reference> {
        match self.number()? {
            0 => Some(Reference::None),
            CHOICES => {
                let truncated = self.number()? == 1;
                let gold = self.long()?;
                let prompt = self.tokens()?;
                let count = self.number()?;
                let (mut choices, mut choice_bytes) = (Vec::new(), Vec::new());
                for _ in 0..count {
                    choice_bytes.push(usize::try_from(self.long()?).ok()?);
                    choices.push(self.tokens()?);
                }
                let gold = match gold {
                    NO_GOLD => None,
                    gold => Some(usize::try_from(gold).ok()?),
                };
                let is_one = !prompt.is_empty() && !choices.is_empty();
                let is_one = is_one && gold.is_none_or(|gold| gold < choices.len());
                is_one.then_some(Reference::Choices(ChoiceExample {
                    prompt,
                    choices,
                    gold,
                    choice_bytes,
                    truncated,
                }))
            }
            ANSWER => {
                let length = self.number()? as usize;
                let text = std::str::from_utf8(self.take(length)?).ok()?;
                Some(Reference::Answer(text.to_owned()))
            }
            _ => None,
        }
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u32> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u32::from_le_bytes(*bytes))
    }

    fn long(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    fn numbers(&mut self, count: usize) -> Option<Vec<u32>> {
        let bytes = self.take(count.checked_mul(4)?)?;
        let (chunks, _) = bytes.as_chunks();
        Some(
            chunks
                .iter()
                .map(|&chunk| u32::from_le_bytes(chunk))
                .collect(),
        )
    }

    fn tokens(&mut self) -> Option<Vec<u32>> {
        let count = self.number()? as usize;
        let ids = self.numbers(count)?;
        let known = ids.iter().all(|&id| self.is_token(id));
        known.then_some(ids)
    }

    fn is_token(&self, id: u32) -> bool {
        id.cast_signed() >= 0 && (id as usize) < self.vocab
    }
}

#[cfg(test)]
mod tests {
    use super::{read, write};
    use crate::example::{ChoiceExample, Example, Reference, UNSUPERVISED};
    use proptest::prelude::*;

    const VOCAB: usize = 50;

    fn tokens(lengths: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0..VOCAB as u32, lengths)
    }

    fn example() -> impl Strategy<Value = Example> {
        let places = prop::collection::vec((0..VOCAB as u32, 0u8..3, 0u32..3), 1..30);
        let rest = (any::<[bool; 3]>(), prop::option::of(-9.0..9.0f64));
        (places, rest).prop_map(|(places, ([typed, own, truncated], label))| Example {
            ids: places.iter().map(|&(id, ..)| id).collect(),
            labels: places
                .iter()
                .map(|&(id, kind, _)| match kind {
                    0 => UNSUPERVISED,
                    1 if !own => 7,
                    _ => id.cast_signed(),
                })
                .collect(),
            types: match typed {
                true => places.iter().map(|&(.., kind)| kind).collect(),
                false => Vec::new(),
            },
            label,
            truncated,
        })
    }

    fn reference() -> impl Strategy<Value = Reference> {
        let choices = prop::collection::vec((tokens(0..5), 0usize..9), 1..4);
        let choices = (tokens(1..6), choices, any::<bool>(), 0usize..5);
        prop_oneof![
            Just(Reference::None),
            ".{0,9}".prop_map(Reference::Answer),
            choices.prop_map(|(prompt, choices, truncated, gold)| {
                let count = choices.len();
                let (choices, choice_bytes) = choices.into_iter().unzip();
                Reference::Choices(ChoiceExample {
                    prompt,
                    choices,
                    gold: (gold < count).then_some(gold),
                    choice_bytes,
                    truncated,
                })
            }),
        ]
    }

    fn written(example: &Example, reference: &Reference) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(example, reference, &mut bytes);
        bytes
    }

    #[test]
    fn a_text_takes_four_bytes_and_a_bit_a_token() {
        let example = Example {
            ids: (0..40).collect(),
            labels: (0..40).collect(),
            ..Example::default()
        };
        assert_eq!(written(&example, &Reference::None).len(), 40 * 4 + 5 + 12);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(example in example(), reference in reference()) {
            let bytes = written(&example, &reference);
            prop_assert_eq!(read(&bytes, VOCAB), Some((example, reference)));
        }

        #[test]
        fn other_bytes_are_no_row_or_one_that_a_model_can_read(
            example in example(), reference in reference(), at: prop::sample::Index, byte: u8, cut: prop::sample::Index,
        ) {
            let mut bytes = written(&example, &reference);
            prop_assert_eq!(read(&bytes[..cut.index(bytes.len())], VOCAB), None);
            prop_assert_eq!(read(&[&bytes[..], &[byte]].concat(), VOCAB), None);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some((example, _)) = read(&bytes, VOCAB) {
                prop_assert!(example.ids.iter().all(|&id| (id as usize) < VOCAB));
                prop_assert!(example.labels.iter().all(|&label| label == UNSUPERVISED || (0..VOCAB as i32).contains(&label)));
                prop_assert_eq!(example.labels.len(), example.ids.len());
                prop_assert!(example.types.is_empty() || example.types.len() == example.ids.len());
            }
        }
    }
}
