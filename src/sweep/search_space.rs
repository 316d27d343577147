//! What a sweep varies: `--over penalty.l2=1e-6:1e-1:log:9`, `--over model.args.width=8:64:int:4` or
//! `--over optimizer.sgd.lr=0.1,0.03`.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::util::exit_code::{ExitCode, fail};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::yaml::Document;

/// One key and the values that it takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Axis {
    /// Key path in the config.
    pub key: String,
    pub values: Vec<Value>,
    /// The range behind the values, where there is one: random search draws from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
}

/// From `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Range {
    pub low: f64,
    pub high: f64,
    /// Whether equal steps are equal factors.
    pub log: bool,
    /// Whether only whole numbers count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub int: bool,
}

/// How a range is written.
const FORM: &str = "LOW:HIGH:log:COUNT";

impl Range {
    /// Reads `LOW:HIGH:SCALE:COUNT`, and its values; None for a text that is no
    /// range. The error says what was expected.
    fn parse(text: &str) -> Option<Result<(Self, Vec<Value>), String>> {
        let parts: Vec<&str> = text.split(':').collect();
        let begins_with_number = parts.len() > 1 && parts[0].trim().parse::<f64>().is_ok();
        let is_range = begins_with_number || parts.get(2).is_some_and(|scale| scale_of(scale).is_some());
        (is_range && !text.contains(',')).then(|| Self::of(&parts))
    }

    fn of(parts: &[&str]) -> Result<(Self, Vec<Value>), String> {
        let refusal = || format!("expected KEY={FORM} (or lin, int, logint) or KEY=VALUE,VALUE,…");
        let &[low, high, scale, count] = parts else { return Err(refusal()) };
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
        let (Some(low), Some(high), Some((log, int))) = (number(low), number(high), scale_of(scale)) else {
            return Err(refusal());
        };
        let count = count.trim().parse::<usize>().ok().filter(|count| (1..=10_000).contains(count));
        let count = count.ok_or("the count must be 1 to 10,000")?;
        if log && low.min(high) <= 0.0 {
            return Err(
                "a logarithmic range lies above 0; add a 0 before it, as in KEY=0,LOW:HIGH:log:COUNT".into(),
            );
        }
        if int && (low.fract() != 0.0 || high.fract() != 0.0 || low.abs().max(high.abs()) > 1e15) {
            return Err("its ends are no whole numbers".into());
        }
        let range = Self { low, high, log, int };
        let mut values: Vec<Value> =
            (0..count).map(|at| range.at(at as f64 / (count.max(2) - 1) as f64)).collect();
        values.dedup();
        Ok((range, values))
    }

    /// The value at `place` in [0, 1].
    pub fn at(self, place: f64) -> Value {
        let value = match self.log {
            true => (self.low.ln() + (self.high.ln() - self.low.ln()) * place).exp(),
            false => self.low + (self.high - self.low) * place,
        };
        if self.int {
            return Value::from(value.round() as i64);
        }
        // 1e-3 rather than 1.0000000000000002e-3.
        Value::from(format!("{value:.12e}").parse().unwrap_or(value))
    }

    /// Where in [0, 1] the value lies; 0 in a range of one value.
    pub fn place(self, value: f64) -> f64 {
        let of = |value: f64| if self.log { value.ln() } else { value };
        let span = of(self.high) - of(self.low);
        if span == 0.0 { 0.0 } else { (of(value) - of(self.low)) / span }
    }
}

/// Whether equal steps are equal factors, and whether only whole numbers count.
fn scale_of(name: &str) -> Option<(bool, bool)> {
    match name {
        "log" => Some((true, false)),
        "lin" => Some((false, false)),
        "int" => Some((false, true)),
        "logint" => Some((true, true)),
        _ => None,
    }
}

