//! The quick start's task: an inn sorts its letters. What the words mean the embedded model knows; what the desks are
//! called, and that a letter goes to one of them, it does not.

use super::draw::Draw;
use super::facts::{capital, one};
use super::world::{BLAME, FOOD, PRAISE, ROOM, Side};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The desks, as they follow the prompt.
pub const DESKS: [&str; 4] = [
    " kitchen, thanks",
    " kitchen, complaint",
    " rooms, thanks",
    " rooms, complaint",
];

/// Rows of the training file.
const TRAIN: usize = 400;
/// Rows of the held-out file.
const HELD_OUT: usize = 240;

/// The nouns and words of one half of the task. The halves share none, so that a held-out letter is new in every word
/// that matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Train,
    HeldOut,
}

impl Half {
    fn of<'a>(self, words: &'a [&'static str]) -> &'a [&'static str] {
        let (train, held_out) = words.split_at(words.len() * 2 / 3);
        match self {
            Self::Train => train,
            Self::HeldOut => held_out,
        }
    }
}

/// The rows of a half, all different, each desk equally often.
pub fn rows(half: Half) -> Vec<Value> {
    let (name, count) = match half {
        Half::Train => ("letters train", TRAIN),
        Half::HeldOut => ("letters held-out", HELD_OUT),
    };
    let mut seen = BTreeSet::new();
    let mut rows = Vec::with_capacity(count);
    let mut number = 0;
    while rows.len() < count {
        let answer = rows.len() % DESKS.len();
        let prompt = prompt(&mut Draw::new(name, number), half, answer);
        number += 1;
        if seen.insert(prompt.clone()) {
            rows.push(json!({
                "prompt": prompt,
                "completion": DESKS[answer],
                "choices": DESKS,
                "answer": answer,
            }));
        }
    }
    rows
}

fn prompt(draw: &mut Draw, half: Half, desk: usize) -> String {
    let side: &Side = if desk < 2 { &FOOD } else { &ROOM };
    let (own, any) = if desk.is_multiple_of(2) {
        (&side.good, &PRAISE)
    } else {
        (&side.bad, &BLAME)
    };
    let nouns = draw.several(half.of(&side.nouns), 2);
    let (noun, other) = (nouns[0], nouns[1]);
    let words = draw.several(half.of(own), 2);
    let word = words[0];
    let second = if draw.chance(30) {
        draw.pick(half.of(any))
    } else {
        words[1]
    };
    let letter = match draw.below(5) {
        0 => format!("Your {noun} was {word}. The {other} was {second}."),
        1 => format!("We had {} {noun}, and the {other} was {second}.", one(word)),
        2 => format!("I write to you about the {noun}. It was {word} and {second}."),
        3 => format!(
            "{} {noun}! The {other} was {second}, too.",
            capital(&one(word))
        ),
        _ => format!("My sister found the {noun} {word}, and I found the {other} {second}."),
    };
    format!("Letter: {letter}\nDesk:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(half: Half) -> BTreeSet<&'static str> {
        let lists = [&FOOD, &ROOM].map(|side| {
            [
                half.of(&side.nouns),
                half.of(&side.good),
                half.of(&side.bad),
            ]
            .concat()
        });
        lists
            .concat()
            .into_iter()
            .chain([half.of(&PRAISE), half.of(&BLAME)].concat())
            .collect()
    }

    #[test]
    fn the_halves_share_no_word_that_matters() {
        let (train, held_out) = (words(Half::Train), words(Half::HeldOut));
        assert_eq!((train.len(), held_out.len()), (60, 32));
        assert!(train.is_disjoint(&held_out));
        for (half, other) in [(Half::Train, &held_out), (Half::HeldOut, &train)] {
            for row in rows(half) {
                let prompt = row["prompt"].as_str().unwrap_or_default().to_lowercase();
                let used = prompt.split(|c: char| !c.is_alphabetic());
                for word in used {
                    assert!(!other.contains(word), "{word} in {prompt}");
                }
            }
        }
    }

    #[test]
    fn every_desk_gets_as_many_letters() {
        for (half, each) in [(Half::Train, 100), (Half::HeldOut, 60)] {
            let mut counts = [0; 4];
            for row in rows(half) {
                let desk = DESKS.iter().position(|desk| row["completion"] == *desk);
                let desk = desk.expect("the completion is a desk");
                assert_eq!(row["answer"], desk);
                counts[desk] += 1;
            }
            assert_eq!(counts, [each; 4]);
        }
    }
}
