//! What the labels of rows mean: one of a number of classes, or a value.

use crate::error::{Error, Problem, Result};
use crate::example::Example;
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The most classes that a task may have.
pub const MAX_CLASSES: usize = 65_536;

/// The classes of a task. One stands for the value of a regression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    count: NonZeroUsize,
    names: Vec<String>,
}

impl Classes {
    /// So many classes without names.
    #[must_use]
    pub const fn new(count: NonZeroUsize) -> Self {
        let names = Vec::new();
        Self { count, names }
    }

    /// So many classes with these names, the first of which is class 0; none if there are not as many different names.
    #[must_use]
    pub fn named(count: NonZeroUsize, names: Vec<String>) -> Option<Self> {
        let mut sorted: Vec<&String> = names.iter().collect();
        sorted.sort();
        sorted.dedup();
        let all_differ = sorted.len() == names.len();
        (all_differ && names.len() == count.get()).then_some(Self { count, names })
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> NonZeroUsize {
        self.count
    }

    /// What they are called, in order; empty if they have no names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether labels are values and not classes.
    #[must_use]
    pub const fn is_regression(&self) -> bool {
        self.count.get() == 1
    }
}

/// What is known of the classes before rows are read.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// They are found in the rows: integers are classes up to the highest, decimals are values, and names are classes in
    /// alphabetical order. If a number is given, there are so many classes.
    Found(Option<NonZeroUsize>),
    /// A model has these already. An integer is the class of that name if any name is an integer, and else the class of that
    /// index.
    Given(&'a Classes),
}

/// A label as a row has it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Label {
    Class(u64),
    /// A value of a regression that happens to be whole; no class.
    Negative(i64),
    Value(f64),
    Name(String),
}

/// The forms of labels, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `1`.
    Class,
    /// `0.5`.
    Value,
    /// `"positive"`.
    Name,
}

impl Label {
    const fn form(&self) -> Form {
        match self {
            Self::Class(_) | Self::Negative(_) => Form::Class,
            Self::Value(_) => Form::Value,
            Self::Name(_) => Form::Name,
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Class => "an integer",
            Self::Value => "a decimal number",
            Self::Name => "a name",
        })
    }
}

/// Turns the labels of a data set's rows into numbers, all of them by one meaning.
pub(crate) struct Labels<'a> {
    expected: Expected<'a>,
    /// The form of the first label, and where it stands.
    first: Option<(Form, PathBuf, u64)>,
    highest: u64,
    /// Whether the model's classes have names of which one at least is an integer. What a table or a JSON row writes as an
    /// integer may be such a name, and its place among the classes is another number.
    has_integers: bool,
    /// Names in the order in which they were met; a row's number is its place here until [`Self::finish`].
    names: BTreeMap<String, usize>,
}

impl<'a> Labels<'a> {
    pub fn new(expected: Expected<'a>) -> Self {
        Self {
            expected,
            first: None,
            highest: 0,
            has_integers: match expected {
                Expected::Given(given) => given.names.iter().any(|name| integer(name).is_some()),
                Expected::Found(_) => false,
            },
            names: BTreeMap::new(),
        }
    }

