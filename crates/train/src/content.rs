//! A hash of rows: rows that changed would make another run.

use crate::error::Result;
use lowrank_data::{ChoiceExample, Example, Examples, Reference};
use std::borrow::Cow;

/// FNV-1a over the tokens and labels of every row, and over what belongs to them.
pub(crate) fn content(examples: Examples<'_>, references: &[Reference]) -> Result<String> {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    for example in examples.iter() {
        let example: Cow<'_, Example> = example?;
        hash.list(&example.ids);
        let labels = example.labels.iter();
        labels.for_each(|&label| hash.mix(label.cast_unsigned()));
        example.types.iter().for_each(|&kind| hash.mix(kind));
        if let Some(label) = example.label {
            hash.long(label.to_bits());
        }
    }
    for reference in references {
        match reference {
            Reference::None => hash.mix(0),
            Reference::Choices(question) => hash.question(question),
            Reference::Answer(text) => {
                hash.mix(2);
                hash.long(text.len() as u64);
                text.bytes().for_each(|byte| hash.mix(byte.into()));
            }
        }
    }
    Ok(format!("{:016x}", hash.0))
}

struct Hash(u64);

impl Hash {
    fn mix(&mut self, number: u32) {
        for byte in number.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn long(&mut self, number: u64) {
        self.mix(number as u32);
        self.mix((number >> 32) as u32);
    }

    fn list(&mut self, ids: &[u32]) {
        self.mix(ids.len() as u32);
        ids.iter().for_each(|&id| self.mix(id));
    }

    fn question(&mut self, question: &ChoiceExample) {
        self.mix(1);
        self.list(&question.prompt);
        self.long(question.choices.len() as u64);
        question.choices.iter().for_each(|choice| self.list(choice));
        let bytes = question.choice_bytes.iter();
        bytes.for_each(|&bytes| self.long(bytes as u64));
        self.long(question.gold.map_or(u64::MAX, |gold| gold as u64));
    }
}
