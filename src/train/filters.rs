//! The filters of a network's first convolution as one picture, which reports show.

use anyhow::Result;
use tch::{Kind, Tensor, no_grad};

use crate::data::image::photo::Photo;
use crate::nn::model::Network;
use crate::tasks::Panel;
use crate::train::sample_images::sheet;

/// Filters in a row, and rows.
const ACROSS: i64 = 8;
const DOWN: i64 = 8;

/// The first convolution's filters of more than one pixel, in colour where they are of three channels, else the mean
/// over channels; 0 is grey, all on one scale. None of a network without one.
pub fn filters(network: &Network) -> Result<Option<Photo>> {
    let is_filter = |tensor: &Tensor| matches!(*tensor.size(), [_, _, height, width] if height * width > 1);
    let first = network.parameters().iter().find(|parameter| is_filter(&parameter.tensor));
    let Some(first) = first else { return Ok(None) };
    no_grad(|| {
        let weight = first.tensor.detach().to_kind(Kind::Float).to_device(tch::Device::Cpu);
        let weight = match weight.size()[1] {
            3 => weight,
            _ => weight.mean_dim([1i64].as_slice(), true, None::<Kind>),
        };
        let largest = weight.abs().max().clamp_min(1e-12);
        let shades: Tensor = weight / largest * 0.5 + 0.5;
        let count = shades.size()[0].min(ACROSS * DOWN);
        let rows: Vec<Vec<Panel>> = (0..count)
            .step_by(ACROSS as usize)
            .map(|from| {
                (from..count.min(from + ACROSS)).map(|at| Panel::new("", &shades.narrow(0, at, 1))).collect()
            })
            .collect();
        sheet(&rows).map(Some)
    })
}
