//! What templates written for transformers call: `raise_exception`, `strftime_now`, Python's methods, and `tojson` as
//! Python writes it.

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A template refuses its messages.
pub(crate) fn raise_exception(message: String) -> Result<Jinja, Error> {
    Err(refused(message))
}

/// The present time, in UTC, in a format of C's `strftime`.
pub(crate) fn strftime_now(format: String) -> Result<String, Error> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    strftime(&format, seconds)
}

/// Python's methods of values.
pub(crate) fn python_method(
    state: &mut State<'_, '_>,
    value: &Jinja,
    method: &str,
    arguments: &[Jinja],
) -> Result<Jinja, Error> {
    match (method, value.as_str()) {
        // Python begins a word after whatever is no letter, not only after a space.
        ("title", Some(text)) if arguments.is_empty() => Ok(title(text).into()),
        _ => unknown_method_callback(state, value, method, arguments),
    }
}

fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for letter in text.chars() {
        if inside {
            titled.extend(letter.to_lowercase());
        } else {
            titled.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    titled
}

/// JSON with Python's spaces, and with the characters that it does not escape.
pub(crate) fn python_json(value: Jinja, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Characters are never escaped; templates may say so.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let mut bytes = Vec::new();
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width.min(64));
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced)),
    };
    written.map_err(|error| refused(format!("no JSON: {error}")))?;
    String::from_utf8(bytes).map_err(|error| refused(format!("no JSON: {error}")))
}

/// `{"a": 1, "b": [2, 3]}`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}

/// `seconds` since 1970 in a format of C's `strftime`.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let (year, month, day) = date(days);
    let weekday = DAYS[((days + 3) % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        // A sign before the letter leaves out leading zeros.
        let (letter, bare) = match letters.next() {
            Some('-') => (letters.next(), true),
            letter => (letter, false),
        };
        let two = |number: u64| {
            if bare {
                number.to_string()
            } else {
                format!("{number:02}")
            }
        };
        text += &match letter {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second % 60),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(refused(format!(
                    "strftime_now: `%{other}` is not supported; supported: %Y %y %m %d %H %I %M %S %B %b %A %a %p %%"
                )));
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a day since 1970.
fn date(mut days: u64) -> (u64, u64, u64) {
    // The calendar repeats itself every 400 years; 1970 lies 370 years into such a period, and that period's days before
    // it are added, so that counting starts with a period.
    days += DAYS_BEFORE_1970;
    let mut year = 1600 + 400 * (days / DAYS_OF_PERIOD);
    days %= DAYS_OF_PERIOD;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let length = |year: u64| 365 + u64::from(leap(year));
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

/// Days of 400 years.
const DAYS_OF_PERIOD: u64 = 146_097;

/// Days from 1600 to 1970.
const DAYS_BEFORE_1970: u64 = 135_140;

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds: u64, expected: &str| {
            let format = "%a %A %-d %d %b %B %m %Y %y %H:%M:%S %I %p %%";
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        };
        check(
            0,
            "Thu Thursday 1 01 Jan January 01 1970 70 00:00:00 12 AM %",
        );
        check(
            951_782_399,
            "Mon Monday 28 28 Feb February 02 2000 00 23:59:59 11 PM %",
        );
        check(
            951_782_400,
            "Tue Tuesday 29 29 Feb February 02 2000 00 00:00:00 12 AM %",
        );
        check(
            1_735_689_599,
            "Tue Tuesday 31 31 Dec December 12 2024 24 23:59:59 11 PM %",
        );
        check(
            4_107_542_400,
            "Mon Monday 1 01 Mar March 03 2100 00 00:00:00 12 AM %",
        );
        let message = strftime("%d %Q", 0).unwrap_err().to_string();
        assert!(message.contains("`%Q` is not supported"), "{message}");
        assert!(strftime("%", 0).is_err());
    }
}
