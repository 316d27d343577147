//! What the network will see, before anything is trained: samples of the first epoch as they are loaded, and as
//! augmentation, normalisation undone, makes them epoch by epoch.

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::data::image::photo::Photo;
use crate::data::loader::{Batch, Loader};
use crate::data::normalize::NormalizeSpec;
use crate::data::{Dataset, Targets};
use crate::libtorch::{catch_panics, device};
use crate::tasks::Panel;
use crate::train::sample_images::sheet;
use crate::train::session::{Session, loader};
use crate::util::exit_code::{ExitCode, fail};

/// A row for each of the first `samples` samples of epoch 1: as it is loaded, then as it comes in the epochs 1
/// to `epochs`. Mixtures are of the samples shown. Exit 2 where samples are no pictures.
pub fn preview(session: &Session, samples: usize, epochs: u64) -> Result<Photo> {
    let set = session.train()?;
    if set.shape.len() != 3 {
        let message = format!("samples of shape {:?} are no pictures: there is nothing to see", set.shape);
        return Err(fail(ExitCode::Usage, message));
    }
    let mut plain = session.config.spec.clone();
    plain.data.augment = Vec::new();
    let (plain, augmented) = (loader(&plain, session.device, set, true)?, session.loader(set, true)?);
    let mut order = augmented.order(0);
    order.truncate(samples);
    let mut rows: Vec<Vec<Panel>> = order.iter().map(|_| Vec::new()).collect();
    let name = |index: i64| set.name(index as usize).unwrap_or_else(|| format!("sample {}", index + 1));
    add(session, &plain, 0, &order, &mut rows, |index, label| format!("{} {label}", name(index)))?;
    for epoch in 0..epochs {
        add(session, &augmented, epoch, &order, &mut rows, |_, label| {
            format!("epoch {} {label}", epoch + 1)
        })?;
    }
    sheet(&rows)
}

/// Adds to each row what `loader` makes of its sample in `epoch`, under the caption of its index and label.
fn add(
    session: &Session,
    loader: &Loader,
    epoch: u64,
    order: &[i64],
    rows: &mut [Vec<Panel>],
    caption: impl Fn(i64, &str) -> String,
) -> Result<()> {
    let normalize = match &session.config.spec.data.normalize {
        NormalizeSpec::Given(normalize) => Some(normalize),
        _ => None,
    };
    let mut rows = rows.iter_mut();
    for batch in loader.samples(epoch, order.to_vec()) {
        let Batch { xs, ys, indices } = batch?;
        device::seed(session.config.spec.seed + epoch);
        let panels = catch_panics(|| -> Result<_> {
            let labels = labels(session.train()?, loader, &ys);
            let (xs, ys) = session.task.make_batch(xs, ys, true)?;
            let xs = normalize.map_or_else(|| xs.shallow_clone(), |done| done.undo(&xs));
            let one = |tensor: &Tensor, at: usize| tensor.narrow(0, at as i64, 1);
            let seen = |at: usize| session.task.seen(&one(&xs, at), &one(&ys, at));
            Ok((0..indices.len()).map(seen).zip(labels).collect::<Vec<_>>())
        })??;
        for (((mut panels, label), &index), row) in panels.into_iter().zip(&indices).zip(&mut rows) {
            if let Some(first) = panels.first_mut() {
                first.caption = caption(index, &label);
            }
            row.extend(panels);
        }
    }
    Ok(())
}

/// What is wanted of each sample, where it is no picture: classes with their shares, or numbers.
fn labels(set: &Dataset, loader: &Loader, ys: &Tensor) -> Vec<String> {
    let samples = ys.size()[0];
    let values = |at: i64| -> Vec<f64> {
        Vec::try_from(ys.get(at).to_kind(Kind::Double).view(-1).to_device(tch::Device::Cpu))
            .unwrap_or_default()
    };
    let class = |at: usize| loader.classes().get(at).cloned().unwrap_or_else(|| at.to_string());
    let label = |at: i64| match (&set.targets, ys.dim()) {
        (Targets::Classes(_), 1) => class(ys.int64_value(&[at]).max(0) as usize),
        (Targets::Classes(_) | Targets::MultiLabel(_), 2) => {
            let mut shares: Vec<_> =
                values(at).into_iter().enumerate().filter(|(_, share)| *share > 0.0).collect();
            shares.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            let shown = shares.iter().map(|&(at, share)| match share {
                1.0 => class(at),
                share => format!("{} {share:.2}", class(at)),
            });
            shown.collect::<Vec<_>>().join(" ")
        }
        (Targets::Values(_), _) => {
            let values = loader.in_data_units(&ys.narrow(0, at, 1)).to_kind(Kind::Double).view(-1);
            let values = Vec::<f64>::try_from(values.to_device(tch::Device::Cpu)).unwrap_or_default();
            values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    };
    (0..samples).map(label).collect()
}
