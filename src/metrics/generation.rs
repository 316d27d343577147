//! The evidence lower bound of a variational autoencoder, in nats per sample.

use tch::{Kind, Tensor};

use super::{Metric, ModelOutput, Scores};

/// −log p(ys | outputs) and the KL divergence of a latent, in nats per sample, `[N]` each.
pub type Nats = Box<dyn Fn(&ModelOutput, &Tensor) -> (Tensor, Tensor)>;

/// Sums float64 on the device.
pub struct GenerationMeter {
    nats: Nats,
    sums: Option<[Tensor; 2]>,
    count: i64,
}

impl GenerationMeter {
    pub fn new(nats: Nats) -> Self {
        Self { nats, sums: None, count: 0 }
    }
}

impl Metric for GenerationMeter {
    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let (reconstruction, kl) = (self.nats)(answer, ys);
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
