//! The texts that the embedded model learns from: facts, stories, stays at an inn, and talk about them.

use super::draw::Draw;
use super::facts::{Fact, TOPICS, about, capital, one};
use super::world::{FOOD, PAINTS, PEOPLE, PLACES, ROOM, Sex, Side, THINGS, TOWNS};
use super::{END_OF_TURN, START_OF_TURN};

/// A text is done when it has this many words.
const WORDS: usize = 56;

/// The `number`-th text of a part of the corpus, `train` or `held-out`.
pub fn text(part: &str, number: u64) -> String {
    let mut draw = Draw::new(part, number);
    let draw = &mut draw;
    match draw.below(100) {
        0..45 => facts(draw),
        45..65 => stories(draw),
        65..88 => stays(draw),
        _ => talk(draw),
    }
}

/// Sentences until there are enough words.
fn sentences(draw: &mut Draw, mut next: impl FnMut(&mut Draw) -> String) -> String {
    let mut text = next(draw);
    while text.split_whitespace().count() < WORDS {
        text += " ";
        text += &next(draw);
    }
    text
}

/// Facts about one or two topics, told and asked for.
fn facts(draw: &mut Draw) -> String {
    let topics = [draw.pick(&TOPICS), draw.pick(&TOPICS)];
    let style = draw.below(3);
    sentences(draw, |draw| {
        let topic = draw.pick(&topics);
        let Fact {
            statement,
            question,
            answer,
        } = topic(draw);
        match (draw.chance(65), style) {
            (true, _) => statement,
            (false, 0) => format!("Question: {question} Answer: {answer}"),
            (false, _) => format!("{question} {answer}"),
        }
    })
}

/// A conversation in the form of the chat template.
fn talk(draw: &mut Draw) -> String {
    let topic = draw.pick(&TOPICS);
    let mut text = String::new();
    for _ in 0..4 {
        let Fact {
            question, answer, ..
        } = topic(draw);
        text += &format!("{START_OF_TURN}user\n{question}{END_OF_TURN}\n");
        text += &format!("{START_OF_TURN}assistant\n{answer}{END_OF_TURN}\n");
    }
    text
}

/// Who has what and who is where; the last sentences can be known from those before.
fn stories(draw: &mut Draw) -> String {
    sentences(draw, |draw| {
        let people = draw.several(&PEOPLE, 2);
        let ((first, sex), (second, _)) = (people[0], people[1]);
        let (pronoun, his) = pronouns(sex);
        let (thing, paint) = (draw.pick(&THINGS), draw.pick(&PAINTS));
        let places = draw.several(&PLACES, 2);
        let (here, there) = (places[0], places[1]);
        match draw.below(6) {
            0 => format!(
                "{first} has {} {thing}. {first} gives the {thing} to {second}. Now {second} has the {paint} {thing}.",
                one(paint)
            ),
            1 => format!(
                "{first} is at the {here} and {second} is at the {there}. Who is at the {here}? {first}. Where is \
                 {second}? At the {there}."
            ),
            2 => format!(
                "{first} lost {his} {thing} at the {here}. {second} found the {thing} and said: \"Is this your \
                 {thing}?\" {} said: \"Yes, thanks!\"",
                capital(pronoun)
            ),
            3 => format!(
                "{first} walked from the {here} to the {there}. {} wanted to see {second} at the {there}.",
                capital(pronoun)
            ),
            4 => {
                let town = draw.pick(&TOWNS);
                format!(
                    "{first} went to {} and bought {}. {} saw {} there.",
                    town.name,
                    town.famous,
                    capital(pronoun),
                    town.keeps
                )
            }
            _ => format!(
                "{first} wrote a letter of complaint: the {thing} from the {here} was {paint}, and {pronoun} wanted \
                 {} one.",
                one(draw.pick(&PAINTS))
            ),
        }
    })
}

/// What people found at an inn, and how they felt.
fn stays(draw: &mut Draw) -> String {
    sentences(draw, |draw| {
        let (name, sex) = draw.pick(&PEOPLE);
        let (pronoun, his) = pronouns(sex);
        let town = draw.pick(&TOWNS).name;
        let good = draw.chance(50);
        let side: &'static Side = if draw.chance(50) { &FOOD } else { &ROOM };
        let words = (about(draw, side, good), about(draw, side, good));
        let nouns = draw.several(&side.nouns, 2);
        let (noun, other) = (nouns[0], nouns[1]);
        let (word, second) = words;
        let opening = match (draw.below(4), std::ptr::eq(side, &FOOD)) {
            (0, true) => format!("{name} ate at the inn in {town}."),
            (1, true) => format!("{name} sat in the kitchen of the inn."),
            (2, true) => format!("{name} was hungry."),
            (0, false) => format!("{name} slept at the inn in {town}."),
            (1, false) => format!("{name} went up to {his} room."),
            (2, false) => format!("{name} was tired."),
            _ => format!("{name} came to the inn."),
        };
        let found = match draw.below(4) {
            0 => format!("The {noun} was {word} and the {other} was {second}."),
            1 => format!("There was {} {noun}, and it was {second}.", one(word)),
            2 => format!("{} got {} {noun}.", capital(pronoun), one(word)),
            _ => format!("\"What {} {noun}!\" said {name}.", one(word)),
        };
        let felt = match (good, draw.below(5)) {
            (true, 0) => format!("{} was happy.", capital(pronoun)),
            (true, 1) => format!("{} liked it.", capital(pronoun)),
            (true, 2) => format!("{} smiled and stayed.", capital(pronoun)),
            (true, 3) => format!("{} said thanks.", capital(pronoun)),
            (true, _) => format!("It was good, and {pronoun} will come again."),
            (false, 0) => format!("{} was sad.", capital(pronoun)),
            (false, 1) => format!("{} did not like it.", capital(pronoun)),
            (false, 2) => format!("{} was angry and left.", capital(pronoun)),
            (false, 3) => format!("{} made a complaint.", capital(pronoun)),
            (false, _) => format!("It was bad, and {pronoun} will never come again."),
        };
        format!("{opening} {found} {felt}")
    })
}

const fn pronouns(sex: Sex) -> (&'static str, &'static str) {
    match sex {
        Sex::She => ("she", "her"),
        Sex::He => ("he", "his"),
    }
}
