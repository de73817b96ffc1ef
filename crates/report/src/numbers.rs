//! Numbers as people read them.

/// Four significant digits, without zeros at the end; whole numbers are grouped by three.
pub(crate) fn significant(number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e15).contains(&number.abs()) {
        return scientific(number);
    }
    if number.fract() == 0.0 || number.abs() >= 1000.0 {
        let sign = if number < 0.0 { "-" } else { "" };
        return format!("{sign}{}", grouped(number.abs().round() as u64));
    }
    let places = (3.0 - number.abs().log10().floor()).clamp(0.0, 8.0) as usize;
    let text = format!("{number:.places$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// `1.5e-5`: three significant digits at most.
pub(crate) fn scientific(number: f64) -> String {
    let text = format!("{number:.2e}");
    let Some((digits, power)) = text.split_once('e') else {
        return text;
    };
    let digits = match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    };
    format!("{digits}e{power}")
}

/// `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2 h 5 min`, `3 min 7 s`, `12.5 s`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let shown = |number: f64| significant(number);
        assert_eq!(
            [0.123_456, 2.0, -3.14159, 0.5, 1234567.0, 1234.6, 99.999].map(shown),
            ["0.1235", "2", "-3.142", "0.5", "1,234,567", "1,235", "100"]
        );
        assert_eq!(
            [2e-5, 1.234_56e-9, -1e20, 0.0].map(shown),
            ["2e-5", "1.23e-9", "-1e20", "0"]
        );
        assert_eq!(significant(-1000.0), "-1,000");
        assert_eq!(grouped(999), "999");
        assert_eq!(
            [12.52, 187.4, 7500.0, 59.96].map(duration),
            ["12.5 s", "3 min 7 s", "2 h 5 min", "1 min 0 s"]
        );
    }
}
