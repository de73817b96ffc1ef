//! The date that chat templates are told.

use chrono::{Datelike as _, NaiveDate, NaiveTime};
use std::fmt;
use std::str::FromStr;

/// A day of the calendar, from 1970 to 9999. Templates that write the date (`strftime_now`) are told noon of it, so that all rows
/// of a run read the same, however long it takes and whenever it is resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChatDate(NaiveDate);

impl ChatDate {
    /// Today, where this machine is.
    #[must_use]
    pub fn today() -> Self {
        let today = chrono::Local::now().date_naive();
        // A clock that is wrong by centuries tells the first day there is.
        Self(Some(today).filter(is_told).unwrap_or_default())
    }

    /// Noon, in seconds since the beginning of 1970.
    pub(crate) fn noon(self) -> u64 {
        let noon = NaiveTime::from_hms_opt(12, 0, 0).unwrap_or_default();
        let seconds = self.0.and_time(noon).and_utc().timestamp();
        u64::try_from(seconds).unwrap_or(0)
    }
}

fn is_told(date: &NaiveDate) -> bool {
    (1970..=9999).contains(&date.year())
}

impl FromStr for ChatDate {
    type Err = &'static str;

    /// Of `2026-11-23` and nothing shorter or longer.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "a date from 1970 on, written like 2026-11-23";
        let shape: String = text
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        if shape != "0000-00-00" {
            return Err(EXPECTED);
        }
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").map_err(|_| EXPECTED)?;
        Some(date).filter(is_told).map(Self).ok_or(EXPECTED)
    }
}

impl fmt::Display for ChatDate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::ChatDate;
    use crate::chat_functions::strftime;

    #[test]
    fn dates_are_read_strictly_and_written_alike() {
        for text in ["1970-01-01", "2024-02-29", "2026-11-23", "9999-12-31"] {
            let date: ChatDate = text.parse().unwrap();
            assert_eq!(date.to_string(), text);
            assert_eq!(
                strftime("%Y-%m-%d %H:%M:%S", date.noon()).unwrap(),
                format!("{text} 12:00:00")
            );
        }
        for text in [
            "",
            "2026",
            "2026-11-23 ",
            "2026-1-2",
            "+2026-01-02",
            "2026-02-29",
            "2026-13-01",
            "1969-12-31",
            "2026/11/23",
            "2026-11-23T12:00",
            "\u{0662}026-11-23",
        ] {
            assert!(text.parse::<ChatDate>().is_err(), "{text}");
        }
    }
}
