//! Helpers for the arguments of layers: pairs, ranges, shapes.

use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Shape, ShapeError};
use crate::util::json_schema::Either;

/// The largest channel count, kernel, stride or padding that a layer takes; prevents overflow.
pub const MAX: i64 = 1 << 24;

/// A number for both directions, or `[height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, JsonSchema)]
#[schemars(with = "Either<T, [T; 2]>")]
pub struct Pair<T = i64>(pub [T; 2]);

impl<'de, T: DeserializeOwned + Copy> Deserialize<'de> for Pair<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let pair = match &value {
            Value::Array(list) => match list.as_slice() {
                [height, width] => one(height).zip(one(width)).map(|(height, width)| [height, width]),
                _ => None,
            },
            value => one(value).map(|both| [both, both]),
        };
        let number = if std::any::type_name::<T>() == "i64" { "an integer" } else { "a number" };
        pair.map(Self)
            .ok_or_else(|| D::Error::custom(format!("expected {number} or [height, width], got {value}")))
    }
}

fn one<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

impl<T: Serialize + PartialEq + Copy> Serialize for Pair<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [height, width] = self.0;
        if height == width { height.serialize(serializer) } else { self.0.serialize(serializer) }
    }
}

pub fn yes() -> bool {
    true
}

pub fn one_by_one() -> Pair {
    Pair([1, 1])
}

pub fn zero_by_zero() -> Pair {
    Pair([0, 0])
}

pub fn argument(name: &'static str, message: impl Into<String>) -> ShapeError {
    ShapeError::Argument { name, message: message.into() }
}

/// Refuses a value below `min` or beyond [`MAX`].
pub fn in_range(name: &'static str, value: i64, min: i64) -> Result<(), ShapeError> {
    if (min..=MAX).contains(&value) {
        return Ok(());
    }
    Err(argument(name, format!("{value} is out of range: expected an integer from {min} to {MAX}")))
}

/// [`in_range`] for both of a pair.
pub fn pair_in_range(name: &'static str, pair: Pair, min: i64) -> Result<(), ShapeError> {
    pair.0.iter().try_for_each(|value| in_range(name, *value, min))
}

/// Refuses a number outside `[0, 1]`, NaN included.
pub fn share(name: &'static str, value: f64) -> Result<(), ShapeError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(argument(name, format!("{value} is out of range: expected a number from 0 to 1")))
}

/// Refuses a negative or infinite number, NaN included.
pub fn not_negative(name: &'static str, value: f64) -> Result<(), ShapeError> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(argument(name, format!("{value} is out of range: expected a finite number from 0 up")))
}

/// Checks a size that the user may state and that the input decides.
pub fn agrees(name: &'static str, stated: Option<i64>, actual: i64) -> Result<(), ShapeError> {
    match stated {
        Some(stated) if stated != actual => Err(argument(
            name,
            format!("{stated} does not fit the input, which has {actual}; leave it out, it is inferred"),
        )),
        _ => Ok(()),
    }
}

/// `groups` must divide the channels on both sides.
pub fn groups_divide(groups: i64, channels: i64, name: &str) -> Result<(), ShapeError> {
    in_range("groups", groups, 1)?;
    if channels % groups == 0 {
        return Ok(());
    }
    Err(argument("groups", format!("{groups} does not divide the {channels} {name}")))
}

/// The input as `[C, H, W]`.
pub fn image(input: &[i64]) -> Result<[i64; 3], ShapeError> {
    match *input {
        [channels, height, width] => Ok([channels, height, width]),
        _ => Err(ShapeError::Input {
            wants: "[C, H, W]".into(),
            remedy: "move it before the `flatten`, or put an `unflatten` or `reshape` before it".into(),
        }),
    }
}

/// A size computed without overflow; what does not fit is `i64::MAX`, which no model accepts.
pub fn size(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The output size of a sliding window; None if the dilated kernel is larger than the padded input.
pub fn sweep(input: i64, padding: i128, kernel: i64, dilation: i64, stride: i64) -> Option<i128> {
    let reach = i128::from(dilation) * (i128::from(kernel) - 1) + 1;
    let free = i128::from(input) + padding - reach;
    (free >= 0).then(|| free / i128::from(stride) + 1)
}

/// The error for a window that is larger than its padded input.
pub fn too_large(kernel: Pair, dilation: Pair, padded: [i128; 2]) -> ShapeError {
    let [reach_h, reach_w] =
        [0, 1].map(|axis| i128::from(dilation.0[axis]) * (i128::from(kernel.0[axis]) - 1) + 1);
    let [height, width] = padded;
    let dilated = if dilation.0 == [1, 1] { "" } else { " (dilated)" };
    argument(
        "kernel_size",
        format!(
            "{reach_h}x{reach_w}{dilated} is larger than the padded input, {height}x{width}; \
             pool less before it, pad, or use larger images"
        ),
    )
}

/// A product of sizes, saturating.
pub fn count(factors: &[i64]) -> u64 {
    factors.iter().fold(1u64, |product, factor| product.saturating_mul((*factor).max(0) as u64))
}

/// A shape in words: `[3, 32, 32]`.
pub(crate) fn shown(shape: &[i64]) -> String {
    format!("{shape:?}")
}

pub fn same(input: &[i64]) -> Result<Shape, ShapeError> {
    Ok(input.to_vec())
}
