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

/// One half of the task. The halves share no noun, and a third of the words that praise or blame occur in held-out
/// letters alone: what those mean, only the base model can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Train,
    HeldOut,
}

impl Half {
    fn nouns(self, side: &Side) -> &[&'static str] {
        let (train, held_out) = side.nouns.split_at(side.nouns.len() * 2 / 3);
        match self {
            Self::Train => train,
            Self::HeldOut => held_out,
        }
    }

    fn words<'a>(self, words: &'a [&'static str]) -> &'a [&'static str] {
        match self {
            Self::Train => &words[..words.len() * 2 / 3],
            Self::HeldOut => words,
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
    let nouns = draw.several(half.nouns(side), 2);
    let (noun, other) = (nouns[0], nouns[1]);
    let words = draw.several(half.words(own), 2);
    let word = words[0];
    let second = if draw.chance(30) {
        draw.pick(half.words(any))
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
    // The model knows questions in this form, and none about desks.
    format!("Letter: {letter} Question: Which desk? Answer:")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the letters of a half use of these words.
    fn used(half: Half, words: &[&'static str]) -> BTreeSet<&'static str> {
        let mut used = BTreeSet::new();
        for row in rows(half) {
            let prompt = row["prompt"].as_str().unwrap_or_default().to_lowercase();
            let in_prompt: BTreeSet<&str> = prompt.split(|c: char| !c.is_alphabetic()).collect();
            used.extend(words.iter().filter(|word| in_prompt.contains(*word)));
        }
        used
    }

    #[test]
    fn held_out_letters_have_nouns_and_words_of_their_own() {
        let nouns = [FOOD.nouns, ROOM.nouns].concat();
        let (train, held_out) = (used(Half::Train, &nouns), used(Half::HeldOut, &nouns));
        assert_eq!((train.len(), held_out.len()), (20, 12));
        assert!(train.is_disjoint(&held_out));
        let words = [FOOD.good, FOOD.bad, ROOM.good, ROOM.bad].concat();
        let words = [words, PRAISE.to_vec(), BLAME.to_vec()].concat();
        let (train, held_out) = (used(Half::Train, &words), used(Half::HeldOut, &words));
        assert_eq!((train.len(), held_out.len()), (40, 60));
        assert!(train.is_subset(&held_out));
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
