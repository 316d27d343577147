//! Enums that a config writes as `name`, or as `{name: {key: value}}` when a default does not suit.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{MapDeserializer, UnitDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

/// An enum whose variants each hold one spec.
pub(crate) trait Tagged: Sized {
    /// What it is called in an error, such as `an optimizer`.
    const WHAT: &'static str;
    const NAMES: &'static [&'static str];

    /// Decodes the body of the variant `name`, which is one of [`Self::NAMES`].
    fn body<'de, D: Deserializer<'de>>(name: &str, body: D) -> Result<Self, D::Error>;
}

/// The spec in `body`; nothing at all (`adam:` with no more behind it) is an empty mapping.
pub(crate) fn spec<'de, T: DeserializeOwned, D: Deserializer<'de>>(body: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(body)?.map_or_else(bare, Ok)
}

fn bare<T: DeserializeOwned, E: Error>() -> Result<T, E> {
    T::deserialize(MapDeserializer::new(std::iter::empty::<(&str, &str)>()))
}

/// Decodes `name` with every default.
pub(crate) fn from_name<T: Tagged, E: Error>(name: &str) -> Result<T, E> {
    if !T::NAMES.contains(&name) {
        return Err(E::unknown_variant(name, T::NAMES));
    }
    T::body(name, UnitDeserializer::new())
}

/// The seed that decodes the value behind the key `name`.
pub(crate) struct Body<'a, T>(pub &'a str, pub PhantomData<T>);

impl<'de, T: Tagged> DeserializeSeed<'de> for Body<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, body: D) -> Result<T, D::Error> {
        T::body(self.0, body)
    }
}

/// Decodes `name` or `{name: {…}}`.
pub(crate) fn deserialize<'de, T: Tagged, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    struct OneOf<T>(PhantomData<T>);

    impl<'de, T: Tagged> Visitor<'de> for OneOf<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            write!(f, "{}: one of {}, as `name` or `name: {{…}}`", T::WHAT, T::NAMES.join(", "))
        }

        fn visit_str<E: Error>(self, name: &str) -> Result<T, E> {
            from_name(name)
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
            let Some(name) = map.next_key::<String>()? else {
                return Err(A::Error::invalid_length(0, &self));
            };
            if !T::NAMES.contains(&name.as_str()) {
                return Err(A::Error::unknown_variant(&name, T::NAMES));
            }
            let value = map.next_value_seed(Body(&name, PhantomData))?;
            match map.next_key::<String>()? {
                None => Ok(value),
                Some(second) => Err(A::Error::custom(format!(
                    "`{name}` and `{second}` at once: choose one {}",
                    T::WHAT.trim_start_matches("an ").trim_start_matches("a ")
                ))),
            }
        }
    }

    deserializer.deserialize_any(OneOf(PhantomData))
}
