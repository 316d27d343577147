//! The evidence lower bound of a variational autoencoder, in nats per sample.

use tch::{Kind, Tensor};

use super::{Metric, MetricArgs, ModelOutput, Score, Scores};
use crate::functional::loss::{Likelihood, kl_from_standard_normal};
use crate::nn::layers::reparametrize;

/// The bound and its two terms; sums float64 on the device.
#[derive(Debug)]
pub struct Elbo {
    likelihood: Likelihood,
    sums: Option<[Tensor; 2]>,
    count: i64,
}

/// −log p(ys | outputs) and the KL divergence of the latent, in nats per sample, `[N]` each.
pub fn nats(likelihood: Likelihood, answer: &ModelOutput, ys: &Tensor) -> (Tensor, Tensor) {
    let reconstruction = likelihood.nats(&answer.outputs, ys);
    let kl = match &answer.latent {
        Some(latent) => {
            let (mean, log_var) = reparametrize::moments(latent);
            kl_from_standard_normal(&mean, &log_var)
        }
        None => reconstruction.zeros_like(),
    };
    (reconstruction, kl)
}

impl Metric for Elbo {
    fn scores() -> &'static [Score] {
        const { &[Score::higher("elbo"), Score::lower("reconstruction"), Score::lower("kl")] }
    }

    fn tasks() -> &'static [&'static str] {
        &["generation"]
    }

    fn new(args: &MetricArgs) -> Self {
        Self { likelihood: args.likelihood, sums: None, count: 0 }
    }

    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let (reconstruction, kl) = nats(self.likelihood, answer, ys);
        let more = [reconstruction.sum(Kind::Double), kl.sum(Kind::Double)];
        self.sums = Some(match self.sums.take() {
            Some([a, b]) => [a + &more[0], b + &more[1]],
            None => more,
        });
        self.count += ys.size()[0];
    }

    fn compute(&self) -> Scores {
        let Some(sums) = &self.sums else { return Scores::default() };
        let [reconstruction, kl] = [0, 1].map(|i: usize| sums[i].double_value(&[]) / self.count as f64);
        let values = [("elbo", -reconstruction - kl), ("reconstruction", reconstruction), ("kl", kl)];
        Scores { values: values.map(|(name, value)| (name.into(), value)).into(), ..Scores::default() }
    }
}
