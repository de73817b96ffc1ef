//! What is true in the world, one thing at a time: as a sentence, and as a question with its answer.

use super::draw::Draw;
use super::world::{
    ANIMALS, BLAME, COLOURS, COUNTED, FOOD, KINDS, MIXTURES, NUMBERS, OPPOSITES, PEOPLE, PRAISE,
    ROOM, Side, TOWNS, WEEK, YEAR,
};

/// Something true.
pub struct Fact {
    pub statement: String,
    pub question: String,
    pub answer: String,
}

fn fact(statement: String, question: String, answer: String) -> Fact {
    Fact {
        statement,
        question,
        answer: sentence(&answer),
    }
}

/// What a document may be about.
pub const TOPICS: [fn(&mut Draw) -> Fact; 10] = [
    animal, colour, opposite, kind, town, order, sum, possession, quality, belonging,
];

/// With a capital letter in front and a full stop behind.
pub fn sentence(text: &str) -> String {
    format!("{}.", capital(text))
}

/// With a capital letter in front.
pub fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().chain(letters).collect()
    })
}

/// `a` or `an`, and the word.
pub fn one(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {word}")
}

fn animal(draw: &mut Draw) -> Fact {
    let it = draw.pick(&ANIMALS);
    let (name, plural) = (one(it.name), it.plural);
    match draw.below(7) {
        0 => fact(
            format!("{} {}.", capital(&name), it.sound),
            format!("Which animal {}?", it.sound),
            name,
        ),
        1 => fact(
            format!("{} has {} legs.", capital(&name), it.legs),
            format!("How many legs has {name}?"),
            it.legs.into(),
        ),
        2 => fact(
            format!("{} eat {}.", capital(plural), it.eats),
            format!("What do {plural} eat?"),
            it.eats.into(),
        ),
        3 => fact(
            format!("{} live {}.", capital(plural), it.lives),
            format!("Where do {plural} live?"),
            it.lives.into(),
        ),
        4 => fact(
            format!("A young {} is {}.", it.name, it.young),
            format!("What is a young {}?", it.name),
            it.young.into(),
        ),
        5 => fact(
            format!("{} can {}.", capital(&name), it.can),
            format!("What can {name} do?"),
            format!("it can {}", it.can),
        ),
        _ => fact(
            format!("{} is {}.", capital(&name), it.size),
            format!("Is {name} big or small?"),
            it.size.into(),
        ),
    }
}

fn colour(draw: &mut Draw) -> Fact {
    if draw.chance(30) {
        let (first, second, made) = draw.pick(&MIXTURES);
        let (first, second) = if draw.chance(50) {
            (first, second)
        } else {
            (second, first)
        };
        return fact(
            format!("{} and {second} make {made}.", capital(first)),
            format!("What do {first} and {second} make?"),
            made.into(),
        );
    }
    let (thing, colour) = draw.pick(&COLOURS);
    fact(
        format!("{} is {colour}.", capital(thing)),
        format!("What colour is {thing}?"),
        colour.into(),
    )
}

fn opposite(draw: &mut Draw) -> Fact {
    let (first, second) = draw.pick(&OPPOSITES);
    let (first, second) = if draw.chance(50) {
        (first, second)
    } else {
        (second, first)
    };
    let statement = match draw.below(3) {
        0 => format!("The opposite of {first} is {second}."),
        1 => format!("{} and {second} are opposites.", capital(first)),
        _ => format!("What is not {first} is {second}."),
    };
    fact(
        statement,
        format!("What is the opposite of {first}?"),
        second.into(),
    )
}

fn kind(draw: &mut Draw) -> Fact {
    let (thing, kind) = draw.pick(&KINDS);
    if draw.chance(25) {
        let (_, other) = draw.pick(&KINDS);
        let answer = if kind == other { "yes" } else { "no" };
        return fact(
            format!("{} is {kind}.", capital(thing)),
            format!("Is {thing} {other}?"),
            format!("{answer}, {thing} is {kind}"),
        );
    }
    fact(
        format!("{} is {kind}.", capital(thing)),
        format!("What is {thing}?"),
        kind.into(),
    )
}

fn town(draw: &mut Draw) -> Fact {
    let it = draw.pick(&TOWNS);
    let name = it.name;
    match draw.below(6) {
        0 => fact(
            format!("{name} lies {}.", it.lies),
            format!("Where is {name}?"),
            it.lies.into(),
        ),
        1 => fact(
            format!("{name} is famous for its {}.", it.famous),
            format!("What is {name} famous for?"),
            it.famous.into(),
        ),
        2 => fact(
            format!("The flag of {name} is {}.", it.flag),
            format!("What colour is the flag of {name}?"),
            it.flag.into(),
        ),
        3 => fact(
            format!("{} is the mayor of {name}.", it.mayor),
            format!("Who is the mayor of {name}?"),
            it.mayor.into(),
        ),
        4 => fact(
            format!("You can see many {} in {name}.", it.keeps),
            format!("Which animals are in {name}?"),
            it.keeps.into(),
        ),
        _ => fact(
            format!("The road from {name} leads to {}.", it.next),
            format!("Where does the road from {name} lead?"),
            format!("to {}", it.next),
        ),
    }
}

