//! `train.kernels`: which kernels of our own compute.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{COMPILED, Kernel, enable};
use crate::util::yaml::{Invalid, nearest};

/// `own`, `libtorch`, or a mapping from kernels to whether they compute; those that it leaves out are as in a
/// config without the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSpec {
    Own,
    Libtorch,
    Each(BTreeMap<Kernel, bool>),
}

const REMEDY: &str = "this binary was built without them: build with the cargo feature `kernels` (it is on by default), or say \
                      `kernels: libtorch`";

impl KernelSpec {
    /// What the spec says about a kernel; None where it says nothing.
    pub fn says(&self, kernel: Kernel) -> Option<bool> {
        match self {
            Self::Own => Some(true),
            Self::Libtorch => Some(false),
            Self::Each(each) => each.get(&kernel).copied(),
        }
    }

    /// Refuses kernels that are not compiled in. Paths are relative to `kernels`.
    pub fn validate(&self) -> Result<(), Invalid> {
        if COMPILED {
            return Ok(());
        }
        match self {
            Self::Own => Err(Invalid::new("", format!("`own`: {REMEDY}"))),
            Self::Libtorch => Ok(()),
            Self::Each(each) => match each.iter().find(|(_, on)| **on) {
                Some((kernel, _)) => Err(Invalid::new(kernel.name(), REMEDY)),
                None => Ok(()),
            },
        }
    }

    /// Switches each kernel as the spec says, or on.
    pub fn apply(&self) {
        for &kernel in Kernel::ALL {
            enable(kernel, self.says(kernel).unwrap_or(true));
        }
    }
}

impl FromStr for KernelSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "own" => Ok(Self::Own),
            "libtorch" => Ok(Self::Libtorch),
            _ => {
                let meant = nearest(text, ["own", "libtorch"].into_iter());
                let meant = meant.map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
                Err(format!("`{text}` is neither `own` nor `libtorch`{meant}"))
            }
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Own => f.write_str("own"),
            Self::Libtorch => f.write_str("libtorch"),
            Self::Each(each) => {
                let entries: Vec<_> =
                    each.iter().map(|(kernel, on)| format!("{}: {on}", kernel.name())).collect();
                write!(f, "{{{}}}", entries.join(", "))
            }
        }
    }
}

impl Serialize for KernelSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Each(each) => serializer.collect_map(each.iter().map(|(kernel, on)| (kernel.name(), on))),
            word => serializer.collect_str(word),
        }
    }
}

impl JsonSchema for KernelSpec {
    fn schema_name() -> Cow<'static, str> {
        "KernelSpec".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let switch = |kernel: &Kernel| {
            let schema = json!({"type": "boolean", "default": true, "description": kernel.about()});
            (kernel.name().to_owned(), schema)
        };
        let kernels: Map<String, Value> = Kernel::ALL.iter().map(switch).collect();
        json_schema!({"anyOf": [
            {"enum": ["own", "libtorch"]},
            {"type": "object", "properties": kernels, "additionalProperties": false},
        ]})
    }
}

impl<'de> Deserialize<'de> for KernelSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl<'de> Visitor<'de> for Written {
            type Value = KernelSpec;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "own, libtorch, or true or false for some of {}", Kernel::NAMES.join(", "))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<KernelSpec, E> {
                text.parse().map_err(|_| E::unknown_variant(text, &["own", "libtorch"]))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KernelSpec, A::Error> {
                let mut each = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let found = Kernel::ALL.iter().find(|kernel| kernel.name() == name);
                    let kernel = found.ok_or_else(|| A::Error::unknown_field(&name, Kernel::NAMES))?;
                    each.insert(*kernel, map.next_value()?);
                }
                Ok(KernelSpec::Each(each))
            }
        }
        deserializer.deserialize_any(Written)
    }
}
