//! Evaluation: one pass over a split, without augmentation, dropout or gradients.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use crate::data::loader::Loader;
use crate::device;
use crate::gallery::Gallery;
use crate::libtorch::catching;
use crate::metrics::Scores;
use crate::model::Network;
use crate::tasks::Task;

/// Noise that a task draws while it evaluates is the same every time.
const EVALUATION_SEED: u64 = 0;

/// The task's scores on all of `loader`, the mean data loss first. `gallery` takes pictures on the way.
pub fn evaluate(
    network: &Network,
    task: &dyn Task,
    output: &[i64],
    loader: &Loader,
    gallery: &mut Gallery,
) -> Result<Scores> {
    let mut meter = task.meter(output);
    let mut loss_sum: Option<Tensor> = None;
    let mut samples = 0;
    device::seed(EVALUATION_SEED);
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        let loss = catching(|| {
            no_grad(|| -> Result<Tensor> {
                let (xs, ys) = task.prepare(batch.xs, batch.ys, false)?;
                let answer = task.answer(network, &xs, false)?;
                meter.add(&xs, &answer, &ys);
                gallery.look(task, &xs, &answer, &ys)?;
                samples += xs.size()[0];
                Ok(task.loss(&answer, &ys, None).to_kind(Kind::Double) * xs.size()[0])
            })
        })??;
        loss_sum = Some(match loss_sum.take() {
            Some(sum) => sum + loss,
            None => loss,
        });
    }
    let mut scores = meter.scores();
    if let Some(sum) = loss_sum {
        scores.values.insert(0, ("loss".into(), sum.double_value(&[]) / samples as f64));
    }
    Ok(scores)
}
