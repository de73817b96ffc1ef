//! Numbers whose range lives in their type.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $holds:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Serialize)]
        #[serde(transparent)]
        pub struct $name(f64);

        impl $name {
            /// `None` if `value` is out of range.
            #[must_use]
            pub fn new(value: f64) -> Option<Self> {
                let holds: fn(f64) -> bool = $holds;
                (value.is_finite() && holds(value)).then_some(Self(value))
            }

            /// The number.
            #[must_use]
            pub const fn get(self) -> f64 {
                self.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = f64::deserialize(deserializer)?;
                Self::new(value).ok_or_else(|| D::Error::custom(concat!("expected ", $expected)))
            }
        }
    };
}

ranged!(
    /// Above 0.
    Positive, "a number above 0", |value| value > 0.0
);
ranged!(
    /// Below 0.
    Negative, "a number below 0", |value| value < 0.0
);
ranged!(
    /// Above 1.
    AboveOne, "a number above 1", |value| value > 1.0
);
ranged!(
    /// Above 0, and 1 at most.
    Share, "a number above 0 and at most 1", |value| value > 0.0 && value <= 1.0
);
ranged!(
    /// 0 or above, and below 1.
    BelowOne, "a number of at least 0 and less than 1", |value| (0.0..1.0).contains(&value)
);
