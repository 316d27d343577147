//! What a mask file says of one pixel.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a file says of one pixel: a number (grey level, class or palette index), or a colour `"#rrggbb"`.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "Written", into = "Written")]
pub enum Level {
    Number(u16),
    Colour([u8; 3]),
}

/// A level as YAML has it.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a level is a number from 0 to 65535, or a colour: `[r, g, b]` with values from 0 to 255, or \"#rrggbb\" in quotes"
)]
enum Written {
    Number(u16),
    Colour([u8; 3]),
    #[schemars(extend("pattern" = "^#[0-9a-fA-F]{6}$"))]
    Text(String),
}

impl TryFrom<Written> for Level {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(number) => Ok(Level::Number(number)),
            Written::Colour(colour) => Ok(Level::Colour(colour)),
            Written::Text(text) => {
                let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
                let byte = |at: usize| u8::from_str_radix(digits?.get(at..at + 2)?, 16).ok();
                match (byte(0), byte(2), byte(4)) {
                    (Some(r), Some(g), Some(b)) => Ok(Level::Colour([r, g, b])),
                    _ => Err(format!("`{text}` is no colour; write it as \"#rrggbb\" or `[r, g, b]`")),
                }
            }
        }
    }
}

impl From<Level> for Written {
    fn from(level: Level) -> Self {
        match level {
            Level::Number(number) => Written::Number(number),
            colour => Written::Text(colour.to_string()),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Number(number) => write!(f, "{number}"),
            Level::Colour([r, g, b]) => write!(f, "#{r:02x}{g:02x}{b:02x}"),
        }
    }
}

impl Level {
    /// A number below 256; None for all others.
    pub fn byte(self) -> Option<u8> {
        match self {
            Level::Number(number) => u8::try_from(number).ok(),
            Level::Colour(_) => None,
        }
    }

    /// The largest difference of a channel; None between a number and a colour.
    pub(super) fn distance(self, other: Level) -> Option<u16> {
        match (self, other) {
            (Level::Number(a), Level::Number(b)) => Some(a.abs_diff(b)),
            (Level::Colour(a), Level::Colour(b)) => {
                a.iter().zip(b).map(|(a, b)| u16::from(a.abs_diff(b))).max()
            }
            _ => None,
        }
    }
}
