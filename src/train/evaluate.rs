//! Evaluation: one pass over a split, without augmentation, dropout or gradients.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use crate::data::loader::Loader;
use crate::libtorch::catch_panics;
use crate::libtorch::device;
use crate::metrics::{ModelOutput, Scores};
use crate::nn::model::Network;
use crate::tasks::Task;
use crate::train::sample_images::SampleImages;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::interrupt;

/// Noise that a task draws while it evaluates is the same every time.
const EVALUATION_SEED: u64 = 0;

/// The task's scores on all of `loader`, the data loss of the whole set first, whatever the batches.
/// `gallery` takes pictures on the way. Exit 5 where the loss is NaN or infinite, or what decides NaN: such
/// weights have no scores.
pub fn evaluate(
    network: &Network,
    task: &dyn Task,
    output: &[i64],
    loader: &Loader,
    gallery: &mut SampleImages,
) -> Result<Scores> {
    let mut meter = task.metrics(output);
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
                let answer = task.forward(network, &xs, false)?;
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
    let mut scores = meter.compute();
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
