//! A λ that a gradient moves: Adam (Kingma and Ba 2015) on its logarithm.

use serde::{Deserialize, Serialize};

use super::{Auto, LambdaValues, ParamGroup};

/// Short memories: λ is one number, and what is best for it changes while the network learns.
const BETAS: (f64, f64) = (0.9, 0.99);
const RANGE: (f64, f64) = (1e-12, 1e3);

/// A tuned λ between two updates; a checkpoint holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunedLambda {
    /// The penalty group's label.
    pub group: String,
    pub lambda: f64,
    log_lambda: f64,
    /// Adam's means of the gradient and of its square.
    mean: f64,
    square: f64,
    updates: i32,
}

impl TunedLambda {
    /// Before its first update.
    pub fn new(group: &str, auto: Auto) -> Self {
        let (lambda, log_lambda) = (auto.start, auto.start.ln());
        Self { group: group.to_owned(), lambda, log_lambda, mean: 0.0, square: 0.0, updates: 0 }
    }

    /// Holds λ to at most `limit`, above 0.
    pub fn bound(&mut self, limit: f64) {
        if self.lambda > limit {
            (self.lambda, self.log_lambda) = (limit, limit.ln());
        }
    }

    /// Moves λ against `gradient` = dL_val/d log λ, which must be finite, by `lr` at the most, about.
    pub fn update(&mut self, gradient: f64, lr: f64) {
        self.updates += 1;
        self.mean = BETAS.0 * self.mean + (1.0 - BETAS.0) * gradient;
        self.square = BETAS.1 * self.square + (1.0 - BETAS.1) * gradient * gradient;
        let mean = self.mean / (1.0 - BETAS.0.powi(self.updates));
        let square = self.square / (1.0 - BETAS.1.powi(self.updates));
        if square > 0.0 {
            self.log_lambda -= lr * mean / square.sqrt();
            self.log_lambda = self.log_lambda.clamp(RANGE.0.ln(), RANGE.1.ln());
            self.lambda = self.log_lambda.exp();
        }
    }
}

/// Puts `tuned` λs in the place of those that their groups start with; `values` has one entry per group.
pub fn apply_tuned(groups: &[ParamGroup], values: &mut [LambdaValues], tuned: &[TunedLambda]) {
    for (group, values) in groups.iter().zip(values) {
        let Some(tuned) = tuned.iter().find(|tuned| tuned.group == group.label) else { continue };
        if let Some(at) = group.terms.iter().position(|term| term.lambda.auto().is_some()) {
            values.set(at, tuned.lambda);
        }
    }
}