impl Axis {
    /// Reads `KEY=LOW:HIGH:SCALE:COUNT` or `KEY=VALUE,VALUE,…`, where a value may be such a range too and
    /// is replaced by its values. SCALE is `log`, `lin`, or for whole numbers `int` or `logint`. Exit 2.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |message: String| fail(ExitCode::Usage, format!("--over {text}: {message}"));
        let forms = format!("expected KEY={FORM} (or lin, int, logint) or KEY=VALUE,VALUE,…");
        let Some((key, values)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            return Err(refuse(forms));
        };
        let key = key.trim().to_owned();
        if let Some(read) = Range::parse(values) {
            let (range, values) = read.map_err(refuse)?;
            return Ok(Self { key, values, range: Some(range) });
        }
        let list = Document::parse("--over", format!("[{values}]"))
            .map_err(|error| refuse(format!("{forms}: {error:#}")))?;
        match list.tree {
            Value::Array(values) if !values.is_empty() => Self::listed(key, values).map_err(refuse),
            _ => Err(refuse(forms)),
        }
    }

    /// Of a list whose texts may be ranges. The error says what was expected.
    pub fn listed(key: String, list: Vec<Value>) -> Result<Self, String> {
        let mut values = Vec::new();
        for value in list {
            match value.as_str().and_then(Range::parse) {
                Some(read) => values.extend(read?.1),
                None => values.push(value),
            }
        }
        Ok(Self { key, values, range: None })
    }

    fn drawn(&self, draw: &mut CounterRng) -> Value {
        match self.range {
            Some(range) => range.at(draw.uniform()),
            None => self.values[draw.below(self.values.len() as u64) as usize].clone(),
        }
    }
}

/// One choice of values: a value per axis.
pub type Point = Vec<Value>;

/// Every combination, the last axis fastest.
pub fn grid(axes: &[Axis]) -> Vec<Point> {
    axes.iter().fold(vec![Vec::new()], |points, axis| {
        let longer = |point: Vec<Value>| {
            axis.values.iter().map(move |value| [point.as_slice(), std::slice::from_ref(value)].concat())
        };
        points.into_iter().flat_map(longer).collect()
    })
}

/// The combination number `index` that the seed draws: from ranges evenly (in the logarithm, where they are
/// logarithmic), from lists with equal chances (Bergstra and Bengio 2012).
pub fn draw(axes: &[Axis], index: usize, seed: u64) -> Point {
    let mut draw = CounterRng::new(seed, index as u64, 0, RngStream::Generate);
    axes.iter().map(|axis| axis.drawn(&mut draw)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_and_lists_are_read_and_ends_are_exact() {
        let axis = Axis::parse("penalty.l2=1e-6:1e-2:log:5").unwrap();
        let values: Vec<f64> = axis.values.iter().filter_map(Value::as_f64).collect();
        assert_eq!((values[0], values[4], values.len()), (1e-6, 1e-2, 5));
        assert_eq!(values[2], 1e-4);
        assert_eq!(Axis::parse("a=0:1:lin:3").unwrap().values, [json!(0.0), json!(0.5), json!(1.0)]);
        assert_eq!(Axis::parse("a.b=8,x,{c: 1}").unwrap().values, [json!(8), json!("x"), json!({"c": 1})]);
        let mixed = Axis::parse("a=0,1e-3:1e-1:log:3,x").unwrap();
        assert_eq!(mixed.values, [json!(0), json!(1e-3), json!(1e-2), json!(1e-1), json!("x")]);
        assert_eq!(mixed.range, None);
        let whole = |text: &str| Axis::parse(text).unwrap().values;
        assert_eq!(whole("a=8:64:logint:4"), [json!(8), json!(16), json!(32), json!(64)]);
        assert_eq!(whole("a=1:3:int:9"), [json!(1), json!(2), json!(3)]);
        for wrong in [
            "a=0.5:2:int:3",
            "a",
            "=1",
            "a=0:1:log:3",
            "a=1:2:exp:3",
            "a=1:2:lin:0",
            "a=",
            "a=1:x:lin:3",
            "a=1:2:3",
            "a=0,1:2:3",
            "a=0,0:1:log:3",
        ] {
            assert!(Axis::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_grid_has_every_combination_and_random_points_stay_in_range() {
        let axes = [Axis::parse("a=1,2").unwrap(), Axis::parse("b=1e-3:1:log:3").unwrap()];
        assert_eq!(grid(&axes).len(), 6);
        assert_eq!(grid(&axes)[1][0], json!(1));
        let points: Vec<_> = (0..200).map(|index| draw(&axes, index, 3)).collect();
        assert_eq!(points[7], draw(&axes, 7, 3));
        let below: usize = points
            .iter()
            .filter(|point| {
                let value = point[1].as_f64().unwrap();
                assert!((1e-3..=1.0).contains(&value));
                value < 0.0316
            })
            .count();
        assert!(
            (70..130).contains(&below),
            "half of a logarithmic range lies below its middle: {below} of 200"
        );
    }
}
