//! Numbers whose range lives in their type, for the configurations of families.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

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
    /// A probability in [0, 1).
    #[derive(Default)]
    Probability, "a probability of at least 0 and less than 1", |value| (0.0..1.0).contains(&value)
);
ranged!(
    /// A finite number that is not negative.
    #[derive(Default)]
    NonNegative, "a number of at least 0", |value| value >= 0.0
);
ranged!(
    /// A finite number above 0.
    Positive, "a number above 0", |value| value > 0.0
);
ranged!(
    /// A finite number below 0.
    Negative, "a number below 0", |value| value < 0.0
);
ranged!(
    /// A finite number above 1.
    AboveOne, "a number above 1", |value| value > 1.0
);
ranged!(
    /// A part of a whole that is not nothing: above 0, and 1 at most.
    Fraction, "a number above 0 and at most 1", |value| value > 0.0 && value <= 1.0
);

/// A finite number, written without a fraction where it has none (as Python writes an integer).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finite(f64);

impl Finite {
    /// `None` if `value` is infinite or not a number.
    #[must_use]
    pub fn new(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self(value))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl Serialize for Finite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Beyond 2^53 not every integer is a float.
        if self.0.fract() == 0.0 && self.0.abs() < 9e15 {
            serializer.serialize_i64(self.0 as i64)
        } else {
            serializer.serialize_f64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Finite {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = f64::deserialize(deserializer)?;
        Self::new(value).ok_or_else(|| D::Error::custom("expected a finite number"))
    }
}
