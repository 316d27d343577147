//! The header of a safetensors file, with its sizes checked before anything is allocated. The safetensors
//! crate decides what is valid; the file itself stays on disk, where the crate would want it in memory as a
//! whole.

use std::collections::HashSet;
use std::fmt;

use anyhow::{Context, Result, bail};
use safetensors::Dtype as Packed;
use safetensors::tensor::Metadata;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::dtype::Dtype;
use super::source::{Budget, Source, u64_le};

/// No checkpoint's header comes near it: about 60,000 tensors.
const MAX_HEADER: u64 = 6 << 20;

/// One tensor: contiguous, row-major, little-endian.
#[derive(Debug)]
pub struct Item {
    pub name: String,
    /// None for what libtorch does not have; then `dtype_name` is the format's.
    pub dtype: Option<Dtype>,
    pub dtype_name: String,
    pub shape: Vec<i64>,
    /// In the file.
    pub start: u64,
    pub bytes: u64,
}

/// The tensors in the order of their data, and the file's own metadata.
pub struct Header {
    pub items: Vec<Item>,
    pub metadata: Vec<(String, String)>,
}

/// A JSON object none of whose keys occurs twice, nor any of those in its `__metadata__`. The crate keeps the
/// last of two.
struct UniqueKeys;

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = UniqueKeys;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueKeys, A::Error> {
                let mut seen = HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        map.next_value::<Option<UniqueKeys>>()?;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                    if let Some(twice) = seen.replace(key) {
                        return Err(A::Error::custom(format!("`{twice}` stands in it twice")));
                    }
                }
                Ok(UniqueKeys)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Reads and validates the header of `source`.
pub fn header(source: &Source) -> Result<Header> {
    let budget = Budget::for_file(source.size());
    let len = u64_le(&source.read(0, 8, &budget)?).context("truncated")?;
    if len > MAX_HEADER {
        bail!("its header claims {len} bytes, more than {MAX_HEADER}");
    }
    let text = source.read(8, len, &budget).context("its header")?;
    serde_json::from_slice::<UniqueKeys>(&text).context("its header")?;
    let metadata: Metadata = serde_json::from_slice(&text).context("its header")?;
    let start = 8 + len;
    let data = metadata.data_len() as u64;
    if start + data != source.size() {
        bail!("its header promises {data} bytes of tensors, the file holds {}", source.size() - start);
    }
    let mut items = Vec::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).context("a name without a tensor")?;
        let dtype = dtype(info.dtype);
        let dtype_name = dtype.map_or_else(|| format!("{:?}", info.dtype), |dtype| dtype.name().to_owned());
        let shape = info.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<Vec<_>, _>>()?;
        let numel = shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d.max(1)));
        if shape.len() > 64 || numel.is_none() {
            bail!("`{name}`: its sizes {shape:?} overflow");
        }
        let (from, to) = info.data_offsets;
        items.push(Item {
            dtype,
            dtype_name,
            shape,
            start: start + from as u64,
            bytes: (to - from) as u64,
            name,
        });
    }
    let metadata = metadata.metadata().clone().unwrap_or_default();
    let mut metadata: Vec<_> = metadata.into_iter().collect();
    metadata.sort();
    Ok(Header { items, metadata })
}

fn dtype(packed: Packed) -> Option<Dtype> {
    Some(match packed {
        Packed::BOOL => Dtype::Bool,
        Packed::U8 => Dtype::U8,
        Packed::I8 => Dtype::I8,
        Packed::I16 => Dtype::I16,
        Packed::U16 => Dtype::U16,
        Packed::I32 => Dtype::I32,
        Packed::U32 => Dtype::U32,
        Packed::I64 => Dtype::I64,
        Packed::U64 => Dtype::U64,
        Packed::F16 => Dtype::F16,
        Packed::BF16 => Dtype::BF16,
        Packed::F32 => Dtype::F32,
        Packed::F64 => Dtype::F64,
        Packed::C64 => Dtype::C64,
        Packed::F8_E4M3 => Dtype::F8E4M3,
        Packed::F8_E5M2 => Dtype::F8E5M2,
        Packed::F8_E4M3FNUZ => Dtype::F8E4M3Fnuz,
        Packed::F8_E5M2FNUZ => Dtype::F8E5M2Fnuz,
        _ => return None,
    })
}
