//! Generated regression: a noisy line, and a linear model whose weights are mostly zero.

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{OpenOptions, Source, positive, resident, try_with_capacity};
use crate::data::{Dataset, Targets};
use crate::util::rng::{CounterRng, RngStream};
use crate::util::yaml::Invalid;

/// The stream of the true weights, apart from those of the samples, whose epoch is the set's number.
const WEIGHTS: u64 = u64::MAX;

/// `{line: {slope: 3, intercept: 5, noise: 1, count: 100, low: 0, high: 2}}`: y = slope·x + intercept +
/// noise·ε with x uniform in [low, high) and ε standard normal. Inputs `[N, 1]`, targets `[N, 1]`.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping, such as `{slope: 3, intercept: 5, noise: 1, count: 100, low: 0, high: 2}`"
)]
pub struct LineSpec {
    /// The slope.
    pub slope: f64,
    /// The intercept.
    pub intercept: f64,
    /// Standard deviation of the noise.
    #[schemars(range(min = 0))]
    pub noise: f64,
    /// Number of samples.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Smallest x.
    pub low: f64,
    /// Largest x.
    pub high: f64,
    /// Decides the points; apart from the run's seed, so that runs with several seeds see the same data.
    #[serde(default)]
    pub seed: u64,
}

/// `{linear: {features: 50, informative: 5, noise: 0.1, count: 200}}`: y = x·w + noise·ε with x and ε
/// standard normal. `informative` of the weights lie in ±[1, 3), the others are zero. Inputs `[N, F]`,
/// targets `[N, 1]`.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(
    deny_unknown_fields,
    expecting = "a mapping, such as `{features: 50, informative: 5, noise: 0.1, count: 200}`"
)]
pub struct LinearSpec {
    /// Number of inputs.
    #[schemars(range(min = 1))]
    pub features: usize,
    /// Number of weights that are not zero, at most `features`.
    pub informative: usize,
    /// Standard deviation of the noise.
    #[schemars(range(min = 0))]
    pub noise: f64,
    /// Number of samples.
    #[schemars(range(min = 1))]
    pub count: usize,
    /// Decides weights and samples, apart from the run's seed.
    #[serde(default)]
    pub seed: u64,
}

impl Source for LineSpec {
    fn validate(&self) -> Result<(), Invalid> {
        finite("slope", self.slope)?;
        finite("intercept", self.intercept)?;
        finite("low", self.low)?;
        finite("high", self.high)?;
        deviation(self.noise)?;
        if self.low >= self.high {
            return Err(Invalid::new("high", format!("must be above low, which is {}", self.low)));
        }
        positive("count", self.count)
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let smaller = "take a smaller `line.count`";
        let (mut xs, mut ys) =
            (try_with_capacity(Some(self.count), smaller)?, try_with_capacity(Some(self.count), smaller)?);
        for index in 0..self.count as u64 {
            let mut rng = CounterRng::new(self.seed, options.part as u64, index, RngStream::Generate);
            let x = rng.between(self.low, self.high);
            xs.push(x);
            ys.push(self.slope * x + self.intercept + self.noise * rng.normal());
        }
        table(&xs, &ys, vec!["x".to_owned()])
    }
}

impl LinearSpec {
    /// The true weights, one per feature.
    pub fn weights(&self) -> Vec<f64> {
        let mut rng = CounterRng::new(self.seed, WEIGHTS, 0, RngStream::Generate);
        let mut weights = vec![0.0; self.features];
        for &feature in rng.permutation(self.features).iter().take(self.informative) {
            let sign = if rng.below(2) == 0 { -1.0 } else { 1.0 };
            weights[feature as usize] = sign * rng.between(1.0, 3.0);
        }
        weights
    }
}

impl Source for LinearSpec {
    fn validate(&self) -> Result<(), Invalid> {
        positive("features", self.features)?;
        positive("count", self.count)?;
        deviation(self.noise)?;
        if self.informative > self.features {
            return Err(Invalid::new(
                "informative",
                format!("must be at most features, which is {}", self.features),
            ));
        }
        Ok(())
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let smaller = "take a smaller `linear.count` or `linear.features`";
        let (mut xs, mut ys) = (
            try_with_capacity(self.count.checked_mul(self.features), smaller)?,
            try_with_capacity(Some(self.count), smaller)?,
        );
        let weights = self.weights();
        for index in 0..self.count as u64 {
            let mut rng = CounterRng::new(self.seed, options.part as u64, index, RngStream::Generate);
            let mut y = self.noise * rng.normal();
            for weight in &weights {
                let x = rng.normal();
                y += weight * x;
                xs.push(x);
            }
            ys.push(y);
        }
        table(&xs, &ys, (0..self.features).map(|feature| format!("x{feature}")).collect())
    }
}

fn table(xs: &[f64], ys: &[f64], features: Vec<String>) -> Result<Dataset> {
    let xs = Tensor::f_from_slice(xs)?.f_view([ys.len() as i64, features.len() as i64])?;
    let ys = Tensor::f_from_slice(ys)?.f_view([-1, 1])?;
    debug_assert_eq!(xs.kind(), Kind::Double);
    let mut set = resident(xs, Targets::Values(ys), Vec::new());
    set.features = features;
    Ok(set)
}

fn finite(key: &str, value: f64) -> Result<(), Invalid> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(Invalid::new(key, format!("must be a finite number, not {value}")))
    }
}

fn deviation(noise: f64) -> Result<(), Invalid> {
    finite("noise", noise)?;
    if noise < 0.0 { Err(Invalid::new("noise", format!("must be 0 or more, not {noise}"))) } else { Ok(()) }
}
