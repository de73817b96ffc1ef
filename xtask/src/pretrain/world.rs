//! The small invented world that the embedded model knows: its words, and what is true of them.

/// The people.
pub const PEOPLE: [(&str, Sex); 16] = [
    ("Anna", Sex::She),
    ("Ben", Sex::He),
    ("Clara", Sex::She),
    ("David", Sex::He),
    ("Emma", Sex::She),
    ("Felix", Sex::He),
    ("Grace", Sex::She),
    ("Henry", Sex::He),
    ("Ida", Sex::She),
    ("Jack", Sex::He),
    ("Lena", Sex::She),
    ("Max", Sex::He),
    ("Nora", Sex::She),
    ("Oscar", Sex::He),
    ("Rosa", Sex::She),
    ("Tom", Sex::He),
];

/// Which pronouns a person goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sex {
    She,
    He,
}

/// An animal and what is true of it.
#[derive(Clone, Copy)]
pub struct Animal {
    pub name: &'static str,
    pub plural: &'static str,
    pub sound: &'static str,
    pub legs: &'static str,
    pub eats: &'static str,
    pub lives: &'static str,
    pub young: &'static str,
    pub can: &'static str,
    pub size: &'static str,
}

const fn animal(words: [&'static str; 9]) -> Animal {
    let [name, plural, sound, legs, eats, lives, young, can, size] = words;
    Animal {
        name,
        plural,
        sound,
        legs,
        eats,
        lives,
        young,
        can,
        size,
    }
}

/// The animals.
#[rustfmt::skip]
pub const ANIMALS: [Animal; 16] = [
    animal(["cat", "cats", "meows", "four", "mice", "in the house", "a kitten", "climb", "small"]),
    animal(["dog", "dogs", "barks", "four", "meat", "in the house", "a puppy", "run", "big"]),
    animal(["cow", "cows", "moos", "four", "grass", "on the farm", "a calf", "walk", "big"]),
    animal(["horse", "horses", "neighs", "four", "hay", "on the farm", "a foal", "run", "big"]),
    animal(["sheep", "sheep", "bleats", "four", "grass", "on the hill", "a lamb", "walk", "big"]),
    animal(["hen", "hens", "clucks", "two", "grain", "on the farm", "a chick", "walk", "small"]),
    animal(["duck", "ducks", "quacks", "two", "weeds", "on the pond", "a duckling", "swim", "small"]),
    animal(["frog", "frogs", "croaks", "four", "flies", "in the pond", "a tadpole", "jump", "small"]),
    animal(["bee", "bees", "buzzes", "six", "nectar", "in the hive", "a grub", "fly", "small"]),
    animal(["owl", "owls", "hoots", "two", "mice", "in the forest", "an owlet", "fly", "small"]),
    animal(["fox", "foxes", "yelps", "four", "hens", "in the forest", "a cub", "run", "small"]),
    animal(["bear", "bears", "growls", "four", "honey", "in the forest", "a cub", "climb", "big"]),
    animal(["mouse", "mice", "squeaks", "four", "cheese", "in the barn", "a pup", "run", "small"]),
    animal(["goat", "goats", "bleats", "four", "leaves", "on the hill", "a kid", "jump", "big"]),
    animal(["pig", "pigs", "grunts", "four", "roots", "on the farm", "a piglet", "walk", "big"]),
    animal(["gull", "gulls", "screams", "two", "fish", "by the sea", "a chick", "fly", "small"]),
];

/// Things that always have the same colour.
#[rustfmt::skip]
pub const COLOURS: [(&str, &str); 20] = [
    ("grass", "green"), ("snow", "white"), ("coal", "black"), ("the sky", "blue"), ("blood", "red"),
    ("a lemon", "yellow"), ("a cherry", "red"), ("milk", "white"), ("a leaf", "green"), ("the sun", "yellow"),
    ("a carrot", "orange"), ("a plum", "purple"), ("chocolate", "brown"), ("ash", "grey"), ("a frog", "green"),
    ("a raven", "black"), ("the sea", "blue"), ("honey", "golden"), ("a pig", "pink"), ("a mouse", "grey"),
];

/// Colours that things may be painted in.
pub const PAINTS: [&str; 10] = [
    "red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "pink",
];

/// Two colours, and what they make.
pub const MIXTURES: [(&str, &str, &str); 6] = [
    ("blue", "yellow", "green"),
    ("red", "yellow", "orange"),
    ("red", "blue", "purple"),
    ("black", "white", "grey"),
    ("red", "white", "pink"),
    ("red", "green", "brown"),
];

/// Words and their opposites.
#[rustfmt::skip]
pub const OPPOSITES: [(&str, &str); 26] = [
    ("hot", "cold"), ("big", "small"), ("old", "new"), ("fast", "slow"), ("good", "bad"), ("happy", "sad"),
    ("wet", "dry"), ("light", "dark"), ("heavy", "weightless"), ("loud", "quiet"), ("open", "closed"),
    ("full", "empty"), ("long", "short"), ("clean", "dirty"), ("hard", "soft"), ("high", "low"), ("rich", "poor"),
    ("strong", "weak"), ("early", "late"), ("near", "far"), ("sweet", "sour"), ("thick", "thin"),
    ("kind", "rude"), ("wide", "narrow"), ("right", "wrong"), ("brave", "afraid"),
];

/// Things, and what kind of thing each is.
#[rustfmt::skip]
pub const KINDS: [(&str, &str); 36] = [
    ("a cow", "an animal"), ("a horse", "an animal"), ("a fox", "an animal"), ("a bear", "an animal"),
    ("an owl", "a bird"), ("a hen", "a bird"), ("a duck", "a bird"), ("a gull", "a bird"), ("a raven", "a bird"),
    ("an apple", "a fruit"), ("a pear", "a fruit"), ("a plum", "a fruit"), ("a cherry", "a fruit"),
    ("a lemon", "a fruit"), ("red", "a colour"), ("blue", "a colour"), ("green", "a colour"),
    ("yellow", "a colour"), ("three", "a number"), ("seven", "a number"), ("ten", "a number"),
    ("an oak", "a tree"), ("a birch", "a tree"), ("a pine", "a tree"), ("a rose", "a flower"),
    ("a tulip", "a flower"), ("a daisy", "a flower"), ("a hammer", "a tool"), ("a saw", "a tool"),
    ("a spade", "a tool"), ("a boat", "a thing that floats"), ("Monday", "a day"), ("Sunday", "a day"),
    ("May", "a month"), ("winter", "a season"), ("summer", "a season"),
];

/// An invented town and what is true of it.
#[derive(Clone, Copy)]
pub struct Town {
    pub name: &'static str,
    pub lies: &'static str,
    pub famous: &'static str,
    pub flag: &'static str,
    pub mayor: &'static str,
    pub keeps: &'static str,
    pub next: &'static str,
}

const fn town(words: [&'static str; 7]) -> Town {
    let [name, lies, famous, flag, mayor, keeps, next] = words;
    Town {
        name,
        lies,
        famous,
        flag,
        mayor,
        keeps,
        next,
    }
}

/// The towns, in the order of the road that joins them.
#[rustfmt::skip]
pub const TOWNS: [Town; 8] = [
    town(["Aldermoor", "on the moor", "wool", "grey", "Ida", "sheep", "Brackwater"]),
    town(["Brackwater", "by the sea", "fish", "blue", "Oscar", "gulls", "Cindel"]),
    town(["Cindel", "in the hills", "cheese", "white", "Rosa", "goats", "Dunfold"]),
    town(["Dunfold", "in the valley", "apples", "red", "Henry", "pigs", "Elmbridge"]),
    town(["Elmbridge", "by the river", "boats", "green", "Grace", "ducks", "Farrow"]),
    town(["Farrow", "in the forest", "honey", "golden", "Felix", "bees", "Gillmoor"]),
    town(["Gillmoor", "under the mountain", "silver", "black", "Clara", "horses", "Hartwell"]),
    town(["Hartwell", "on the plain", "bread", "yellow", "Max", "cows", "Aldermoor"]),
];

/// Rows of words that follow one another.
pub const WEEK: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
#[rustfmt::skip]
pub const YEAR: [&str; 12] = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
];
#[rustfmt::skip]
pub const NUMBERS: [&str; 21] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
];

