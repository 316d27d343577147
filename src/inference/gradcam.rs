//! Grad-CAM: Selvaraju et al. 2017, "Grad-CAM: visual explanations from deep networks via gradient-based
//! localization".

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::libtorch::catch_panics;
use crate::nn::model::{Network, features};
use crate::tasks::Task;
use crate::util::exit_code::{ExitCode, fail};

/// What one answer of a network depends on.
pub struct Cam {
    /// The output that was asked about.
    pub class: usize,
    /// Its value, before any softmax.
    pub score: f64,
    /// ReLU of the layer's channels weighted by the mean gradient of each, `[H, W]` as the layer has it.
    pub map: Tensor,
}

/// Of one prepared sample `xs` `[1, C, H, W]`: output `class`, the largest where absent, as far as the layer of `tap`
/// decides on it. Of outputs that are images the sum over the pixels counts. Exit 2 where the layer gives no image,
/// or there is no such output.
pub fn gradcam(
    task: &dyn Task,
    network: &Network,
    xs: &Tensor,
    tap: usize,
    class: Option<usize>,
) -> Result<Cam> {
    catch_panics(|| {
        let (answer, layer) = features(tap, true, || task.forward(network, xs, false));
        let outputs = answer?.outputs;
        let layer = layer.context("the layer did not run")?;
        if layer.dim() != 4 {
            let message =
                format!("the layer gives {:?}, and a map needs an image [C, H, W]", &layer.size()[1..]);
            return Err(fail(ExitCode::Usage, message));
        }
        let scores = outputs.get(0);
        let scores = if scores.dim() > 1 {
            scores.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)
        } else {
            scores
        };
        let count = scores.numel();
        let class = class.unwrap_or_else(|| scores.argmax(0, false).int64_value(&[]) as usize);
        if class >= count {
            return Err(fail(
                ExitCode::Usage,
                format!("there is no output {class}: the network has {count}"),
            ));
        }
        let score = scores.get(class as i64);
        score.backward();
        let gradient = layer.grad();
        if !gradient.defined() {
            return Err(fail(
                ExitCode::Usage,
                "the answer does not depend on this layer; choose another one",
            ));
        }
        let weights = gradient.mean_dim([2i64, 3].as_slice(), true, None::<Kind>);
        let map =
            (weights * layer.detach()).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>).relu().get(0);
        Ok(Cam { class, score: score.double_value(&[]), map: map.detach() })
    })?
}

/// The image `[1, C, H, W]` in [0, 1] under the map `[h, w]`, brought to its size and to [0, 1]: red where the map
/// is largest, blue where it is 0; `[1, 3, H, W]`.
pub fn overlay(image: &Tensor, map: &Tensor) -> Tensor {
    let size = image.size();
    let image = if size[1] == 3 { image.shallow_clone() } else { image.narrow(1, 0, 1).repeat([1, 3, 1, 1]) };
    let map = map.to_kind(Kind::Float).unsqueeze(0).unsqueeze(0);
    let map = map.upsample_bilinear2d([size[2], size[3]], false, None, None);
    let heat: Tensor = &map / map.max().clamp_min(1e-12);
    let channel = |middle: f64| -> Tensor {
        let distance: Tensor = (&heat * 4.0 - middle).abs();
        let shade: Tensor = 1.5 - distance;
        shade.clamp(0.0, 1.0)
    };
    let colours = Tensor::cat(&[channel(3.0), channel(2.0), channel(1.0)], 1);
    (image.to_kind(Kind::Float) + colours) / 2.0
}