    /// The number of a label in this line of this file.
    pub fn read(&mut self, label: &Label, path: &Path, line: u64) -> Result<f64, Problem> {
        let form = label.form();
        let count = match self.expected {
            Expected::Found(count) => count,
            Expected::Given(classes) => Some(classes.count),
        };
        let is_regression = count.is_some_and(|count| count.get() == 1);
        match &self.first {
            // Where it is known that labels are values, an integer is one of them.
            Some((first, file, first_line))
                if *first != form && !(is_regression && form != Form::Name) =>
            {
                return Err(Problem::LabelForms {
                    form,
                    first: *first,
                    file: file.clone(),
                    line: *first_line,
                });
            }
            Some(_) => {}
            None => self.first = Some((form, path.to_owned(), line)),
        }
        let out_of_range = |label: &dyn fmt::Display, classes: usize| Problem::ClassRange {
            label: label.to_string(),
            classes,
        };
        match (label, count.map(NonZeroUsize::get)) {
            (Label::Class(value), Some(1)) => Ok(*value as f64),
            (Label::Negative(value), Some(1)) => Ok(*value as f64),
            (Label::Negative(label), _) => Err(Problem::NegativeLabel { label: *label }),
            (Label::Value(value), Some(1) | None) => Ok(*value),
            (Label::Name(_), Some(1)) => Err(Problem::LabelNotValue),
            (Label::Value(value), Some(classes)) => Err(out_of_range(value, classes)),
            (Label::Class(class), _) if self.has_integers => self.named_integer(*class),
            (Label::Class(class), count) => {
                let classes = count.unwrap_or(MAX_CLASSES);
                if *class >= classes as u64 {
                    return Err(out_of_range(class, classes));
                }
                self.highest = self.highest.max(*class);
                Ok(*class as f64)
            }
            (Label::Name(name), count) => self.name(name, count.unwrap_or(MAX_CLASSES)),
        }
    }

    /// The class whose name is this integer. A table's `01` has become 1 by now, so that no two names may have its value.
    fn named_integer(&self, class: u64) -> Result<f64, Problem> {
        let Expected::Given(given) = self.expected else {
            return Err(unknown_class(&[], &class.to_string()));
        };
        let names = given.names.iter().enumerate();
        let mut same = names.filter(|(_, name)| integer(name) == Some(class));
        match (same.next(), same.next()) {
            (Some((place, _)), None) => Ok(place as f64),
            _ => Err(unknown_class(&given.names, &class.to_string())),
        }
    }

    fn name(&mut self, name: &str, classes: usize) -> Result<f64, Problem> {
        if let Expected::Given(given) = self.expected {
            let found = given.names.iter().position(|known| known == name);
            return found
                .map(|class| class as f64)
                .ok_or_else(|| unknown_class(&given.names, name));
        }
        let next = self.names.len();
        if let Some(&class) = self.names.get(name) {
            return Ok(class as f64);
        }
        if next == classes {
            return Err(Problem::ManyNames {
                name: name.chars().take(60).collect(),
                classes,
            });
        }
        self.names.insert(name.to_owned(), next);
        Ok(next as f64)
    }

    /// The classes, now that all rows have been read; none if no row has a label. Names get their numbers in alphabetical
    /// order.
    pub fn finish(self, examples: &mut [Example]) -> Result<Option<Classes>> {
        let Some((form, path, _)) = self.first else {
            return Ok(None);
        };
        let count = match self.expected {
            Expected::Given(classes) => return Ok(Some(classes.clone())),
            Expected::Found(count) => count,
        };
        let found = match form {
            Form::Value => 1,
            Form::Class => self.highest as usize + 1,
            Form::Name => self.names.len(),
        };
        if count.is_none() && found == 1 && form != Form::Value {
            return Err(Error::OneClass { path });
        }
        let count = count.or(NonZeroUsize::new(found));
        let Some(count) = count.filter(|_| !examples.is_empty()) else {
            return Ok(None);
        };
        if form != Form::Name {
            return Ok(Some(Classes::new(count)));
        }
        let mut place = vec![0.0; found];
        for (sorted, &met) in self.names.values().enumerate() {
            place[met] = sorted as f64;
        }
        for example in examples {
            // What a name was given above: its place in the order of meeting.
            example.label = example.label.map(|met| place[met as usize]);
        }
        let mut names: Vec<String> = self.names.into_keys().collect();
        // A number of classes that was asked for may be more than there are names.
        names.extend((found..count.get()).map(|class| format!("LABEL_{class}")));
        Ok(Classes::named(count, names).or(Some(Classes::new(count))))
    }
}

fn integer(name: &str) -> Option<u64> {
    name.trim().parse().ok()
}

fn unknown_class(names: &[String], name: &str) -> Problem {
    Problem::UnknownClass {
        name: name.chars().take(60).collect(),
        known: names.iter().take(20).cloned().collect(),
    }
}
