//! A deserializer of trees that differs from serde_json's: a list is no mapping, null is an empty mapping,
//! and a choice may be written as its name alone.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, Unexpected, VariantAccess,
    Visitor,
};
use serde_json::{Error, Value};

use super::wording::several;

/// A part of a tree, to be decoded.
#[derive(Clone, Copy)]
pub struct Strict<'a>(pub &'a Value);

/// Serves every spec whose form does not matter here.
macro_rules! as_any {
    ($($method:ident($($argument:ident: $kind:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, Error> {
            $(let _ = $argument;)*
            self.deserialize_any(visitor)
        })*
    };
}

impl<'de> Strict<'de> {
    /// A mapping; null is an empty one.
    fn mapping<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, Strict)>())),
            Value::Array(_) => Err(Error::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }
}

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(list) => {
                let mut items = SeqDeserializer::new(list.iter().map(Strict));
                let decoded = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(decoded)
            }
            Value::Object(map) => {
                let mut entries =
                    MapDeserializer::new(map.iter().map(|(key, value)| (key.as_str(), Strict(value))));
                let decoded = visitor.visit_map(&mut entries)?;
                entries.end()?;
                Ok(decoded)
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.mapping(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (name, body) = match self.0 {
            Value::String(name) => (name, Strict(&Value::Null)),
            Value::Object(map) if map.len() == 1 => match map.iter().next() {
                Some((name, body)) => (name, Strict(body)),
                None => return Err(Error::custom("an empty map of one key")),
            },
            Value::Object(map) => {
                let found: Vec<_> = map.keys().map(String::as_str).collect();
                return Err(Error::custom(several(&found, choices)));
            }
            Value::Array(_) => return Err(Error::invalid_type(Unexpected::Seq, &"string or map")),
            _ => return Err(Error::invalid_type(Unexpected::Other("a scalar"), &"string or map")),
        };
        visitor.visit_enum(Choice { name, body })
    }

    as_any! {
        deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_f32() deserialize_f64()
        deserialize_i128() deserialize_u128() deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf() deserialize_unit() deserialize_unit_struct(_name: &'static str)
        deserialize_seq() deserialize_map() deserialize_identifier() deserialize_ignored_any()
        deserialize_tuple(_len: usize) deserialize_tuple_struct(_name: &'static str, _len: usize)
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// A variant by its name, and the value under it.
struct Choice<'a> {
    name: &'a str,
    body: Strict<'a>,
}

impl<'de> EnumAccess<'de> for Choice<'de> {
    type Error = Error;
    type Variant = Strict<'de>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Strict<'de>), Error> {
        Ok((seed.deserialize(self.name.into_deserializer())?, self.body))
    }
}

impl<'de> VariantAccess<'de> for Strict<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.0 {
            Value::Null => Ok(()),
            Value::Object(map) if map.is_empty() => Ok(()),
            _ => Err(Error::invalid_type(Unexpected::Other("arguments"), &"unit")),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.mapping(visitor)
    }
}
