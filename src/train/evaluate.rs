//! Evaluation: one pass over a split, without augmentation, dropout or gradients.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use crate::data::loader::Loader;
use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::metrics::{MetricCollection, ModelOutput, Scores, Thresholds, Wanted};
use crate::nn::model::Network;
use crate::tasks::Task;
use crate::tasks::tta::Tta;
use crate::train::sample_images::SampleImages;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::interrupt;

/// Noise that a task draws while it evaluates is the same every time.
const EVALUATION_SEED: u64 = 0;

/// What is scored, and how answers are decided.
#[derive(Clone, Copy, Debug)]
pub struct Judging<'a> {
    /// Beside the scores that the task always has.
    pub wanted: Wanted<'a>,
    pub thresholds: Thresholds<'a>,
    /// Logits are divided by it first.
    pub temperature: Option<f64>,
    /// The views of an image whose answers are averaged.
    pub tta: Tta,
}

impl<'a> Judging<'a> {
    /// By these scores, with the thresholds of a checkpoint.
    pub fn new(wanted: &'a [String], thresholds: &'a [f64]) -> Self {
        let thresholds = Thresholds::Given(thresholds);
        Self { wanted: Wanted::Names(wanted), thresholds, temperature: None, tta: Tta::None }
    }
}

/// The task's scores on all of `loader`, the data loss of the whole set first, whatever the batches.
/// `gallery` takes pictures on the way. Exit 5 where the loss is NaN or infinite, or what decides NaN: such
/// weights have no scores.
pub fn evaluate(
    network: &Network,
    task: &dyn Task,
    output: &[i64],
    loader: &Loader,
    gallery: &mut SampleImages,
    judging: &Judging,
) -> Result<Scores> {
    let args = task.metric_args(output);
    let mut meter = MetricCollection::new(task.name(), &args, judging.wanted);
    // Losses times samples; of a loss that is no mean over samples, what it is a function of.
    let (mut loss_sum, mut sums): (Option<Tensor>, Option<Tensor>) = (None, None);
    let mut samples = 0;
    let mut indices = Vec::new();
    device::seed(EVALUATION_SEED);
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        interrupt::check("a network was being judged")?;
        indices.extend_from_slice(&batch.indices);
        let (sum, is_joint) = catch_panics(|| {
            no_grad(|| -> Result<(Tensor, bool)> {
                let (xs, ys) = task.make_batch(batch.xs, batch.ys, false)?;
                let answer = judging.tta.forward(task, network, &xs, judging.temperature)?;
                let scored = loader.in_data_units(&answer.outputs);
                let scored = ModelOutput {
                    outputs: scored,
                    latent: answer.latent.as_ref().map(Tensor::shallow_clone),
                };
                meter.update(&xs, &scored, &loader.in_data_units(&ys));
                gallery.observe(task, &xs, &answer, &ys)?;
                samples += xs.size()[0];
                Ok(match task.sums(&answer, &ys) {
                    Some(sums) => (sums, true),
                    None => (task.loss(&answer, &ys, None).to_kind(Kind::Double) * xs.size()[0], false),
                })
            })
        })??;
        let all = if is_joint { &mut sums } else { &mut loss_sum };
        *all = Some(match all.take() {
            Some(all) => all + sum,
            None => sum,
        });
    }
    if samples == 0 {
        return Err(fail(ExitCode::Data, "none of the samples to judge by can be read"));
    }
    let mut scores = meter.compute(judging.thresholds);
    scores.classes = loader.classes().to_vec();
    scores.indices = indices;
    let loss = match (sums, loss_sum) {
        (Some(sums), _) => Some(catch_panics(|| task.joint_loss(&sums).double_value(&[]))?),
        (None, Some(sum)) => Some(sum.double_value(&[]) / samples as f64),
        (None, None) => None,
    };
    scores.values.splice(0..0, loss.map(|loss| ("loss".into(), loss)));
    let is_broken = |(name, value): &&(String, f64)| match name.as_str() {
        "loss" => !value.is_finite(),
        name => name == task.default_monitor() && value.is_nan(),
    };
    match scores.values.iter().find(is_broken) {
        None => Ok(scores),
        Some((name, value)) => Err(fail(
            ExitCode::Numeric,
            format!("the {name} over {samples} samples became NaN or infinite ({value})"),
        )),
    }
}
