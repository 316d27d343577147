//! Classes that have few samples: weights in the training loss, draws of the sampler, logit adjustment. All
//! three follow from the numbers of samples that the classes have in the training set.

use std::fmt;

use anyhow::Result;
use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;

/// What is done about classes that have few samples, in training only: evaluation counts every sample once. For
/// `classification` and `multi_label`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceSpec {
    /// Weights of the classes in the training loss: as `weight` of `torch.nn.CrossEntropyLoss`, with several
    /// labels per sample as `pos_weight` of `torch.nn.BCEWithLogitsLoss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<ClassWeights>,
    /// How many samples of each class an epoch draws. It stays as long as it was: samples of rare classes come
    /// several times, each time augmented anew, and of frequent ones a part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampling>,
    /// τ of logit adjustment (Menon et al. 2021): the training loss is of logits plus τ·ln(share of the class),
    /// and the answers are of the logits alone. The paper's is 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub logit_adjustment: Option<f64>,
}

/// Weights of the classes: `inverse`, `effective`, `{effective: {beta: 0.99}}` or a list with one number per class.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ClassWeights {
    /// samples / (classes · samples of the class), scikit-learn's `balanced`; with several labels per sample
    /// (samples without the class) / (samples with it).
    Inverse,
    /// (1 - β) / (1 - βⁿ) of a class with n samples, with a mean of 1 over the classes (Cui et al. 2019, the
    /// class-balanced loss).
    Effective(EffectiveNumber),
    #[serde(untagged)]
    Given(Vec<f64>),
}

/// The effective number of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EffectiveNumber {
    /// β: towards 0 all classes count alike, towards 1 as with `inverse`.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta: f64,
}

impl Default for EffectiveNumber {
    fn default() -> Self {
        Self { beta: 0.999 }
    }
}

/// How many samples of each class an epoch draws. With several labels per sample a sample counts as of the
/// rarest of its classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// As many of each class.
    Uniform,
    /// In proportion to the square roots of the classes' numbers of samples (Mahajan et al. 2018).
    Sqrt,
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const NAMES: &[&str] = &["inverse", "effective"];
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = ClassWeights;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("`inverse`, `effective`, `{effective: {beta: …}}` or a list of weights")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<ClassWeights, E> {
                match word {
                    "inverse" => Ok(ClassWeights::Inverse),
                    "effective" => Ok(ClassWeights::Effective(EffectiveNumber::default())),
                    _ => Err(E::unknown_variant(word, NAMES)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<ClassWeights, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(ClassWeights::Given)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ClassWeights, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Written {
                    effective: EffectiveNumber,
                }
                let written = Written::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ClassWeights::Effective(written.effective))
            }
        }
        deserializer.deserialize_any(Form)
    }
}

impl ClassWeights {
    /// One weight per class of `counts` samples, of `samples` together. Of a class that no sample has (or, with
    /// several labels, that all have) it decides nothing: 0 (1).
    fn of(&self, counts: &[usize], samples: usize, is_multi_label: bool) -> Vec<f64> {
        let present = counts.iter().filter(|&&count| count > 0).count() as f64;
        let effective = |beta: f64, count: usize| match beta {
            0.0 => 1.0,
            // 1 - βⁿ without the loss of digits where β is near 1.
            beta => -(count as f64 * beta.ln()).exp_m1() / (1.0 - beta),
        };
        let share = |number: &dyn Fn(usize) -> f64| -> Vec<f64> {
            counts
                .iter()
                .map(|&count| match is_multi_label {
                    true if count == 0 || count == samples => 1.0,
                    true => number(samples - count) / number(count),
                    false if count == 0 => 0.0,
                    false => 1.0 / number(count),
                })
                .collect()
        };
        match self {
            Self::Given(weights) => weights.clone(),
            Self::Inverse if is_multi_label => share(&|count| count as f64),
            Self::Inverse => share(&|count| count as f64 * present / samples as f64),
            Self::Effective(number) if is_multi_label => share(&|count| effective(number.beta, count)),
            Self::Effective(number) => {
                let weights = share(&|count| effective(number.beta, count));
                let mean = weights.iter().sum::<f64>() / present;
                weights.into_iter().map(|weight| weight / mean).collect()
            }
        }
    }
}