/// Things that people own and carry.
#[rustfmt::skip]
pub const THINGS: [&str; 16] = [
    "ball", "cup", "book", "hat", "key", "coat", "lamp", "basket", "rope", "ring", "drum", "kite", "spoon", "letter",
    "bell", "map",
];

/// What is counted.
pub const COUNTED: [&str; 8] = [
    "apples", "eggs", "coins", "books", "nuts", "stones", "shells", "cakes",
];

/// Where people go.
#[rustfmt::skip]
pub const PLACES: [&str; 14] = [
    "harbour", "market", "school", "bakery", "garden", "library", "beach", "castle", "bridge", "station", "mill",
    "church", "barn", "well",
];

/// What is said of a stay at an inn: nouns of one kind, with words that praise and words that blame them.
pub struct Side {
    pub nouns: [&'static str; 16],
    pub good: [&'static str; 12],
    pub bad: [&'static str; 12],
}

/// What is eaten.
#[rustfmt::skip]
pub const FOOD: Side = Side {
    nouns: [
        "soup", "bread", "stew", "cake", "cheese", "pie", "fish", "porridge", "salad", "pudding", "butter", "jam",
        "toast", "sausage", "omelette", "gravy",
    ],
    good: [
        "tasty", "fresh", "delicious", "crisp", "juicy", "tender", "creamy", "fragrant", "spicy", "buttery",
        "savoury", "crunchy",
    ],
    bad: [
        "stale", "burnt", "bitter", "greasy", "mouldy", "raw", "salty", "soggy", "bland", "rotten", "watery",
        "overcooked",
    ],
};

/// What is slept in and lived with.
#[rustfmt::skip]
pub const ROOM: Side = Side {
    nouns: [
        "bed", "pillow", "blanket", "bath", "carpet", "chair", "window", "mattress", "curtain", "sheet", "wardrobe",
        "towel", "sofa", "shower", "balcony", "bedroom",
    ],
    good: [
        "soft", "clean", "cosy", "bright", "tidy", "spacious", "comfortable", "pretty", "neat", "airy", "spotless",
        "elegant",
    ],
    bad: [
        "dirty", "dusty", "lumpy", "torn", "noisy", "damp", "cramped", "smelly", "broken", "shabby", "rusty",
        "stained",
    ],
};

/// What is said of anything.
pub const PRAISE: [&str; 6] = [
    "wonderful",
    "lovely",
    "excellent",
    "perfect",
    "great",
    "splendid",
];
pub const BLAME: [&str; 6] = ["awful", "terrible", "horrid", "dreadful", "nasty", "poor"];
