//! The final answer of a text that a model wrote, and whether it is the expected one.

/// What stands before the final answer in GSM8K's solutions.
const MARK: &str = "####";

/// An expected final answer.
///
/// If it is a number, so is what is looked for: the number behind the first `####` of the written text that has one, else
/// the last number of the text. Both lose `$`, thousands' commas and a trailing dot before they are compared, character
/// by character: `18.00` is not `18`. Any other answer must be the whole text, spaces around it aside; case counts. The exact match of
/// GSM8K in lm-evaluation-harness looks for numbers by other patterns, so that its figures may differ.
///
/// ```
/// use lowrank_data::Answer;
///
/// let answer = Answer::new("So 9 are left.\n#### 1,234");
/// assert_eq!(answer, Answer::Number("1234".to_owned()));
/// assert_eq!(answer.found_in("She has $1,234.").as_deref(), Some("1234"));
/// assert_eq!(answer.found_in("7 and 8\n#### 15\nQuestion: 3").as_deref(), Some("15"));
/// assert_eq!(answer.found_in("None."), None);
/// assert_eq!(Answer::new(" true\n").found_in("true ").as_deref(), Some("true"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A number as it is compared: digits, a minus before them, a dot among them.
    Number(String),
    /// A text without spaces around it.
    Text(String),
}

impl Answer {
    /// The final answer of a reference: a number that is all there is, or all there is behind the last `####`; or the
    /// whole text.
    #[must_use]
    pub fn new(reference: &str) -> Self {
        let tail = reference.rsplit(MARK).next().unwrap_or(reference);
        match whole_number(tail.trim()) {
            Some(number) => Self::Number(number),
            None => Self::Text(reference.trim().to_owned()),
        }
    }

    /// What is compared.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Number(text) | Self::Text(text) => text,
        }
    }

    /// The answer that a text gives, in the form that is compared; none if a number is expected and there is none.
    #[must_use]
    pub fn found_in(&self, text: &str) -> Option<String> {
        match self {
            Self::Text(_) => Some(text.trim().to_owned()),
            Self::Number(_) => {
                let marked = text.split(MARK).skip(1).find_map(first_here);
                marked.or_else(|| numbers(text).last())
            }
        }
    }
}

/// A text that is a number and nothing else.
fn whole_number(text: &str) -> Option<String> {
    let mut found = numbers(text);
    let number = found.next()?;
    let signs = |c: char| matches!(c, '$' | ',' | '.' | '-' | '+') || c.is_ascii_digit();
    (found.next().is_none() && text.chars().all(signs)).then_some(number)
}

/// The number at the beginning of a text, spaces and what belongs to a number aside.
fn first_here(text: &str) -> Option<String> {
    let digit = text.find(|c: char| c.is_ascii_digit())?;
    let before = |c: char| c.is_whitespace() || matches!(c, '$' | '-' | '.' | '+');
    let here = text[..digit].chars().all(before);
    here.then(|| numbers(text).next()).flatten()
}

/// The numbers of a text in the form that is compared.
fn numbers(text: &str) -> impl Iterator<Item = String> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + bytes[at..].iter().position(u8::is_ascii_digit)?;
        let mut number = String::new();
        let before = text[..start].trim_end_matches('.');
        // Only what is directly before the digits is theirs.
        let dotted = before.len() + 1 == start && !before.ends_with(|c: char| c.is_ascii_digit());
        let before = if dotted { before } else { &text[..start] };
        if is_negative(before) {
            number.push('-');
        }
        if dotted {
            number.push_str("0.");
        }
        let mut dot = dotted;
        at = start;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'0'..=b'9' => number.push(char::from(*byte)),
                b',' if groups(&bytes[at + 1..]) && !dot => {}
                b'.' if !dot && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) => {
                    dot = true;
                    number.push('.');
                }
                _ => break,
            }
            at += 1;
        }
        Some(number)
    })
}

/// Whether exactly three digits come next.
fn groups(rest: &[u8]) -> bool {
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits == 3
}

/// Whether a minus stands before a number, in front of a `$` or behind it. A minus between two terms is none of its own.
fn is_negative(before: &str) -> bool {
    let before = before.strip_suffix('$').unwrap_or(before);
    let Some(before) = before.strip_suffix(['-', '\u{2212}']) else {
        return false;
    };
    let before = before.strip_suffix('$').unwrap_or(before);
    !before.ends_with(|c: char| c.is_alphanumeric() || c == ')')
}

#[cfg(test)]
mod tests {
    use super::{Answer, numbers};

    #[test]
    fn numbers_as_people_write_them() {
        for (text, expected) in [
            ("", &[][..]),
            ("no digits at all, not ...$-.", &[]),
            ("16 - 3 - 4 = 9.", &["16", "3", "4", "9"]),
            ("16-3=13", &["16", "3", "13"]),
            ("= -3, (-4) and \u{2212}5", &["-3", "-4", "-5"]),
            ("$1,234.50. Then $5", &["1234.50", "5"]),
            ("-$7 and $-8", &["-7", "-8"]),
            ("1, 2, 3", &["1", "2", "3"]),
            ("1,2,3 and 12,3456", &["1", "2", "3", "12", "3456"]),
            ("1,000,000 people", &["1000000"]),
            ("a .5 of it, -.25", &["0.5", "-0.25"]),
            ("1.2.3", &["1.2", "3"]),
            ("3.14,159", &["3.14", "159"]),
            ("50% of 7th's \u{e9}8\u{e9}", &["50", "7", "8"]),
            ("\u{0663} is no digit here", &[]),
        ] {
            let found: Vec<String> = numbers(text).collect();
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn expected_answers() {
        let number = |text: &str| Answer::Number(text.to_owned());
        let text = |text: &str| Answer::Text(text.to_owned());
        for (reference, expected) in [
            ("18", number("18")),
            (" $1,234. \n", number("1234")),
            ("-5", number("-5")),
            ("9 * 2 = 18\n#### 18", number("18")),
            ("#### 3\n#### 4", number("4")),
            ("18 apples", text("18 apples")),
            ("1 2", text("1 2")),
            (
                "#### a title\nand 7 words",
                text("#### a title\nand 7 words"),
            ),
            ("True", text("True")),
            ("", text("")),
            ("####", text("####")),
            ("-", text("-")),
        ] {
            assert_eq!(Answer::new(reference), expected, "{reference}");
        }
    }

    #[test]
    fn answers_in_texts() {
        let number = Answer::new("18");
        for (text, found) in [
            ("She makes $18 every day.\n#### 18", Some("18")),
            ("#### 18\nQuestion: 5 and 6?\n#### 11", Some("18")),
            ("####$18.00", Some("18.00")),
            ("#### none, but 5", Some("5")),
            ("#### \n 4", Some("4")),
            ("#### none\n#### 6 or 7", Some("6")),
            ("it is 17, no, 18.", Some("18")),
            ("eighteen", None),
            ("", None),
        ] {
            assert_eq!(number.found_in(text).as_deref(), found, "{text}");
        }
        let text = Answer::new("true");
        assert_eq!(text.found_in(" true\n").as_deref(), Some("true"));
        assert_eq!(text.found_in("True.").as_deref(), Some("True."));
        assert_eq!(text.found_in("").as_deref(), Some(""));
    }
}
