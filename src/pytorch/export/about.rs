//! What every export says of its network beside the weights: class names, normalisation, the size of its
//! input, temperature and thresholds.

use serde_json::{Map, Value as Json};

use crate::pytorch::writer::Value;

/// Empty where it is not known.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// The classes' names, in the order of the outputs.
    pub classes: Vec<String>,
    /// Per channel or feature: the network was trained on (x - mean) / std, x in 0..1 for pictures.
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    /// Per output of a regression: the network answers (y - target_mean) / target_std.
    pub target_mean: Vec<f64>,
    pub target_std: Vec<f64>,
    /// Of one sample, without the batch: `[C, H, W]` or `[F]`.
    pub input_size: Vec<i64>,
    /// Probabilities are those of logits that are divided by it.
    pub temperature: Option<f64>,
    /// By class, the probability from which on it is found; where a sample may have any number of classes.
    pub thresholds: Vec<f64>,
}

/// One thing known.
#[derive(Clone, Copy, Debug)]
pub enum Fact<'a> {
    Texts(&'a [String]),
    Numbers(&'a [f64]),
    Integers(&'a [i64]),
    Number(f64),
}

impl About {
    /// What is known, by its name in every format.
    pub fn facts(&self) -> Vec<(&'static str, Fact<'_>)> {
        let all = [
            ("classes", Fact::Texts(&self.classes), self.classes.is_empty()),
            ("mean", Fact::Numbers(&self.mean), self.mean.is_empty()),
            ("std", Fact::Numbers(&self.std), self.std.is_empty()),
            ("target_mean", Fact::Numbers(&self.target_mean), self.target_mean.is_empty()),
            ("target_std", Fact::Numbers(&self.target_std), self.target_std.is_empty()),
            ("input_size", Fact::Integers(&self.input_size), self.input_size.is_empty()),
            ("temperature", Fact::Number(self.temperature.unwrap_or(1.0)), self.temperature.is_none()),
            ("thresholds", Fact::Numbers(&self.thresholds), self.thresholds.is_empty()),
        ];
        all.into_iter().filter(|(.., is_empty)| !is_empty).map(|(name, fact, _)| (name, fact)).collect()
    }

    /// A JSON object of what is known.
    pub fn json(&self) -> Map<String, Json> {
        self.facts().into_iter().map(|(name, fact)| (name.to_owned(), fact.json())).collect()
    }

    /// The same for Python's pickle.
    pub fn value(&self) -> Value {
        Value::dict(self.facts().into_iter().map(|(name, fact)| (name, fact.value())))
    }
}

impl Fact<'_> {
    pub fn json(self) -> Json {
        match self {
            Self::Texts(texts) => Json::from(texts.to_vec()),
            Self::Numbers(numbers) => Json::from(numbers.to_vec()),
            Self::Integers(numbers) => Json::from(numbers.to_vec()),
            Self::Number(number) => Json::from(number),
        }
    }

    fn value(self) -> Value {
        Value::List(match self {
            Self::Texts(texts) => texts.iter().cloned().map(Value::Str).collect(),
            Self::Numbers(numbers) => numbers.iter().copied().map(Value::Float).collect(),
            Self::Integers(numbers) => numbers.iter().copied().map(Value::Int).collect(),
            Self::Number(number) => return Value::Float(number),
        })
    }
}
