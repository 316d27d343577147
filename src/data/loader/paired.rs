//! Samples whose target is an image or a mask: the two travel as one picture, the target in the last channels, so that
//! a cut or a flip is the same for both.

use anyhow::Result;
use tch::{Kind, Tensor};

use crate::data::augment::Augment;
use crate::data::normalize::Normalize;
use crate::exit::{Exit, fail};

/// Refuses steps that would change the target otherwise than the image, or interpolate between classes.
pub fn check(augment: &[Augment]) -> Result<()> {
    let moves = |step: &&Augment| matches!(step, Augment::Flip(_) | Augment::Crop(_) | Augment::Dihedral(_));
    match augment.iter().find(|step| !moves(step)) {
        None => Ok(()),
        Some(step) => {
            let message = format!(
                "augment: `{}` does not go with targets that are images; flip, crop and dihedral do",
                step.name()
            );
            Err(fail(Exit::Usage, message))
        }
    }
}

/// The same normalisation with `channels` more that stay as they are.
pub fn leave_targets(mut normalize: Normalize, channels: i64) -> Normalize {
    normalize.mean.extend((0..channels).map(|_| 0.0));
    normalize.std.extend((0..channels).map(|_| 1.0));
    normalize
}

/// `[B, C + channels, H, W]` as `[B, C, H, W]` and `[B, channels, H, W]`.
pub fn part(xs: &Tensor, channels: i64) -> (Tensor, Tensor) {
    let own = xs.size()[1] - channels;
    (xs.narrow(1, 0, own).contiguous(), xs.narrow(1, own, channels).contiguous())
}

/// The class of each level 0 to 255: that of the nearest of `levels`, the first of two.
pub fn classes_of_levels(levels: &[u8]) -> Tensor {
    let nearest = |level: u8| {
        (0i64..).zip(levels).min_by_key(|(_, at)| at.abs_diff(level)).map_or(0, |(class, _)| class)
    };
    Tensor::from_slice(&(0..=255).map(nearest).collect::<Vec<i64>>())
}

/// `[B, 1, H, W]` in [0, 1] as int64 `[B, H, W]`.
pub fn mask(levels: &Tensor, classes: &Tensor) -> Tensor {
    let levels = (levels * 255.0).round().to_kind(Kind::Int64).squeeze_dim(1);
    classes.index_select(0, &levels.flatten(0, -1)).view_as(&levels)
}
