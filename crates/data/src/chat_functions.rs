//! What templates written for transformers call: `raise_exception`, what `strftime_now` writes, Python's methods, and `tojson` as
//! Python writes it.

use minijinja::value::{Kwargs, Tuple, Value as Jinja, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};
use std::collections::BTreeMap;
use std::io;

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

/// The filter `trim`, which strips as Python does.
pub(crate) fn trim(value: Jinja, letters: Option<String>) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    let gone = stripped(letters);
    text.trim_matches(gone).to_owned()
}

/// Python's methods of values.
pub(crate) fn python_method(
    state: &mut State<'_, '_>,
    value: &Jinja,
    method: &str,
    arguments: &[Jinja],
) -> Result<Jinja, Error> {
    match value.as_str() {
        Some(text) => match method_of_text(text, method, arguments)? {
            Some(result) => Ok(result),
            None => unknown_method_callback(state, value, method, arguments),
        },
        None if method == "index" && value.kind() == ValueKind::Seq => {
            let (item,): (Jinja,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|other| other == item);
            place(found)
        }
        None => unknown_method_callback(state, value, method, arguments),
    }
}

/// The test `sequence`: whatever Python finds items of by a place or a key.
pub(crate) fn is_sequence(value: &Jinja) -> bool {
    matches!(
        value.kind(),
        ValueKind::Seq | ValueKind::Map | ValueKind::String
    )
}

/// Where something was found.
fn place(found: Option<usize>) -> Result<Jinja, Error> {
    found
        .map(Jinja::from)
        .ok_or_else(|| refused("nothing of the kind is in it".to_owned()))
}

