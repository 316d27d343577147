//! A CNN with a penalty, trained through the library: `cargo run --release --example minimal`.
//!
//! `tikhonov train` does the same from a file, and saves, resumes, logs and evaluates on the way.

use std::path::Path;

use anyhow::{Context, Result};
use tch::{Kind, no_grad};
use tikhonov::config::Config;
use tikhonov::data::{DatasetCache, Split};
use tikhonov::schedule::{Plateau, ScheduleStep};
use tikhonov::train::records::WeightStats;
use tikhonov::train::session::{ModelPlan, Session};
use tikhonov::util::yaml::Document;

const CONFIG: &str = "
model:
  input: [1, 28, 28]
  blocks: {unit: {args: {channels: ~}, layers: [conv2d: {out_channels: $channels, kernel_size: 3}, batch_norm2d, relu]}}
  layers:
    unit1: {unit: {channels: 8}}
    pool1: {max_pool2d: {kernel_size: 2}}
    unit2: {unit: {channels: 16}}
    pool2: {max_pool2d: {kernel_size: 2}}
    unit3: {unit: {channels: 32}}
    pool3: {adaptive_avg_pool2d: {output_size: 1}}
    flatten: flatten
    fc: {linear: {out_features: 4}}
task: classification
data:
  train: {shapes: {count: 4000, classes: 4, noise: 0.02}}
  test: {shapes: {count: 1000, classes: 4, noise: 0.02, seed: 1}}
  batch_size: 50
penalty: {l2: 1e-3}
optimizer: {adam: {lr: 1e-2}}
schedule: cosine
train: {epochs: 5}
";

pub fn main() -> Result<()> {
    let document = Document::parse("minimal", CONFIG)?;
    let config = Config::from_document(document, &[], [], Path::new("runs/minimal"))?;
    let (plan, device) = (ModelPlan::of(&config)?, config.spec.device.resolve()?);
    let session = Session::open(config, plan, device, &mut DatasetCache::default())?;
    let spec = &session.config.spec;
    let test_set = session.split(Split::Test).context("there is no test set")?;
    let (batches, test) = (session.loader(session.train()?, true)?, session.loader(test_set, false)?);

    let network = session.network()?;
    let params = network.parameters().iter().map(|param| (param.name.clone(), param.tensor.shallow_clone()));
    let mut optimizer = spec.optimizer.build(params.collect(), &session.groups)?;
    let (base_lr, steps_per_epoch) = (spec.optimizer.lr(), batches.steps() as u64);
    let epochs = spec.train.epochs.context("the config says how many epochs")?;
    let total_steps = epochs * steps_per_epoch;
    for epoch in 0..epochs {
        let (mut loss_sum, mut penalty) = (0.0, 0.0);
        for (step, batch) in (epoch * steps_per_epoch..).zip(batches.epoch(epoch, 0)) {
            let batch = batch?;
            let at = ScheduleStep { step, steps_per_epoch, total_steps };
            let lr = spec.schedule.lr(base_lr, at, &Plateau::default());
            let lambdas: Vec<_> = session.groups.iter().map(|group| group.lambdas(at)).collect();
            let loss = network.forward(&batch.xs, true).cross_entropy_for_logits(&batch.ys);
            loss.backward();
            optimizer.step(lr, &lambdas, None)?; // adds the gradient of the penalty
            optimizer.zero_grad()?;
            loss_sum += loss.double_value(&[]);
            penalty = WeightStats::of(&network, &session.groups, &lambdas, optimizer.initial(), lr, base_lr)?
                .penalty;
        }
        let mut correct = 0.0;
        for batch in test.epoch(0, 0) {
            let batch = batch?;
            let classes = no_grad(|| network.forward(&batch.xs, false)).argmax(1, false);
            correct += classes.eq_tensor(&batch.ys).sum(Kind::Double).double_value(&[]);
        }
        let (loss, accuracy) = (loss_sum / steps_per_epoch as f64, correct / test_set.len() as f64);
        println!("epoch {}: loss {loss:.4}, penalty {penalty:.4}, test accuracy {accuracy:.3}", epoch + 1);
    }
    Ok(())
}