fn order(draw: &mut Draw) -> Fact {
    let words: &[&str] = draw.pick(&[&WEEK[..], &YEAR[..], &NUMBERS[..]]);
    let i = draw.below(words.len() - 1);
    let (first, second) = (words[i], words[i + 1]);
    match draw.below(3) {
        0 => fact(
            format!("After {first} comes {second}."),
            format!("What comes after {first}?"),
            second.into(),
        ),
        1 => fact(
            format!("{} comes before {second}.", capital(first)),
            format!("What comes before {second}?"),
            first.into(),
        ),
        _ => {
            let row = &words[i..(i + 5).min(words.len())];
            fact(
                sentence(&row.join(", ")),
                format!("What follows {first}?"),
                second.into(),
            )
        }
    }
}

fn sum(draw: &mut Draw) -> Fact {
    let (first, second) = (draw.below(11), draw.below(11));
    let counted = draw.pick(&COUNTED);
    let words = (NUMBERS[first], NUMBERS[second], NUMBERS[first + second]);
    let (first, second, both) = words;
    if draw.chance(50) {
        return fact(
            format!("{} and {second} make {both}.", capital(first)),
            format!("How much is {first} and {second}?"),
            both.into(),
        );
    }
    let (name, _) = draw.pick(&PEOPLE);
    fact(
        format!("{name} has {first} {counted} and gets {second} more. Now {name} has {both}."),
        format!(
            "{name} has {first} {counted} and gets {second} more. How many {counted} has {name}?"
        ),
        both.into(),
    )
}

fn possession(draw: &mut Draw) -> Fact {
    let (name, _) = draw.pick(&PEOPLE);
    let thing = draw.pick(&super::world::THINGS);
    let paint = draw.pick(&super::world::PAINTS);
    let told = format!("{name} has {} {thing}.", one(paint));
    match draw.below(3) {
        0 => fact(
            told.clone(),
            format!("{told} What colour is the {thing}?"),
            paint.into(),
        ),
        1 => fact(
            told.clone(),
            format!("{told} What has {name}?"),
            one(&format!("{paint} {thing}")),
        ),
        _ => fact(
            format!("The {paint} {thing} belongs to {name}."),
            format!("{told} Who has the {paint} {thing}?"),
            name.into(),
        ),
    }
}

/// Which words praise, and which blame.
fn quality(draw: &mut Draw) -> Fact {
    let (_, noun, word, good) = opinion(draw);
    let verdict = if good { "good" } else { "bad" };
    let other = if good { "bad" } else { "good" };
    match draw.below(4) {
        0 => fact(
            format!("{} {noun} is {verdict}.", capital(&one(word))),
            format!("Is {} {noun} good or bad?", one(word)),
            verdict.into(),
        ),
        1 => fact(
            format!("A {noun} that is {word} is a {verdict} {noun}."),
            format!("Is {} {noun} {verdict}?", one(word)),
            "yes".into(),
        ),
        2 => fact(
            format!("{} is a {verdict} thing to say of a {noun}.", capital(word)),
            format!("Is {} {noun} {other}?", one(word)),
            "no".into(),
        ),
        _ => {
            let feels = if good { "like" } else { "hate" };
            fact(
                format!("People {feels} a {noun} that is {word}."),
                format!("What do people feel about {} {noun}?", one(word)),
                format!("they {feels} it"),
            )
        }
    }
}

/// Which nouns are food, and which stand in a room.
fn belonging(draw: &mut Draw) -> Fact {
    let food = draw.chance(50);
    let noun = draw.pick(if food { &FOOD.nouns } else { &ROOM.nouns });
    match (food, draw.below(3)) {
        (true, 0) => fact(
            format!("{} is food.", capital(noun)),
            format!("What is {noun}?"),
            "food".into(),
        ),
        (true, 1) => fact(
            format!("The cook makes the {noun} in the kitchen."),
            format!("Who makes the {noun}?"),
            "the cook".into(),
        ),
        (true, _) => fact(
            format!("You can eat the {noun}."),
            format!("Can you eat the {noun}?"),
            "yes".into(),
        ),
        (false, 0) => fact(
            format!("The {noun} is upstairs in the room."),
            format!("Where is the {noun}?"),
            "in the room".into(),
        ),
        (false, 1) => fact(
            format!("The maid cleans the {noun}."),
            format!("Who cleans the {noun}?"),
            "the maid".into(),
        ),
        (false, _) => fact(
            format!("You can not eat the {noun}."),
            format!("Can you eat the {noun}?"),
            "no".into(),
        ),
    }
}

/// A side of a stay, one of its nouns, a word for it, and whether that praises.
pub fn opinion(draw: &mut Draw) -> (&'static Side, &'static str, &'static str, bool) {
    let side = if draw.chance(50) { &FOOD } else { &ROOM };
    let good = draw.chance(50);
    let word = about(draw, side, good);
    (side, draw.pick(&side.nouns), word, good)
}

/// A word that praises or blames something of this side.
pub fn about(draw: &mut Draw, side: &'static Side, good: bool) -> &'static str {
    match (good, draw.chance(25)) {
        (true, true) => draw.pick(&PRAISE),
        (true, false) => draw.pick(&side.good),
        (false, true) => draw.pick(&BLAME),
        (false, false) => draw.pick(&side.bad),
    }
}
