//! Sizes that may follow the input's, and what the schema says of a tensor.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};
use tch::Kind;

use crate::pytorch::export::flat::FlatValue;
use crate::pytorch::reader::pt2::dtype;
use crate::pytorch::weights;

/// The sizes, dtype and layout of a tensor that is not the input.
pub fn meta(shape: &[i64], kind: Kind, is_parameter: bool) -> Result<Json> {
    let fixed = shape.iter().map(|&side| Extent::fixed(side)).collect::<Vec<_>>();
    meta_of(&fixed, kind, is_parameter)
}

pub fn meta_of(sizes: &[Extent], kind: Kind, requires_grad: bool) -> Result<Json> {
    let mut strides = Vec::new();
    let mut stride = Extent::fixed(1);
    for size in sizes.iter().rev() {
        strides.push(stride.json());
        stride = stride.call("mul", Some(size))?;
    }
    strides.reverse();
    Ok(json!({
        "dtype": number(kind)?,
        "sizes": sizes.iter().map(Extent::json).collect::<Vec<_>>(),
        "requires_grad": requires_grad,
        "device": {"type": "cpu", "index": null},
        "strides": strides,
        "storage_offset": {"as_int": 0},
        "layout": STRIDED,
    }))
}

pub const STRIDED: i64 = 7;

/// The schema's number of a dtype.
pub fn number(kind: Kind) -> Result<u64> {
    let wanted = weights::dtype(kind);
    (1..64)
        .find(|&number| wanted.is_some() && dtype(number) == wanted)
        .with_context(|| format!("no dtype {kind:?}"))
}

/// An integer that may follow the input's sizes.
#[derive(Clone, Debug)]
pub struct Extent {
    /// For sympy; None of a constant.
    pub expression: Option<String>,
    /// In the run on the sample.
    pub value: i64,
}

impl Extent {
    pub fn fixed(value: i64) -> Self {
        Self { expression: None, value }
    }

    /// `multiple` times a symbol.
    pub fn symbol(name: &str, multiple: i64, value: i64) -> Self {
        let symbol = format!("Symbol('{name}', positive=True, integer=True)");
        let expression = if multiple == 1 { symbol } else { format!("Mul(Integer({multiple}), {symbol})") };
        Self { expression: Some(expression), value }
    }

    fn text(&self) -> String {
        self.expression.clone().unwrap_or_else(|| format!("Integer({})", self.value))
    }

    pub fn json(&self) -> Json {
        match &self.expression {
            None => json!({"as_int": self.value}),
            Some(text) => json!({"as_expr": {"expr_str": text, "hint": {"as_int": self.value}}}),
        }
    }

    /// `op` of [`FlatValue::Call`] on this and `other`.
    pub fn call(&self, op: &str, other: Option<&Self>) -> Result<Self> {
        let (a, text) = (self.value, self.text());
        let (b, other_text) = other.map_or((0, String::new()), |other| (other.value, other.text()));
        let overflow = || format!("{op} of sizes overflows");
        let value = match op {
            "add" => a.checked_add(b),
            "sub" => a.checked_sub(b),
            "mul" => a.checked_mul(b),
            "floordiv" => a.checked_div_euclid(b),
            "mod" => a.checked_rem_euclid(b),
            "neg" => a.checked_neg(),
            "max" => Some(a.max(b)),
            "min" => Some(a.min(b)),
            _ => None,
        };
        let value = value.with_context(overflow)?;
        if self.expression.is_none() && other.is_none_or(|other| other.expression.is_none()) {
            return Ok(Self::fixed(value));
        }
        let expression = match (op, self.expression.is_none().then_some(a), other) {
            ("mul", Some(1), Some(other)) => other.text(),
            ("mul", ..) if b == 1 => text,
            ("add", ..) => format!("Add({text}, {other_text})"),
            ("sub", ..) => format!("Add({text}, Mul(Integer(-1), {other_text}))"),
            ("mul", ..) => format!("Mul({text}, {other_text})"),
            ("floordiv", ..) => format!("FloorDiv({text}, {other_text})"),
            ("mod", ..) => format!("Mod({text}, {other_text})"),
            ("neg", ..) => format!("Mul(Integer(-1), {text})"),
            ("max", ..) => format!("Max({text}, {other_text})"),
            _ => format!("Min({text}, {other_text})"),
        };
        Ok(Self { expression: Some(expression), value })
    }
}

/// The sizes of a reshape in which one alone follows the input: it is what is left.
pub fn inferred(values: &[FlatValue]) -> Option<Vec<i64>> {
    let mut open = 0;
    let sizes = values.iter().map(|value| match value {
        FlatValue::Int(number) => {
            open += i64::from(*number == -1);
            Some(*number)
        }
        FlatValue::Size(..) | FlatValue::Call(..) => {
            open += 1;
            Some(-1)
        }
        _ => None,
    });
    sizes.collect::<Option<Vec<_>>>().filter(|_| open == 1)
}

/// Letters, digits and underscores.
pub fn identifier(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// As the schema spells what JSON has no number for.
pub fn float(number: f64) -> Json {
    match number {
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        _ if number.is_nan() => "NaN".into(),
        _ => number.into(),
    }
}