impl Sampling {
    /// The share of an epoch that classes of so many samples get.
    pub(super) fn shares(self, counts: &[usize]) -> Vec<f64> {
        let weights: Vec<f64> = counts
            .iter()
            .map(|&count| match self {
                Self::Uniform => f64::from(u8::from(count > 0)),
                Self::Sqrt => (count as f64).sqrt(),
            })
            .collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }
}

/// What [`BalanceSpec`] means for one class of a training set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassBalance {
    pub class: String,
    pub samples: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_weight: Option<f64>,
    /// Samples per epoch, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_adjustment: Option<f64>,
}

impl BalanceSpec {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses values out of range; paths are relative to `balance`.
    pub fn validate(&self) -> Result<(), Invalid> {
        match &self.loss {
            Some(ClassWeights::Given(weights)) => {
                let wrong = weights.iter().position(|weight| !(*weight >= 0.0 && weight.is_finite()));
                if let Some(at) = wrong {
                    let message = format!("{} is not a weight, 0 or more", weights[at]);
                    return Err(Invalid::new(format!("loss.{at}"), message));
                }
                if weights.iter().all(|weight| *weight == 0.0) {
                    return Err(Invalid::new("loss", "all weights are 0: nothing would be learnt"));
                }
            }
            Some(ClassWeights::Effective(EffectiveNumber { beta })) if !(0.0..1.0).contains(beta) => {
                return Err(Invalid::new("loss.effective.beta", format!("{beta} is not in 0..1")));
            }
            _ => {}
        }
        match self.logit_adjustment {
            Some(tau) if !(tau > 0.0 && tau.is_finite()) => {
                Err(Invalid::new("logit_adjustment", format!("{tau} is not a positive number")))
            }
            Some(_) if self.loss.is_some() || self.sampler.is_some() => {
                let message = "corrects for what `loss` and `sampler` correct: leave it or them out";
                Err(Invalid::new("logit_adjustment", message))
            }
            _ => Ok(()),
        }
    }

    /// What it means for each of the `outputs` classes of a network that learns from `train`; nothing where
    /// nothing is declared. Exit 2 where a list has another length or the targets are no classes.
    pub fn of(&self, train: &Dataset, outputs: usize) -> Result<Vec<ClassBalance>> {
        if self.is_none() {
            return Ok(Vec::new());
        }
        let is_multi_label = match &train.targets {
            Targets::Classes(_) => false,
            Targets::MultiLabel(_) => true,
            _ => return Err(fail(ExitCode::Usage, "balance: the targets are no classes; leave it out")),
        };
        let mut counts = train.class_counts();
        counts.resize(outputs.max(counts.len()), 0);
        if let Some(ClassWeights::Given(weights)) = &self.loss
            && weights.len() != counts.len()
        {
            let message = format!("balance.loss has {} weights for {} classes", weights.len(), counts.len());
            return Err(fail(ExitCode::Usage, message));
        }
        let samples = train.len();
        let weights = self.loss.as_ref().map(|loss| loss.of(&counts, samples, is_multi_label));
        let draws = self.sampler.map(|sampling| drawn(train, sampling, counts.len()));
        let adjustment = |count: usize| {
            // A class without samples counts as if it had one: its logarithm is finite.
            self.logit_adjustment.map(|tau| tau * (count.max(1) as f64 / samples as f64).ln())
        };
        let row = |(at, &count): (usize, &usize)| ClassBalance {
            class: train.classes.get(at).cloned().unwrap_or_else(|| at.to_string()),
            samples: count,
            loss_weight: weights.as_ref().map(|weights| weights[at]),
            draws: draws.as_ref().map(|draws| draws[at]),
            logit_adjustment: adjustment(count),
        };
        Ok(counts.iter().enumerate().map(row).collect())
    }
}