/// What the library's methods of texts lack, or do in another way than Python; none for any other method.
fn method_of_text(text: &str, method: &str, arguments: &[Jinja]) -> Result<Option<Jinja>, Error> {
    let result: Jinja = match method {
        "strip" | "lstrip" | "rstrip" => {
            let (letters,): (Option<String>,) = from_args(arguments)?;
            let gone = stripped(letters);
            let mut text = text;
            if method != "rstrip" {
                text = text.trim_start_matches(&gone);
            }
            if method != "lstrip" {
                text = text.trim_end_matches(&gone);
            }
            text.into()
        }
        // Python begins a word after whatever is no letter, not only after a space.
        "title" if arguments.is_empty() => title(text).into(),
        "split" | "rsplit" => {
            let (separator, most): (Option<String>, Option<i64>) = from_args(arguments)?;
            let most = most.and_then(|most| usize::try_from(most).ok());
            split(text, separator.as_deref(), most, method == "rsplit")?
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(arguments)?;
            list(&lines(text, keep.unwrap_or(false)))
        }
        "partition" | "rpartition" => {
            let (separator,): (String,) = from_args(arguments)?;
            let last = method == "rpartition";
            let found = match last {
                false => text.split_once(&separator),
                true => text.rsplit_once(&separator),
            };
            let parts = match (found, last) {
                (Some((before, after)), _) => [before, separator.as_str(), after],
                (None, false) => [text, "", ""],
                (None, true) => ["", "", text],
            };
            Jinja::from(Tuple::from(parts.map(Jinja::from)))
        }
        "index" | "rindex" => {
            let (part,): (String,) = from_args(arguments)?;
            let found = match method {
                "index" => text.find(&part),
                _ => text.rfind(&part),
            };
            place(found.map(|at| text[..at].chars().count()))?
        }
        "removeprefix" => {
            let (prefix,): (String,) = from_args(arguments)?;
            text.strip_prefix(prefix.as_str()).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (String,) = from_args(arguments)?;
            text.strip_suffix(suffix.as_str()).unwrap_or(text).into()
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn list(texts: &[&str]) -> Jinja {
    texts.iter().map(|text| Jinja::from(*text)).collect()
}

/// What Python takes for white space; the four separators of files, groups, records and units are no white space of Unicode's.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// Whether a letter is stripped.
fn stripped(letters: Option<String>) -> impl Fn(char) -> bool {
    move |letter| match &letters {
        Some(letters) => letters.contains(letter),
        None => is_space(letter),
    }
}

/// The pieces between separators, or between stretches of white space, after at most so many splits from the left or the right.
fn split(
    text: &str,
    separator: Option<&str>,
    most: Option<usize>,
    from_right: bool,
) -> Result<Jinja, Error> {
    let most = most.unwrap_or(usize::MAX);
    let mut pieces: Vec<&str> = Vec::new();
    if separator == Some("") {
        return Err(refused("empty separator".to_owned()));
    }
    let mut rest = match (separator, from_right) {
        (Some(_), _) => text,
        (None, false) => text.trim_start_matches(is_space),
        (None, true) => text.trim_end_matches(is_space),
    };
    let mut last = !rest.is_empty() || separator.is_some();
    while last && pieces.len() < most {
        let found = match (separator, from_right) {
            (Some(separator), false) => rest.split_once(separator),
            (Some(separator), true) => rest.rsplit_once(separator).map(|(a, b)| (b, a)),
            (None, false) => rest
                .split_once(is_space)
                .map(|(piece, rest)| (piece, rest.trim_start_matches(is_space))),
            (None, true) => rest
                .rsplit_once(is_space)
                .map(|(rest, piece)| (piece, rest.trim_end_matches(is_space))),
        };
        let Some((piece, after)) = found else { break };
        pieces.push(piece);
        rest = after;
        last = !rest.is_empty() || separator.is_some();
    }
    if last {
        pieces.push(rest);
    }
    if from_right {
        pieces.reverse();
    }
    Ok(list(&pieces))
}

/// The lines of a text where Python ends them, with their ends or without.
fn lines(text: &str, keep: bool) -> Vec<&str> {
    let ends = |letter: char| matches!(letter, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(ends) {
        let end = match rest[at..].starts_with("\r\n") {
            true => at + 2,
            false => at + rest[at..].chars().next().map_or(0, char::len_utf8),
        };
        lines.push(&rest[..if keep { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
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

/// JSON as Python writes it, with the characters that it need not escape.
pub(crate) fn python_json(value: Jinja, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    // Characters are never escaped; templates may say so.
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let sort: Option<bool> = arguments.get("sort_keys")?;
    arguments.assert_all_used()?;
    let (between, colon) = match separators.as_deref() {
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([between, colon]) => (between.as_str(), colon.as_str()),
        Some(_) => return Err(refused("tojson: `separators` are two texts".to_owned())),
    };
    let mut bytes = Vec::new();
    let formatter = Python {
        indent: indent.map(|width| " ".repeat(width.min(64))),
        between,
        colon,
        depth: 0,
        filled: false,
    };
    let mut serializer = Serializer::with_formatter(&mut bytes, formatter);
    let written = match sort {
        // Maps that keep no order of their own are sorted.
        Some(true) => serde_json::to_value(&value)
            .map(sorted)
            .and_then(|value| value.serialize(&mut serializer)),
        _ => value.serialize(&mut serializer),
    };
    written.map_err(|error| refused(format!("no JSON: {error}")))?;
    String::from_utf8(bytes).map_err(|error| refused(format!("no JSON: {error}")))
}

/// The value with the keys of its objects in order.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(map) => {
            let map: BTreeMap<String, Value> = map
                .into_iter()
                .map(|(key, value)| (key, sorted(value)))
                .collect();
            Value::Object(map.into_iter().collect())
        }
        value => value,
    }
}

/// `{"a": 1, "b": [2, 3]}`, or that over several lines.
struct Python<'a> {
    indent: Option<String>,
    between: &'a str,
    colon: &'a str,
    depth: usize,
    /// Whether the innermost list or object that is open, or was closed last, has something in it.
    filled: bool,
}

impl Python<'_> {
    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = &self.indent else {
            return Ok(());
        };
        out.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| out.write_all(indent.as_bytes()))
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: u8) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(&[bracket])
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: u8) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(&[bracket])
    }

    fn item<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.between.as_bytes())?;
        }
        self.line(out)
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b'[')
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b']')
    }

    fn begin_array_value<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b'{')
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b'}')
    }

    fn begin_object_key<W: ?Sized + io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.item(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.colon.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _out: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float(value).as_bytes())
    }
}

/// A finite number as Python writes it: with an exponent below 1e-4 and from 1e16 on.
fn float(value: f64) -> String {
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    // With a fraction, even if it is 0.
    format!("{value:?}")
}

/// `seconds` since 1970 in a format of C's `strftime`.
pub(crate) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
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
