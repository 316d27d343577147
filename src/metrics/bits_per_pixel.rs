//! The rate of a compressed image.

use tch::{Kind, Tensor};

use super::{Metric, MetricArgs, ModelOutput, Score, Scores};
use crate::functional::bincount;

/// What a whole number in the code may be.
const LEVELS: i64 = 256;

/// The entropy of the code over all that was added: what an ideal coder needs that knows how often each
/// channel holds each value. Counts int64 on the device.
#[derive(Debug, Default)]
pub struct BitsPerPixel {
    /// `[C · LEVELS]`.
    counts: Option<Tensor>,
    pixels: i64,
}

impl Metric for BitsPerPixel {
    fn scores() -> &'static [Score] {
        const { &[Score::lower("bits_per_pixel")] }
    }

    fn tasks() -> &'static [&'static str] {
        &["compression"]
    }

    fn new(_args: &MetricArgs) -> Self {
        Self::default()
    }

    fn update(&mut self, _xs: &Tensor, answer: &ModelOutput, ys: &Tensor) {
        let Some(code) = &answer.latent else { return };
        let channels = code.size()[1];
        let channel = Tensor::arange(channels, (Kind::Int64, code.device())) * LEVELS;
        let channel = channel.view([&[1, -1], vec![1; code.dim() - 2].as_slice()].concat().as_slice());
        let level = (code.round() + (LEVELS / 2) as f64).clamp(0.0, (LEVELS - 1) as f64).to_kind(Kind::Int64);
        let cells = bincount(&(level + channel).reshape(-1), channels * LEVELS);
        self.counts = Some(match self.counts.take() {
            Some(sum) => sum + cells,
            None => cells,
        });
        let size = ys.size();
        self.pixels += size[0] * size[2..].iter().product::<i64>();
    }

    fn compute(&self) -> Scores {
        let Some(counts) = &self.counts else { return Scores::default() };
        let counts = counts.view([-1, LEVELS]).to_kind(Kind::Double);
        let totals = counts.sum_dim_intlist(&[1i64][..], true, Kind::Double);
        // 0 · log 0 is 0.
        let bits = (&counts * (totals / counts.clamp_min(1.0)).log2()).sum(Kind::Double);
        let value = bits.double_value(&[]) / self.pixels as f64;
        Scores { values: vec![("bits_per_pixel".into(), value)], ..Scores::default() }
    }
}
