//! Keys that are `true`, `false` or `auto`.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// `true`, `false`, or `auto` for where it is possible and pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "Value", extend("enum" = [true, false, "auto"]))]
pub enum Toggle {
    #[default]
    Off,
    Auto,
    On,
}

impl Toggle {
    pub(super) fn is_off(&self) -> bool {
        *self == Self::Off
    }

    pub(super) fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl Serialize for Toggle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::Auto => serializer.serialize_str("auto"),
            Self::On => serializer.serialize_bool(true),
        }
    }
}

impl<'de> Deserialize<'de> for Toggle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Toggle;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("auto, true or false")
            }

            fn visit_bool<E: Error>(self, on: bool) -> Result<Toggle, E> {
                Ok(if on { Toggle::On } else { Toggle::Off })
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Toggle, E> {
                match text {
                    "auto" => Ok(Toggle::Auto),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Written)
    }
}