/// One line per class, such as `class daisy: 60 samples, loss weight 1.2, drawn 75 times per epoch`; of many
/// classes the most frequent and the rarest.
pub fn lines(classes: &[ClassBalance]) -> impl Iterator<Item = String> {
    const FEW: usize = 20;
    let mut order: Vec<&ClassBalance> = classes.iter().collect();
    let left_out = order.len().saturating_sub(FEW);
    if left_out > 0 {
        order.sort_by_key(|class| std::cmp::Reverse(class.samples));
    }
    let line = |class: &ClassBalance| {
        let mut line = format!("class {}: {} samples", class.class, class.samples);
        let [weight, draws, adjustment] =
            [class.loss_weight, class.draws, class.logit_adjustment].map(|number| number.map(rounded));
        line += &weight.map_or_else(String::new, |weight| format!(", loss weight {weight}"));
        line += &draws.map_or_else(String::new, |draws| format!(", drawn {draws} times per epoch"));
        line + &adjustment.map_or_else(String::new, |number| format!(", {number} added to its logit"))
    };
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for (at, class) in order.iter().enumerate() {
        if left_out == 0 || at < FEW / 2 {
            first.push(line(class));
        } else if at >= order.len() - FEW / 2 {
            last.push(line(class));
        }
    }
    let between = (left_out > 0).then(|| format!("… {left_out} classes between them"));
    first.into_iter().chain(between).chain(last)
}

/// To four digits.
fn rounded(number: f64) -> f64 {
    format!("{number:.3e}").parse().unwrap_or(number)
}

/// The samples with each class that an epoch draws, on average.
fn drawn(train: &Dataset, sampling: Sampling, classes: usize) -> Vec<f64> {
    let groups = groups(&train.targets);
    let shares = sampling.shares(&groups.iter().map(Vec::len).collect::<Vec<_>>());
    let mut draws = vec![0.0; classes];
    for (at, (members, share)) in groups.iter().zip(shares).enumerate() {
        let each = share * train.len() as f64 / members.len().max(1) as f64;
        match &train.targets {
            Targets::MultiLabel(ys) => {
                for &member in members {
                    let row = Vec::<f32>::try_from(ys.get(member)).unwrap_or_default();
                    draws.iter_mut().zip(row).for_each(|(draws, label)| *draws += each * f64::from(label));
                }
            }
            _ => draws[at] = each * members.len() as f64,
        }
    }
    draws
}

/// The samples of each class; with several labels those of which it is the rarest (of equals the first), and
/// last those without any. Empty where targets are no classes.
pub(super) fn groups(targets: &Targets) -> Vec<Vec<i64>> {
    let (group_of, classes): (Vec<usize>, usize) = match targets {
        Targets::Classes(labels) => {
            let classes = labels.iter().max().map_or(0, |&last| last as usize + 1);
            (labels.iter().map(|&label| label as usize).collect(), classes)
        }
        Targets::MultiLabel(ys) => {
            let rows = Vec::<Vec<f32>>::try_from(ys).unwrap_or_default();
            let classes = ys.size()[1] as usize;
            let counts: Vec<usize> =
                (0..classes).map(|class| rows.iter().filter(|row| row[class] > 0.0).count()).collect();
            let rarest = |row: &Vec<f32>| (0..classes).filter(|&c| row[c] > 0.0).min_by_key(|&c| counts[c]);
            (rows.iter().map(|row| rarest(row).unwrap_or(classes)).collect(), classes + 1)
        }
        _ => return Vec::new(),
    };
    let mut groups = vec![Vec::new(); classes];
    group_of.iter().zip(0..).for_each(|(&group, index)| groups[group].push(index));
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_scikit_learn_pytorch_and_the_paper() {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        // from sklearn.utils.class_weight import compute_class_weight
        // compute_class_weight("balanced", classes=[0, 1, 2], y=[0] * 6 + [1] * 3 + [2])
        let inverse = ClassWeights::Inverse.of(&[6, 3, 1], 10, false);
        assert!(close(&inverse, &[10.0 / 18.0, 10.0 / 9.0, 10.0 / 3.0]), "{inverse:?}");
        // The documentation of BCEWithLogitsLoss: 100 positive and 300 negative samples give 3.
        assert!(close(&ClassWeights::Inverse.of(&[100, 0, 400], 400, true), &[3.0, 1.0, 1.0]));
        // n, b = np.array([6, 3, 1]), 0.9; w = (1 - b) / (1 - b ** n); w / w.sum() * 3
        let effective = ClassWeights::Effective(EffectiveNumber { beta: 0.9 }).of(&[6, 3, 1], 10, false);
        let raw = [0.1 / (1.0 - 0.9f64.powi(6)), 0.1 / (1.0 - 0.9f64.powi(3)), 1.0];
        let sum: f64 = raw.iter().sum();
        assert!(close(&effective, &raw.map(|weight| 3.0 * weight / sum)), "{effective:?}");
        assert!(close(&Sampling::Sqrt.shares(&[9, 0, 1]), &[0.75, 0.0, 0.25]));
    }
}
